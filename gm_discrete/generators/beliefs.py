"""Normal beliefs about a number z, given a noisy observation x = αz + σε: the posterior of z, and how fast x jumps away.

With the prior z ~ N(c, s²) and v = α²s² + σ², x has the density N(x; αc, v), and by Bayes' rule

    z ~ N(m, d²),   m = c + (αs²/v)(x − αc),   d = sσ/√v.

The rate of the Gaussian path's jump, in its unit speed/σ, is λ(x|z) = [p (w² − 1) − r z w]₊ with w = (x − αz)/σ,
p = −σ'/speed and r = α'/speed. In z = m + d u, with the sign of u chosen such that B ≥ 0, it is a quadratic
q = A u² + B u + C, cut off between its roots u₋ = −h/A and u₊ = −C/h, h = (B + √(B² − 4AC))/2. From

    ∫ q φ du = (A + C) Φ(u) − (A u + B) φ(u)

follow its mean, and the distribution of z where λ > 0, without quadrature.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

FARTHEST = 13.0
"""Standard deviations beyond which a normal distribution has no mass (2e-37, hardly a number in float32)."""

BISECTIONS = 40
"""u is found to 2⁻⁴⁰ of that in float64, which is the precision to call `leaver` in."""


class AffineValues(Protocol):
    """α, σ, α'/speed and −σ'/speed at a time, of shapes that broadcast (see `paths.affine.AffineAt`)."""

    @property
    def alpha(self) -> Tensor: ...

    @property
    def sigma(self) -> Tensor: ...

    @property
    def rise(self) -> Tensor: ...

    @property
    def fall(self) -> Tensor: ...


class NormalBelief:
    """The belief about z with the prior N(c, s²), given x at a time; everything broadcasts.

    Args:
        x: the noisy observation.
        center, std: c and s ≥ 0.
        at: α, σ and their slopes.
    """

    def __init__(self, x: Tensor, center: Tensor, std: Tensor | float, at: AffineValues) -> None:
        self.center, self.std, self.at = center, std, at
        self.variance = (at.alpha * std) ** 2 + at.sigma**2
        self.away = x - at.alpha * center

    @property
    def log_evidence(self) -> Tensor:
        """log N(x; αc, v), up to a constant."""
        return self.away.square() * (-0.5 / self.variance) - 0.5 * self.variance.log()

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.center + self._gain * self.away

    @property
    def spread(self) -> Tensor:
        """d."""
        return self.std * self.at.sigma / self.variance.sqrt()

    @cached_property
    def rate(self) -> Tensor:
        """E λ(x|z), in speed/σ."""
        a, b, c, h, low, high, _ = self._quadratic
        inside = (a + c) * (torch.special.ndtr(low) + torch.special.ndtr(-high))
        return (inside + h * _density(high) + (h - b) * _density(low)).clamp(min=0)

    def leaver(self, u: Tensor) -> Tensor:
        """z drawn ∝ λ(x|z) N(z; m, d²), as the quantile of a number u that is uniform on [0, 1)."""
        a, b, c, _, low, high, sign = self._quadratic

        def below(u: Tensor) -> Tensor:
            return (a + c) * torch.special.ndtr(u) - (a * u + b) * _density(u)

        aim, left = u * self.rate, below(low)
        right = aim >= left  # u beyond the upper root; between the roots λ = 0
        aim = torch.where(right, aim - left + below(high), aim)
        low, high = torch.where(right, high, -FARTHEST), torch.where(right, FARTHEST, low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            short = below(middle) < aim
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return self.mean + self.spread * sign * (low + high) / 2

    @property
    def _gain(self) -> Tensor:
        return self.at.alpha * self.std**2 / self.variance

    @cached_property
    def _quadratic(self) -> tuple[Tensor, ...]:
        """A > 0, B ≥ 0, C, h > 0, u₋, u₊ and the sign of u."""
        at, d = self.at, self.spread
        p, r, k = at.fall, at.rise, at.alpha * d / at.sigma  # w = w(m) − k u
        of_away = at.sigma / self.variance  # w(m) = (x − αm)/σ
        a = (k * (p * k + r * d)).clamp(min=torch.finfo(self.away.dtype).tiny)
        b = (r * k * self._gain - (2 * p * k + r * d) * of_away) * self.away + r * k * self.center
        c = of_away * self.away * ((p * of_away - r * self._gain) * self.away - r * self.center) - p
        sign, b = torch.where(b < 0, -1.0, 1.0), b.abs()
        h = (b + (b.square() - 4 * a * c).clamp(min=0).sqrt()) / 2 + torch.finfo(b.dtype).tiny ** 0.5
        return a, b, c, h, (-h / a).clamp(min=-FARTHEST), (-c / h).clamp(-FARTHEST, FARTHEST), sign


def _density(u: Tensor) -> Tensor:
    return torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
