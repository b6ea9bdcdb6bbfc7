"""Distributions of rotations to hold against the library: sums over a dense grid, and series of spherical harmonics."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.special import ive
from torch import Tensor

from gm_discrete import ExactRotationModel, SO3Path, quaternions
from gm_discrete.generators.rotation_belief import RotationMixture
from gm_discrete.paths.rotations import spiral

IDENTITY = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
CENTERS = torch.stack([IDENTITY, *quaternions.exp(torch.tensor([[0.0, 0.0, 2.0], [2.2, 0.0, 0.0]]).double())])[:, None]
"""Three rotations, [3, 1, 4], that lie in no plane."""
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = torch.tensor([8.0, 20.0, 60.0], dtype=torch.float64)
"""Concentrations that make a smooth mixture of the three."""
ASIDE = quaternions.exp(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
REFERENCES = torch.stack([CENTERS[0, 0], CENTERS[1, 0], ASIDE])
"""Rotations from which angles are measured."""
BOTH = {"flow": 0.5, "jump": 0.5}
ALL = {"flow": 0.4, "jump": 0.3, "diffusion": 0.3}


def exact(path: SO3Path, smooth: bool = True) -> ExactRotationModel:
    """The exact model of the three atoms, or of the smooth mixture."""
    return ExactRotationModel(path, CENTERS, SPREAD if smooth else None, WEIGHTS)


@cache
def grid(number: int = 20_000) -> Tensor:
    """Evenly spread rotations [number, 4]; means over them are integrals against the Haar measure."""
    return spiral(number)


def mixture(rows: int, components: int, seed: int = 0, high: float = 3.0) -> RotationMixture:
    """Random beliefs [rows, components], with concentrations from 0.4 to eʰⁱᵍʰ."""
    rng = torch.Generator().manual_seed(seed)
    log_k = (high + 1) * torch.rand(rows, components, generator=rng, dtype=torch.float64) - 1
    weights = torch.randn(rows, components, generator=rng, dtype=torch.float64)
    return RotationMixture(weights, log_k.exp(), quaternions.uniform((rows, components), rng, dtype=torch.float64))


def density(center: Tensor, k: Tensor, z: Tensor) -> Tensor:
    """cosh(k m·z)/Z(k), Z(k) = 2 I₁(k)/k, by definition and in SciPy's Bessel functions."""
    cosine = (center * z).sum(-1)
    normalizer = torch.as_tensor(2 * ive(1, k.numpy())) / k
    return (torch.exp(k * (cosine - 1)) + torch.exp(-k * (cosine + 1))) / 2 / normalizer


def _harmonics(k: float, number: int) -> np.ndarray:
    """I_{n+1}(k)/I₁(k), by which noise multiplies the harmonics of degree n = 0, 2, …; 1 for a point mass."""
    return np.ones(number) if math.isinf(k) else ive(2 * np.arange(number) + 1, k) / ive(1, k)


def angle_cdf(
    k: float, center: Tensor, concentration: Tensor, weights: Tensor, reference: Tensor, number: int = 120
) -> Callable[[Tensor], Tensor]:
    """The distribution function of the half angle α to a reference, of a mixture noised with the concentration k.

    The harmonics of degree n of a component around m are U_n(x·m) (n + 1) a_n(k) a_n(K). Their mean over the rotations at
    α from r is U_n(cos α) U_n(r·m)/(n + 1), and (4/π) sin²α U_n(cos α) integrates to (2/π) [sin nα/n − sin (n+2)α/(n+2)].
    Concentrations of ∞ are point masses; at least one of the two has to be finite.
    """
    degree = 2 * np.arange(number)
    theta = quaternions.half_angle(center, reference).numpy()[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        toward = np.sin((degree + 1) * theta) / np.sin(theta)
    toward = np.where(theta < 1e-9, degree + 1.0, toward)
    factors = np.stack([_harmonics(k, number) * _harmonics(float(big), number) for big in concentration])
    total = (weights.numpy()[:, None] * toward * factors).sum(0)

    def cdf(alpha: Tensor) -> Tensor:
        a = alpha.double().numpy()[:, None]
        first = np.where(degree == 0, a, np.sin(degree * a) / np.maximum(degree, 1))
        return torch.tensor((2 / math.pi * (first - np.sin((degree + 2) * a) / (degree + 2)) * total).sum(1))

    return cdf


def smooth_cdf(path: SO3Path, t: float, reference: Tensor) -> Callable[[Tensor], Tensor]:
    """That of the smooth mixture at the time t."""
    k = math.inf if t == 1 else float(path.concentration.value(torch.tensor(t, dtype=torch.float64)))
    return angle_cdf(k, CENTERS[:, 0], SPREAD, WEIGHTS, reference)


def smooth_density(path: SO3Path, t: float, x: Tensor, number: int = 60) -> Tensor:
    """The density of the smooth mixture at the time t < 1, at rotations [n, 4]: the harmonics of `angle_cdf`."""
    k = float(path.concentration.value(torch.tensor(t, dtype=torch.float64)))
    degree = 2 * np.arange(number)
    theta = quaternions.half_angle(x.double()[:, None], CENTERS[:, 0]).clamp(min=1e-6).numpy()[..., None]
    around = np.sin((degree + 1) * theta) / np.sin(theta)  # [n, 3, number]
    factors = np.stack([_harmonics(k, number) * _harmonics(float(spread), number) for spread in SPREAD])
    return torch.tensor((around * factors * (degree + 1)).sum(-1) @ WEIGHTS.numpy())


def atoms_cdf(path: SO3Path, t: float, reference: Tensor) -> Callable[[Tensor], Tensor]:
    """That of the three atoms at the time t < 1."""
    k = float(path.concentration.value(torch.tensor(t, dtype=torch.float64)))
    return angle_cdf(k, CENTERS[:, 0], torch.full_like(SPREAD, math.inf), WEIGHTS, reference)


def axis_component(x: Tensor, reference: Tensor) -> Tensor:
    """The first coordinate of the axis of the rotation from the reference to x."""
    relative = quaternions.multiply(quaternions.conjugate(reference), x.double())
    relative = torch.where(relative[..., :1] < 0, -relative, relative)
    return relative[..., 1] / relative[..., 1:].norm(dim=-1)


def weighted_cdf(values: Tensor, mass: Tensor) -> Callable[[Tensor], Tensor]:
    """The distribution function of values [N] of these masses, straight between them."""
    order = values.argsort()
    total = mass[order].cumsum(0)
    at, height = values[order].numpy(), ((total - mass[order] / 2) / total[-1]).numpy()
    return lambda x: torch.tensor(np.interp(x.numpy(), at, height))


def data_density(z: Tensor) -> Tensor:
    """The density of the smooth mixture at rotations [..., 4]."""
    return (WEIGHTS * density(CENTERS[:, 0], SPREAD, z.double()[..., None, :])).sum(-1)


def times(t: float, number: int) -> Tensor:
    return torch.full((number,), t, dtype=torch.float64)


def rotations(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform rotations [*shape, 4]."""
    return quaternions.uniform(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def equal_rotations(a: Tensor, b: Tensor, atol: float = 1e-6) -> bool:
    """Whether they are the same rotations, up to half an angle; q and −q are one."""
    return bool((quaternions.half_angle(a.double(), b.double()) <= atol).all())
