"""Paths whose states are symbols: times by a schedule κ, labels, and checks of ids."""

from __future__ import annotations

import torch
from torch import Tensor

from gm_discrete.arguments import choice, readable, whole
from gm_discrete.generators.rows import require
from gm_discrete.paths.base import Path, check_times
from gm_discrete.paths.schedules import LinearSchedule, Schedule, ScheduleAt, TimeLike

UNSCORED = -100
"""The label of a position that the loss leaves out, as everywhere in transformers."""


class DiscretePath(Path):
    """A conditional path on states [B, L] of K symbols.

    Args:
        vocab_size: K.
        schedule: κ, by which times are drawn and grids are spaced; linear by default.
        rates: which of the generators that solve the path's Kolmogorov equation; one of `known_rates`.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
    """

    is_discrete = True
    schedule: Schedule
    rates: str
    """Which of the jump generators that solve the path's Kolmogorov equation is simulated and scored."""
    spacing: str = "quadratic"
    known_rates: tuple[str, ...] = ("kinetic",)

    is_mixture = False
    """Whether every symbol is that of the data with probability κ, and else that of a prior or a source."""

    def __init__(self, vocab_size: int, schedule: Schedule | dict | None = None, rates: str = "kinetic") -> None:
        self.vocab_size = whole("vocab_size", vocab_size, least=2)
        self.schedule = LinearSchedule() if schedule is None else Schedule.of(schedule).check_ends()
        self.rates = choice("rates", rates, self.known_rates)

    @property
    def heads(self) -> dict[str, int]:
        return {"tokens": self.vocab_size}

    def at(self, t: TimeLike, per_kappa: bool = False) -> ScheduleAt:
        return self.schedule.at(t)

    def time(self, u: Tensor) -> Tensor:
        return self.schedule.inverse(u)

    def units(self, t: TimeLike) -> dict[str, Tensor]:
        """κ': rates are compared per unit of κ. Generators at times `per_kappa` are in it, and have no unit to divide by."""
        now = self.schedule.at(t)
        return {} if now.per_kappa else {"jump": now.derivative}

    def loss_mask(self, labels: Tensor) -> Tensor:
        return labels != UNSCORED

    def mask_labels(self, z: Tensor, scored: Tensor) -> Tensor:
        return z.masked_fill(~scored, UNSCORED)

    def check(self, state: Tensor, t: TimeLike, name: str) -> None:
        if state.dtype != torch.long or state.dim() != 2:
            raise ValueError(f"{name} must be a long tensor [B, L], got {state.dtype} of shape {tuple(state.shape)}")
        check_times(t, state)
        if torch.compiler.is_compiling():
            return
        if not readable(state):
            require(((state >= 0) & (state < self.vocab_size)).all(), ValueError, f"{name} holds ids out of range")
        elif state.numel() and not 0 <= int(state.min()) <= int(state.max()) < self.vocab_size:
            raise ValueError(
                f"{name} holds ids from {int(state.min())} to {int(state.max())}; vocab_size={self.vocab_size} "
                "allows 0 to vocab_size − 1: is this the tokenizer that the path was made for?"
            )
