"""A path of a user's own whose probabilities are differences of numbers of size 1: a walk by eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from gm_discrete import FinitePath, Schedule


class WalkPath(FinitePath):
    """p_t(·|z) = exp(s G) of the random walk on a ring of K symbols for the time s = −reach · log κ; uniform at κ = 0.

    Far from z its probabilities are rounding of either sign, of size 1e-16.
    """

    type_name = "walk on a ring"

    def __init__(self, vocab_size: int, reach: float = 4.0, schedule: Schedule | dict | None = None) -> None:
        super().__init__(vocab_size, schedule)
        self.reach = reach
        steps = torch.eye(vocab_size, dtype=torch.float64)
        steps = (steps.roll(1, 1) + steps.roll(-1, 1)) / 2 - steps
        self.values, self.vectors = torch.linalg.eigh(steps)

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        decay = self.schedule.kappa(t)[:, None] ** (-self.reach * self.values.clamp(max=0))
        decay = torch.where(self.values > -1e-9, 1.0, decay)
        return torch.einsum("nk,nk,xk->nx", self.vectors[z], decay, self.vectors)


def neighbours(symbols: int, length: int) -> Tensor:
    """All sequences in which every symbol is a neighbour on the ring of the one before, [symbols · 2^(length − 1), L]."""
    steps = torch.cartesian_prod(*[torch.tensor([1, -1])] * (length - 1)).view(-1, length - 1)
    walks = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    return ((torch.arange(symbols)[:, None, None] + walks) % symbols).flatten(0, 1)
