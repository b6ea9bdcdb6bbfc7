"""Generators of Markov processes: small immutable values at a state x and a time t.

A generator L acts on a test function f by L f(x) = d/dh E[f(X_{t+h}) | X_t = x] at h = 0. For a jump process

    L f(x) = Σ_y R(y, x) (f(y) − f(x)),   R(y, x) = intensity(x) · kernel(y; x),

and on sequences one token moves at a time, so that L is the sum over positions (Generator Matching, ICLR 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.kernels import Kernel


@dataclass(frozen=True)
class Clock:
    """Rings that dominate a jump process: at rate weight · G'(t) at each position, and every jump is at a ring.

    Between two rings of total weight w passes an Exp(w) amount of G, which turns exact simulation into ringing and asking.

    Attributes:
        weight: [B, L], float64, of the state that the clock was made for.
        elapsed: G, increasing, [B] → [B]; may be −∞ at t = 0 and ∞ at t = 1.
        time: its inverse.
        rate: its derivative G', in 1/time.
    """

    weight: Tensor
    elapsed: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]


class Posterior(Protocol):
    """A belief about the data symbols at (x, t), and all that its path makes of it without asking the network again."""

    @property
    def belief(self) -> Kernel:
        """π(z|x)."""
        ...

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        """The generator of the step [t, t_next], of this belief or of another one in its place."""
        ...

    def corrector(self) -> Jump:
        """A generator that leaves p_t invariant: at rate 1, x^i is drawn anew from p_t(·|z), z ~ π."""
        ...


@dataclass(frozen=True)
class Jump:
    """A jump process on sequences of symbols.

    Attributes:
        intensity: rate of candidate events per position, float64 [B, L], in 1/time. A candidate may land where it stands.
        kernel: where it lands.
        probability: of at least one candidate in the interval that the generator was asked for, float64 [B, L]; `None`
            if it was asked for a point in time.
        posterior: the belief that a path made the generator of; `None` if no path made it.
    """

    intensity: Tensor
    kernel: Kernel
    probability: Tensor | None = None
    posterior: Posterior | None = None

    @property
    def chance(self) -> Tensor:
        """`probability`, of a generator that was asked for an interval.

        Raises:
            ValueError: it has none.
        """
        if self.probability is None:
            raise ValueError("the generator ignored t_next: its jump has no interval probability")
        return self.probability

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
