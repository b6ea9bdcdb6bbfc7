"""What `generate` does unless told otherwise: `generation_config.json`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gm_discrete.generation.processors import AllowedSymbols, BannedSequences, TemperatureSchedule
from gm_discrete.paths import Path
from gm_discrete.samplers import EUCLIDEAN_STEPS, GRID_FREE, SPACINGS, STEPS, Corrector, make_step, time_grid

STEP_OPTIONS = ("max_expected_changes", "tolerance", "order", "order_temperature", "entropy_bound")


class GMGenerationConfig(GenerationConfig):
    """Defaults of `generate`, saved as `generation_config.json` beside the weights.

    top_k, top_p and temperature are off unless set: any of them changes the law that is sampled.

    Args:
        num_steps: N, steps of the grid.
        grid: how it is spaced, `"linear"` or `"quadratic"` in κ, `"logarithmic"` or `"geometric"` (see `time_grid`; the
            path's own by default), or all times from 0 to 1, in place of `num_steps`.
        sampler: on that grid `"tau_leaping"`, `"euler"`, `"ancestral"`, `"trapezoidal"`, `"stratified_hazard"`. The others
            choose their own times, and look at the grid only for a streamer, stopping criteria, a trajectory or a corrector:
            `"first_hitting"`, `"uniformization"`, `"adaptive"`, `"step_doubling"`, `"entropy_bounded"`.
            Of numbers: `"tau_leaping"` (or `"euler"`, the same), `"heun"`, `"adaptive"` and, for a flow alone, `"dopri5"`.
        max_expected_changes: of `"adaptive"`: how many tokens may change in a step, on average.
        tolerance: of `"uniformization"`, `"step_doubling"`, `"dopri5"`, and `"adaptive"` steps of numbers.
        order: which masks go first: `"random"`, the law of the model, or `"confidence"`, `"margin"`, `"entropy"`, which
            leave it, of `"tau_leaping"` and `"entropy_bounded"` on masked paths (see `samplers.decoding`).
        order_temperature: of `"tau_leaping"` in such an order: Gumbel noise of its scores, annealed to 0; none by default.
        entropy_bound: ε of `"entropy_bounded"` in nats, 0.1 by default.
        block_length: positions that are filled before those behind them are looked at (semi-autoregressive generation), of
            masked models that do not see the time; a model's own `block_size` by default. A block runs from t = 0 to t = 1.
        use_cache: of models with a `block_size`: keep keys and values of the blocks that are done. Changes no law.
        guidance_scale: γ of classifier-free guidance towards `class_labels`; 1 (none) by default.
        guidance: `"normalized"` (the default), π ∝ π_c^γ π_u^{1−γ} at the path's hazard, or `"raw"`, rates R_c^γ R_u^{1−γ},
            which also change the speed, of the samplers `"tau_leaping"`, `"euler"` and `"ancestral"`.
        generators: weights of a superposition, in place of those of the path.
        corrector: `DetailedBalance`, `BackwardNoise`, `EtaNoise` or `ReMDM`, or the dict of its `to_dict()`.
        temperature, top_k, top_p: applied to the posterior π of the data symbols, before the rates. A pair of temperatures
            is a schedule, linear in the time from t = 0 to t = 1.
        bad_words_ids: sequences of symbols that may not occur; of masked paths.
        length: positions of an unconditional sample; the model's `max_position_embeddings` by default.
        max_new_tokens: positions to fill behind each prompt; 0 by default (only its mask symbols are filled).
        seed: of all noise; drawn from torch's global generator by default.
        return_dict_in_generate: return a `GMGenerateOutput` instead of the sequences.
        output_trajectory: put a `Trajectory` of all states into it; samplers with times of their own then stop at the grid.
        pad_token_id: symbol behind shorter sequences; the model's own by default.
        eos_token_id: where it is generated behind a prompt, a sequence generated in blocks ends; else kept for the record.
        bos_token_id: as in the tokenizer; kept for the record.
    """

    def __init__(self, **kwargs: Any) -> None:  # not the parent's, whose other arguments would be promises
        self.num_steps: int = kwargs.pop("num_steps", 128)
        self.grid: str | list[float] | None = kwargs.pop("grid", None)
        self.sampler: str = kwargs.pop("sampler", "tau_leaping")
        self.max_expected_changes: float | None = kwargs.pop("max_expected_changes", None)
        self.tolerance: float | None = kwargs.pop("tolerance", None)
        corrector = kwargs.pop("corrector", None)
        self.corrector: dict[str, Any] | None = corrector.to_dict() if isinstance(corrector, Corrector) else corrector
        self.order: str | None = kwargs.pop("order", None)
        self.order_temperature: float | None = kwargs.pop("order_temperature", None)
        self.entropy_bound: float | None = kwargs.pop("entropy_bound", None)
        self.block_length: int | None = kwargs.pop("block_length", None)
        self.use_cache: bool = kwargs.pop("use_cache", False)
        self.guidance_scale: float | None = kwargs.pop("guidance_scale", None)
        self.guidance: str = kwargs.pop("guidance", "normalized")
        self.generators: dict[str, Any] | None = kwargs.pop("generators", None)
        self.temperature: float | Sequence[float] | None = kwargs.pop("temperature", None)
        self.top_k: int | None = kwargs.pop("top_k", None)
        self.top_p: float | None = kwargs.pop("top_p", None)
        self.bad_words_ids: list[list[int]] | None = kwargs.pop("bad_words_ids", None)
        self.length: int | None = kwargs.pop("length", None)
        self.max_new_tokens: int = kwargs.pop("max_new_tokens", 0)
        self.seed: int | None = kwargs.pop("seed", None)
        self.return_dict_in_generate: bool = kwargs.pop("return_dict_in_generate", False)
        self.output_trajectory: bool = kwargs.pop("output_trajectory", False)
        self.pad_token_id: int | None = kwargs.pop("pad_token_id", None)
        self.bos_token_id: int | None = kwargs.pop("bos_token_id", None)
        self.eos_token_id: int | list[int] | None = kwargs.pop("eos_token_id", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        self._commit_hash: str | None = kwargs.pop("_commit_hash", None)
        self._from_model_config: bool = kwargs.pop("_from_model_config", False)
        self._original_object_hash: int | None = None
        if kwargs:
            raise ValueError(f"GMGenerationConfig takes no argument {', '.join(sorted(kwargs))}")
        self.validate()

    def validate(self, *_: Any, **__: Any) -> None:
        """
        Raises:
            ValueError: an argument is out of its range; the message names it.
        """
        known = STEPS | EUCLIDEAN_STEPS
        for name, valid, rule in (
            ("num_steps", _is_int(self.num_steps, 1), "an integer ≥ 1"),
            ("grid", _is_grid(self.grid), f"one of {', '.join(SPACINGS)}, or increasing times from 0 to 1"),
            ("sampler", self.sampler in known, f"one of {', '.join(known)}"),
            ("max_expected_changes", _is_positive(self.max_expected_changes), "positive, or None"),
            ("tolerance", _is_positive(self.tolerance), "positive, or None"),
            ("guidance_scale", self.guidance_scale is None or self.guidance_scale >= 0, "≥ 0, or None"),
            ("guidance", self.guidance in ("normalized", "raw"), "'normalized' or 'raw'"),
            ("temperature", _is_temperature(self.temperature), "positive, a pair of such, or None"),
            ("bad_words_ids", _are_sequences(self.bad_words_ids), "a list of lists of ids, or None"),
            ("block_length", self.block_length is None or _is_int(self.block_length, 1), "an integer ≥ 1, or None"),
            ("top_k", self.top_k is None or _is_int(self.top_k, 1), "an integer ≥ 1, or None"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1], or None"),
            ("length", self.length is None or _is_int(self.length, 1), "an integer ≥ 1, or None"),
            ("max_new_tokens", _is_int(self.max_new_tokens, 0), "an integer ≥ 0"),
            ("seed", self.seed is None or _is_int(self.seed, 0), "an integer ≥ 0, or None"),
        ):
            if not valid:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {rule}")
        if self.output_trajectory and not self.return_dict_in_generate:
            raise ValueError("output_trajectory=True needs return_dict_in_generate=True, as a part of that output")
        self.step()

    def step(self, several: bool = False) -> Any:
        """The step that sampler, corrector and options make, of states with several fields if told so."""
        options = {name: getattr(self, name) for name in STEP_OPTIONS}
        return make_step(self.sampler, self.corrector, several, **options)

    def times(self, path: Path, watched: bool) -> Tensor:
        """The grid [N + 1]; [0, 1] for samplers that choose their own times, unless watched or corrected there."""
        if isinstance(self.grid, Sequence) and not isinstance(self.grid, str):
            return torch.tensor(self.grid, dtype=torch.float64)
        own = self.sampler in GRID_FREE and not watched and self.corrector is None
        return time_grid(path, 1 if own else self.num_steps, self.grid)

    def processors(
        self, given: LogitsProcessorList | None = None, allowed: Tensor | None = None
    ) -> LogitsProcessorList | None:
        """The given processors, and behind them what is ruled out, temperature, top-k and top-p."""
        processors = LogitsProcessorList(given or [])
        if allowed is not None:
            processors.append(AllowedSymbols(allowed))
        if self.bad_words_ids:
            processors.append(BannedSequences(self.bad_words_ids))
        if isinstance(self.temperature, Sequence):
            processors.append(TemperatureSchedule(*self.temperature))
        elif self.temperature not in (None, 1.0):
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p not in (None, 1.0):
            processors.append(TopPLogitsWarper(float(self.top_p)))
        return processors or None

    def to_diff_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_dict().items() if value is not None}

    @classmethod
    def from_model_config(cls, model_config: Any) -> GMGenerationConfig:
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        return cls(**{name: getattr(model_config, name, None) for name in names})

    def updated(self, **changes: Any) -> GMGenerationConfig:
        """A copy with the changes that are not `None`; unknown names are refused. Another sampler starts without options."""
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        if changes.get("num_steps") is not None and isinstance(self.grid, list):
            own["grid"] = None
        if changes.get("sampler") not in (None, self.sampler):
            own |= dict.fromkeys((*STEP_OPTIONS, "corrector"))
        if changes.get("order") == "random":
            own["order_temperature"] = None
        return GMGenerationConfig(**own | {key: value for key, value in changes.items() if value is not None})


def _is_temperature(value: Any) -> bool:
    if isinstance(value, Sequence):
        return len(value) == 2 and all(part is not None and _is_positive(part) for part in value)
    return _is_positive(value)


def _are_sequences(value: Any) -> bool:
    return value is None or (
        isinstance(value, Sequence)
        and all(isinstance(words, Sequence) and words and all(_is_int(word, 0) for word in words) for words in value)
    )


def _is_positive(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _is_grid(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return value is None or value in SPACINGS
    if not isinstance(value, Sequence):
        return False
    times = list(value)
    return len(times) > 1 and times[0] == 0 and times[-1] == 1 and all(a < b for a, b in pairwise(times))


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
