"""Dates and times as numbers: year, month, day, and the time of day."""

from __future__ import annotations

import datetime
from calendar import monthrange
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from gm_discrete.data.scalers.base import Scaler
from gm_discrete.data.scalers.quantile import QuantileScaler

CLOCK = {"minute": 60, "second": 1}
"""The parts that hold a time of day, and their seconds: minutes where all times are whole ones."""
PARTS = ("year", "month", "day", *CLOCK)


class DatePart(Scaler):
    """A number of a date: its year, month or day of the month, or the minute or second of the day; a field of its own.

    A column of dates becomes one field for each part. They are put together again when rows are decoded, so that dates are
    generated which no row has.

    Args:
        part: "year", "month", "day", "minute" or "second".
        scaler: of its numbers.

    Raises:
        ValueError: there is no such part.
    """

    type_name = "date_part"

    def __init__(self, part: str, scaler: Scaler | Mapping[str, Any]) -> None:
        if part not in PARTS:
            raise ValueError(f"part={part!r} must be one of {', '.join(PARTS)}")
        self.part, self.scaler = part, Scaler.of(scaler)
        super().__init__(self.scaler.digits, self.scaler.low, self.scaler.high)

    @classmethod
    def fit(
        cls,
        values: Tensor | np.ndarray | Sequence[float],
        *,
        digits: int | None = 0,
        low: float | None = None,
        high: float | None = None,
        bounded: bool = False,
        part: str = "year",
        scaler: type[Scaler] = QuantileScaler,
    ) -> Self:
        """Fits the scaler to the numbers of a part."""
        return cls(part, scaler.fit(values, digits=digits, low=low, high=high, bounded=bounded))

    @property
    def ends(self) -> tuple[float, float]:
        return self.scaler.ends

    @property
    def reach(self) -> float:
        return self.scaler.reach

    def forward(self, values: Tensor) -> Tensor:
        return self.scaler.forward(values)

    def backward(self, x: Tensor) -> Tensor:
        return self.scaler.backward(x)

    def log_slope(self, values: Tensor) -> Tensor:
        return self.scaler.log_slope(values)


def date_parts(cells: np.ndarray, parts: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The numbers of dates (`datetime64`) or times of day (`timedelta64`) by part, float64 [N], NaN where missing.

    Args:
        parts: by default all that they have; of the time minutes where all are whole ones, else seconds, and none where all
            dates are at midnight.

    Raises:
        ValueError: the cells have no such part, or times of day that the parts leave out.
    """
    missing, found = np.isnat(cells), {}
    if cells.dtype.kind == "M":
        days, months = cells.astype("datetime64[D]"), cells.astype("datetime64[M]")
        found["year"] = cells.astype("datetime64[Y]").astype(float) + 1970
        found["month"] = months.astype(float) % 12 + 1
        found["day"] = (days - months.astype("datetime64[D]")).astype(float) + 1
        cells = cells - days
    seconds = cells.astype("timedelta64[us]").astype(float) / 1e6
    found |= {unit: seconds / size for unit, size in CLOCK.items()}
    if parts is None:
        whole = (seconds[~missing] % 60 == 0).all()
        timed = "year" not in found or (seconds[~missing] != 0).any()
        parts = [part for part in found if part not in CLOCK or (timed and part == ("minute" if whole else "second"))]
    if absent := [part for part in parts if part not in found]:
        raise ValueError(f"the cells are times of day and have no {absent[0]}; give dates")
    if not CLOCK.keys() & set(parts) and (seconds[~missing] != 0).any():
        raise ValueError("cells have a time of day, and the codecs were fitted on dates without; fit them on such rows")
    return {part: np.where(missing, np.nan, found[part]) for part in parts}


def joined_dates(parts: Mapping[str, Sequence[float]]) -> list[datetime.date | datetime.time]:
    """Dates, dates with times, or times of their parts; a day after the end of its month is the last of the month."""
    found: list[datetime.date | datetime.time] = []
    for numbers in zip(*parts.values(), strict=True):
        row = dict(zip(parts, numbers, strict=True))
        seconds = sum(row[part] * CLOCK[part] for part in CLOCK.keys() & row.keys())
        passed = datetime.timedelta(seconds=min(max(seconds, 0.0), 86400 - 1e-6))
        if "year" not in row:
            found.append((datetime.datetime.min + passed).time())
            continue
        year, month = (min(max(round(row[part]), 1), most) for part, most in (("year", 9999), ("month", 12)))
        day = datetime.date(year, month, min(max(round(row["day"]), 1), monthrange(year, month)[1]))
        timed = CLOCK.keys() & row.keys()
        found.append(datetime.datetime.combine(day, datetime.time()) + passed if timed else day)
    return found
