"""Columns of a table as numbers or lists, from data sets, streams, lists of rows or lists by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A data set, a list of rows, or lists by column."""
Column: TypeAlias = Sequence[Any] | np.ndarray
"""The cells of a column: an array of numbers where that is cheap, else a list."""


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
    table = pa.concat_tables(tables, promote_options="permissive")
    return {name: _from_arrow(table[name]) for name in table.column_names}


def columns_of(rows: Rows) -> dict[str, Column]:
    """The columns of a table.

    Raises:
        ValueError: there are no rows, or they differ in their columns.
    """
    if not len(rows) or (isinstance(rows, Mapping) and not len(next(iter(rows.values())))):
        raise ValueError("rows is empty; give at least one row")
    if isinstance(rows, Dataset):
        table: Any = rows.with_format("arrow")[:]
        return {name: _from_arrow(table[name]) for name in table.column_names}
    if isinstance(rows, Mapping):
        sizes = {name: len(cells) for name, cells in rows.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"rows has columns of different lengths: {sizes}")
        return dict(rows)
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"rows differ in their columns: {', '.join(rows[0])}; and {', '.join(row)}")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _from_arrow(column: pa.ChunkedArray) -> Column:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return column.to_pylist()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy()  # nulls become NaN
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


def is_category(name: str, cells: Column) -> bool:
    """Whether a column holds strings or booleans.

    Raises:
        ValueError: it holds neither these nor numbers.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        return False
    cell = next((cell for cell in cells if cell is not None), None)
    if isinstance(cell, str | bool | np.bool_):
        return True
    if isinstance(cell, Real):
        return False
    raise ValueError(f"column {name!r} holds {type(cell).__name__}; convert it to numbers or strings, or drop it")


def numbers(cells: Column) -> np.ndarray:
    """The cells of a column of numbers, float64 [N], NaN where missing.

    Raises:
        ValueError: a cell is something else.
    """
    if not isinstance(cells, np.ndarray):
        wrong = next((cell for cell in one_per_row(cells) if not (cell is None or isinstance(cell, Real))), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not a number; correct it, or list the column in categories")
    return np.array(cells, dtype=np.float64)
