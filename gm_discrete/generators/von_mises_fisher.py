"""The symmetrised von Mises–Fisher distribution as its concentration k grows: flow, jumps, and samples.

The density is that of `von_mises_fisher_density`. Two Markov processes carry it from one concentration to a greater one.
The flow moves every rotation along the geodesic to the centre at the speed dα/dk = −∂_k G(α; k)/g(α; k), where g is the
density and G the distribution function of the half angle α. The jump leaves at the rate [−∂ log f/∂k]₊ and lands with a
density ∝ [∂ log f/∂k]₊ f.

All functions are elementwise and broadcast, compute in float64, and return the promoted type of their arguments. They take
concentrations from 0 to ∞ and do not check them: that would wait for the GPU.

Source: Holderrieth et al., Generator Matching (ICLR 2025), for flow and jump; Mardia & Jupp 2000, Directional Statistics.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gm_discrete.generators import quaternions
from gm_discrete.generators.von_mises_fisher_density import (
    bessel_ratio,
    bessel_ratio_complement,
    boundary,
    log_density,
    log_normalizer,
    log_scaled_normalizer,
    promoted,
    slope,
)
from gm_discrete.generators.von_mises_fisher_tables import END, TOP, logit_uniform, lookup, tables

__all__ = [
    "angle_quantile",
    "bessel_ratio",
    "bessel_ratio_complement",
    "boundary",
    "landing_quantile",
    "log_density",
    "log_normalizer",
    "log_scaled_normalizer",
    "peak",
    "radial_speed",
    "sample",
    "slope",
    "transported_angle",
]


@torch.no_grad()
def peak(alpha: Tensor) -> Tensor:
    """k*(α), the concentration at which the density at α is greatest: the inverse of `boundary`.

    The slope ∂ log f/∂k is positive below it and negative above it. It is 0 for α ≥ π/3, and 3/α² for small α.
    """
    s = 2 * (alpha.double() / 2).sin().square()
    table = tables(s.device)
    at = ((1 - 2 * s) / s).clamp(min=0).log()
    right = torch.searchsorted(table.peak_at, at).clamp(1, len(table.peak_at) - 1)
    low, high = table.peak_at[right - 1], table.peak_at[right]
    weight = (at - low) / (high - low)
    inner = torch.lerp(table.peak[right - 1], table.peak[right], weight.clamp(0, 1))
    below = (at - table.peak_at[0]).clamp(max=0) / 2  # 1 − 2s ∝ k² for small k
    found = torch.where(at > table.peak_at[-1], 1.5 / s - 0.25, (inner + below).exp())
    return found.to(alpha.dtype)


def _speed(v: Tensor, k: Tensor) -> Tensor:
    """−(dα/dk) √(1 + k²)/tan(α/2), where v = sin(α/2)."""
    scaled = torch.where(k > TOP, 1 - 0.25 / k, lookup(tables(v.device).speed, v * math.sqrt(2), k))
    return scaled * (k * (1 - 2 * v * v)).tanh()


@final
class _RadialSpeed(torch.autograd.Function):
    """The speed V from its table, with ∂V/∂α from the continuity equation ∂_k g + ∂_α (g V) = 0."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, k: Tensor) -> Tensor:
        speed = -_speed((alpha / 2).sin(), k) * (alpha / 2).tan() / (1 + k * k).sqrt()
        ctx.save_for_backward(alpha, k, speed)
        return speed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        alpha, k, speed = ctx.saved_tensors
        log_slope = 2 / alpha.clamp(min=1e-150).tan() - k * alpha.sin() * torch.tanh(k * alpha.cos())  # ∂ log g/∂α
        found = gradients[0] * (-slope(alpha, k) - speed * log_slope)
        return found.sum_to_size(alpha.shape), None


def radial_speed(alpha: Tensor, k: Tensor) -> Tensor:
    """dα/dk = −∂_k G(α; k)/g(α; k) ≤ 0 of the flow, with which α keeps its quantile as k grows.

    It is −(k/8) sin 2α for small k, and −tan(α/2)/k for large k. It may be differentiated by α.
    """
    a, kappa = torch.broadcast_tensors(alpha.double(), k.detach().double())
    found: Any = _RadialSpeed.apply(a, kappa)
    return found.to(promoted(alpha, k))


def _beyond(k: Tensor, k_next: Tensor) -> Tensor:
    """By what sin(α/2) is multiplied between concentrations above `TOP`: there d log sin²(α/2) = (−1/k + 1/(4k²)) dk."""
    k, k_next = k.clamp(min=TOP), k_next.clamp(min=TOP)
    return (k / k_next).sqrt() * ((1 / k - 1 / k_next) / 8).exp()


def _scale(column: Tensor, k: Tensor) -> Tensor:
    """sin(α/2)/column at the column of a quantile."""
    scaled = lookup(tables(column.device).quantile, column, k) / (1 + k.clamp(max=TOP).square()).pow(0.25)
    return scaled * _beyond(torch.full_like(k, TOP), k)


@torch.no_grad()
def transported_angle(alpha: Tensor, k: Tensor, k_next: Tensor) -> Tensor:
    """The half angle after the flow has gone from k to k_next, at once: G(α_next; k_next) = G(α; k).

    With v = sin(α/2) and the quantile Q(u; k) of v, v_next = v Q(G; k_next)/Q(G; k). The errors of G nearly cancel in the
    ratio, and k_next = k leaves α. Where 1 − G < e⁻³⁶ the ratio is that at e⁻³⁶. For large k this is v_next = v √(k/k_next).
    The relative error is at most 1e-4, for every interval, where 1 − G > 1e-9 (measured against quadrature).

    Args:
        alpha: the half angle at k, in [0, π/2].
        k: the concentration before.
        k_next: the concentration after, ≥ k; at ∞ the angle is 0.
    """
    before, after = k.double(), k_next.double()
    v = (alpha.double() / 2).sin()
    logit = lookup(tables(v.device).logit, v * math.sqrt(2), before) + logit_uniform(v)
    column = (torch.nn.functional.softplus(logit, threshold=40) / END).clamp(max=1).pow(1 / 3)
    v = v * torch.where(after > TOP, _beyond(before, after), 1.0)
    ratio = _scale(column, after.clamp(max=TOP)) / _scale(column, before.clamp(max=TOP))
    return (2 * (v * ratio).clamp(max=math.sqrt(0.5)).asin()).to(promoted(alpha, k, k_next))


@torch.no_grad()
def angle_quantile(u: Tensor, k: Tensor) -> Tensor:
    """The half angle α with G(α; k) = u.

    For large k, 2k(1 − cos α) ≈ kα² has the χ² distribution with 3 degrees of freedom.

    Args:
        u: in [0, 1]. 1 is taken for 1 − e⁻³⁶.
        k: the concentration.
    """
    probability, kappa = u.double(), k.double()
    column = (-(-probability).log1p() / END).clamp(max=1).pow(1 / 3)
    v = column * _scale(column, kappa)
    return (2 * v.clamp(max=math.sqrt(0.5)).asin()).to(promoted(u, k))


@torch.no_grad()
def landing_quantile(u: Tensor, k: Tensor) -> Tensor:
    """The half angle α ≤ α*(k) with ∂_k G(α; k) = u ∂_k G(α*; k): where a jump lands, if u is uniform in [0, 1].

    Its density is ∝ [∂ log f/∂k]₊ g. For large k, with r = k(1 − cos α) ∈ [0, 3/2], u is (2r/3)^{3/2} e^{3/2 − r}.
    """
    probability, kappa = u.double(), k.double()
    column = 1 - (1 - probability.pow(1 / 3)).sqrt()
    v = lookup(tables(probability.device).landing, column, kappa) * (boundary(kappa) / 2).sin()
    return (2 * v.asin()).to(promoted(u, k))


@torch.no_grad()
def sample(center: Tensor, k: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Rotations from the distribution around centres: an angle by its quantile, about a uniform axis.

    Args:
        center: unit quaternions [..., 4].
        k: the concentrations, broadcast to [...]; ∞ is a point mass.
        rng: draws on its own device.

    Returns:
        Unit quaternions [..., 4] of the dtype of `center`.

    Raises:
        ValueError: `center` is not [..., 4], or k does not broadcast to [...].
    """
    if center.shape[-1:] != (4,):
        raise ValueError(f"center must be quaternions [..., 4], got shape {tuple(center.shape)}")
    shape = center.shape[:-1]
    if torch.broadcast_shapes(k.shape, shape) != shape:
        raise ValueError(f"k, of shape {tuple(k.shape)}, must broadcast to the shape {tuple(shape)} of the centres")
    source = rng.device if rng else center.device
    u = torch.rand(shape, generator=rng, device=source, dtype=torch.float64).to(center.device)
    axis = torch.randn((*shape, 3), generator=rng, device=source, dtype=torch.float64).to(center.device)
    axis = torch.nn.functional.normalize(axis, dim=-1, eps=0.0)
    alpha = angle_quantile(u, k)[..., None].double()
    turn = torch.cat([alpha.cos(), alpha.sin() * axis], -1)
    return torch.nn.functional.normalize(quaternions.multiply(center.double(), turn), dim=-1).to(center.dtype)
