"""Kernels of paths that are defined by p_t(x|z) alone, and kernels made of beliefs.

For p = p_t(·|z), q = p_s(·|z) and ṗ = dp/dt a token moves from x to y ≠ x

    in the step [t, s] with probability  [q(y) − p(y) q(x)/p(x)]₊,     at time t at the rate  [ṗ(y) − p(y) ṗ(x)/p(x)]₊.

The net flow out of x is p(x) − q(x), so that the step carries p_t(·|z) to p_s(·|z) exactly, however long it is; of all
rates that carry the path these kinetic-optimal ones move the least. For mixture paths they are the jump to z with
probability (κ_s − κ_t)/(1 − κ_t). Source: Shaul et al. 2024 (arXiv 2412.03487, equations 16 and 20).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.generators.kernels import BeliefKernel, Dirac, Kernel
from gm_discrete.generators.rows import chunked, inverse_cdf, require


class ConditionalPath(Protocol):
    """A path as these kernels use it: p_t(·|z) of symbols z [n] at times t [n], as float64 rows [n, K]."""

    def clean_probs(self, z: Tensor, t: Tensor) -> Tensor: ...

    def derivative(self, z: Tensor, t: Tensor) -> Tensor: ...

    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None, *, check: bool = True) -> Tensor: ...

    def mean_probs(self, belief: Tensor, t: Tensor) -> Tensor: ...


def moves(path: ConditionalPath, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
    """Probability of moving from x [n] to each y given z [n], in the step or (t_next None) per time; rows [n, K], 0 at x."""
    p = path.clean_probs(z, t)
    here = p.gather(1, x[:, None])
    change = path.derivative(z, t) if t_next is None else path.clean_probs(z, t_next) - p
    # change − p · change(x)/p(x) is [q − p q(x)/p(x)] for a step and [ṗ − p ṗ(x)/p(x)] for a rate. Where p(x) = 0, because
    # a wrong belief drew a z that contradicts x, the ratio is undefined: a step then draws from q, a rate is [ṗ(y)]₊.
    impossible = 0.0 if t_next is None else -1.0
    relative = torch.where(here > 0, change.gather(1, x[:, None]) / here, impossible)
    return (change - p * relative).clamp(min=0).scatter(1, x[:, None], 0.0)


class Transport(BeliefKernel):
    """Landing distribution of a thinned candidate event: k(y) = E_{z~π}[moves(x → y|z)] / ceiling.

    A candidate draws z ~ π, moves with probability Σ_y moves(x → y|z) / ceiling, and lands in proportion to the moves:
    O(K) per position. The remaining mass stays at x.

    Args:
        belief: π.
        x: state [B, L]; t, t_next: times [B]. Without `t_next` the moves are rates.
        path: p_t(·|z) and its derivative.
        ceiling: probability (or rate) of candidates [B, L], which the moves must not exceed.
    """

    def __init__(
        self, belief: Kernel, x: Tensor, t: Tensor, t_next: Tensor | None, path: ConditionalPath, ceiling: Tensor
    ) -> None:
        self._belief = belief
        self.shape, self.vocab_size = x.shape, belief.vocab_size
        self.x, self.path, self.ceiling = x.flatten(), path, ceiling.expand(x.shape).flatten()
        self.t = t[:, None].expand(x.shape).flatten()
        self.t_next = None if t_next is None else t_next[:, None].expand(x.shape).flatten()

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        size = self.vocab_size**2  # `log_probs` has a row for every z
        return [part for chunk in self.belief.prepare(where) for part in chunked(chunk, size)]

    def _moves(self, z: Tensor, where: Tensor, repeat: int = 1) -> Tensor:
        x, t, ceiling = (row[where].repeat_interleave(repeat) for row in (self.x, self.t, self.ceiling))
        t_next = None if self.t_next is None else self.t_next[where].repeat_interleave(repeat)
        return moves(self.path, z, x, t, t_next) / ceiling[:, None]

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        z = self.belief.sample(rng, where)
        accept, land = self._uniform(rng, where), self._uniform(rng, where)
        size = 8 * self.vocab_size  # a few float64 rows for each position
        parts = [self._land(*part) for part in zip(*(chunked(v, size) for v in (z, where, accept, land)), strict=True)]
        return torch.cat(parts) if parts else self.x[where]

    def _land(self, z: Tensor, where: Tensor, accept: Tensor, land: Tensor) -> Tensor:
        probs, x = self._moves(z, where), self.x[where]
        total = probs.sum(1)
        # A total above 1, but for rounding, means that candidates are too few. It is no error where z contradicts x.
        possible = self.path.clean_probs(z, self.t[where]).gather(1, x[:, None]).squeeze(1) > 0
        require((~possible | (total <= 1 + 1e-9)).all(), ValueError, _TOO_SLOW)
        moved = accept < total
        probs = torch.where((total > 0)[:, None], probs, 1.0)
        return torch.where(moved, inverse_cdf(probs, land), x)

    def log_probs(self, where: Tensor) -> Tensor:
        if isinstance(self.belief, Dirac):
            probs = self._moves(self.belief.target[where], where)
        else:
            probs = torch.cat([self._averaged(part) for part in chunked(where, self.vocab_size**2)])
        stay = (1 - probs.sum(1, keepdim=True)).clamp(min=0)
        probs = probs.scatter_add(1, self.x[where, None], stay)
        return probs.clamp(min=torch.finfo(torch.float64).tiny).log()  # finite: a gradient passes through log 0 as 0

    def _averaged(self, where: Tensor) -> Tensor:
        symbols = torch.arange(self.vocab_size, device=self.device).repeat(len(where))
        each = self._moves(symbols, where, self.vocab_size).unflatten(0, (len(where), self.vocab_size))
        belief = self.belief.log_probs(where).double().exp()
        return (belief[:, None] @ each).squeeze(1)


_TOO_SLOW = (
    "a move is more likely than the candidate event it should be thinned from (probability > 1): let the path's "
    "`intensity` and `event_probability` return more, a bound on the moves of every z"
)


class Renewal(BeliefKernel):
    """k(y) = E_{z~π} p_t(y|z): the token drawn anew, with its data symbol from the belief π.

    At rate 1 it is in detailed balance with p_t if π is its posterior: p_t(x) k(y; x) = p_t(y) k(x; y).
    """

    def __init__(self, belief: Kernel, x: Tensor, t: Tensor, path: ConditionalPath) -> None:
        self._belief, self.x, self.t, self.path = belief, x, t, path
        self.shape, self.vocab_size = x.shape, belief.vocab_size

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        z = self.x.flatten().index_put((where,), self.belief.sample(rng, where)).view_as(self.x)
        return self.path.sample(z, self.t, rng, check=False).flatten()[where]

    def log_probs(self, where: Tensor) -> Tensor:
        t = self.t[where // self.shape[1]]
        return self.path.mean_probs(self.belief.log_probs(where).exp(), t).log()


class Extrapolated(Kernel):
    """k ∝ [w π_new − (w − 1) π_old]₊: a belief extrapolated from two of its values.

    With w = 1/(2θ(1 − θ)) for beliefs at the beginning and at the part θ of a step: the θ-trapezoidal method (Hu et al.
    2011; for masked diffusion Ren et al. 2025, arXiv 2502.00234). Clipping at 0 keeps it a distribution; where it acts,
    the method is of first order.
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
        noise = self._uniform(rng, where).split([len(part) for part in chunks])
        return torch.cat([inverse_cdf(self._weights(part), u) for part, u in zip(chunks, noise, strict=True)])

    def log_probs(self, where: Tensor) -> Tensor:
        rows = self._weights(where)
        return (rows / rows.sum(1, keepdim=True)).log()
