"""The generators of rotations as means over the posterior of z, of what they do given z.

Given z they depend on the half angle α between x and z alone: at the concentration k,

    flow        −dα/dk towards z; from k to k_end α − α_end
    diffusion   k tanh(k cos α) sin α towards z, the slope of log p(x|z)
    jump        [A − c tanh(k c)]₊; from k to k_end 1 − p(x|z; k_end)/p(x|z; k̂), k̂ in [k, k_end] where x is likeliest

Source: Generator Matching (Holderrieth et al., ICLR 2025), section on SO(3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.rotation_belief import HALF, Nodes, RotationPosterior
from gm_discrete.generators.rotation_kernels import RotationBelief, RotationLanding
from gm_discrete.generators.rows import chunked, map_rows

CACHED = 2**18
"""Numbers in a block on a CPU, 2 MiB in float64: smaller and larger ones were slower."""

COPIES = 16
"""Passes over a block leave so many times the memory that chunks of logits take: about 370 bytes for each node."""

OfAngle = Callable[[Tensor, Tensor], Tensor]
"""(α [n, 2 M, N], the rotations [n]) → a quantity of the same shape as α."""


class RotationMeans:
    """Means over the posterior of z at every rotation, at a concentration or from one to another.

    Args:
        belief: the posterior of z.
        k_end: the concentration [B·L] at the end of an interval; `None` at a time.
    """

    def __init__(self, belief: RotationBelief, k_end: Tensor | None = None) -> None:
        self.belief, self.k, self.k_end = belief, belief.k, belief.k if k_end is None else k_end
        self.kink, self.interval = vmf.boundary(self.k_end), k_end is not None

    def vectors(self, lengths: Sequence[OfAngle]) -> list[Tensor]:
        """E f(α) e for each f, with e the unit tangent vector at x towards z: [B·L, 4] each."""

        def of_rows(where: Tensor) -> Tensor:
            posterior, nodes = self._quadrature(where)
            return torch.stack([posterior.mean_vector(f(nodes.alpha, where), nodes) for f in lengths], 1)

        return list(self._mapped(of_rows).unbind(1))

    def numbers(self, values: Sequence[OfAngle]) -> list[Tensor]:
        """E f(α) for each f, [B·L] each."""

        def of_rows(where: Tensor) -> Tensor:
            posterior, nodes = self._quadrature(where)
            return torch.stack([posterior.mean(f(nodes.alpha, where), nodes) for f in values], 1)

        return list(self._mapped(of_rows).unbind(1))

    def landing(self) -> RotationLanding:
        """Where jumps land."""
        return RotationLanding(self.belief, self.chance if self.interval else self.rate, self.kink, self.k_end)

    # Quantities given z

    def speed(self, alpha: Tensor, where: Tensor) -> Tensor:
        """−dα/dk of the flow."""
        return -vmf.radial_speed(alpha, self.k[where, None, None])

    def way(self, alpha: Tensor, where: Tensor, k_end: Tensor) -> Tensor:
        """α − α_end of the flow up to the concentrations k_end [B·L], which may be ∞."""
        return alpha - vmf.transported_angle(alpha, self.k[where, None, None], k_end[where, None, None])

    def pull(self, alpha: Tensor, where: Tensor) -> Tensor:
        """The slope of log p(x|z) towards z."""
        k = self.k[where, None, None]
        return k * torch.tanh(k * alpha.cos()) * alpha.sin()

    def rate(self, alpha: Tensor, where: Tensor) -> Tensor:
        """The rate of jumps, per unit of k."""
        return (-vmf.slope(alpha, self.k[where, None, None])).clamp(min=0)

    def chance(self, alpha: Tensor, where: Tensor) -> Tensor:
        """The probability of a jump up to k_end."""
        start, end = self.k[where, None, None], self.k_end[where, None, None]
        likeliest = torch.minimum(torch.maximum(vmf.peak(alpha), start), end)
        return -torch.expm1(vmf.log_density(alpha, end) - vmf.log_density(alpha, likeliest))

    # Blocks of rotations

    def _quadrature(self, where: Tensor) -> tuple[RotationPosterior, Nodes]:
        posterior = self.belief.at(where)
        return posterior, posterior.nodes(self.kink[where])

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of all rotations, in blocks; with gradients it is kept if memory allows, else computed again."""
        everywhere, size = torch.arange(self.k.shape[0], device=self.k.device), self.belief.vocab_size * 2 * HALF
        if torch.is_grad_enabled() or self.k.device.type != "cpu":
            return map_rows(function, chunked(everywhere, COPIES * size, kept=torch.is_grad_enabled()))
        return torch.cat([function(part) for part in everywhere.split(max(1, CACHED // size))])
