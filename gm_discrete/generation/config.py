"""The defaults of `generate`: `generation_config.json`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypedDict, TypeGuard, cast

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, __version__
from transformers.utils import logging

from gm_discrete.arguments import numbers
from gm_discrete.configurable import Configurable
from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.names import NOT_HERE, RENAMED, RENAMED_DEFAULTS, from_0_1, has_effect
from gm_discrete.paths.euclidean import Weights
from gm_discrete.renamed import refuse_unknown
from gm_discrete.samplers import SPACINGS, Corrector, Sampler
from gm_discrete.samplers.removed import hint

logger = logging.get_logger(__name__)


class TransformersOptions(TypedDict, total=False):
    """The options of `generate` that transformers' own `generate` has, too; they have the same meaning."""

    max_new_tokens: int | None
    max_length: int | None
    num_return_sequences: int | None
    do_sample: bool | None
    temperature: float | Sequence[float] | None
    top_k: int | None
    top_p: float | None
    guidance_scale: float | None
    use_cache: bool | None
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    return_dict_in_generate: bool | None


class GMGenerationConfig(GenerationConfig):
    """Defaults of `generate`, saved as `generation_config.json` beside the weights.

    top_k, top_p and temperature are off by default: each of them changes the distribution of the samples.

    Args:
        num_steps: N, steps of the time grid.
        grid: spacing of the grid, `"linear"` or `"quadratic"` in κ or `"geometric"` (see `time_grid`; by default the path's
            own), or all times from 0 to 1 in place of `num_steps`.
        sampler: a `Sampler`, or its name for one with default options: `"tau_leaping"`, `"euler"`, `"heun"`,
            `"trapezoidal"`, `"first_hitting"`, `"uniformization"`, `"adaptive"`, `"entropy_bounded"`, `"dopri5"`. Samplers
            that choose their own times use the grid only for a streamer, stopping criteria, a trajectory or a corrector.
            `python -m gm_discrete.generation.validation` prints which sampler fits which path.
        corrector: `DetailedBalance` or `ReMDM`, or its name for one with default options.
        blocks: `Blocks(length)` fills the positions block by block (semi-autoregressive generation); by default only models
            with a `block_size` do, in blocks of that size.
        generators: weights of a superposition, in place of those of the path; for a product path by field.
        length: positions of a sample without prompt, or a dict by field; by default the length that the model is trained at.
        seed: of all noise; by default drawn from torch's global generator.
        output_trajectory: return a `Trajectory` of all states; needs `return_dict_in_generate=True`.
        compile: compile the layers of the network, and on a GPU replay its calls as CUDA graphs. Off by default: the first
            calls take longer, and later ones are faster (see `nn.replay`).
        max_new_tokens: positions to fill after each prompt; 0 by default, which fills only the mask tokens inside.
        max_length: positions of a sample, the prompt included; in place of max_new_tokens or length. Of strings (`EditPath`)
            the greatest number of symbols, as max_new_tokens is the greatest number of new ones.
        num_return_sequences: samples for each prompt or each row of the other arguments, one after another.
        do_sample: False is temperature=0, and seed=0 unless another is given: the same call returns the same samples. When
            the jumps happen, and so the order in which tokens are revealed, is still random.
        temperature: divides the logits of the posterior π of the data tokens, before it becomes rates; at 0 a jump lands on
            the token that is most likely given the other tokens. A pair is a schedule, linear in time from t = 0 to t = 1.
            Decoding orders score π before it, and before top_k and top_p.
        top_k, top_p: truncate π, after the temperature.
        guidance_scale: γ of classifier-free guidance towards `class_labels`, π ∝ π_c^γ π_u^{1−γ}; 1 (off) by default.
        use_cache: keep keys and values of finished blocks, for models with a `block_size`; short for
            `blocks=Blocks(block_size, cache="exact")`. False turns any cache of `blocks` off.
        eos_token_id: ends a sequence that is generated in blocks when it is generated after the prompt.
        pad_token_id: token after shorter sequences; by default the model's own.
        bos_token_id: as in the tokenizer; not used.
        bad_words_ids: sequences of token ids that may not occur, for masked paths.
        return_dict_in_generate: return a `GMGenerateOutput` in place of the samples.

    >>> from gm_discrete import Adaptive, GMGenerationConfig
    >>> config = GMGenerationConfig(num_steps=32, sampler=Adaptive(max_expected_changes=2.0), top_p=0.9)
    >>> config.to_dict()["sampler"]
    {'type': 'adaptive', 'max_expected_changes': 2.0, 'tolerance': 0.002}
    >>> GMGenerationConfig.from_dict(config.to_dict()) == config
    True
    """

    def __init__(
        self,
        *,
        num_steps: int = 128,
        grid: str | Sequence[float] | Tensor | None = None,
        sampler: Sampler | str | Mapping[str, Any] = "tau_leaping",
        corrector: Corrector | str | Mapping[str, Any] | None = None,
        blocks: Blocks | Mapping[str, Any] | None = None,
        generators: Mapping[str, Any] | None = None,
        length: int | Mapping[str, int] | None = None,
        seed: int | None = None,
        output_trajectory: bool = False,
        compile: bool = False,
        max_new_tokens: int = 0,
        max_length: int | None = None,
        num_return_sequences: int = 1,
        do_sample: bool | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        use_cache: bool | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
        return_dict_in_generate: bool = False,
        transformers_version: str | None = None,
        _commit_hash: str | None = None,
        _from_model_config: bool = False,
        **others: object,
    ) -> None:  # does not call the parent's, which sets defaults that this class has no use for, such as top_k = 50
        others = {name: value for name, value in others.items() if has_effect(name, value)}
        if others and transformers_version is None:
            refuse_unknown(others, "GMGenerationConfig", {**RENAMED, **RENAMED_DEFAULTS, **NOT_HERE}, known_options())
        for name, value in others.items():  # of a file; kept, as transformers does
            logger.warning(f"generation config: {name}={value!r} has no effect on a GMModel")
            setattr(self, name, value)
        self.num_steps, self.grid = num_steps, grid
        self.sampler = cast(Sampler, sampler)  # `validate` makes an object of a name or a dict
        self.corrector, self.blocks = cast("Corrector | None", corrector), cast("Blocks | None", blocks)
        self.generators: Weights | Mapping[str, Weights] | None = generators
        self.length, self.seed, self.output_trajectory, self.compile = length, seed, output_trajectory, compile
        self.max_new_tokens, self.temperature, self.top_k, self.top_p = max_new_tokens, temperature, top_k, top_p
        self.guidance_scale, self.use_cache = guidance_scale, use_cache
        self.eos_token_id, self.pad_token_id, self.bos_token_id = eos_token_id, pad_token_id, bos_token_id
        self.max_length, self.num_return_sequences, self.do_sample = max_length, num_return_sequences, do_sample
        self.bad_words_ids, self.return_dict_in_generate = bad_words_ids, return_dict_in_generate
        self.transformers_version, self._commit_hash = transformers_version, _commit_hash
        self._from_model_config, self._original_object_hash = _from_model_config, None
        self.validate()

    def validate(self, *_: object, **__: object) -> None:
        """Makes objects of names and dicts, and checks each option by itself (`generation.validation`: what fits what).

        Raises:
            ValueError, TypeError: an argument is out of its range; the message names it.
        """
        self.sampler = Sampler.of(self.sampler)
        self.corrector = None if self.corrector is None else Corrector.of(self.corrector)
        self.blocks = None if self.blocks is None else Blocks.of(self.blocks)
        if isinstance(self.grid, Tensor) or _is_list(self.grid):
            self.grid = numbers("grid", self.grid)
        for name, least, optional in (
            ("num_steps", 1, False),
            ("length", 1, True),
            ("top_k", 1, True),
            ("max_new_tokens", 0, False),
            ("max_length", 1, True),
            ("num_return_sequences", 1, False),
            ("seed", 0, True),
        ):
            value = getattr(self, name)
            for number in value.values() if name == "length" and isinstance(value, Mapping) else [value]:
                whole = isinstance(number, int) and not isinstance(number, bool) and number >= least
                if not whole and not (optional and number is None):
                    raise ValueError(f"{name}={number!r} must be an integer ≥ {least}")
        grid, scale, words = self.grid, self.temperature, self.bad_words_ids
        times = grid if isinstance(grid, list) else [0.0]
        spaced = len(times) > 1 and times[0] == 0 and times[-1] == 1 and all(a < b for a, b in pairwise(times))
        scales: Sequence[object] = scale if _is_list(scale) and len(scale) == 2 else [scale]
        for name, allowed, expected in (
            (
                "grid",
                spaced or grid in SPACINGS,
                f"one of {', '.join(SPACINGS)}, or increasing times from 0 to 1{hint(grid)}",
            ),
            (
                "temperature",
                all(_is_number(part) and 0 <= part < math.inf for part in scales),
                "≥ 0 and finite, or a pair of such numbers",
            ),
            ("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number in (0, 1]"),
            (
                "guidance_scale",
                _is_number(self.guidance_scale) and 0 <= self.guidance_scale < math.inf,
                "≥ 0; 1 is no guidance",
            ),
            (
                "eos_token_id",
                _are_ids(self.eos_token_id) or _are_ids([self.eos_token_id]),
                "a token id, or a list of them",
            ),
            ("pad_token_id", _are_ids([self.pad_token_id]), "a token id"),
            ("bos_token_id", _are_ids([self.bos_token_id]), "a token id"),
            ("bad_words_ids", _is_list(words) and all(map(_are_ids, words)), "a list of lists of token ids"),
            ("generators", isinstance(self.generators, Mapping), 'a dict of weights such as {"flow": 1.0}'),
            ("do_sample", isinstance(self.do_sample, bool), "True or False"),
            ("use_cache", isinstance(self.use_cache, bool), "True or False"),
            ("output_trajectory", isinstance(self.output_trajectory, bool), "True or False"),
            ("compile", isinstance(self.compile, bool), "True or False"),
            ("return_dict_in_generate", isinstance(self.return_dict_in_generate, bool), "True or False"),
        ):
            if getattr(self, name) is not None and not allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {expected}")
        if self.max_length is not None and (self.max_new_tokens or self.length is not None):
            other = "max_new_tokens" if self.max_new_tokens else "length"
            raise ValueError(f"max_length={self.max_length} and {other}={getattr(self, other)}: give one of them")
        if scale is not None and (scale == 0 if self.do_sample else self.do_sample is False and scale not in (0, 1)):
            raise ValueError(
                f"do_sample={self.do_sample} and temperature={scale}: temperature=0 takes the most likely tokens, as "
                "do_sample=False does; give one of them"
            )
        if self.output_trajectory and not self.return_dict_in_generate:
            raise ValueError(
                "output_trajectory=True is a part of the output of return_dict_in_generate=True: give both"
            )

    def blocks_for(self, block_size: int | None) -> Blocks | None:
        """How a model with that `block_size` generates: block by block, or (`None`) all positions together."""
        blocks = Blocks(block_size) if self.blocks is None and block_size is not None else self.blocks
        if blocks is None or self.use_cache is None:
            return blocks
        return Blocks(blocks.length, (blocks.cache or "exact") if self.use_cache else None)

    def updated(self, changes: Mapping[str, Any]) -> GMGenerationConfig:
        """A copy with the changes that are not `None`. With another sampler the corrector is not kept."""
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        kept: dict[str, Any] = {name: getattr(self, name) for name in known_options()}
        if "num_steps" in given and not isinstance(self.grid, str):
            kept["grid"] = None
        if "sampler" in given:
            kept["corrector"] = None
        if "blocks" in given:
            kept["use_cache"] = None
        if "max_length" in given:
            kept |= {"max_new_tokens": 0, "length": None}
        if given.keys() & {"max_new_tokens", "length"}:
            kept["max_length"] = None
        if "temperature" in given:
            kept["do_sample"] = None
        if given.get("do_sample") is False or ("do_sample" in given and self.temperature == 0):
            kept["temperature"] = None
        return GMGenerationConfig(**{**kept, **given})

    def to_dict(self) -> dict[str, Any]:
        return {
            name: value.to_dict() if isinstance(value, Configurable) else value
            for name, value in super().to_dict().items()
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_dict().items() if value is not None}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: object) -> GMGenerationConfig:
        """The config that `to_dict` of this version or of version 0.1 described."""
        return super().from_dict({"transformers_version": __version__, **from_0_1(config_dict)}, **kwargs)  # pyright: ignore[reportReturnType]

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict[str, Any]) -> GMGenerationConfig:
        pad, bos, eos = (getattr(model_config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id"))
        return cls(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)


@cache
def known_options() -> frozenset[str]:
    """The arguments of `GMGenerationConfig`."""
    return frozenset(inspect.signature(GMGenerationConfig).parameters) - {"others"}


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_ids(value: object) -> bool:
    """Whether it is a list of token ids, one at least."""
    return _is_list(value) and len(value) > 0 and all(type(token) is int and token >= 0 for token in value)
