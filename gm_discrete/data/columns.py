"""Columns of a table as arrays or lists, from data sets, streams, pandas tables, lists of rows or lists by column."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, IterableDataset

Rows: TypeAlias = Dataset | pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A data set, a pandas table, a list of rows, or lists by column."""
Column: TypeAlias = Sequence[Any] | np.ndarray
"""The cells of a column: an array of numbers, dates or times where that is cheap, else a list."""
FEW = 20
"""Rows below which no column counts as an identifier."""
UNNAMED = "unnamed"
"""The name of a column that has none, such as the row numbers that pandas writes."""


def first_columns_of(rows: IterableDataset, first: int | None) -> dict[str, Column]:
    """The columns of the first rows of a stream, or of all if `first` is `None`.

    Raises:
        ValueError: `first` is below 1, or there are no rows.
    """
    if first is not None and first < 1:
        raise ValueError(f"first={first} must be at least 1, or None for all rows")
    batches: Any = (rows if first is None else rows.take(first)).with_format("arrow").iter(10_000)
    tables = list(batches)
    if not tables:
        raise ValueError("rows is empty; give at least one row")
    return _columns_of_arrow(pa.concat_tables(tables, promote_options="permissive"))


def columns_of(rows: Rows) -> dict[str, Column]:
    """The columns of a table. Names that are not strings become strings, and an empty one becomes "unnamed".

    Raises:
        ValueError: there are no rows, they differ in their columns, or two columns have one name.
    """
    if not len(rows) or (isinstance(rows, Mapping) and not len(next(iter(rows.values())))):
        raise ValueError("rows is empty; give at least one row")
    if isinstance(rows, Dataset):
        return _columns_of_arrow(rows.with_format("arrow")[:])  # pyright: ignore[reportArgumentType]
    if isinstance(rows, pd.DataFrame):
        return dict(zip(column_names(rows.columns), (_from_pandas(cells) for _, cells in rows.items()), strict=True))
    if isinstance(rows, Mapping):
        sizes = {name: len(cells) for name, cells in rows.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"rows has columns of different lengths: {sizes}")
        return dict(zip(column_names(rows), rows.values(), strict=True))
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"rows differ in their columns: {', '.join(rows[0])}; and {', '.join(row)}")
    names = column_names(rows[0])
    return {name: [row[key] for row in rows] for name, key in zip(names, rows[0], strict=True)}


def column_names(names: Iterable[Any]) -> list[str]:
    """The names as strings, "unnamed" where there is none.

    Raises:
        ValueError: two columns then have one name.
    """
    found = [str(name) or UNNAMED for name in names]
    if twice := [name for name in found if found.count(name) > 1]:
        raise ValueError(f"rows has two columns of the name {twice[0]!r}; rename one of them")
    return found


def _columns_of_arrow(table: pa.Table) -> dict[str, Column]:
    return dict(zip(column_names(table.column_names), map(_from_arrow, table.columns), strict=True))


def _from_pandas(cells: pd.Series) -> Column:
    try:
        return _from_arrow(pa.chunked_array([pa.Array.from_pandas(cells)]))
    except pa.ArrowException as error:
        raise ValueError(
            f"column {str(cells.name)!r} holds values of different types ({error}); give one type"
        ) from error


def _from_arrow(column: pa.ChunkedArray) -> Column:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy()  # nulls become NaN
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64()).to_numpy()
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]")
    if pa.types.is_time(kind):
        return (
            column.cast(pa.time64("us")).cast(pa.int64()).cast(pa.duration("us")).to_numpy().astype("timedelta64[us]")
        )
    return column.to_pylist()


def flattened(cells: Column) -> Column:
    """The entries of all cells, for cells that are lists."""
    return list(chain.from_iterable(cells)) if len(cells) and isinstance(cells[0], list | tuple) else cells


def one_per_row(cells: Column) -> Column:
    """The cells.

    Raises:
        ValueError: they are lists.
    """
    if len(cells) and isinstance(cells[0], list | tuple):
        raise ValueError("a cell holds a list; use SequenceCollator for sequences")
    return cells


def kind_of(name: str, cells: Column) -> str:
    """What a column holds: "category" for strings and booleans, "number", or "date" for dates and times.

    Raises:
        ValueError: it holds something else, or nothing.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iufMm":
        return "number" if cells.dtype.kind in "iuf" else "date"
    cell = next((cell for cell in cells if not is_missing(cell)), None)
    if isinstance(cell, str | bool | np.bool_):
        return "category"
    if isinstance(cell, np.datetime64 | datetime.date | datetime.time):
        return "date"
    if isinstance(cell, Real):
        return "number"
    if cell is None and len(cells):
        raise ValueError(f"column {name!r} is empty: all of its cells are missing; leave it out")
    raise ValueError(f"column {name!r} holds {type(cell).__name__}; convert it to numbers or strings, or leave it out")


def identifies_rows(cells: Column) -> bool:
    """Whether a column looks like an identifier: text that differs in most rows, or consecutive whole numbers."""
    found = cells.tolist() if isinstance(cells, np.ndarray) else cells
    found = [cell for cell in found if not is_missing(cell)]
    distinct = set(found)
    if len(found) < FEW or len(distinct) < len(found) / 2:
        return False
    if all(isinstance(cell, str) for cell in found):
        return True
    whole = len(distinct) == len(found) and all(isinstance(cell, Real) and cell == int(cell) for cell in found)
    return whole and max(found) - min(found) == len(found) - 1


def is_missing(cell: object) -> bool:
    """Whether a cell is None, NaN or NaT."""
    return cell is None or cell is pd.NA or (isinstance(cell, float | np.generic) and bool(pd.isna(cell)))


def numbers(cells: Column) -> np.ndarray:
    """The cells of a column of numbers, float64 [N], NaN where missing.

    Raises:
        ValueError: a cell is something else.
    """
    if isinstance(cells, np.ndarray):
        return np.array(cells, dtype=np.float64)
    one_per_row(cells)
    cells = [None if is_missing(cell) else cell for cell in cells]
    wrong = next((cell for cell in cells if not (cell is None or isinstance(cell, Real))), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not a number; correct it, or list the column in categories")
    return np.array(cells, dtype=np.float64)


def dates(cells: Column) -> np.ndarray:
    """The cells of a column of dates, datetime64[us] [N], or of times, timedelta64[us] [N]; NaT where missing.

    Raises:
        ValueError: a cell is something else.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "Mm":
        return cells.astype("datetime64[us]" if cells.dtype.kind == "M" else "timedelta64[us]")
    one_per_row(cells)
    found = [None if is_missing(cell) else cell for cell in cells]
    found = [cell.astype("datetime64[us]").item() if isinstance(cell, np.datetime64) else cell for cell in found]
    try:
        column = pa.chunked_array([pa.array(found)])
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"dates and other values are mixed ({error}); correct them") from error
    if pa.types.is_null(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_temporal(column.type):
        raise ValueError(f"{next(cell for cell in found if cell is not None)!r} is not a date; correct it")
    return np.asarray(_from_arrow(column))
