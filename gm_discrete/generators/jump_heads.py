"""The jump heads of Generator Matching: a network that predicts the rate of a jump and bins of its landing point.

This is how the paper parametrises a jump (Holderrieth et al., ICLR 2025, section on jump models): one output for
log λ(x), and logits over bins of the landing y. `GaussianPath` uses it with any prediction but `"belief"`, whose one
output defines flow, diffusion and jump together. The target is the jump of p_t(·|z) in closed form (`landings.py`), with
its mass in each of the bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gm_discrete.generators.kernels import BeliefKernel, Kernel
from gm_discrete.generators.landings import Bins, gain, landing_quantile

MOST_OUTSIDE = 1e-3
"""This much of the prior may lie outside of the bins, where no jump lands: the mass beyond 3.3 standard deviations."""


def jump_heads(bins: Bins) -> dict[str, int]:
    """Sizes of the outputs that a jump with bins of its landing needs, by name."""
    return {"rate": 1, "landing": bins.number}


def check_landing_bins(bins: Bins) -> None:
    """
    Raises:
        ValueError: the bins do not cover the standard normal prior.
    """
    reach = max(min(-bins.low, bins.high), 0.0)
    if math.erfc(reach / math.sqrt(2)) > MOST_OUTSIDE:  # P(|ε| > reach)
        raise ValueError(
            f"bins from {bins.low} to {bins.high} do not cover the prior N(0, 1): bins of the landing need low ≤ −3.3 and "
            "high ≥ 3.3; or use bins of the data with prediction='belief'"
        )


class BinnedLanding(BeliefKernel):
    """The prediction: a distribution over bins of the landing, uniform within each bin.

    Args:
        belief: distribution over the bins at each coordinate.
        x: state; only its shape and device are used.
        bins: of the landing.
    """

    def __init__(self, belief: Kernel, x: Tensor, bins: Bins) -> None:
        self._belief, self.x, self.bins = belief, x, bins
        self.shape, self.vocab_size = x.shape, bins.number

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        return self.bins.value(self.belief.sample(rng, where), self._uniform(rng, where))

    def log_probs(self, where: Tensor) -> Tensor:
        return self.belief.log_probs(where)

    def nodes(self, where: Tensor) -> tuple[Tensor, Tensor]:
        points = self.bins.centers(self.device)
        return points.expand(len(where), -1), self.log_probs(where).double().exp()


class KnownLanding(Kernel):
    """The target: J(·|z) of given data z, and its mass in each of the bins of the landing.

    Args:
        z: data.
        zeta, alpha, sigma: ζ = −(α'/σ') z, α and σ at the time of landing, each of z's shape.
        bins: of the landing, for `log_probs`.
    """

    def __init__(self, z: Tensor, zeta: Tensor, alpha: Tensor, sigma: Tensor, bins: Bins) -> None:
        self.z, self.zeta, self.alpha, self.sigma = (v.double().flatten() for v in (z, zeta, alpha, sigma))
        self.bins, self.shape, self.vocab_size = bins, z.shape, bins.number

    @property
    def device(self) -> torch.device:
        return self.z.device

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        return self._quantile(self._uniform(rng, where), where)

    def _quantile(self, u: Tensor, where: Tensor) -> Tensor:
        center, sigma, zeta = self.alpha[where] * self.z[where], self.sigma[where], self.zeta[where]
        if u.dim() > 1:
            center, sigma, zeta = center[:, None], sigma[:, None], zeta[:, None]
        return center + sigma * landing_quantile(u, zeta)

    def masses(self, where: Tensor) -> Tensor:
        """∫ over each bin of J(y|z) dy, rows [n, bins]; mass outside of the bins is added to the outermost ones."""
        edges = self.bins.edges(self.device).clone()
        edges[0], edges[-1] = -torch.inf, torch.inf
        center, sigma, zeta = (self.alpha * self.z)[where, None], self.sigma[where, None], self.zeta[where, None]
        reached = gain((edges - center) / sigma, zeta)
        # Next to its roots the gain is flat, and rounding may make a small mass negative.
        return reached.diff(dim=1).clamp(min=0) / reached[:, -1:]

    def log_probs(self, where: Tensor) -> Tensor:
        return self.masses(where).log()

    def nodes(self, where: Tensor, number: int = 400) -> tuple[Tensor, Tensor]:
        u = (torch.arange(number, dtype=torch.float64, device=self.device) + 0.5) / number
        points = self._quantile(u.expand(len(where), -1), where)
        return points, torch.full_like(points, 1 / number)
