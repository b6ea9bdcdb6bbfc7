"""The antipodally symmetrised von Mises–Fisher distribution of rotations: its normaliser, its density, and its slope.

Around a rotation z, with concentration k ≥ 0, a rotation at the half angle α ∈ [0, π/2] (half the rotation angle between
the two) has, against the normalised Haar measure, the density

    f(α; k) = cosh(k cos α)/Z(k),  Z(k) = 2 I₁(k)/k,

and α itself has the density g(α; k) = (4/π) sin²α f(α; k). With A(k) = I₂(k)/I₁(k) = d log Z/dk,

    ∂ log f/∂k = cos α tanh(k cos α) − A(k).

All functions are elementwise and broadcast. They compute in float64, return the promoted type of their arguments, and never
subtract numbers that nearly agree: 1 − cos α is 2 sin²(α/2), and 1 − A(k) a series of its own.

Source: Mardia & Jupp 2000, Directional Statistics, sections 9.3 and 13.2 (distributions on spheres, and of rotations).
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

LARGE = 20.0
"""From here on the series in 1/k of 1 − A has 16 digits; below it the continued fraction of A has."""

LEVELS = 26
"""Levels of the continued fraction: with the bound of Amos for what is left out, 16 digits up to `LARGE`."""


def _coefficients(terms: int) -> list[float]:
    """dₙ of 1 − A(k) = Σ dₙ k⁻ⁿ, from A' = 1 − A² − 3A/k."""
    found = [0.0, 1.5]
    for n in range(2, terms):
        found.append((sum(found[i] * found[n - i] for i in range(1, n)) + (n - 4) * found[n - 1]) / 2)
    return found


COEFFICIENTS = _coefficients(20)


def promoted(*arguments: Tensor) -> torch.dtype:
    """The dtype in which a function of several tensors is returned."""
    dtype = arguments[0].dtype
    for argument in arguments[1:]:
        dtype = torch.promote_types(dtype, argument.dtype)
    return dtype


def _both(k: Tensor) -> tuple[Tensor, Tensor]:
    """A(k) and 1 − A(k), in float64."""
    k = k.double()
    small = k.clamp(max=LARGE)
    square, order = small * small, LEVELS + 2
    rest = square / (order + 0.5 + ((order + 1.5) ** 2 + square).sqrt())  # k I_{ν+1}/I_ν (Amos 1974), ν = order
    for order in range(LEVELS + 1, 1, -1):
        rest = square / (2 * (order + 1) + rest)
    ratio = small / (4 + rest)
    inverse = 1 / k.clamp(min=LARGE)
    complement = torch.zeros_like(inverse)
    for coefficient in reversed(COEFFICIENTS):
        complement = complement * inverse + coefficient
    return torch.where(k > LARGE, 1 - complement, ratio), torch.where(k > LARGE, complement, 1 - ratio)


def bessel_ratio(k: Tensor) -> Tensor:
    """A(k) = I₂(k)/I₁(k) ∈ [0, 1): k/4 for small k, 1 − 3/(2k) for large k.

    >>> bessel_ratio(torch.tensor([0.0, 1.0, 1e6]))
    tensor([0.0000, 0.2402, 1.0000])
    """
    return _both(k)[0].to(k.dtype)


def bessel_ratio_complement(k: Tensor) -> Tensor:
    """1 − A(k), without the subtraction: 3/(2k) for large k."""
    return _both(k)[1].to(k.dtype)


def _log_normalizer(k: Tensor, scaled: bool) -> Tensor:
    quarter = k.clamp(max=1.0).square() / 4
    series = torch.zeros_like(k)  # Z − 1 = Σ_{n ≥ 1} (k²/4)ⁿ/(n! (n + 1)!), of which ten terms have 16 digits for k ≤ 1
    for n in range(10, 0, -1):
        series = (series + 1) * quarter / (n * (n + 1))
    large = k.clamp(min=1.0)
    subtracted = (2 * torch.special.i1e(large) / large).log()
    return torch.where(k <= 1, series.log1p() - (k if scaled else 0), subtracted + (0 if scaled else k))


@final
class _Normalizer(torch.autograd.Function):
    """log Z(k), with the derivative A(k), or log Z(k) − k, with the derivative A(k) − 1."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, scaled: bool) -> Tensor:
        ctx.save_for_backward(k)
        ctx.scaled = scaled
        return _log_normalizer(k, scaled)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (k,) = ctx.saved_tensors
        ratio, complement = _both(k)
        return grads[0] * (-complement if ctx.scaled else ratio), None


def log_normalizer(k: Tensor) -> Tensor:
    """log Z(k) = log(2 I₁(k)/k), 0 at k = 0; its derivative is A(k)."""
    return _Normalizer.apply(k.double(), False).to(k.dtype)


def log_scaled_normalizer(k: Tensor) -> Tensor:
    """log Z(k) − k, exact also for large k, where it is −(3/2) log k − log √(π/2); its derivative is A(k) − 1."""
    return _Normalizer.apply(k.double(), True).to(k.dtype)


def log_density(alpha: Tensor, k: Tensor) -> Tensor:
    """log f(α; k) = log[½(1 + e^{−2kc})] − 2k sin²(α/2) − (log Z(k) − k), c = cos α, against the normalised Haar measure.

    Args:
        alpha: half the rotation angle to the centre, in [0, π/2].
        k: the concentration, ≥ 0.
    """
    a, kappa = alpha.double(), k.double()
    even = torch.nn.functional.softplus(-2 * kappa * a.cos()) - math.log(2)
    found = even - 2 * kappa * (a / 2).sin().square() - log_scaled_normalizer(kappa)
    return found.to(promoted(alpha, k))


def slope_at(s: Tensor, k: Tensor) -> Tensor:
    """∂ log f/∂k where 1 − cos α is s, in float64."""
    c = 1 - s
    ratio, complement = _both(k)
    tanh = (k * c).tanh()
    return torch.where(k < 1, c * tanh - ratio, complement - s * tanh - 2 * torch.sigmoid(-2 * k * c))


def slope(alpha: Tensor, k: Tensor) -> Tensor:
    """∂ log f(α; k)/∂k = c tanh(kc) − A(k), c = cos α.

    As k grows, mass leaves where it is negative and lands where it is positive. `boundary` and `peak` are its roots.
    """
    return slope_at(2 * (alpha.double() / 2).sin().square(), k.double()).to(promoted(alpha, k))


def boundary(k: Tensor) -> Tensor:
    """α*(k), where ∂ log f/∂k = 0: the density grows with k inside it and falls outside it.

    It falls from π/3 at k = 0, and for large k it is √(3/k): there 1 − cos α* = 1 − A(k) ≈ 3/(2k). Newton's method on
    s = 1 − cos α.
    """
    kappa = k.detach().double().clamp(min=1e-6)  # below it α* is π/3 to the 12th digit
    s = _both(kappa)[1].clamp(max=0.5)
    for _ in range(8):  # quadratic; 5 steps suffice from this start
        x = kappa * (1 - s)
        s = s + slope_at(s, kappa) / (x.tanh() + x / x.clamp(max=300).cosh().square())
    return (2 * (s / 2).sqrt().asin()).to(k.dtype)
