"""Generators of Markov processes: small immutable values at a state x and a time t.

A generator L acts on a test function f by L f(x) = d/dh E[f(X_{t+h}) | X_t = x] at h = 0. For a jump process

    L f(x) = Σ_y R(y, x) (f(y) − f(x)),   R(y, x) = intensity(x) · kernel(y; x),

and on sequences one token moves at a time, so that L is the sum over positions (Generator Matching, ICLR 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gm_discrete.kernels import Kernel


@dataclass(frozen=True)
class Jump:
    """A jump process on sequences of symbols.

    Attributes:
        intensity: rate of candidate events per position, float64 [B, L], in 1/time. A candidate may land where it stands.
        kernel: where it lands.
        probability: of at least one candidate in the interval that the generator was asked for, float64 [B, L]; `None`
            if it was asked for a point in time.
    """

    intensity: Tensor
    kernel: Kernel
    probability: Tensor | None = None

    def rates(self, x: Tensor) -> Tensor:
        """Dense rates R[b, l, y] at which position l of x moves to y, [B, L, K]; on the diagonal minus the row's sum."""
        here = x.unsqueeze(-1)
        idle = self.intensity.unsqueeze(-1) == 0  # an idle position may have no kernel at all
        rates = torch.where(idle, 0.0, self.intensity.unsqueeze(-1) * self.kernel.probs()).scatter(-1, here, 0.0)
        return rates.scatter(-1, here, -rates.sum(-1, keepdim=True))

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) [B] for f: [N, L] → [N]. Evaluates f on all L·K neighbours of each state: for small state spaces."""
        rates = self.rates(x)
        batch, length, symbols = rates.shape
        position = torch.arange(length, device=x.device)[:, None].expand(length, symbols).flatten()
        symbol = torch.arange(symbols, device=x.device).repeat(length)
        neighbours = x[:, None].repeat(1, length * symbols, 1)
        neighbours[:, torch.arange(length * symbols, device=x.device), position] = symbol
        return (rates.flatten(1) * f(neighbours.flatten(0, 1)).view(batch, -1)).sum(1)
