"""The language model evaluation harness (`lm_eval`): its tasks on a `GMModel`, under the name "gm_discrete".

    python -m gm_discrete.evaluation.harness --model gm_discrete --model_args pretrained=DIR --tasks lambada_openai

is `lm_eval` with this model registered; `import gm_discrete.evaluation.harness` registers it for `lm_eval.simple_evaluate`.
It needs `pip install "gm_discrete[lm_eval]"`.

What the harness calls a log-likelihood is here −(upper bound on −log p(continuation | context)), an estimate from below: the
bound of `likelihood_bound`, or for short continuations of a masked model that of `any_order_bound` or the exact value. The
noise of a request is seeded by the seed and the tokens of the request alone, for `loglikelihood` those of its context: the
choices of a question share it, and results depend neither on the batch size nor on the order of requests.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gm_discrete.data.tokenizers import check_tokenizer
from gm_discrete.evaluation.continuations import ContinuationScorer
from gm_discrete.models import GMModel
from gm_discrete.paths import Path

try:
    import lm_eval.models  # noqa: F401  # before any model registers, or the harness takes the list for complete
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError('the harness is not installed: pip install "gm_discrete[lm_eval]"') from error

OWN_ARGUMENTS = ("until", "do_sample", "max_gen_toks")
"""Generation arguments of the harness that are not passed on to `generate` under these names."""


@register_model("gm_discrete")
class GMHarness(TemplateLM):
    """A `GMModel` of text as a model of the harness.

    `loglikelihood`: (−bound on −log p(continuation | context), is_greedy). A continuation is greedy if decoding one token at
    a time, in each step the most probable token of the position with the greatest maximum, gives exactly these tokens; for
    models without masks no continuation is greedy. Tokens are split between context and continuation as for the harness's
    own models. A context that is too long is cut on the left.

    `loglikelihood_rolling`: the sum over windows of the model's length, by the chain rule: every token is scored once, after
    as much left context as fits into its window, at least `rolling_context` tokens.

    `generate_until`: `model.generate` with `max_gen_toks` new tokens after the context, cut at the first of `until` or the
    end-of-text token. As usual in the harness, without `do_sample` or with temperature 0 the most probable token is taken
    wherever the sampler fills a position (top_k = 1).

    An empty context is replaced by the tokenizer's beginning- or else end-of-text token, if it has one.

    Args:
        pretrained: folder or hub id of the model, or a `GMModel`.
        tokenizer: its folder or hub id, or a tokenizer; that of `pretrained` by default.
        batch_size: sequences in one call of the network, for likelihoods.
        device: by default a GPU if there is one; a `GMModel` stays where it is.
        num_samples, num_orders, exact_up_to, rolling_context: see `ContinuationScorer`.
        seed: seed of all noise.
        max_length: the most tokens of context and continuation; the model's `max_position_embeddings` by default.
        max_gen_toks: new tokens if a task does not say; by default half of `max_length`, at most 256.
        generation_batch_size: prompts per call of `generate`. With more than one, the noise of a text depends on the prompts
            in its batch; its distribution does not.
        max_batch_size: accepted because the harness passes it, and not used.
        generation: other arguments of `generate`, such as `num_steps`; those of a task take precedence.

    Raises:
        TypeError: the model is not a model of text.
        ValueError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        pretrained: str | GMModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int | str | None = 32,
        device: str | None = None,
        num_samples: int = 64,
        num_orders: int = 0,
        exact_up_to: int = 0,
        seed: int = 0,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        rolling_context: int = 1,
        generation_batch_size: int = 1,
        max_batch_size: int | None = None,
        **generation: object,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, GMModel):
            self.model = pretrained if device is None else pretrained.to(device)  # pyright: ignore[reportArgumentType]
        else:
            if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
                device = "cuda" if torch.cuda.is_available() else "cpu"  # the harness asks for cuda by default
            self.model = GMModel.from_pretrained(pretrained).to(device)  # pyright: ignore[reportArgumentType]
        self.model.eval()
        self._device = self.model.device
        path: Path = self.model.path
        text = "" in path.fields and path.is_discrete and not self.model.config.image_shape
        if not text or getattr(path, "coupled", False):
            raise TypeError(f"the harness needs a model of text, with an uncoupled discrete path, not {path!r}")
        if tokenizer is None:
            if isinstance(pretrained, GMModel):
                raise ValueError("tokenizer is missing; give it together with the model")
            tokenizer = pretrained
        loaded = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.tokenizer: Any = loaded
        check_tokenizer(loaded, vocab_size=self.model.config.vocab_size, mask_token_id=self.model.config.mask_token_id)
        self.max_length = int(max_length or self.model.config.max_position_embeddings)
        self.max_gen_toks = int(max_gen_toks or min(256, max(1, self.max_length // 2)))
        automatic = batch_size is None or str(batch_size).startswith("auto")
        self.batch_size = 32 if automatic else int(batch_size)  # pyright: ignore[reportArgumentType]
        self.scorer = ContinuationScorer(
            self.model, self.max_length, int(rolling_context), int(num_samples), int(num_orders), int(exact_up_to),
            self.batch_size,
        )  # fmt: skip
        self.seed, self.generation_batch_size = int(seed), int(generation_batch_size)
        for name, least in (("seed", 0), ("generation_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        self.generation = self._arguments(generation)

    # The interface of the harness

    @property
    def eot_token_id(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The token that replaces an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False, **kwargs)["input_ids"]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the class."""
        encoded = []
        for context, continuation in (request.args for request in requests):
            pair = self._encode_pair(context, continuation) if context else self._encode_alone(continuation)
            encoded.append(((context, continuation), *pair))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _encode_alone(self, continuation: str) -> tuple[list[int], list[int]]:
        """(context, tokens) of an empty context: as in the harness, its token is not doubled where tokens begin with it."""
        tokens, prefix = self.tok_encode(continuation), self.prefix_token_id
        if prefix is None:
            return [], tokens
        return ([prefix], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: object,
    ) -> list[tuple[float, bool]]:
        found = []
        for key, context, continuation in tqdm(requests, disable=disable_tqdm, desc="Log-likelihoods"):
            nats = self.scorer.nats(context, continuation, self._rng(context))
            found.append((-nats, self.scorer.is_greedy(context, continuation)))
            self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """See the class."""
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="Rolling"):
            tokens, prefix = self.tok_encode(text), self.prefix_token_id
            found.append(-self.scorer.nats([] if prefix is None else [prefix], tokens, self._rng(tokens)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """See the class."""
        grouped: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            grouped.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        texts: list[str] = [""] * len(requests)
        copies, seen = [0] * len(requests), Counter[str]()  # tasks may want several texts of one prompt: number them
        for i, request in enumerate(requests):
            copies[i] = seen[repr(request.args)]
            seen[repr(request.args)] += 1
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Generating") as bar:
            for group in grouped.values():
                group.sort(key=lambda i: (len(requests[i].args[0]), requests[i].args[0]))
                for start in range(0, len(group), self.generation_batch_size):
                    chunk = group[start : start + self.generation_batch_size]
                    prompts = [(requests[i].args[0], copies[i]) for i in chunk]
                    for i, text in zip(chunk, self._generate(prompts, requests[chunk[0]].args[1]), strict=True):
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(chunk))
        return texts

    # Details

    def _rng(self, tokens: Sequence[int]) -> torch.Generator:
        """A generator seeded by the seed and these tokens alone."""
        digest = hashlib.sha256(repr((self.seed, list(tokens))).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _arguments(self, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments, checked to be those of `generate`.

        Raises:
            ValueError: there are others.
        """
        known = argument_names(self.model.generate) - {"input_ids", "attention_mask"}
        if unknown := arguments.keys() - known:
            raise ValueError(f"{', '.join(sorted(unknown))} is no argument of the harness model or of generate")
        return arguments

    def _generate(self, prompts: list[tuple[str, int]], gen_kwargs: dict[str, Any]) -> list[str]:
        """Texts for (prompt, number of its copy), which share their arguments."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until, new = handle_stop_sequences(options["until"], None), int(options["max_gen_toks"])
        if not 0 < new < self.max_length:
            raise ValueError(f"max_gen_toks={new} must be at least 1 and less than max_length={self.max_length}")
        own = {name: value for name, value in options.items() if name not in OWN_ARGUMENTS}
        if not options.get("do_sample", False) or own.get("temperature") == 0:
            own = {name: value for name, value in own.items() if name != "temperature"} | {"top_k": 1}
        encoded = [
            (self.tok_encode(prompt) or self._encode_alone("")[0])[new - self.max_length :] for prompt, _ in prompts
        ]
        longest = max(map(len, encoded))
        pad = self.tokenizer.pad_token_id or 0  # masked out below
        input_ids = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in encoded], dtype=torch.long)
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in encoded], dtype=torch.long)
        source = [number for tokens, (_, copy) in zip(encoded, prompts, strict=True) for number in (*tokens, -copy)]
        in_blocks = self.model.config.block_size or "blocks" in (self.generation | own)
        if self.eot_token_id is not None and in_blocks:
            own.setdefault("eos_token_id", self.eot_token_id)
        arguments: dict[str, Any] = {"seed": self._rng(source).initial_seed()} | self._arguments(self.generation | own)
        sequences = self.model.generate(input_ids, attention_mask=mask, max_new_tokens=new, **arguments)
        texts = []
        for tokens, row in zip(encoded, sequences.tolist(), strict=True):
            new_tokens = row[len(tokens) : len(tokens) + new]
            if self.eot_token_id in new_tokens:
                new_tokens = new_tokens[: new_tokens.index(self.eot_token_id)]
            text = self.tokenizer.decode(new_tokens, skip_special_tokens=True)
            texts.append(postprocess_generated_text(text, until, None))
        return texts


def argument_names(function: Callable[..., Any]) -> set[str]:
    """The names of the arguments of a function, those of `**kwargs: Unpack[…]` included."""
    names = set[str]()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.add(name)
        else:
            # Only this annotation is evaluated: those of the other arguments may hold forward references.
            scope = inspect.unwrap(getattr(function, "__func__", function)).__globals__
            annotation = parameter.annotation
            unpacked = eval(annotation, scope) if isinstance(annotation, str) else annotation
            names |= {key for options in get_args(unpacked) for key in get_type_hints(options)}
    return names


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
