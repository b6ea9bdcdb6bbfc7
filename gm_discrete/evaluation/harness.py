"""The language model evaluation harness (`lm_eval`): its tasks on a `GMModel`, under the name "gm_discrete".

    python -m gm_discrete.evaluation.harness --model gm_discrete --model_args pretrained=DIR --tasks lambada_openai

is `lm_eval` with this model registered; `import gm_discrete.evaluation.harness` registers it for `lm_eval.simple_evaluate`.
It needs `pip install "gm_discrete[lm_eval]"`.

What the harness calls a log-likelihood is here −(upper bound on −log p(continuation | context)), an estimate from below: the
bound of `likelihood_bound`, or for short continuations of a masked model that of `any_order_bound` or the exact value. The
noise of a request comes from the seed and the request's own tokens alone, for `loglikelihood` those of its context: the
choices of a question share it, and results depend neither on the batch size nor on the order of requests.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gm_discrete.data import check_tokenizer
from gm_discrete.likelihood import Likelihood, likelihood_bound
from gm_discrete.likelihood.any_order import any_order_bound, any_order_likelihood
from gm_discrete.models import GMModel
from gm_discrete.paths import FinitePath, MaskedPath

try:
    import lm_eval.models  # noqa: F401  # before any model registers, or the harness takes the list for complete
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError('the harness is not installed: pip install "gm_discrete[lm_eval]"') from error

OWN_ARGUMENTS = ("until", "do_sample", "max_gen_toks")
"""What the harness says of a generation that `generate` is not told as it stands."""


@register_model("gm_discrete")
class GMHarness(TemplateLM):
    """A `GMModel` of symbols as a model of the harness.

    `loglikelihood`: (−bound on −log p(continuation | context), is_greedy). A continuation is greedy if decoding it one token
    at a time, each step the most probable symbol of the position that is surest of its own, gives exactly these tokens; of
    models without masks no continuation is called greedy. Tokens are split between context and continuation as for the
    harness's own models. A context that is too long loses its left end.

    `loglikelihood_rolling`: the sum over windows of the model's length, by the chain rule: every token is scored once, with
    as much on its left as fits beside what its window scores, at least `rolling_context` tokens.

    `generate_until`: `model.generate` with `max_gen_toks` new tokens behind the context, cut at the first of `until` or the
    end-of-text token. As the harness has it, without `do_sample` or a temperature the most probable symbol is taken wherever
    the sampler fills a position (top_k = 1).

    An empty context is the tokenizer's beginning- or else end-of-text token, where it has one.

    Args:
        pretrained: folder or hub id of the model, or a `GMModel`.
        tokenizer: its folder or hub id, or a tokenizer; that of `pretrained` by default.
        batch_size: sequences that the network reads at once for a likelihood.
        device: a GPU if there is one, by default; of a `GMModel` where it is.
        num_samples: draws of the bound for each continuation or window.
        num_orders: M of `any_order_bound`, in place of `likelihood_bound`, for a masked model; 0 for none. It is the better
            estimate of short continuations, and takes up to M network rows per token.
        exact_up_to: continuations of at most so many tokens are scored exactly (masked models that do not see the time).
        seed: of all noise.
        max_length: tokens of context and continuation; what the model was trained for by default.
        max_gen_toks: new tokens where a task does not say; half of `max_length`, at most 256, by default.
        rolling_context: see above.
        generation_batch_size: prompts per call of `generate`. With more than one a text depends on which others share its
            batch, though its law does not.
        max_batch_size: taken, as the harness passes it, and not used.
        generation: other arguments of `generate`, such as `num_steps`; those of a task go first.

    Raises:
        TypeError: the model is not one of sequences of symbols.
        ValueError: an argument is out of its range; the message names it.
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
        **generation: Any,
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
        path: Any = self.model.path
        if not isinstance(path, FinitePath) or self.model.config.image_shape or path.coupled:
            raise TypeError(f"the harness scores text: {path!r} is not a path of sequences of symbols alone")
        if tokenizer is None:
            if isinstance(pretrained, GMModel):
                raise ValueError("tokenizer is missing; give it beside the model")
            tokenizer = pretrained
        loaded = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.tokenizer: Any = loaded
        check_tokenizer(loaded, vocab_size=self.model.config.vocab_size, mask_token_id=self.model.config.mask_token_id)
        self.max_length = int(max_length or self.model.config.max_position_embeddings)
        self.max_gen_toks = int(max_gen_toks or min(256, max(1, self.max_length // 2)))
        automatic = batch_size is None or str(batch_size).startswith("auto")
        self.batch_size = 32 if automatic else int(batch_size)  # pyright: ignore[reportArgumentType]
        self.num_samples, self.num_orders, self.exact_up_to = int(num_samples), int(num_orders), int(exact_up_to)
        self.rolling_context, self.generation_batch_size = int(rolling_context), int(generation_batch_size)
        self.seed = int(seed)
        for name, least in (
            ("batch_size", 1), ("num_samples", 1), ("num_orders", 0), ("exact_up_to", 0), ("seed", 0), ("max_length", 2),
            ("rolling_context", 0), ("generation_batch_size", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.rolling_context >= self.max_length:
            raise ValueError(f"rolling_context={rolling_context} must leave room in max_length={self.max_length}")
        self.masked = isinstance(path, MaskedPath)
        if (self.num_orders or self.exact_up_to) and not self.masked:
            raise ValueError(f"num_orders and exact_up_to are of masked models, not of {path!r}")
        if self.exact_up_to and self.model.config.time_conditioning:
            raise ValueError("exact_up_to needs a model that does not see the time; use num_orders")
        self.generation = self._arguments(generation)

    # What the harness asks of a model

    @property
    def eot_token_id(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What an empty context becomes."""
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

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False, **kwargs)["input_ids"]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the class."""
        encoded = []
        for context, continuation in (request.args for request in requests):
            pair = self._encode_pair(context, continuation) if context else self._encode_alone(continuation)
            encoded.append(((context, continuation), *pair))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _encode_alone(self, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens behind an empty context. If they begin with its token, that is the context, as in the harness."""
        tokens, prefix = self.tok_encode(continuation), self.prefix_token_id
        if prefix is None:
            return [], tokens
        return ([prefix], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        found = []
        for key, context, continuation in tqdm(requests, disable=disable_tqdm, desc="Log-likelihoods"):
            nats = self._nats(context, continuation, self._rng(context))
            found.append((-nats, self._is_greedy(context, continuation)))
            self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """See the class."""
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="Rolling"):
            tokens, prefix = self.tok_encode(text), self.prefix_token_id
            found.append(-self._nats([] if prefix is None else [prefix], tokens, self._rng(tokens)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """See the class."""
        grouped: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            grouped.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        texts: list[str] = [""] * len(requests)
        copies, seen = [0] * len(requests), Counter[str]()  # of a task that wants several texts of a prompt
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

    # How it is found

    def _rng(self, tokens: Sequence[int]) -> torch.Generator:
        """Noise of the seed and these tokens alone."""
        digest = hashlib.sha256(repr((self.seed, list(tokens))).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _nats(self, context: list[int], tokens: list[int], rng: torch.Generator) -> float:
        """The bound on −log p(tokens | context), summed over windows."""
        return sum(
            self._window(*window, rng) for window in windows(context, tokens, self.max_length, self.rolling_context)
        )

    def _window(self, context: list[int], tokens: list[int], rng: torch.Generator) -> float:
        z = torch.tensor([context + tokens], device=self.model.device)
        common: dict[str, Any] = {"scored": self._behind(z, len(context)), "batch_size": self.batch_size}
        if len(tokens) <= self.exact_up_to:
            bound: Likelihood = any_order_likelihood(self.model, z, max_scored=self.exact_up_to, **common)
        elif self.num_orders:
            bound = any_order_bound(self.model, z, num_orders=self.num_orders, rng=rng, **common)
        else:
            bound = likelihood_bound(self.model, z, num_samples=self.num_samples, rng=rng, **common)
        return float(bound.nats)

    @staticmethod
    def _behind(z: Tensor, start: int) -> Tensor:
        return (torch.arange(z.shape[1], device=z.device) >= start).expand(z.shape)

    @torch.no_grad()
    def _is_greedy(self, context: list[int], tokens: list[int]) -> bool:
        if not self.masked or not tokens or len(tokens) > self.max_length:
            return not tokens
        z = torch.tensor([(context + tokens)[-self.max_length :]], device=self.model.device)
        path, count, size = self.model.path, len(tokens), self.model.config.block_size
        masked = self._behind(z, z.shape[1] - count)
        for left in range(count, 0, -1):
            t = path.schedule.inverse(torch.tensor([1 - left / count], dtype=torch.float64, device=z.device))
            x, where = torch.where(masked, path.mask_token_id, z), masked.flatten().nonzero().squeeze(1)
            if size:  # block after block, as such a model generates
                where = where[where // size == where[0] // size]
            chance, symbol = self.model.generator(x, t).kernel.log_probs(where).max(1)  # pyright: ignore
            surest = int(chance.argmax())
            if int(symbol[surest]) != int(z[0, where[surest]]):
                return False
            masked = masked.clone()
            masked[0, where[surest]] = False
        return True

    def _arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            ValueError: `generate` takes no such argument.
        """
        taken = inspect.signature(self.model.generate).parameters.keys() - {"input_ids", "attention_mask"}
        if unknown := given.keys() - taken:
            raise ValueError(f"{', '.join(sorted(unknown))}: neither the harness model nor generate takes these")
        return given

    def _generate(self, prompts: list[tuple[str, int]], gen_kwargs: dict[str, Any]) -> list[str]:
        """Texts of prompts, each with the number of its copy, that share their arguments."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until, new = handle_stop_sequences(options["until"], None), int(options["max_gen_toks"])
        if not 0 < new < self.max_length:
            raise ValueError(f"max_gen_toks={new} must be at least 1 and leave room in max_length={self.max_length}")
        own = {name: value for name, value in options.items() if name not in OWN_ARGUMENTS}
        if not options.get("do_sample", False) or own.get("temperature") == 0:
            own = {name: value for name, value in own.items() if name != "temperature"} | {"top_k": 1}
        encoded = [
            (self.tok_encode(prompt) or self._encode_alone("")[0])[new - self.max_length :] for prompt, _ in prompts
        ]
        longest = max(map(len, encoded))
        pad = self.tokenizer.pad_token_id or 0  # hidden by the mask
        input_ids = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in encoded], dtype=torch.long)
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in encoded], dtype=torch.long)
        source = [number for tokens, (_, copy) in zip(encoded, prompts, strict=True) for number in (*tokens, -copy)]
        if self.eot_token_id is not None and (
            self.model.config.block_size or (self.generation | own).get("block_length")
        ):
            own.setdefault("eos_token_id", self.eot_token_id)
        arguments: dict[str, Any] = {"seed": self._rng(source).initial_seed()} | self._arguments(self.generation | own)
        sequences = self.model.generate(input_ids, attention_mask=mask, max_new_tokens=new, **arguments)
        texts = []
        for tokens, row in zip(encoded, sequences.tolist(), strict=True):
            said = row[len(tokens) : len(tokens) + new]
            said = said[: said.index(self.eot_token_id)] if self.eot_token_id in said else said
            texts.append(postprocess_generated_text(self.tokenizer.decode(said, skip_special_tokens=True), until, None))
        return texts


def windows(context: list[int], tokens: list[int], length: int, kept: int = 1) -> Iterator[tuple[list[int], list[int]]]:
    """(left context, tokens to score) of windows of at most `length`: every token once, behind as much as fits, and behind
    at least `kept` tokens where there are as many."""
    done = 0
    while done < len(tokens):
        before = context + tokens[:done]
        scored = tokens[done : done + length - min(kept, len(before))]
        yield before[max(0, len(before) + len(scored) - length) :], scored
        done += len(scored)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
