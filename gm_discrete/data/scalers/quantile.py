"""Normal scores of the empirical distribution, for columns of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gm_discrete.arguments import numbers, whole
from gm_discrete.data.scalers.base import GREATEST, Scaler, sample_of

TAIL = 5e-4
"""Probability beyond either end of a `QuantileScaler`: half a step of 1,001 quantiles."""
GAP = 1e-6
"""Probability of a gap between two values, above 0 so that F increases there: one in a million draws."""


class QuantileScaler(Scaler):
    """x = Φ⁻¹(h + (1 − 2h) F(v)): normal scores, with F piecewise linear between quantiles.

    h = 0.0005 keeps x within ±3.29 (`reach`), so that the scores are invertible up to the last value. Values beyond the
    first and the last quantile are clamped to them.

    Args:
        quantiles: increasing natural values v_0 < … < v_n.
        probabilities: F at the quantiles, increasing from 0 to 1; evenly spaced by default.

    Raises:
        ValueError: there are fewer than two quantiles, or the quantiles or probabilities do not increase.
    """

    type_name = "quantile_scaler"

    def __init__(
        self,
        quantiles: Sequence[float],
        probabilities: Sequence[float] | None = None,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(digits, low, high)
        self.quantiles = numbers("quantiles", quantiles, least=-GREATEST, most=GREATEST)
        self.probabilities = None if probabilities is None else numbers("probabilities", probabilities)
        count = len(self.quantiles)
        self._values = torch.tensor(self.quantiles, dtype=torch.float64, device="cpu")  # models load on "meta"
        shares = self.probabilities or np.linspace(0, 1, count).tolist()
        self._shares = torch.tensor(shares, dtype=torch.float64, device="cpu")
        if count < 2 or len(self._shares) != count:
            raise ValueError(
                f"quantiles has {count} values and probabilities {len(self._shares)}; give two or more, of equal number"
            )
        for name, knots in (("quantiles", self._values), ("probabilities", self._shares)):
            flat = (~(knots.diff() > 0)).nonzero()
            if len(flat):
                place = int(flat[0])
                raise ValueError(f"{name} must increase; at index {place} they are {knots[place : place + 2].tolist()}")
        if not bool((self._shares.diff() / self._values.diff()).isfinite().all()):
            raise ValueError(
                f"quantiles from {self.quantiles[0]} on lie too close together for float64: leave some out"
            )
        if self._shares[0] != 0 or self._shares[-1] != 1:
            raise ValueError(f"probabilities={probabilities} must lead from 0 to 1")

    @classmethod
    def fit(
        cls,
        values: Tensor | np.ndarray | Sequence[float],
        *,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
        bounded: bool = False,
        count: int = 1001,
    ) -> Self:
        """Fits the quantiles of the values, each spread over its unit, so that a value of 4 % of the rows has 4 % of F.

        If values repeat and there are at most `count` / 2 distinct ones, the quantiles are the edges of their units: F is
        exact, and gaps between values have a probability of 1e-6. Without `digits` the unit is 1e-9 of the range, and values
        closer than that are merged.

        Args:
            count: the greatest number of quantiles; fewer for fewer values.
        """
        whole("count", count, least=2)
        sample, low, high = sample_of(values, digits, low, high, bounded)
        if digits is None:
            # The second term, because a thousand quantiles within a unit must differ in float64.
            unit = max(1e-9 * float(np.ptp(sample)), 1e-12 * float(np.abs(sample).max()))
            sample = sample.min() + ((sample - sample.min()) / unit).round() * unit
        else:
            unit = 10.0**-digits
        distinct, inverse, repeats = np.unique(sample, return_inverse=True, return_counts=True)
        if len(distinct) <= min(count, len(sample)) / 2 or len(distinct) == 1:
            edges, shares = _edges(distinct, repeats / len(sample), unit)
            return cls(edges.tolist(), shares.tolist(), digits, low, high)
        order = np.sort(inverse)
        rank = np.arange(len(sample)) - np.searchsorted(order, order)
        spread = distinct[order] + unit * ((rank + 0.5) / repeats[order] - 0.5)
        quantiles = np.quantile(spread, np.linspace(0, 1, min(count, len(sample))))
        if digits is not None:
            quantiles[0], quantiles[-1] = distinct[0] - unit / 2, distinct[-1] + unit / 2
        return cls(quantiles.tolist(), None, digits, low, high)

    @property
    def ends(self) -> tuple[float, float]:
        """Those of the bounds and of the quantiles."""
        low, high = super().ends
        return max(low, self.quantiles[0] + self.unit / 2), min(high, self.quantiles[-1] - self.unit / 2)

    @property
    def reach(self) -> float:
        """Φ⁻¹(1 − h) = 3.29."""
        return float(torch.special.ndtri(torch.tensor(1 - TAIL, dtype=torch.float64)))

    def forward(self, values: Tensor) -> Tensor:
        shares = _interpolate(values, self._values.to(values.device), self._shares.to(values.device))
        return torch.special.ndtri(TAIL + (1 - 2 * TAIL) * shares)

    def backward(self, x: Tensor) -> Tensor:
        shares = ((torch.special.ndtr(x) - TAIL) / (1 - 2 * TAIL)).clamp(0, 1)
        return _interpolate(shares, self._shares.to(x.device), self._values.to(x.device))

    def log_slope(self, values: Tensor) -> Tensor:
        knots, shares = self._values.to(values.device), self._shares.to(values.device)
        slope = (shares.diff() / knots.diff())[_interval(values, knots)]
        x = self.forward(values)
        return torch.log((1 - 2 * TAIL) * slope) + x**2 / 2 + math.log(2 * math.pi) / 2

    def __repr__(self) -> str:
        ends = f"{len(self.quantiles)} from {self.quantiles[0]:g} to {self.quantiles[-1]:g}"
        return f"QuantileScaler(quantiles=<{ends}>, digits={self.digits}, low={self.low}, high={self.high})"


def _edges(values: np.ndarray, shares: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the units around values with the probabilities `shares`, and F there; adjacent units share an edge."""
    gaps = values[1:] - values[:-1] > 1.5 * unit
    widths = np.maximum(shares, GAP)  # float32 cannot resolve narrower ones
    edges, steps = [values[0] - unit / 2], [0.0]
    for place, value in enumerate(values):
        edges.append(value + unit / 2)
        steps.append(widths[place])
        if place < len(gaps) and gaps[place]:
            edges.append(values[place + 1] - unit / 2)
            steps.append(GAP)
    total = np.cumsum(steps)
    return np.array(edges), total / total[-1]


def _interval(points: Tensor, knots: Tensor) -> Tensor:
    """The index of the interval between knots that holds each point; the first or the last for points beyond."""
    return (torch.searchsorted(knots, points.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)


def _interpolate(points: Tensor, knots: Tensor, heights: Tensor) -> Tensor:
    place = _interval(points, knots)
    share = ((points - knots[place]) / (knots[place + 1] - knots[place])).clamp(0, 1)
    return torch.lerp(heights[place], heights[place + 1], share)
