"""The interface of scalers, and `StandardScaler`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gm_discrete.arguments import number, whole
from gm_discrete.configurable import Configurable

MOST_DECIMALS = 4
MOST_DIGITS = 15
"""Decimals that float64 holds."""
GREATEST = 1e30
"""The greatest natural value and scale: beyond, float32 holds neither them nor their inverse."""


class Codec(Configurable, ABC):
    """An invertible map from the natural values of a column to the entries of a field."""

    removed_types = dict.fromkeys(("log", "log_scaler"), "'quantile_scaler' or 'standard_scaler'")


class Scaler(Codec, ABC):
    """An increasing map x = f(v) from natural numbers v to numbers x of unit size.

    Numbers of `digits` decimals are atoms, which have no density: `dequantize` spreads each over the unit 10^−digits around
    it, and `inverse` rounds. The round trip is exact as long as 10^−digits is no less than about a millionth of the range,
    which is what float32 resolves.

    Args:
        digits: decimals of the natural values: 0 for whole numbers, −1 for tens, None for values that are not rounded.
        low, high: bounds of the natural values; those of x are f of half a unit of `digits` further out.

    Raises:
        ValueError: `low` is above `high`, or a bound is not finite.
    """

    def __init__(self, digits: int | None = None, low: float | None = None, high: float | None = None) -> None:
        if digits is not None:
            whole("digits", digits, -MOST_DIGITS, MOST_DIGITS, ", or None")
        for name, bound in (("low", low), ("high", high)):
            if bound is not None:
                number(name, bound, least=-GREATEST, most=GREATEST, cure="; give None for no bound")
            # Binary fractions are not exactly the decimal ones that they stand for.
            if (
                bound is not None
                and digits is not None
                and abs(round(bound, digits) - bound) > 1e-9 * max(1, abs(bound))
            ):
                raise ValueError(f"{name}={bound} has more decimals than digits={digits}; give {round(bound, digits)}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"low={low} must not be above high={high}")
        self.digits = digits
        self.low = None if low is None else float(low)
        self.high = None if high is None else float(high)

    @classmethod
    @abstractmethod
    def fit(
        cls,
        values: Tensor | np.ndarray | Sequence[float],
        *,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
        bounded: bool = False,
    ) -> Self:
        """Fits the scaler to a sample of natural values.

        Args:
            digits: see `decimals`.
            bounded: use the least and the greatest value as the bounds that are not given.

        Raises:
            ValueError: there are no values; or they are not finite, outside the bounds, or all the same without `digits`.
        """

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """f(v) in float64."""

    @abstractmethod
    def backward(self, x: Tensor) -> Tensor:
        """f⁻¹(x) in float64, neither rounded nor clamped to the bounds."""

    @abstractmethod
    def log_slope(self, values: Tensor) -> Tensor:
        """log f′(v) in float64."""

    @property
    def unit(self) -> float:
        """10^−digits, 0 without `digits`."""
        return 0.0 if self.digits is None else 10.0**-self.digits

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value; `transform` maps those beyond as these. Infinite without bounds."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def reach(self) -> float:
        """The greatest |x|; infinite without bounds."""
        if self.low is None or self.high is None:
            return math.inf
        ends = torch.tensor([self.low - self.unit / 2, self.high + self.unit / 2], dtype=torch.float64)
        return float(self.transform(ends).abs().max())

    def transform(self, values: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """x = f(v), float32, with v clamped to the bounds.

        Args:
            rng: source of the noise of `dequantize`; without it values are not dequantised.

        Raises:
            ValueError: a value is not finite.
        """
        values = self._checked("values", values)
        if rng is not None:
            uniform = torch.rand(values.shape, generator=rng, dtype=torch.float64, device=rng.device)
            values = self.dequantize(values, uniform.to(values.device))
        x = self.forward(self._within(values, self.unit / 2)).float()
        if len(wrong := values[~x.isfinite()]):
            raise ValueError(f"values holds {float(wrong[0])}, which {self!r} maps beyond the numbers of float32")
        return x

    def dequantize(self, values: Tensor, uniform: Tensor) -> Tensor:
        """v + (u − ½) 10^−digits with u uniform on [0, 1), which `inverse(transform(·))` maps back to v.

        Without `digits`, and where float32 rounding at the edge of a unit would lead to a neighbour of v, this is v.
        """
        values = self._checked("values", values)
        if self.digits is None:
            return values
        values = self._rounded(values)
        spread = values + (uniform - 0.5) * self.unit
        return torch.where(self.inverse(self.transform(spread)) == values, spread, values)

    def inverse(self, x: Tensor) -> Tensor:
        """v = f⁻¹(x), float64, rounded to `digits` and clamped to the bounds.

        Raises:
            ValueError: x is not finite.
        """
        return self._rounded(self.backward(self._checked("x", x)))

    def log_derivative(self, values: Tensor) -> Tensor:
        """log |dx/dv|, so that log p(v) = log p(x) + log |dx/dv|. Beyond the bounds it is the value at the bound."""
        return self.log_slope(self._within(self._checked("values", values), self.unit / 2))

    def _checked(self, name: str, values: Tensor) -> Tensor:
        values = values.double()
        wrong = values[~values.isfinite()]
        if len(wrong):
            raise ValueError(f"{name} holds {float(wrong[0])} ({len(wrong)} of {values.numel()}); give finite numbers")
        return values

    def _within(self, values: Tensor, margin: float) -> Tensor:
        if self.low is not None:
            values = values.clamp(min=self.low - margin)
        return values if self.high is None else values.clamp(max=self.high + margin)

    def _rounded(self, values: Tensor) -> Tensor:
        if self.digits is not None:
            values = values.round(decimals=self.digits) + 0.0  # which makes 0 of −0
        return self._within(values, 0.0)


class StandardScaler(Scaler):
    """x = (v − mean) / std."""

    type_name = "standard_scaler"

    def __init__(
        self,
        mean: float,
        std: float,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(digits, low, high)
        self.mean, self.std = _location(mean, std)

    @classmethod
    def fit(
        cls,
        values: Tensor | np.ndarray | Sequence[float],
        *,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
        bounded: bool = False,
    ) -> Self:
        sample, low, high = sample_of(values, digits, low, high, bounded)
        unit = 0.0 if digits is None else 10.0**-digits
        return cls(float(sample.mean()), math.sqrt(sample.var() + unit**2 / 12), digits, low, high)

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def backward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def log_slope(self, values: Tensor) -> Tensor:
        return torch.full_like(values, -math.log(self.std))


def decimals(values: Tensor | np.ndarray | Sequence[float]) -> int | None:
    """The least number of decimals, up to 4, that reproduces all values; None if there is none.

    Values that come from float32 are compared as float32.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    sample = _finite(values)
    with np.errstate(over="ignore"):
        single = sample.astype(np.float32)
    for digits in range(MOST_DECIMALS + 1):
        rounded = sample.round(digits)
        if (rounded == sample).all() or ((single == sample) & (rounded.astype(np.float32) == single)).all():
            return digits
    return None


def _finite(values: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    """float64 [N]."""
    sample = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64).flatten()
    wrong = sample[~np.isfinite(sample)]
    if not len(sample):
        raise ValueError("values is empty; give at least one")
    if len(wrong):
        raise ValueError(f"values holds {wrong[0]} ({len(wrong)} of {len(sample)}); leave out what is not finite")
    return sample


def sample_of(
    values: Tensor | np.ndarray | Sequence[float],
    digits: int | None,
    low: float | None,
    high: float | None,
    bounded: bool,
) -> tuple[np.ndarray, float | None, float | None]:
    """The values, rounded, and the bounds, checked against one another."""
    sample = _finite(values)
    if digits is not None:
        sample = torch.from_numpy(sample).round(decimals=digits).numpy() + 0.0
    elif sample.min() == sample.max():
        raise ValueError(f"values are all {sample[0]:g}; give digits, or leave out what never changes")
    least, most = float(sample.min()), float(sample.max())
    if (low is not None and low > least) or (high is not None and high < most):
        raise ValueError(f"values from {least:g} to {most:g} are not within low={low} and high={high}")
    return sample, least if bounded and low is None else low, most if bounded and high is None else high


def _location(mean: float, std: float) -> tuple[float, float]:
    mean = number("mean", mean, least=-GREATEST, most=GREATEST)
    return mean, number("std", std, least=1 / GREATEST, most=GREATEST)
