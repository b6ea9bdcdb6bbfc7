"""Kernels of rotations: the posterior of the clean rotation, and where a jump lands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from gm_discrete.generators import quaternions
from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.kernels import BeliefKernel, Kernel
from gm_discrete.generators.rotation_belief import RotationMixture, RotationPosterior

UNIFORMS = 8
"""Uniform numbers of a landing: five for z, one for the angle of the landing, two for its axis."""

LATTICE = 1024
"""Points of the lattice by which `RotationLanding.nodes` sums over landings."""


class RotationBelief(Kernel):
    """The posterior of z at the noisy rotations x: a belief about z, times the evidence of x in closed form.

    Args:
        mixture: the belief before x is taken into account, [B·L, M].
        x: noisy rotations [B, L, 4].
        k: concentration of the noise, [B].
    """

    def __init__(self, mixture: RotationMixture, x: Tensor, k: Tensor) -> None:
        self.mixture, self.x, self.shape = mixture, x.reshape(-1, 4), x.shape[:-1]
        self.k = k.view(-1, *[1] * (x.dim() - 2)).expand(self.shape).flatten()
        self.vocab_size = 2 * mixture.log_weights.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def clean(self) -> Tensor:
        """z [B, L, 4], if it is known: the mixture is then one atom."""
        return self.mixture.centers.view(*self.shape, 4)

    @cached_property
    def posterior(self) -> RotationPosterior:
        """The posterior at all rotations."""
        return RotationPosterior(self.mixture, self.x, self.k)

    def at(self, where: Tensor) -> RotationPosterior:
        """The posterior at the rotations `where` [n]."""
        return RotationPosterior(self.mixture[where], self.x[where], self.k[where])

    def log_likelihood_ratio(self, z: Tensor) -> Tensor:
        """log π(z|x) − log p(x|z) [B, L], for z [B, L, 4]: the log belief at z, less the log evidence of x.

        It differs from the log posterior by what no prediction changes, and stays finite as the noise vanishes.
        """
        return (self.mixture.log_prob(z.reshape(-1, 4)) - self.posterior.log_evidence).view(self.shape)

    def log_probs(self, where: Tensor) -> Tensor:
        """The log weights of the components of the posterior, rows [n, 2 M]."""
        return self.at(where).mixture.log_weights.log_softmax(-1)

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        """z [n, 4] from the posterior."""
        posterior = self.at(where)
        nodes = posterior.nodes(torch.zeros_like(posterior.log_evidence))
        return posterior.draw(torch.ones_like(nodes.alpha), nodes, uniforms(self, rng, where, 5)[:, None])[:, 0]


class RotationLanding(BeliefKernel):
    """Where a jump lands: z from the posterior of those x that jump, and then an angle and a uniform axis around z.

    Args:
        belief: the posterior of z.
        chance: (angles between x and z, rotations [n]) → the relative rates of jumping.
        kink: an angle [B·L] at which `chance` is not smooth.
        k: the concentration [B·L] at the time of landing.
    """

    def __init__(
        self, belief: RotationBelief, chance: Callable[[Tensor, Tensor], Tensor], kink: Tensor, k: Tensor
    ) -> None:
        self._belief, self.chance, self.kink, self.k = belief, chance, kink, k
        self.x, self.shape, self.vocab_size = belief.x, belief.shape, belief.vocab_size

    @property
    def rotations(self) -> RotationBelief:
        """The posterior of z."""
        assert isinstance(self._belief, RotationBelief)
        return self._belief

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        """Landings [n, 4]."""
        return self._land(where, uniforms(self, rng, where, UNIFORMS)[:, None])[:, 0]

    def log_probs(self, where: Tensor) -> Tensor:
        return self.rotations.log_probs(where)

    def nodes(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Landings [n, Q, 4] and their weights [n, Q], for sums of smooth functions: a lattice in the eight uniforms."""
        steps = torch.arange(LATTICE, dtype=torch.float64, device=self.device)[:, None]
        lattice = (0.5 + steps * torch.tensor(_RATIOS, dtype=torch.float64, device=self.device)) % 1
        landings = self._land(where, lattice.expand(where.shape[0], -1, -1))
        return landings, torch.full_like(landings[..., 0], 1 / LATTICE)

    def _land(self, where: Tensor, u: Tensor) -> Tensor:
        """S landings [n, S, 4] from uniforms [n, S, 8]."""
        posterior = self.rotations.at(where)
        nodes = posterior.nodes(self.kink[where])
        z = posterior.draw(self.chance(nodes.alpha, where), nodes, u[..., :5])
        return around(z, vmf.landing_quantile(u[..., 5], self.k[where, None]), u[..., 6:])


def around(z: Tensor, alpha: Tensor, u: Tensor) -> Tensor:
    """Rotations at the half angles α [...] from z [..., 4], about a uniform axis that two uniforms [..., 2] give."""
    height, turn = 2 * u[..., 0] - 1, 2 * torch.pi * u[..., 1]
    radius = (1 - height.square()).clamp(min=0).sqrt()
    axis = torch.stack([radius * turn.cos(), radius * turn.sin(), height], -1)
    return quaternions.multiply(z, quaternions.exp(2 * alpha[..., None] * axis))


def uniforms(kernel: Kernel, rng: torch.Generator | None, where: Tensor, number: int) -> Tensor:
    """Float64 uniforms [n, number], drawn for every rotation so that the stream is the same for any `where`."""
    source = rng.device if rng is not None else kernel.device
    noise = torch.rand(kernel.shape.numel(), number, generator=rng, device=source, dtype=torch.float64)
    return noise.to(kernel.device)[where]


def _plastic(dimension: int) -> Sequence[float]:
    """1/φ, 1/φ², … with φ^(d + 1) = φ + 1, whose multiples modulo 1 fill the unit cube evenly (Roberts' R sequence)."""
    phi = 2.0
    for _ in range(60):  # a contraction, exact after that many
        phi = (1 + phi) ** (1 / (dimension + 1))
    return [phi ** -(i + 1) for i in range(dimension)]


_RATIOS = _plastic(UNIFORMS)
