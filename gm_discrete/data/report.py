"""What the columns of a table hold, in words."""

from __future__ import annotations

import re

import numpy as np
from datasets import IterableDataset

from gm_discrete.data.columns import (
    Rows,
    columns_of,
    dates,
    first_columns_of,
    flattened,
    identifies_rows,
    is_missing,
    kind_of,
    numbers,
)
from gm_discrete.data.scalers import decimals

NUMERIC = re.compile(r"\s*[+-]?\d+([.,]\d+)*\s*")


def describe_columns(rows: Rows | IterableDataset, *, first: int | None = 100_000) -> dict[str, str]:
    """What each column of a table holds: its type, its range or its categories, and what to look at before training.

    >>> describe_columns({"carat": [0.3, 0.5, None], "cut": ["fair", "good", "fair"]})
    {'carat': 'number from 0.3 to 0.5, 1 decimal, 1 missing', 'cut': "text, 2 categories: 'fair', 'good'"}

    Args:
        first: how many rows of a stream are read, `None` for all.

    Raises:
        ValueError: there are no rows, or a column is empty, or holds other types or numbers that are not finite.
    """
    columns = first_columns_of(rows, first) if isinstance(rows, IterableDataset) else columns_of(rows)
    found = {}
    for name, cells in columns.items():
        cells = flattened(cells)
        kind = kind_of(name, cells)
        if kind == "number":
            values = numbers(cells)
            missing = np.isnan(values)
            try:
                digits = decimals(values[~missing])
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from error
            rounded = "" if digits is None else f", {digits} decimal{'s' if digits > 1 else ''}"
            text = f"{'whole number' if digits == 0 else 'number'} from {values[~missing].min():g} to "
            text += f"{values[~missing].max():g}{rounded if digits else ''}"
        elif kind == "date":
            moments = dates(cells)
            missing = np.isnat(moments)
            ends = [
                str(end).removesuffix("T00:00:00.000000") for end in (moments[~missing].min(), moments[~missing].max())
            ]
            text = f"date from {ends[0]} to {ends[1]}" if moments.dtype.kind == "M" else "time of day"
        else:
            missing = np.array([is_missing(cell) for cell in cells])
            text = _categories([cell for cell, gone in zip(cells, missing, strict=True) if not gone])
        if missing.any():
            text += f", {missing.sum():,} missing"
        if identifies_rows(cells):
            text += "; it looks like an identifier: leave it out"
        found[name] = text
    return found


def _categories(values: list[str | bool]) -> str:
    names = sorted(set(values), key=str)
    shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    text = f"text, {len(names):,} categories: {shown}"
    others = [name for name in names if not (isinstance(name, str) and NUMERIC.fullmatch(name))]
    if 0 < len(others) < len(names) / 10:
        text += f"; numbers but for {', '.join(map(repr, others[:3]))}: correct or empty these cells"
    return text
