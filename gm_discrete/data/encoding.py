"""Rows of natural values as states of numbers and symbols, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from torch import Tensor

from gm_discrete.data.scalers import SCALERS, Categories, Codec, Scaler, decimals

Codecs: TypeAlias = Mapping[str, Any]
"""A `Scaler` or `Categories` for each column."""
Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A data set, a list of rows, or lists by column."""

ENCODED = "encoded"
"""The column of an encoded data set."""
PRESENCE = ("present", "missing")
"""The categories of a companion. No fit gives them in this order, so that a column of the table's own is none."""


def fit_codecs(
    rows: Rows | IterableDataset,
    *,
    scalers: str | Mapping[str, str] = "quantile",
    categories: Sequence[str] = (),
    bounded: bool = True,
    first: int | None = 100_000,
) -> dict[str, Scaler | Categories]:
    """How each column of a table, or of sequences, becomes a field of a state.

    Strings and booleans become `Categories`, numbers a `Scaler` with the decimals they have. A category column with
    missing cells has the category None. A number column NAME with missing cells is followed by a companion
    `NAME_missing`, categories "present" and "missing".

    Args:
        rows: the training rows; where cells are lists, all that is in them.
        scalers: "quantile", "log" or "standard", for all numbers or by column, where the others are "quantile".
        categories: columns of numbers that are categories.
        bounded: keeps numbers within the least and the greatest seen.
        first: rows of a stream that are looked at, None for all. A table in order, as flights are by date, may show
            its last category in its last row.

    Raises:
        ValueError: there are no rows; a column is none of these kinds, or empty; an argument names no column, no
            scaler, or a column of another kind.
    """
    columns = _first_columns(rows, first) if isinstance(rows, IterableDataset) else _columns(rows)
    chosen = dict.fromkeys(columns, scalers) if isinstance(scalers, str) else dict(scalers)
    absent = [name for name in (*chosen, *categories) if name not in columns]
    if absent:
        raise ValueError(f"rows have no column {absent[0]!r}; they have {', '.join(columns)}")
    codecs: dict[str, Scaler | Categories] = {}
    for name, cells in columns.items():
        cells = _flat(cells)
        if name in categories or _is_category(name, cells):
            if not isinstance(scalers, str) and name in chosen:
                raise ValueError(f"scalers names {name!r}, a column of categories; leave it out")
            codecs[name] = Categories.fit(cells)
            continue
        kind, companion = chosen.get(name, "quantile"), f"{name}_missing"
        if kind not in SCALERS:
            raise ValueError(f"scalers={kind!r} of column {name!r} is unknown; give one of {', '.join(SCALERS)}")
        try:
            numbers = _numbers(cells)
            observed = numbers[~np.isnan(numbers)]
            codecs[name] = SCALERS[kind].fit(observed, digits=decimals(observed), bounded=bounded)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
        if len(observed) < len(numbers):
            if companion in columns:
                raise ValueError(f"columns {name!r} misses values, and {companion!r} is taken; rename it")
            codecs[companion] = Categories(PRESENCE)
    return codecs


def encode_rows(rows: Rows, codecs: Codecs, rng: torch.Generator | None = None) -> dict[str, Tensor]:
    """Rows of natural values → a state: numbers float32 [N, 1, 1], categories long [N, 1].

    A missing number is replaced by one drawn from its column's law, f⁻¹ of a normal number, so that it tells nothing.

    Args:
        rng: dequantises numbers and draws the missing ones; without it they are the middle of that law.

    Raises:
        ValueError: the columns are not those of the codecs, or a value does not suit its codec.
    """
    columns = _columns(rows)
    size = len(next(iter(columns.values())))
    uniform = None if rng is None else torch.rand(size, draws(codecs), generator=rng, dtype=torch.float64)
    flat = encode_columns(columns, codecs, uniform)
    return {name: with_shape(field, 1) for name, field in flat.items()}


def natural_values(state: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, Tensor]:
    """A state → natural values in its shapes, as `generate` gives them: numbers in float64, ids of categories."""
    return {
        name: codec.inverse(state[name]) if isinstance(codec := codecs.get(name), Scaler) else state[name]
        for name in state
    }


def decode_rows(values: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, list[Any]]:
    """What `generate` gives of a table → lists by column; None where missing, integers where a column has no decimals.

    Raises:
        ValueError: a field of the codecs is absent, is no column of one entry a row, or has an impossible value.
    """
    absent = [name for name in codecs if name not in values]
    if absent:
        raise ValueError(f"values have no field {absent[0]!r}; they have {', '.join(values)}")
    for name, field in values.items():
        if name in codecs and field.numel() != len(field):
            raise ValueError(f"field {name!r} has the shape {tuple(field.shape)}; give one entry a row")
    return decode_columns({name: values[name].flatten() for name in codecs}, codecs)


def encoded_dataset(dataset: Dataset | IterableDataset, codecs: Codecs, seed: int = 0) -> Dataset | IterableDataset:
    """A table encoded and dequantised once: rows `{"encoded": bytes}`, which `TableCollator` takes as well.

    The bytes are the row's fields one after another (`record_type`): `datasets` gathers one column several times
    faster than many. Of a stream, a row's draws depend on the seed and its index alone, not on how it is read. (Where
    workers share the files of a stream, each counts the rows of its own.)

    Raises:
        ValueError: as `encode_rows` does; of a stream when it is read.
    """
    features = Features({ENCODED: Value("binary")})
    if isinstance(dataset, IterableDataset):
        names = dataset.column_names or list(next(iter(dataset)))
        encode = _EncodeStream(dict(codecs), seed)
        return dataset.map(encode, batched=True, with_indices=True, remove_columns=names, features=features)
    columns = _columns(dataset)
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(dataset), draws(codecs), generator=rng, dtype=torch.float64)
    rows = _as_bytes(encode_columns(columns, codecs, uniform), codecs)
    return Dataset(pa.table({ENCODED: pa.array(rows, pa.binary())}), info=DatasetInfo(features=features))


def record_type(codecs: Codecs) -> np.dtype:
    """Of an encoded row: float32 for each number and int32 for each category, in the order of the codecs."""
    return np.dtype([(name, "<f4" if isinstance(codec, Scaler) else "<i4") for name, codec in codecs.items()])


def draws(codecs: Codecs) -> int:
    """Uniform numbers that a row needs: for each number one to dequantise and one should it be missing."""
    return 2 * sum(isinstance(codec, Scaler) for codec in codecs.values())


def encode_columns(columns: Mapping[str, Sequence[Any]], codecs: Codecs, uniform: Tensor | None) -> dict[str, Tensor]:
    """Columns of N natural values → float32 [N] and long [N] by field; `uniform` [N, draws(codecs)] on [0, 1).

    Raises:
        ValueError: see `encode_rows`.
    """
    companions = _companions(codecs)
    expected = [name for name in codecs if name not in companions.values()]
    absent, unknown = (
        [name for name in expected if name not in columns],
        [name for name in columns if name not in codecs],
    )
    if absent or unknown:
        told = f"no column {absent[0]!r}" if absent else f"a column {unknown[0]!r}, which has no codec"
        raise ValueError(f"rows have {told}; the codecs are of {', '.join(expected)}: select these columns")
    fields: dict[str, Tensor] = {}
    number = 0
    for name in expected:
        codec = codecs[name]
        try:
            if isinstance(codec, Categories):
                fields[name] = codec.encode(_one_a_row(columns[name]))
                continue
            values = torch.from_numpy(_numbers(columns[name]))
            missing = values.isnan()
            if name in companions:
                fields[companions[name]] = missing.long()
            elif missing.any():
                raise ValueError(f"{int(missing.sum())} of {len(values)} are missing; fit on rows where some are too")
            noise, place = (None, torch.tensor(0.5)) if uniform is None else uniform[:, number : number + 2].unbind(1)
            number += 2
            # Half of 2^-53, the step of uniform numbers, keeps the draw finite.
            drawn = codec.inverse(torch.special.ndtri(place.double().clamp(min=2.0**-54)))
            values = torch.where(missing, drawn, values)
            fields[name] = codec.transform(values if noise is None else codec.dequantize(values, noise))
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
    return {name: fields[name] for name in codecs}


def decode_columns(fields: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, list[Any]]:
    """Natural numbers [N] and ids [N] by field → lists by column."""
    companions = _companions(codecs)
    columns: dict[str, list[Any]] = {}
    for name, codec in codecs.items():
        if name in companions.values():
            continue
        try:
            if isinstance(codec, Categories):
                columns[name] = codec.decode(fields[name])
                continue
            values = fields[name].tolist()
            if isinstance(codec, Scaler) and codec.digits is not None and codec.digits <= 0:
                values = [round(value) for value in values]
            if name in companions:
                missing = fields[companions[name]].tolist()
                values = [None if gone else value for gone, value in zip(missing, values, strict=True)]
            columns[name] = values
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from error
    return columns


@dataclass(frozen=True)
class _EncodeStream:
    """A batch of a stream → its fields; a class, for workers that are sent it."""

    codecs: dict[str, Scaler | Categories]
    seed: int

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[bytes]]:
        count = draws(self.codecs)
        # A generator for each row: Philox is made of a key, without the cost of a seed.
        rows = [np.random.Generator(np.random.Philox(key=[self.seed, index])).random(count) for index in indices]
        fields = encode_columns(dict(batch), self.codecs, torch.from_numpy(np.stack(rows)))
        return {ENCODED: _as_bytes(fields, self.codecs)}


def _first_columns(rows: IterableDataset, first: int | None) -> dict[str, Any]:
    if first is not None and first < 1:
        raise ValueError(f"first={first} must be at least 1, or None for all rows")
    batches: Any = (rows if first is None else rows.take(first)).with_format("arrow").iter(10_000)
    tables = list(batches)
    if not tables:
        raise ValueError("rows is empty; give at least one row")
    table = pa.concat_tables(tables, promote_options="permissive")
    return {name: _from_arrow(table[name]) for name in table.column_names}


def _columns(rows: Rows) -> dict[str, Any]:
    """Numbers without missing cells as arrays where it is easy, everything else as lists."""
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


def _from_arrow(column: pa.ChunkedArray) -> Any:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return column.to_pylist()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy()  # where a null is NaN
    return column.to_pylist()


def _flat(cells: Any) -> Any:
    return list(chain.from_iterable(cells)) if len(cells) and isinstance(cells[0], list | tuple) else cells


def _one_a_row(cells: Any) -> Any:
    if len(cells) and isinstance(cells[0], list | tuple):
        raise ValueError("a cell holds a list; batch sequences by SequenceCollator")
    return cells


def _is_category(name: str, cells: Any) -> bool:
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        return False
    cell = next((cell for cell in cells if cell is not None), None)
    if isinstance(cell, str | bool | np.bool_):
        return True
    if isinstance(cell, Real):
        return False
    raise ValueError(f"column {name!r} holds {type(cell).__name__}, no numbers or names; turn it into some, or drop it")


def _numbers(cells: Any) -> np.ndarray:
    """float64 [N], NaN where a cell is missing."""
    if not isinstance(cells, np.ndarray):
        wrong = next((cell for cell in _one_a_row(cells) if not (cell is None or isinstance(cell, Real))), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is among numbers; mend it, or name the column in categories")
    return np.array(cells, dtype=np.float64)


def _companions(codecs: Mapping[str, Codec]) -> dict[str, str]:
    """The companion of each number column that has one."""
    found = {}
    for name, codec in codecs.items():
        companion = codecs.get(f"{name}_missing")
        if isinstance(codec, Scaler) and isinstance(companion, Categories) and companion.names == list(PRESENCE):
            found[name] = f"{name}_missing"
    return found


def _as_bytes(fields: Mapping[str, Tensor], codecs: Codecs) -> list[bytes]:
    records = np.empty(len(next(iter(fields.values()))), record_type(codecs))
    for name, field in fields.items():
        records[name] = field.numpy()
    content, size = records.tobytes(), records.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]


def with_shape(field: Tensor, length: int) -> Tensor:
    """[B·L] → [B, L, 1] of numbers, [B, L] of categories."""
    return field.reshape(-1, length, 1) if field.is_floating_point() else field.reshape(-1, length)
