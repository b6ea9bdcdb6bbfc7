"""Exact posteriors of rotations in place of a network, and the Kolmogorov equation on SO(3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gm_discrete.generators import Superposition
from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.landings import ROUNDING
from gm_discrete.generators.rotation_belief import ATOM, RotationMixture
from gm_discrete.paths.rotations import SO3Path

GREATEST_CHECKED = 1e5
"""Concentration up to which the change of a mean, of the relative size 1/k², is more than rounding."""


class ExactRotationModel:
    """A process whose data are a mixture of L rotations each, with the exact marginal generator.

    Component j, of probability w_j, has at position l the symmetrised von Mises–Fisher distribution with the centre m_jl and
    the concentration K_j; without K it is m_jl itself. Given j the positions are independent, and j has the posterior weight
    ∝ w_j Π_l p_t(x_l|j). Use it in place of a network, in `simulate`, `conditional_loss` or `flow_likelihood`.

    Args:
        path: with any generators.
        centers: m, unit quaternions [Z, L, 4] or matrices [Z, L, 3, 3].
        concentration: K ≥ 0, a number or [Z]; by default the data are atoms.
        weights: w, [Z]; equal by default.

    >>> model = ExactRotationModel(SO3Path(), torch.eye(4)[:2, None])
    >>> x = torch.tensor([[[0.6, 0.8, 0.0, 0.0]]])
    >>> model.generator(x, torch.tensor([0.9])).parts["flow"].velocity[0, 0, :2].sign().tolist()  # to the nearer atom
    [-1.0, 1.0]
    """

    def __init__(
        self,
        path: SO3Path,
        centers: Tensor,
        concentration: Tensor | float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if not isinstance(path, SO3Path):
            raise TypeError(f"path={path!r} must be an SO3Path")
        self.path, self.centers = path, path.as_state(centers, "centers").double()
        path.check(self.centers, torch.zeros(len(centers), device=centers.device), "centers")
        given = ATOM if concentration is None else concentration
        self.concentration = torch.as_tensor(given, dtype=torch.float64, device=centers.device).expand(len(centers))
        if not bool((self.concentration >= 0).all()):
            raise ValueError(f"concentration={self.concentration.tolist()} must hold numbers ≥ 0")
        self.concentration = self.concentration.clamp(max=ATOM)
        even = torch.full_like(self.concentration, 1 / len(centers))
        self.weights = even if weights is None else weights.double().to(centers.device)
        fitting = self.weights.shape == (len(centers),) and bool((self.weights >= 0).all())
        if not fitting or not math.isclose(float(self.weights.sum()), 1, abs_tol=ROUNDING):
            raise ValueError(f"weights={self.weights.tolist()} must hold {len(centers)} probabilities of sum 1")

    def sample(self, number: int, rng: torch.Generator | None = None) -> Tensor:
        """Data, [number, L, 4]."""
        device = rng.device if rng is not None else self.weights.device
        j = torch.multinomial(self.weights.to(device), number, replacement=True, generator=rng).to(self.weights.device)
        return vmf.sample(self.centers[j], self.concentration[j, None].expand(number, self.centers.shape[1]), rng)

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_l|j) of every position and component, [B, L, Z]."""
        k = self.path.at(t).k
        components = RotationMixture(
            torch.zeros(1, 1, len(self.weights), 1, dtype=torch.float64, device=x.device),
            self.concentration[:, None],
            self.centers.transpose(0, 1)[:, :, None],
        )  # each by itself: [1, L, Z, 1]
        return components.posterior(x[:, :, None], k[:, None, None])[1]

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x|j) of states x [B, L, 4] at times t [B] and every component: [B, Z]."""
        return self.evidence(x, t).sum(1)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        """The marginal generator at x, or that of the step [t, t_next]."""
        return self.with_weights(self.weights.log() + self.log_evidence(x, t), x, t, t_next)

    def with_weights(self, log_weights: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        """The generator if the components have these posterior weights, log [B, Z] up to a constant."""
        number = x.shape[0] * x.shape[1]
        others = log_weights[:, None] - self.evidence(
            x, t
        )  # the path adds the evidence of each rotation to its own belief
        centers = self.centers.transpose(0, 1).expand(x.shape[0], -1, -1, -1)
        belief = RotationMixture(
            others.reshape(number, -1), self.concentration.expand(number, -1), centers.reshape(number, -1, 4)
        )
        return self.path.generator(belief, x, t, t_next)


FARTHEST = 12.0
"""Standard deviations of the noise beyond which it has no mass: e⁻⁷²."""


def kolmogorov_residual(path: SO3Path, t: float, degree: int = 2, nodes: int = 64) -> dict[str, float]:
    """|E L f − d/dt E f| by part of the path's generator, under p_t(·|z), for f a zonal spherical harmonic.

    f(x) = U_ℓ(x·z), the Chebyshev polynomial of the second kind of even degree ℓ, whose mean under p_t(·|z) is
    (ℓ + 1) I_{ℓ+1}(k)/I_1(k). E L f is a Gauss–Legendre sum over the angle between x and z. Residuals are relative
    to E|L f|.

    Args:
        path: its generators are checked one by one.
        t: in (0, 1).
        degree: ℓ, even.
        nodes: of the quadrature on either side of the angle at which jumps end.

    Raises:
        ValueError: the degree is odd: f would differ at q and −q.

    >>> max(kolmogorov_residual(SO3Path({"flow": 0.5, "diffusion": 0.5}), t=0.5).values()) < 1e-4
    True
    """
    if not 0 < t < 1:
        raise ValueError(f"t={t} must be in (0, 1), where k(t) is positive and finite")
    if float(path.at(torch.tensor([t])).k) > GREATEST_CHECKED:
        raise ValueError(
            f"t={t}: k(t) must be at most {GREATEST_CHECKED:g}, above which rounding decides; give a lower t"
        )
    if degree % 2 or degree < 2:
        raise ValueError(f"degree={degree} must be even and at least 2: q and −q are one rotation")
    time = torch.tensor([t], dtype=torch.float64)
    now = path.at(time)
    kink = float(vmf.boundary(now.k))
    points, masses = np.polynomial.legendre.leggauss(nodes)
    ends = ((0, kink), (kink, min(math.pi / 2, FARTHEST * float(now.spread))))
    alphas = [(high - low) / 2 * (points + 1) + low for low, high in ends]
    width = [(high - low) / 2 * masses for low, high in ends]
    alpha, mass = torch.tensor(np.concatenate(alphas)), torch.tensor(np.concatenate(width))
    mass = mass * vmf.log_density(alpha, now.k).exp() * (4 / math.pi) * alpha.sin().square()
    z = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64).expand(len(alpha), 1, 4)
    x = torch.stack([alpha.cos(), alpha.sin(), 0 * alpha, 0 * alpha], -1)[:, None]

    def f(y: Tensor) -> Tensor:
        cosine, before, value = y[:, 0, 0], torch.ones_like(y[:, 0, 0]), 2 * y[:, 0, 0]
        for _ in range(degree - 1):
            before, value = value, 2 * cosine * value - before
        return value

    slope = float(now.slope) * _mean_slope(float(now.k), degree)
    parts = path.conditional(z, x, time.expand(len(alpha))).parts
    found = {}
    for name, part in parts.items():
        action = mass * part.action(f, x)
        found[name] = abs(float(action.sum()) - slope) / float(action.abs().sum())
    return found


def _mean_slope(k: float, degree: int) -> float:
    """d/dk of (ℓ + 1) I_{ℓ+1}(k)/I_1(k), with I_n = ∫₀^π e^{k cos a} cos(n a) da/π, by Gauss–Legendre quadrature."""
    points, masses = np.polynomial.legendre.leggauss(256)
    a, mass = min(math.pi, FARTHEST / math.sqrt(k)) / 2 * (points + 1), masses / 2
    weight = mass * np.exp(k * (np.cos(a) - 1))
    high, one = weight * np.cos((degree + 1) * a), weight * np.cos(a)
    slopes = [float((part * np.cos(a)).sum()) for part in (high, one)]
    value, base = float(high.sum()), float(one.sum())
    return (degree + 1) * (slopes[0] * base - value * slopes[1]) / base**2
