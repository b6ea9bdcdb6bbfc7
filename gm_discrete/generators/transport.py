"""Kernels of paths that are known by p_t(x|z) alone, and kernels made of beliefs.

For p = p_t(·|z), q = p_s(·|z) and ṗ = dp/dt the probability that a token moves from x to y ≠ x

    kinetic:        in [t, s]  [q(y) − p(y) q(x)/p(x)]₊         at the rate  [ṗ(y) − p(y) ṗ(x)/p(x)]₊
    positive_part:  in [t, s]  [Δ(y) − Δ(x)]₊ / (S p(x))        at the rate  [ṗ(y) − ṗ(x)]₊ / (S p(x))

(Δ = q − p, S the size of the support). In both the net flow out of x is p(x) − q(x), so that the step carries p_t(·|z) to
p_s(·|z) exactly, however long it is; where the second would send on more from some x than it holds, and on the way to
t = 1, a step takes the first. For mixture paths the first is the jump to z with probability (κ_s − κ_t)/(1 − κ_t). The
rates of the second grow like 1/p_t(x|z), so that Euler steps must be very short, and exact simulation may be refused.
Sources of the rates: Shaul et al. 2024 (arXiv 2412.03487, equations 16 and 20) and Campbell et al. 2024 (arXiv
2402.04997, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.generators import kernels
from gm_discrete.generators.kernels import BeliefKernel, Dirac, Kernel, inverse_cdf, require

FLOWS = ("kinetic", "positive_part")


class ConditionalLaw(Protocol):
    """What the kernels ask of a path: p_t(·|z) of symbols z [n] at times t [n], as float64 rows [n, K]."""

    rates: str

    def probs(self, z: Tensor, t: Tensor) -> Tensor: ...

    def derivative(self, z: Tensor, t: Tensor) -> Tensor: ...

    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None) -> Tensor: ...

    def mean_probs(self, belief: Tensor, t: Tensor) -> Tensor: ...


def moves(law: ConditionalLaw, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
    """Probability of moving from x [n] to each y given z [n], in the step or (t_next None) per time; rows [n, K], 0 at x."""
    p = law.probs(z, t)
    here = p.gather(1, x[:, None])
    possible = here > 0
    if t_next is None:
        change = law.derivative(z, t)
        slope = change.gather(1, x[:, None])
        support = (p > 0) | (change > 0)
    else:
        q = law.probs(z, t_next)
        change, slope = q - p, (q - p).gather(1, x[:, None])
        support = (p > 0) | (q > 0)
    # change − p · slope/p(x) is [q − p q(x)/p(x)] for a step and [ṗ − p ṗ(x)/p(x)] for a rate.
    relative = torch.where(possible, slope / here, 0.0 if t_next is None else -1.0)
    flow = (change - p * relative).clamp(min=0)
    if law.rates == "positive_part":
        spread = (change - slope).clamp(min=0) * support / (support.sum(1, keepdim=True) * here)
        if t_next is not None:  # who arrives at t = 1 must be at z
            possible = possible & ((t_next < 1) & (_greatest_spread(p, change, support) <= 1))[:, None]
        flow = torch.where(possible, spread, flow)
    return flow.scatter(1, x[:, None], 0.0)


def _greatest_spread(p: Tensor, change: Tensor, support: Tensor) -> Tensor:
    """max_x Σ_y [Δ(y) − Δ(x)]₊ / (S p(x)), [n]: above 1 some symbol would have to send on more than it holds."""
    steps, order = torch.where(support, change, -torch.inf).sort(1, descending=True)
    above = torch.where(steps.isinf(), 0.0, steps)
    rank = torch.arange(1, p.shape[1] + 1, device=p.device)
    sent = torch.where(steps.isinf(), 0.0, above.cumsum(1) - rank * above)
    return torch.where(sent > 0, sent / (support.sum(1, keepdim=True) * p.gather(1, order)), 0.0).amax(1)


class Transport(BeliefKernel):
    """Landing law of a thinned candidate event on a path known by p_t(x|z): k(y) = E_{z~π}[moves(x → y|z)] / ceiling.

    A candidate draws z ~ π, moves with probability Σ_y moves(x → y|z) / ceiling, and lands in proportion to the moves:
    O(K) per position. The remaining mass stays at x.

    Args:
        belief: π.
        x: state [B, L]; t, t_next: times [B]. Without `t_next` the moves are rates.
        law: the path.
        ceiling: probability (or rate) of candidates [B, L], which the moves must not exceed.
    """

    def __init__(
        self, belief: Kernel, x: Tensor, t: Tensor, t_next: Tensor | None, law: ConditionalLaw, ceiling: Tensor
    ) -> None:
        self._belief = belief
        self.shape, self.vocab_size = x.shape, belief.vocab_size
        self.x, self.law, self.ceiling = x.flatten(), law, ceiling.expand(x.shape).flatten()
        self.t = t[:, None].expand(x.shape).flatten()
        self.t_next = None if t_next is None else t_next[:, None].expand(x.shape).flatten()

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        size = max(1, kernels.ROW_ELEMENTS // self.vocab_size**2)  # of `log_probs`, in which every z has its row
        return [part for chunk in self.belief.prepare(where) for part in chunk.split(size)]

    def _moves(self, z: Tensor, where: Tensor, repeat: int = 1) -> Tensor:
        x, t, ceiling = (row[where].repeat_interleave(repeat) for row in (self.x, self.t, self.ceiling))
        t_next = None if self.t_next is None else self.t_next[where].repeat_interleave(repeat)
        return moves(self.law, z, x, t, t_next) / ceiling[:, None]

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        z = self.belief.sample(rng, where)
        accept, land = self._uniform(rng, where), self._uniform(rng, where)
        size = max(1, kernels.ROW_ELEMENTS // (8 * self.vocab_size))  # a few float64 rows for each position
        parts = [self._land(*rows) for rows in zip(*(v.split(size) for v in (z, where, accept, land)), strict=True)]
        return torch.cat(parts) if parts else self.x[where]

    def _land(self, z: Tensor, where: Tensor, accept: Tensor, land: Tensor) -> Tensor:
        rows, x = self._moves(z, where), self.x[where]
        total = rows.sum(1)
        # A total above 1, but for rounding, means events that were never drawn; a belief that contradicts x may have one.
        possible = self.law.probs(z, self.t[where]).gather(1, x[:, None]).squeeze(1) > 0
        require((~possible | (total <= 1 + 1e-9)).all(), ValueError, _TOO_SLOW)
        moved = accept < total
        rows = torch.where((total > 0)[:, None], rows, 1.0)
        return torch.where(moved, inverse_cdf(rows, land), x)

    def log_probs(self, where: Tensor) -> Tensor:
        if isinstance(self.belief, Dirac):
            rows = self._moves(self.belief.target[where], where)
        else:
            size = max(1, kernels.ROW_ELEMENTS // self.vocab_size**2)
            rows = torch.cat([self._averaged(part) for part in where.split(size)])
        stay = (1 - rows.sum(1, keepdim=True)).clamp(min=0)
        rows = rows.scatter_add(1, self.x[where, None], stay)
        return rows.clamp(min=torch.finfo(torch.float64).tiny).log()  # finite: a gradient passes through log 0 as 0

    def _averaged(self, where: Tensor) -> Tensor:
        symbols = torch.arange(self.vocab_size, device=self.device).repeat(len(where))
        each = self._moves(symbols, where, self.vocab_size).unflatten(0, (len(where), self.vocab_size))
        belief = self.belief.log_probs(where).double().exp()
        return (belief[:, None] @ each).squeeze(1)


_TOO_SLOW = (
    "a move is more likely than the candidate event it should be thinned from: the path's `intensity` or "
    "`event_probability` must bound the moves of every z"
)


class Renewal(BeliefKernel):
    """k(y) = E_{z~π} p_t(y|z): the token drawn anew, given what is believed about its data symbol.

    At rate 1 it is in detailed balance with p_t if π is its posterior: p_t(x) k(y; x) = p_t(y) k(x; y).
    """

    def __init__(self, belief: Kernel, x: Tensor, t: Tensor, law: ConditionalLaw) -> None:
        self._belief, self.x, self.t, self.law = belief, x, t, law
        self.shape, self.vocab_size = x.shape, belief.vocab_size

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        z = self.x.flatten().index_put((where,), self.belief.sample(rng, where)).view_as(self.x)
        return self.law.sample(z, self.t, rng).flatten()[where]

    def log_probs(self, where: Tensor) -> Tensor:
        t = self.t[where // self.shape[1]]
        return self.law.mean_probs(self.belief.log_probs(where).exp(), t).log()


class Extrapolated(Kernel):
    """k ∝ [w π_new − (w − 1) π_old]₊: what a belief is heading for, from two of its values.

    With w = 1/(2θ(1 − θ)) for beliefs at the beginning and at the part θ of a step: the θ-trapezoidal method (Hu et al.
    2011; for masked diffusion Ren et al. 2025, arXiv 2502.00234). Clipping at 0, without which it were no law, costs the
    second order wherever it acts.
    """

    def __init__(self, new: Kernel, old: Kernel, weight: float) -> None:
        self.new, self.old, self.weight = new, old, weight
        self.shape, self.vocab_size = new.shape, new.vocab_size

    @property
    def device(self) -> torch.device:
        return self.new.device

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        self.old.prepare(where)
        return self.new.prepare(where)

    def _weights(self, where: Tensor) -> Tensor:
        new, old = self.new.log_probs(where).exp(), self.old.log_probs(where).exp()
        return (self.weight * new - (self.weight - 1) * old).clamp(min=0)

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        chunks = self.prepare(where)
        noise = self._uniform(rng, where).split([len(rows) for rows in chunks])
        return torch.cat([inverse_cdf(self._weights(rows), u) for rows, u in zip(chunks, noise, strict=True)])

    def log_probs(self, where: Tensor) -> Tensor:
        rows = self._weights(where)
        return (rows / rows.sum(1, keepdim=True)).log()
