"""Encodes tables and sequences of natural values as states of continuous and discrete fields, and decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from torch import Tensor

from gm_discrete.data.columns import (
    Column,
    Rows,
    columns_of,
    first_columns_of,
    flattened,
    is_category,
    numbers,
    one_per_row,
)
from gm_discrete.data.scalers import SCALERS, Categories, Codec, Scaler, decimals

Codecs: TypeAlias = Mapping[str, Scaler | Categories]
"""A `Scaler` or `Categories` for each column."""

ENCODED = "encoded"
"""The column of an encoded data set."""
PRESENCE = ("present", "missing")
"""The categories of a companion column. `Categories.fit` sorts, so that no column of the table has them in this order."""


def fit_codecs(
    rows: Rows | IterableDataset,
    *,
    scalers: str | Mapping[str, str] = "quantile",
    categories: Sequence[str] = (),
    bounded: bool = True,
    first: int | None = 100_000,
) -> dict[str, Scaler | Categories]:
    """Fits a codec to each column of a table, or of sequences: how it becomes a field of a state.

    Columns of strings and booleans get `Categories`, columns of numbers a `Scaler` with as many decimals as they have. A
    category column with missing cells has the category None. A number column NAME with missing cells is followed by a
    companion field `NAME_missing` with the categories "present" and "missing".

    >>> codecs = fit_codecs({"carat": [0.3, 0.5, 0.71], "cut": ["fair", "good", "fair"]})
    >>> codecs["cut"].names, codecs["carat"].digits
    (['fair', 'good'], 2)
    >>> state = encode_rows({"carat": [0.5], "cut": ["good"]}, codecs)
    >>> {name: tuple(field.shape) for name, field in state.items()}
    {'carat': (1, 1, 1), 'cut': (1, 1)}
    >>> decode_rows(natural_values(state, codecs), codecs)
    {'carat': [0.5], 'cut': ['good']}

    Args:
        rows: the training rows; cells may be lists (sequences), whose entries are then used.
        scalers: "quantile" or "standard", for all columns of numbers, or by column; columns left out get "quantile".
        categories: columns of numbers to treat as categories.
        bounded: clamp numbers to the least and the greatest in `rows`.
        first: how many rows of a stream are used, `None` for all. In a sorted table, such as flights by date, the last row
            may hold a category that no earlier row has.

    Raises:
        ValueError: there are no rows; a column is empty or holds other types; an argument names no column, no scaler, or a
            column of the wrong type.
    """
    columns = first_columns_of(rows, first) if isinstance(rows, IterableDataset) else columns_of(rows)
    chosen = dict.fromkeys(columns, scalers) if isinstance(scalers, str) else dict(scalers)
    absent = [name for name in (*chosen, *categories) if name not in columns]
    if absent:
        raise ValueError(f"rows have no column {absent[0]!r}; they have {', '.join(columns)}")
    codecs: dict[str, Scaler | Categories] = {}
    for name, cells in columns.items():
        cells = flattened(cells)
        if name in categories or is_category(name, cells):
            if not isinstance(scalers, str) and name in chosen:
                raise ValueError(f"scalers[{name!r}] is set, but the column holds categories; leave it out")
            codecs[name] = Categories.fit(cells)
            continue
        kind, companion = chosen.get(name, "quantile"), f"{name}_missing"
        if kind not in SCALERS:
            why = "was removed" if kind == "log" else "is unknown"
            raise ValueError(f"scalers={kind!r} for column {name!r} {why}; choose one of {', '.join(SCALERS)}")
        try:
            values = numbers(cells)
            observed = values[~np.isnan(values)]
            codecs[name] = SCALERS[kind].fit(observed, digits=decimals(observed), bounded=bounded)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
        if len(observed) < len(values):
            if companion in columns:
                raise ValueError(
                    f"column {name!r} has missing cells and needs the name {companion!r}, which is taken; rename that column"
                )
            codecs[companion] = Categories(PRESENCE)
    return codecs


def encode_rows(rows: Rows, codecs: Codecs, rng: torch.Generator | None = None) -> dict[str, Tensor]:
    """Encodes rows of natural values as a state: numbers float32 [N, 1, 1], categories long [N, 1].

    A missing number is replaced by a draw from its column's distribution, f⁻¹ of a normal number, so that its value carries
    no information.

    Args:
        rng: dequantises numbers and draws the missing ones; without it numbers are not dequantised, and missing ones are
            the median.

    Raises:
        ValueError: the columns are not those of the codecs, or a codec does not accept a value.
    """
    columns = columns_of(rows)
    size = len(next(iter(columns.values())))
    uniform = None if rng is None else torch.rand(size, num_draws(codecs), generator=rng, dtype=torch.float64)
    flat = encode_columns(columns, codecs, uniform)
    return {name: with_shape(field, 1) for name, field in flat.items()}


def natural_values(state: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, Tensor]:
    """The natural values of a state, in its shapes, as `generate` returns them: numbers in float64, ids of categories."""
    return {
        name: codec.inverse(state[name]) if isinstance(codec := codecs.get(name), Scaler) else state[name]
        for name in state
    }


def decode_rows(values: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, list[Any]]:
    """Decodes what `generate` returns for a table into lists by column; None where missing, integers without decimals.

    Raises:
        ValueError: a field of the codecs is absent, has more than one entry per row, or holds an impossible value.
    """
    absent = [name for name in codecs if name not in values]
    if absent:
        raise ValueError(f"values have no field {absent[0]!r}; they have {', '.join(values)}")
    for name, field in values.items():
        if name in codecs and field.numel() != len(field):
            raise ValueError(f"field {name!r} has the shape {tuple(field.shape)}; give one entry per row")
    return decode_columns({name: values[name].flatten() for name in codecs}, codecs)


def encoded_dataset(dataset: Dataset | IterableDataset, codecs: Codecs, seed: int = 0) -> Dataset | IterableDataset:
    """Encodes and dequantises a table once: rows `{"encoded": bytes}`, which `TableCollator` accepts as well.

    The bytes are the row's fields one after another (`record_type`): `datasets` gathers one column several times faster
    than many. In a stream the draws of a row depend on the seed and the row's index only, not on how the stream is read.
    (If workers share the files of a stream, each counts its own rows.)

    Raises:
        ValueError: as `encode_rows`; for a stream, when it is read.
    """
    features = Features({ENCODED: Value("binary")})
    if isinstance(dataset, IterableDataset):
        names = dataset.column_names or list(next(iter(dataset)))
        encode = _EncodeStream(dict(codecs), seed)
        return dataset.map(encode, batched=True, with_indices=True, remove_columns=names, features=features)
    columns = columns_of(dataset)
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(dataset), num_draws(codecs), generator=rng, dtype=torch.float64)
    rows = _as_bytes(encode_columns(columns, codecs, uniform), codecs)
    return Dataset(pa.table({ENCODED: pa.array(rows, pa.binary())}), info=DatasetInfo(features=features))


def record_type(codecs: Codecs) -> np.dtype:
    """The numpy type of an encoded row: float32 for each number, int32 for each category, in the order of the codecs."""
    return np.dtype([(name, "<f4" if isinstance(codec, Scaler) else "<i4") for name, codec in codecs.items()])


def num_draws(codecs: Codecs) -> int:
    """How many uniform draws a row needs: two per number, one to dequantise it and one to replace it if it is missing."""
    return 2 * sum(isinstance(codec, Scaler) for codec in codecs.values())


def encode_columns(columns: Mapping[str, Column], codecs: Codecs, uniform: Tensor | None) -> dict[str, Tensor]:
    """Encodes columns of N natural values as float32 [N] and long [N] by field, from `uniform` [N, num_draws(codecs)].

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
        what = f"no column {absent[0]!r}" if absent else f"a column {unknown[0]!r}, which has no codec"
        raise ValueError(f"rows have {what}; select the columns of the codecs, {', '.join(expected)}")
    fields: dict[str, Tensor] = {}
    number = 0
    for name in expected:
        codec = codecs[name]
        try:
            if isinstance(codec, Categories):
                fields[name] = codec.encode(one_per_row(columns[name]))
                continue
            values = torch.from_numpy(numbers(columns[name]))
            missing = values.isnan()
            if name in companions:
                fields[companions[name]] = missing.long()
            elif missing.any():
                raise ValueError(
                    f"{int(missing.sum())} of {len(values)} cells are missing; fit the codecs on rows with missing cells"
                )
            noise, place = (None, torch.tensor(0.5)) if uniform is None else uniform[:, number : number + 2].unbind(1)
            number += 2
            # Half of 2^-53, the step of uniform draws: 0 would become −∞.
            drawn = codec.inverse(torch.special.ndtri(place.double().clamp(min=2.0**-54)))
            values = torch.where(missing, drawn, values)
            fields[name] = codec.transform(values if noise is None else codec.dequantize(values, noise))
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error
    return {name: fields[name] for name in codecs}


def decode_columns(fields: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, list[Any]]:
    """Decodes natural numbers [N] and ids [N] by field into lists by column."""
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
    """Encodes a batch of a stream. A class, so that it can be pickled for workers."""

    codecs: dict[str, Scaler | Categories]
    seed: int

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[bytes]]:
        count = num_draws(self.codecs)
        # A generator for each row: Philox starts from a key, without the cost of seeding.
        rows = [np.random.Generator(np.random.Philox(key=[self.seed, index])).random(count) for index in indices]
        fields = encode_columns(dict(batch), self.codecs, torch.from_numpy(np.stack(rows)))
        return {ENCODED: _as_bytes(fields, self.codecs)}


def _companions(codecs: Mapping[str, Codec]) -> dict[str, str]:
    """The companion field of each number column that has one."""
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
    """Reshapes [B·L] to [B, L, 1] for numbers, [B, L] for categories."""
    return field.reshape(-1, length, 1) if field.is_floating_point() else field.reshape(-1, length)
