"""Natural values ↔ entries of a state: numbers of unit size, and names by their number."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gm_discrete.configurable import Configurable

Name = str | bool | int | float | None
MOST_DECIMALS = 4
TAIL = 5e-4
"""Probability beyond either end of a `QuantileScaler`: half a step of 1,001 quantiles."""
GAP = 1e-6
"""Probability of a gap between two values, so that quantiles increase there too: rare among a million draws."""


class Codec(Configurable, ABC):
    """How the natural values of a column and the entries of a state turn into one another."""


class Scaler(Codec, ABC):
    """x = f(v), increasing: natural numbers v ↔ numbers x of unit size.

    Numbers of `digits` decimals are atoms, of which a density knows nothing: `dequantize` spreads each over the unit
    10^−digits around it, and `inverse` rounds. Rounding undoes the rest as long as 10^−digits is no less than about a
    millionth of the range, which is what float32 resolves.

    Args:
        digits: decimals of the natural values: 0 for whole numbers, −1 for tens, None for values that are not rounded.
        low, high: bounds of the natural values; the state's are half a unit of `digits` further out.

    Raises:
        ValueError: `low` is above `high`, or a bound is not finite.
    """

    def __init__(self, digits: int | None = None, low: float | None = None, high: float | None = None) -> None:
        if digits is not None and (isinstance(digits, bool) or not isinstance(digits, int)):
            raise ValueError(f"digits={digits!r} must be a whole number of decimals, or None")
        for name, bound in (("low", low), ("high", high)):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{name}={bound} must be finite; give None for no bound")
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
        """The scaler of a sample of natural values.

        Args:
            digits: see `decimals`.
            bounded: takes the least and the greatest value for the bounds that are not given.

        Raises:
            ValueError: the values are none, not finite, outside the bounds, or all the same without `digits`.
        """

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """f(v) in float64."""

    @abstractmethod
    def backward(self, x: Tensor) -> Tensor:
        """f⁻¹(x) in float64, neither rounded nor kept within the bounds."""

    @abstractmethod
    def log_slope(self, values: Tensor) -> Tensor:
        """log f′(v) in float64."""

    @property
    def unit(self) -> float:
        """10^−digits, 0 without `digits`."""
        return 0.0 if self.digits is None else 10.0**-self.digits

    @property
    def reach(self) -> float:
        """The greatest |x| of a state, infinite without bounds."""
        if self.low is None or self.high is None:
            return math.inf
        ends = torch.tensor([self.low - self.unit / 2, self.high + self.unit / 2], dtype=torch.float64)
        return float(self.transform(ends).abs().max())

    def transform(self, values: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """v → x = f(v), float32; values beyond the bounds are put on them.

        Args:
            rng: dequantises; without it each value goes to one x.

        Raises:
            ValueError: a value is not finite.
        """
        values = self._checked("values", values)
        if rng is not None:
            uniform = torch.rand(values.shape, generator=rng, dtype=torch.float64, device=rng.device)
            values = self.dequantize(values, uniform.to(values.device))
        return self.forward(self._within(values, self.unit / 2)).float()

    def dequantize(self, values: Tensor, uniform: Tensor) -> Tensor:
        """v + (u − ½) 10^−digits with u uniform on [0, 1), which `inverse(transform(·))` leads back to v.

        Where float32 would lead to a neighbour of v, at the very edge of its unit, v stays as it is. Without `digits`
        all do.
        """
        values = self._checked("values", values)
        if self.digits is None:
            return values
        values = self._rounded(values)
        spread = values + (uniform - 0.5) * self.unit
        return torch.where(self.inverse(self.transform(spread)) == values, spread, values)

    def inverse(self, x: Tensor) -> Tensor:
        """x → v = f⁻¹(x), float64, rounded to `digits` and kept within the bounds.

        Raises:
            ValueError: x is not finite.
        """
        return self._rounded(self.backward(self._checked("x", x)))

    def log_derivative(self, values: Tensor) -> Tensor:
        """log |dx/dv|: log p(v) = log p(x) + this. Beyond the bounds it is that of the bound."""
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
        sample, low, high = _sample(values, digits, low, high, bounded)
        unit = 0.0 if digits is None else 10.0**-digits
        return cls(float(sample.mean()), math.sqrt(sample.var() + unit**2 / 12), digits, low, high)

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def backward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def log_slope(self, values: Tensor) -> Tensor:
        return torch.full_like(values, -math.log(self.std))


class LogScaler(Scaler):
    """x = (log(v + offset) − mean) / std, for heavy tails.

    Raises:
        ValueError: `low` less half a unit plus offset is not positive; (when called) a value plus offset is not.
    """

    type_name = "log_scaler"

    def __init__(
        self,
        mean: float,
        std: float,
        offset: float = 0.0,
        digits: int | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(digits, low, high)
        self.mean, self.std = _location(mean, std)
        self.offset = float(offset)
        if self.low is not None and self.low - self.unit / 2 + self.offset <= 0:
            raise ValueError(
                f"low={low} leads to the logarithm of {self.low - self.unit / 2 + self.offset:g}; raise offset={offset}"
            )

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
        """As of any scaler; offset = 0 if all values (less half a unit) are positive.

        Else the least value plus offset is one unit of `digits` or, without `digits`, 1 % of the mean distance to it.
        """
        sample, low, high = _sample(values, digits, low, high, bounded)
        unit = 0.0 if digits is None else 10.0**-digits
        least = float(sample.min()) if low is None else low
        offset = 0.0 if least - unit / 2 > 0 else (unit or 0.01 * float((sample - least).mean())) - least
        logs = np.log(sample + offset)
        # The standard deviation of a unit's width, as values that are all the same have no other.
        width = unit / math.sqrt(12) / math.exp(logs.mean())
        return cls(float(logs.mean()), math.hypot(logs.std(), width), offset, digits, low, high)

    def forward(self, values: Tensor) -> Tensor:
        return (torch.log(self._shifted(values)) - self.mean) / self.std

    def backward(self, x: Tensor) -> Tensor:
        return torch.exp(x * self.std + self.mean) - self.offset

    def log_slope(self, values: Tensor) -> Tensor:
        return -torch.log(self._shifted(values)) - math.log(self.std)

    def _shifted(self, values: Tensor) -> Tensor:
        shifted = values + self.offset
        if shifted.numel() and shifted.min() <= 0:
            raise ValueError(
                f"values holds {float(values.min()):g}, and log(v + {self.offset:g}) is not defined there; fit on such "
                "values too, or give low"
            )
        return shifted


class QuantileScaler(Scaler):
    """x = Φ⁻¹(h + (1 − 2h) F(v)): normal scores, with F piecewise linear between quantiles.

    h = 0.0005 keeps x within ±3.29 (`reach`), and so the scores invertible to the last value. Values beyond the first
    and the last quantile are put on them.

    Args:
        quantiles: increasing natural values v_0 < … < v_n.
        probabilities: F of them, increasing from 0 to 1; evenly spaced unless told.

    Raises:
        ValueError: there are fewer than two quantiles, or they or the probabilities do not increase.
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
        self.quantiles = [float(value) for value in quantiles]
        self.probabilities = None if probabilities is None else [float(value) for value in probabilities]
        count = len(self.quantiles)
        self._values = torch.tensor(self.quantiles, dtype=torch.float64, device="cpu")  # models load on "meta"
        shares = self.probabilities or np.linspace(0, 1, count).tolist()
        self._shares = torch.tensor(shares, dtype=torch.float64, device="cpu")
        if count < 2 or len(self._shares) != count:
            raise ValueError(
                f"quantiles has {count} values and probabilities {len(self._shares)}; give two or more, as many of each"
            )
        for name, knots in (("quantiles", self._values), ("probabilities", self._shares)):
            flat = (~(knots.diff() > 0)).nonzero()
            if len(flat) or not knots.isfinite().all():
                place = int(flat[0]) if len(flat) else 0
                raise ValueError(
                    f"{name} must be finite and increase; number {place} and the next are "
                    f"{knots[place : place + 2].tolist()}"
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
        """Quantiles of the values, each spread over its unit, so that a value of 4 % of the rows has 4 % of F.

        If values repeat and fewer than `count` / 2 differ, the quantiles are the edges of their units: F is exact, and
        between values there is next to nothing. Without `digits` a value's unit is 1e-9 of the range, and values nearer
        than that are one.

        Args:
            count: of quantiles, at most; fewer for fewer values.
        """
        if count < 2:
            raise ValueError(f"count={count} must be at least 2")
        sample, low, high = _sample(values, digits, low, high, bounded)
        if digits is None:
            # The second because a thousand quantiles within a unit must differ in float64.
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


SCALERS: dict[str, type[Scaler]] = {"standard": StandardScaler, "log": LogScaler, "quantile": QuantileScaler}


class Categories(Codec):
    """Names ↔ the numbers 0, 1, …, in their order.

    Args:
        names: strings, booleans, numbers, and None for cells without a value.

    Raises:
        ValueError: there are no names, one of them occurs twice, or is something else.
    """

    type_name = "categories"

    def __init__(self, names: Sequence[Name]) -> None:
        self.names = [_name(value) for value in names]
        if not self.names:
            raise ValueError("names is empty; give at least one")
        wrong = [value for value in self.names if not isinstance(value, Name)]
        if wrong:
            raise ValueError(f"names holds {wrong[0]!r} ({type(wrong[0]).__name__}); give strings, numbers or None")
        self._ids = {value: number for number, value in enumerate(self.names)}
        if len(self._ids) < len(self.names):
            twice = next(value for number, value in enumerate(self.names) if self._ids[value] != number)
            raise ValueError(f"names holds {twice!r} more than once")

    @classmethod
    def fit(cls, values: Iterable[Any]) -> Self:
        """The names that occur, in their natural order (numbers before strings), None last.

        Raises:
            ValueError: there are no values.
        """
        names = {_name(value) for value in values}
        if not names:
            raise ValueError("values is empty; give at least one")
        return cls(sorted(names, key=lambda name: (name is None, isinstance(name, str), 0 if name is None else name)))

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, values: Iterable[Any]) -> Tensor:
        """Names → numbers, long [N]; NaN is None.

        Raises:
            ValueError: a value is not among the names.
        """
        names = [_name(value) for value in values]
        try:
            return torch.tensor([self._ids[name] for name in names], dtype=torch.long)
        except KeyError:
            unseen = [name for name in names if name not in self._ids]
            shown = ", ".join(map(repr, list(dict.fromkeys(unseen))[:5]))
            raise ValueError(
                f"values holds {shown} ({len(unseen)} of {len(names)}), not among the {len(self)} categories: "
                f"{_shortened(self.names)}; fit on rows that have them"
            ) from None

    def decode(self, ids: Tensor | Sequence[int]) -> list[Name]:
        """Numbers → names.

        Raises:
            ValueError: a number is none of 0 to K − 1.
        """
        numbers = torch.as_tensor(ids).flatten().tolist()
        wrong = [number for number in numbers if not 0 <= number < len(self)]
        if wrong:
            raise ValueError(f"ids holds {wrong[0]}, which is none of the {len(self)} categories; is a mask left?")
        return [self.names[number] for number in numbers]


def decimals(values: Tensor | np.ndarray | Sequence[float]) -> int | None:
    """The least number of decimals, up to 4, that reproduces all values; None if there is none.

    Values that come from float32 are compared as float32.

    Raises:
        ValueError: the values are none, or not finite.
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


def _sample(
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


def _edges(values: np.ndarray, shares: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the units around values with these probabilities, and F there; units that touch share an edge."""
    gaps = values[1:] - values[:-1] > 1.5 * unit
    widths = np.maximum(shares, GAP)  # as float32 could not tell narrower ones apart
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
    """The interval between knots that each point lies in, the first or the last of those beyond."""
    return (torch.searchsorted(knots, points.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)


def _interpolate(points: Tensor, knots: Tensor, heights: Tensor) -> Tensor:
    place = _interval(points, knots)
    share = ((points - knots[place]) / (knots[place + 1] - knots[place])).clamp(0, 1)
    return torch.lerp(heights[place], heights[place + 1], share)


def _location(mean: float, std: float) -> tuple[float, float]:
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"mean={mean} must be finite, std={std} finite and positive")
    return float(mean), float(std)


def _name(value: Any) -> Name:
    """As plain Python has it, NaN as None."""
    value = value.item() if isinstance(value, np.generic | Tensor) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _shortened(names: list[Name], most: int = 12) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown}, …" if len(names) > most else shown
