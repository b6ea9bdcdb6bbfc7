"""Beliefs about a clean rotation z: mixtures of symmetrised von Mises–Fisher distributions, conjugate to the noise.

A component with centre m and concentration K has the density cosh(K m·z)/Z(K) (see `von_mises_fisher`). With the evidence
cosh(k x·z)/Z(k) of a noisy rotation x,

    cosh(k x·z) cosh(K m·z) = ½ cosh((k x + K m)·z) + ½ cosh((k x − K m)·z),

so that the posterior of z is a mixture again, of twice as many components, with the centres n± = (k x ± K m)/κ±, the
concentrations κ± = |k x ± K m| and the weights ∝ w Z(κ±)/Z(K).

A generator is the mean, over the posterior, of quantities that depend on the angle α between x and z alone. Within a
component (n, κ) at the angle θ from x, and before q and −q are taken as one, α has the density

    q(α) = (2/π) sin²α exp(κ cos(α − θ) − log Z(κ)) (1 − e^{−2b})/(2b),   b = κ sin α sin θ,   α in [0, π],

and the direction of z, seen from x, is distributed around that of n with the concentration b on S², so that its mean is
coth b − 1/b of a unit vector. Means are Gauss–Legendre sums over α.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from gm_discrete.generators import quaternions
from gm_discrete.generators.von_mises_fisher import log_density, log_scaled_normalizer

ATOM = 1e12
"""The concentration of a known rotation: 1e-6 from its centre, which is below the rounding of float32."""

TINY = 1e-300
"""In place of divisors that underflow to 0 in float64: masses of cells far from a component, directions at its centre."""

SPAN = 5.0
"""Nodes reach 5 standard deviations from the centre of a component, beyond which lies 2e-5 of it."""

HALF = 8
"""Nodes on either side of the angle where the integrand has a kink; velocities are then exact to 1e-3 of their unit, and to
3e-6 in the mean."""


@lru_cache
def rule(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The Gauss–Legendre rule of an interval of length 1: nodes, masses, and the middles of cells as wide as the masses."""
    points, masses = np.polynomial.legendre.leggauss(HALF)
    both = ((points + 1) / 2, masses / 2, (masses.cumsum() - masses / 2) / 2)
    return (
        torch.tensor(both[0], device=device),
        torch.tensor(both[1], device=device),
        torch.tensor(both[2], device=device),
    )


class Nodes(NamedTuple):
    """A quadrature over the angle α between x and z, of every component: all [..., M, N].

    Attributes:
        alpha: angles in [0, π/2], where z and −z count as one.
        mass: the probability of each; they sum to 1 over a component.
        along: the mean of the unit vector towards z (or −z, if that is nearer), over sin θ times that towards the centre.
        middle, width: of the cell of each node, in α; the cells lie side by side.
        near: the part of the mass in which z, rather than −z, is on the side of the centre.
    """

    alpha: Tensor
    mass: Tensor
    along: Tensor
    middle: Tensor
    width: Tensor
    near: Tensor


@dataclass(frozen=True)
class RotationMixture:
    """Σ_j w_j cosh(K_j m_j·z)/Z(K_j), M components for each rotation, in float64.

    Attributes:
        log_weights: [..., M], up to a constant.
        concentration: K [..., M].
        centers: m [..., M, 4], unit quaternions.
    """

    log_weights: Tensor
    concentration: Tensor
    centers: Tensor

    @classmethod
    def atoms(cls, z: Tensor) -> Self:
        """The distribution that is concentrated at z [..., 4]."""
        z = z.double().unsqueeze(-2)
        return cls(torch.zeros_like(z[..., 0]), torch.full_like(z[..., 0], ATOM), z)

    @classmethod
    def from_rows(cls, rows: Tensor) -> Self:
        """The mixture of rows [..., 6 M]: M log weights, M log K, and the 4 M numbers of the centres."""
        number = rows.shape[-1] // 6
        log_weights, log_k, centers = rows.double().split([number, number, 4 * number], -1)
        return cls(log_weights, log_k.exp(), quaternions.normalized(centers.unflatten(-1, (number, 4))))

    @property
    def rows(self) -> Tensor:
        """The rows of `from_rows`."""
        return torch.cat([self.log_weights, self.concentration.log(), self.centers.flatten(-2)], -1)

    def __getitem__(self, where: Tensor) -> RotationMixture:
        """The mixtures of some rows, if they are [n, M]."""
        return RotationMixture(self.log_weights[where], self.concentration[where], self.centers[where])

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density [...] at rotations z [..., 4] against the Haar measure."""
        alpha = quaternions.half_angle(self.centers, z.double().unsqueeze(-2))
        return (self.log_weights.log_softmax(-1) + log_density(alpha, self.concentration)).logsumexp(-1)

    def posterior(self, x: Tensor, k: Tensor) -> tuple[RotationMixture, Tensor]:
        """The posterior [..., 2 M] of z, and the log evidence [...] of x, for the noise cosh(k x·z)/Z(k).

        Args:
            x: noisy rotations [..., 4].
            k: concentrations, which broadcast to [...].
        """
        x, k, big = x.double().unsqueeze(-2), k.double().unsqueeze(-1), self.concentration
        total = torch.cat(
            [k[..., None] * x + big[..., None] * self.centers, k[..., None] * x - big[..., None] * self.centers], -2
        )
        # κ± − (K + k) = −k K |x ∓ m|²/(κ± + K + k), where the difference itself would cancel.
        apart = torch.cat([(x - self.centers).square().sum(-1), (x + self.centers).square().sum(-1)], -1)
        both, kappa = torch.cat([big, big], -1), total.norm(dim=-1)
        kappa = torch.where(kappa > 0, kappa, torch.finfo(kappa.dtype).tiny)
        excess = -k * both * apart / (kappa + both + k).clamp(min=torch.finfo(kappa.dtype).tiny)
        log_ratio = excess + log_scaled_normalizer(kappa) - log_scaled_normalizer(both) - log_scaled_normalizer(k)
        log_weights = torch.cat([self.log_weights.log_softmax(-1)] * 2, -1) + log_ratio - math.log(2)
        return RotationMixture(log_weights, kappa, quaternions.normalized(total)), log_weights.logsumexp(-1)

    def nodes(self, x: Tensor, kink: Tensor) -> Nodes:
        """The quadrature of each component over the angle between x [..., 4] and z.

        Args:
            kink: an angle [...] at which the integrand is not smooth. It becomes the end of cells where it is near the
                component; elsewhere nothing is lost by smooth integrands.
        """
        theta = quaternions.half_angle(x.double().unsqueeze(-2), self.centers)[..., None]
        kappa = self.concentration[..., None]
        span = (SPAN / kappa.clamp(min=1e-6).sqrt()).clamp(max=math.pi)
        low, high = (theta - span).clamp(min=0), (theta + span).clamp(max=math.pi / 2)
        kink = kink.double()[..., None, None]
        split = torch.where((low < kink) & (kink < high), kink, (low + high) / 2)  # all nodes have a cell of their own
        points, masses, middles = rule(x.device)
        ends = torch.cat([low, split, high], -1)
        length = ends.diff(dim=-1)[..., None]
        alpha = (ends[..., :-1, None] + length * points).flatten(-2)
        width = (length * masses).flatten(-2)
        middle = (ends[..., :-1, None] + length * middles).flatten(-2)
        b = kappa * alpha.sin() * theta.sin()
        small = b < 1e-4  # where (1 − e^{−2b})/(2b) = 1 − b and (coth b − 1/b)/b = 1/3, up to b²
        safe = torch.where(small, 1.0, b)
        shape = torch.where(small, 1 - b, -torch.expm1(-2 * safe) / (2 * safe))
        along = torch.where(small, 1 / 3, (1 / torch.tanh(safe) - 1 / safe) / safe) * kappa * alpha.sin()
        base = (2 / math.pi) * alpha.sin().square() * shape * width
        base = base * (-log_scaled_normalizer(kappa)).exp()
        near = base * (-2 * kappa * ((alpha - theta) / 2).sin().square()).exp()
        far = base * (-2 * kappa * ((math.pi - alpha - theta) / 2).sin().square()).exp()
        mass = near + far
        total = mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)  # 1 but for the quadrature
        return Nodes(
            alpha,
            mass / total,
            along * (near - far) / mass.clamp(min=TINY),
            middle,
            width,
            near / mass.clamp(min=TINY),
        )


class RotationPosterior:
    """The posterior of z at noisy rotations x, and means over it.

    Args:
        belief: about z before x is taken into account, [..., M].
        x: [..., 4].
        k: concentrations of the noise, [...].
    """

    def __init__(self, belief: RotationMixture, x: Tensor, k: Tensor) -> None:
        self.x = quaternions.normalized(x.double())  # float32 is not of length 1 in float64, and angles would be wrong
        self.mixture, self.log_evidence = belief.posterior(self.x, k)
        self.weights = self.mixture.log_weights.softmax(-1)

    @cached_property
    def directions(self) -> Tensor:
        """sin θ times the unit tangent vectors at x towards the centres of the components, [..., 2 M, 4]."""
        return quaternions.sine(self.x.unsqueeze(-2), self.mixture.centers)

    def nodes(self, kink: Tensor) -> Nodes:
        """The quadrature of each component (see `RotationMixture.nodes`)."""
        return self.mixture.nodes(self.x, kink)

    def mean(self, values: Tensor, nodes: Nodes) -> Tensor:
        """E f(α) [...] of values [..., 2 M, N] at the nodes."""
        return (self.weights * (values * nodes.mass).sum(-1)).sum(-1)

    def mean_vector(self, lengths: Tensor, nodes: Nodes) -> Tensor:
        """E f(α) e, with e the unit tangent vector at x towards z: [..., 4] of lengths [..., 2 M, N] at the nodes."""
        along = (self.weights * (lengths * nodes.along * nodes.mass).sum(-1))[..., None]
        return (along * self.directions).sum(-2)

    def draw(self, chances: Tensor, nodes: Nodes, uniforms: Tensor) -> Tensor:
        """z [n, S, 4], S draws ∝ f(α) times the posterior, for posteriors of n rotations.

        Args:
            chances: f at the nodes, [n, 2 M, N].
            uniforms: [n, S, 5]. A cell of the quadrature is drawn, and the angle within it.
        """
        mass = self.weights[..., None] * nodes.mass * chances
        cumulative = mass.flatten(1).cumsum(1)
        cell = torch.searchsorted(cumulative, uniforms[..., 0] * cumulative[:, -1:], right=True).clamp(
            max=cumulative.shape[1] - 1
        )
        component, x = cell // nodes.mass.shape[-1], self.x[:, None]
        values = (nodes.middle, nodes.width, nodes.near, _tilt(mass, nodes))
        middle, width, near, tilt = (value.flatten(1).gather(1, cell) for value in values)
        fraction = 2 * uniforms[..., 1] / (1 - tilt + ((1 - tilt).square() + 4 * tilt * uniforms[..., 1]).sqrt())
        alpha = (middle + (fraction.clamp(max=1) - 0.5) * width).clamp(0, math.pi / 2)[..., None]
        mixture, rows = self.mixture, torch.arange(self.x.shape[0], device=self.x.device)[:, None]
        center = mixture.centers[rows, component]
        axis, theta = quaternions.towards(x, center), quaternions.half_angle(x, center)[..., None]
        unit = torch.zeros_like(axis)
        unit[..., 1] = 1
        axis = torch.where((axis == 0).all(-1, keepdim=True), quaternions.multiply(x, unit), axis)
        b = mixture.concentration.gather(1, component)[..., None] * alpha.sin() * theta.sin()
        b = b.clamp(min=1e-8)  # as good as 0: every direction is equally likely
        u = uniforms[..., 3:4]
        cosine = (1 + torch.log(u + (1 - u) * torch.exp(-2 * b)) / b).clamp(-1, 1)  # of the direction, around the axis
        side = torch.where(uniforms[..., 2] < near, 1.0, -1.0)[..., None]
        direction = cosine * axis + (1 - cosine.square()).sqrt() * _across(x, axis, uniforms[..., 4:5])
        return quaternions.move(x, alpha * side * direction)


def _tilt(mass: Tensor, nodes: Nodes) -> Tensor:
    """c in [−1, 1] for a density ∝ 1 + c (2y − 1) within every cell, at y in [0, 1]: by differences of its neighbours."""
    panels = (-1, HALF)  # a kink lies between the two
    width = nodes.width.unflatten(-1, panels)
    height = mass.unflatten(-1, panels) / width.clamp(min=TINY)
    places = nodes.alpha.unflatten(-1, panels)
    left, right = (torch.arange(HALF, device=mass.device) + step for step in (-1, 1))
    left, right = left.clamp(min=0), right.clamp(max=HALF - 1)
    slope = (height[..., right] - height[..., left]) / (places[..., right] - places[..., left]).clamp(min=TINY)
    return (slope * width / (2 * height.clamp(min=TINY))).clamp(-1 + 1e-9, 1).flatten(-2)


def _across(x: Tensor, axis: Tensor, u: Tensor) -> Tensor:
    """A unit tangent vector at x [..., 4] orthogonal to `axis`, at the fraction u [..., 1] of a turn around it."""
    body = quaternions.multiply(quaternions.conjugate(x), axis)[..., 1:]
    least = torch.nn.functional.one_hot(body.abs().argmin(-1), 3).to(body)
    first = torch.linalg.cross(body, least)
    first = first / first.norm(dim=-1, keepdim=True).clamp(min=TINY)
    second, angle = torch.linalg.cross(body, first), 2 * math.pi * u
    turned = first * angle.cos() + second * angle.sin()
    return quaternions.multiply(x, torch.cat([torch.zeros_like(turned[..., :1]), turned], -1))
