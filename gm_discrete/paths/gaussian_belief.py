"""The generators of a Gaussian path from a belief about z over bins, Σ_k π_k N(c_k, s²).

c_k are the centres of the bins, s the standard deviation of a number that is uniform within one. Given x, each bin has the
normal posterior of `generators/beliefs.py`; means and rates are averaged over the bins with π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gm_discrete.generators.beliefs import NormalBelief
from gm_discrete.generators.kernels import Categorical, Readout
from gm_discrete.generators.landings import Bins
from gm_discrete.generators.rows import map_rows
from gm_discrete.paths.affine import AffineAt

LEAST_RATE = 1e-6
"""Least jump rate within a bin, in speed/σ, so that its logarithm is finite: one jump in 10⁶ lengths of the path."""

CACHED = 2**16
"""Numbers in a block (256 KiB in float32): the forty or so passes over it then run in a CPU's second-level cache."""


class BinnedBelief:
    """A network's belief about z over bins, given the state x at times `now`.

    Args:
        readout: `readout("belief", where)` → logits [n, bins] of z given x, at the entries `where` of the flattened state.
        x: state [B, …].
        now: the times [B].
        bins: of z.
    """

    def __init__(self, readout: Readout, x: Tensor, now: AffineAt, bins: Bins) -> None:
        self.state, self.now, self.bins = x, now, bins
        self.x = x.to(torch.promote_types(x.dtype, torch.float32))  # in bfloat16 differences of bins would vanish
        self.flat, self.size = self.x.flatten(), x[0].numel()
        self.kernel = Categorical(readout, x.shape, bins.number, x.device, head="belief")
        self.centers = bins.centers(x.device).to(self.x.dtype)

    @staticmethod
    def normal(x: Tensor, at: AffineAt, bins: Bins, cells: Tensor | None = None) -> NormalBelief:
        """The posterior of z within every bin, [n, bins], or within one, [n, 1], given entries x [n] at times [n]."""
        centers = bins.centers(x.device).to(x.dtype)
        return NormalBelief(
            x[:, None], centers if cells is None else centers[cells, None], bins.std, at.shaped(x[:, None])
        )

    def clean_and_noise(self) -> tuple[Tensor, Tensor]:
        """(ẑ, ε̂), the posterior means of z and ε, of x's shape."""
        chunks = self.kernel.prepare(torch.arange(self.x.numel(), device=self.x.device))
        return self._means(map_rows(lambda where: self._mean(self.kernel.log_probs(where)), chunks))

    def clean_noise_and_jump(self) -> tuple[Tensor, Tensor, Tensor, Leavers]:
        """(ẑ, ε̂), the jump's rate in speed/σ, each of x's shape, and the posterior of the bin of z if x jumps."""
        chunks = self.kernel.prepare(torch.arange(self.x.numel(), device=self.x.device))

        def read(where: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.kernel.log_probs(where)
            leaving = log_probs + self.log_rate(where)
            return torch.stack([self._mean(log_probs), leaving.logsumexp(1)], 1), leaving

        if len(chunks) == 1:  # few enough entries to keep their rows for the landings
            found, rows = read(chunks[0])
        else:
            found, rows = map_rows(lambda where: read(where)[0], chunks), None
        clean, noise = self._means(found[:, 0])
        return clean, noise, found[:, 1].exp().view(self.x.shape), Leavers(self, rows)

    def leaver(self, cells: Tensor, u: Tensor, where: Tensor) -> Tensor:
        """z [n] within the bins `cells` [n], distributed as among the x that jump; the quantile of uniforms u [n]."""
        x = self.flat[where].double()
        return self.normal(x, self.now[where // self.size], self.bins, cells).leaver(u[:, None])[:, 0]

    def log_rate(self, where: Tensor) -> Tensor:
        """log λ σ/speed given each bin, [n, bins]; on the CPU in blocks that fit its cache."""
        size = max(1, CACHED // self.bins.number) if self.flat.device.type == "cpu" else max(1, len(where))
        blocks = [self.normal(self.flat[part], self.now[part // self.size], self.bins) for part in where.split(size)]
        return torch.cat([block.rate.clamp(min=LEAST_RATE).log() for block in blocks])

    def _mean(self, log_probs: Tensor) -> Tensor:
        """Σ_k π_k c_k, [n]; not as a product of matrices, which autocast would round to bfloat16."""
        return (log_probs.exp() * self.centers).sum(1)

    def _means(self, center: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ, ε̂): ẑ = Σ π_k m_k with the posterior means m_k within the bins, and x = α ẑ + σ ε̂."""
        center, now, std = center.view(self.x.shape), self.now.shaped(self.x), self.bins.std
        away = (self.x - now.alpha * center) / ((now.alpha * std) ** 2 + now.sigma**2)
        return (center + now.alpha * std**2 * away).to(self.state.dtype), (now.sigma * away).to(self.state.dtype)


class Leavers(Categorical):
    """The posterior of the bin of z given that x jumps, π_k λ_k / Σ π λ.

    Args:
        belief: π and the rates λ_k.
        rows: its logits at all entries, if they are computed already.
    """

    def __init__(self, belief: BinnedBelief, rows: Tensor | None) -> None:
        kernel = belief.kernel
        super().__init__(kernel.readout, kernel.shape, kernel.vocab_size, kernel.device, kernel.head)
        self.log_rate, self.rows = belief.log_rate, rows

    def logits(self, where: Tensor) -> Tensor:
        return super().logits(where) + self.log_rate(where) if self.rows is None else self.rows[where]
