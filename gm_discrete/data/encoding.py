"""Encodes tables and sequences of natural values as states of continuous and discrete fields, and decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from torch import Tensor
from transformers.utils import logging

from gm_discrete.data.columns import (
    Column,
    Rows,
    columns_of,
    dates,
    first_columns_of,
    flattened,
    identifies_rows,
    kind_of,
    numbers,
)
from gm_discrete.data.fields import (
    PRESENCE,
    Codecs,
    check_columns,
    decode_columns,
    encode_columns,
    num_draws,
    numbers_of_fields,
    with_shape,
)
from gm_discrete.data.scalers import SCALERS, Categories, Codec, DatePart, Scaler, decimals
from gm_discrete.data.scalers.dates import date_parts

logger = logging.get_logger(__name__)

ENCODED = "encoded"
"""The column of an encoded data set."""


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
    companion field `NAME_missing` with the categories "present" and "missing". A column of dates or times becomes fields
    `NAME_year`, `NAME_month`, `NAME_day`, and `NAME_minute` or `NAME_second` for the time of day.

    Fit them on all rows that are to be encoded: a category that only held-out rows have is unknown otherwise (see
    `encoded_dataset`). Columns that look like identifiers are named in a warning.

    >>> codecs = fit_codecs({"carat": [0.3, 0.5, 0.71], "cut": ["fair", "good", "fair"]})
    >>> codecs["cut"].names, codecs["carat"].digits
    (['fair', 'good'], 2)
    >>> state = encode_rows({"carat": [0.5], "cut": ["good"]}, codecs)
    >>> {name: tuple(field.shape) for name, field in state.items()}
    {'carat': (1, 1, 1), 'cut': (1, 1)}
    >>> decode_rows(natural_values(state, codecs), codecs)
    {'carat': [0.5], 'cut': ['good']}

    Args:
        rows: the rows, such as a data set or a pandas table; cells may be lists (sequences), whose entries are then used.
        scalers: "quantile" or "standard", for all columns of numbers, or by column; columns left out get "quantile".
        categories: columns of numbers or dates to treat as categories.
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
        kind = "category" if name in categories else kind_of(name, cells)
        if kind == "category":
            if not isinstance(scalers, str) and name in chosen:
                raise ValueError(f"scalers[{name!r}] is set, but the column holds categories; leave it out")
            found: dict[str, Scaler | Categories] = {name: Categories.fit(cells)}
        else:
            scaler = chosen.get(name, "quantile")
            if scaler not in SCALERS:
                why = "was removed" if scaler == "log" else "is unknown"
                raise ValueError(f"scalers={scaler!r} for column {name!r} {why}; choose one of {', '.join(SCALERS)}")
            try:
                found = _scalers(name, cells, kind, SCALERS[scaler], bounded)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from error
        if identifies_rows(cells):
            logger.warning(
                f"column {name!r} looks like an identifier: its cells differ in (almost) all rows; leave it out"
            )
        if taken := [field for field in found if field != name and field in columns]:
            raise ValueError(
                f"column {name!r} has dates or missing cells and needs the name {taken[0]!r}, which is taken; rename that "
                "column"
            )
        codecs |= found
    return codecs


def _scalers(
    name: str, cells: Column, kind: str, scaler: type[Scaler], bounded: bool
) -> dict[str, Scaler | Categories]:
    """The codecs of a column of numbers or dates: a scaler, or one for each part, and those of its companion field."""
    found: dict[str, Scaler | Categories] = {}
    if kind == "date":
        parts = date_parts(dates(cells))
        for part, values in parts.items():
            observed = values[~np.isnan(values)]
            digits = decimals(observed) if part == "second" else 0
            found[f"{name}_{part}"] = DatePart.fit(observed, digits=digits, bounded=bounded, part=part, scaler=scaler)
        values = next(iter(parts.values()))
    else:
        values = numbers(cells)
        observed = values[~np.isnan(values)]
        found[name] = scaler.fit(observed, digits=decimals(observed), bounded=bounded)
    if np.isnan(values).any():
        found[f"{name}_missing"] = Categories(PRESENCE)
    return found


def encode_rows(rows: Rows, codecs: Codecs, rng: torch.Generator | None = None) -> dict[str, Tensor]:
    """Encodes rows of natural values as a state: numbers float32 [N, 1, 1], categories long [N, 1].

    A missing number is replaced by a draw from its column's distribution, f⁻¹ of a normal number, so that its value carries
    no information. Numbers beyond the `ends` of their codec become the end; a warning names them.

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
    _warn_of_clamped(columns, codecs)
    return {name: with_shape(field, 1) for name, field in flat.items()}


def _warn_of_clamped(columns: Mapping[str, Column], codecs: Codecs) -> None:
    """Warns once of all fields with numbers beyond the ends of their codec."""
    found = []
    for _, _, parts in numbers_of_fields(columns, codecs):
        for name, values in (parts or {}).items():
            codec = codecs[name]
            assert isinstance(codec, Scaler)
            low, high = codec.ends
            margin = codec.unit / 2 if np.isinf(high - low) else max(codec.unit / 2, 1e-6 * (high - low))
            beyond = (values < low - margin) | (values > high + margin)
            if beyond.any():
                value = values[beyond.argmax()]
                found.append(f"{name!r} ({beyond.sum()}: {value:.15g}, not within {low:.15g} and {high:.15g})")
    if found:
        logger.warning(
            f"numbers beyond the range on which the codecs were fitted are encoded as its nearest end: {', '.join(found)}; "
            "a score does not show how far out they are"
        )


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


def encoded_dataset(
    dataset: Dataset | IterableDataset | Rows, codecs: Codecs, seed: int = 0
) -> Dataset | IterableDataset:
    """Encodes and dequantises a table once: rows `{"encoded": bytes}`, which `TableCollator` accepts as well.

    The bytes are the row's fields one after another (`record_type`): `datasets` gathers one column several times faster
    than many. In a stream the draws of a row depend on the seed and the row's index only, not on how the stream is read.
    (If workers share the files of a stream, each counts its own rows.)

    Rows with a category that the codecs do not have, or without a number that was never missing when they were fitted, are
    left out; a warning counts them.

    Raises:
        ValueError: as `encode_rows`, or no row is left; for a stream, when it is read.
    """
    features = Features({ENCODED: Value("binary")})
    if isinstance(dataset, IterableDataset):
        names = dataset.column_names or list(next(iter(dataset)))
        encode = _EncodeStream(dict(codecs), seed)
        return dataset.map(encode, batched=True, with_indices=True, remove_columns=names, features=features)
    columns = columns_of(dataset)
    known = known_rows(columns, codecs)
    if not known.any():
        raise ValueError("rows hold values unknown to the codecs in every row; fit the codecs on these rows as well")
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(known), num_draws(codecs), generator=rng, dtype=torch.float64)
    rows = _as_bytes(encode_columns(_chosen(columns, known), codecs, uniform[torch.from_numpy(known)]), codecs)
    return Dataset(pa.table({ENCODED: pa.array(rows, pa.binary())}), info=DatasetInfo(features=features))


def known_rows(columns: Mapping[str, Column], codecs: Codecs) -> np.ndarray:
    """Which rows the codecs can encode, bool [N]; a warning counts the others, by column.

    Raises:
        ValueError: the columns are not those of the codecs, or hold values of another type.
    """
    check_columns(columns, codecs)
    known = np.ones(len(next(iter(columns.values()))), dtype=bool)
    reasons = []
    for name, fields, parts in numbers_of_fields(columns, codecs):
        codec = codecs.get(name)
        if isinstance(codec, Categories):
            cells = columns[name]
            good = np.array([cell in codec for cell in cells])
            wrong = ", ".join(dict.fromkeys(repr(cell) for cell, fine in zip(cells, good, strict=True) if not fine))
        elif parts and fields.companion is None:
            good, wrong = ~np.isnan(next(iter(parts.values()))), "missing cells"
        else:
            continue
        if not good.all():
            reasons.append(f"{name!r} ({(~good).sum()}: {wrong[:60]})")
            known &= good
    if reasons:
        logger.warning(
            f"{(~known).sum()} of {len(known)} rows are left out, because the codecs do not have their values: "
            f"{', '.join(reasons)}; fit the codecs on all rows to keep them"
        )
    return known


def _chosen(columns: Mapping[str, Column], rows: np.ndarray) -> Mapping[str, Column]:
    if rows.all():
        return columns
    places = rows.nonzero()[0].tolist()
    return {
        name: cells[places] if isinstance(cells, np.ndarray) else [cells[place] for place in places]
        for name, cells in columns.items()
    }


def record_type(codecs: Codecs) -> np.dtype:
    """The numpy type of an encoded row: float32 for each number, int32 for each category, in the order of the codecs."""
    return np.dtype([(name, "<f4" if isinstance(codec, Scaler) else "<i4") for name, codec in codecs.items()])


@dataclass(frozen=True)
class _EncodeStream:
    """Encodes a batch of a stream. A class, so that it can be pickled for workers."""

    codecs: dict[str, Scaler | Categories]
    seed: int

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[bytes]]:
        columns = columns_of(batch)
        known = known_rows(columns, self.codecs)
        if not known.any():
            return {ENCODED: []}
        count = num_draws(self.codecs)
        # A generator for each row: Philox starts from a key, without the cost of seeding.
        rows = [
            np.random.Generator(np.random.Philox(key=[self.seed, index])).random(count)
            for index in np.array(indices)[known]
        ]
        fields = encode_columns(_chosen(columns, known), self.codecs, torch.from_numpy(np.stack(rows)))
        return {ENCODED: _as_bytes(fields, self.codecs)}


def _as_bytes(fields: Mapping[str, Tensor], codecs: Codecs) -> list[bytes]:
    records = np.empty(len(next(iter(fields.values()))), record_type(codecs))
    for name, field in fields.items():
        records[name] = field.numpy()
    content, size = records.tobytes(), records.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]
