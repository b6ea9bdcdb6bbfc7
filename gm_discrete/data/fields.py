"""From columns of natural values to the fields of a state, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gm_discrete.data.columns import Column, dates, numbers, one_per_row
from gm_discrete.data.scalers import Categories, Codec, DatePart, Scaler
from gm_discrete.data.scalers.dates import date_parts, joined_dates

Codecs: TypeAlias = Mapping[str, Scaler | Categories]
"""A `Scaler` or `Categories` for each field."""

PRESENCE = ("present", "missing")
"""The categories of a companion field. `Categories.fit` sorts, so that no column of the table has them in this order."""


@dataclass
class ColumnFields:
    """The fields of a column: one, or one for each part of a date, and a companion field if cells may be missing."""

    parts: dict[str, str] = field(default_factory=dict)
    companion: str | None = None


def fields_of_columns(codecs: Mapping[str, Codec]) -> dict[str, ColumnFields]:
    """The fields of every column, by the names and codecs that `fit_codecs` gives them."""
    found: dict[str, ColumnFields] = {}
    for name, codec in codecs.items():
        column = name.removesuffix("_missing")
        numeric = isinstance(codecs.get(column), Scaler) or (column in found and "" not in found[column].parts)
        if isinstance(codec, Categories) and codec.names == list(PRESENCE) and column != name and numeric:
            found.setdefault(column, ColumnFields()).companion = name
        elif isinstance(codec, DatePart) and name.endswith(f"_{codec.part}"):
            found.setdefault(name.removesuffix(f"_{codec.part}"), ColumnFields()).parts[codec.part] = name
        else:
            found.setdefault(name, ColumnFields()).parts[""] = name
    return found


def num_draws(codecs: Codecs) -> int:
    """How many uniform draws a row needs: two per number, one to dequantise it and one to replace it if it is missing."""
    return 2 * sum(isinstance(codec, Scaler) for codec in codecs.values())


def check_columns(columns: Mapping[str, Column], codecs: Mapping[str, Codec]) -> None:
    """Checks that columns are those of the codecs.

    Raises:
        ValueError: a column is absent, or has no codec.
    """
    expected = fields_of_columns(codecs)
    absent, unknown = [name for name in expected if name not in columns], columns.keys() - expected.keys()
    if absent or unknown:
        what = f"no column {absent[0]!r}" if absent else f"a column {min(unknown)!r}, which has no codec"
        raise ValueError(f"rows have {what}; select the columns of the codecs, {', '.join(expected)}")


def numbers_of_fields(
    columns: Mapping[str, Column], codecs: Codecs
) -> Iterator[tuple[str, ColumnFields, dict[str, np.ndarray] | None]]:
    """(column, its fields, its numbers by field, NaN where missing, or `None` for categories), for each column.

    Raises:
        ValueError: a cell has the wrong type.
    """
    for name, fields in fields_of_columns(codecs).items():
        try:
            if "" not in fields.parts:
                found = date_parts(dates(columns[name]), tuple(fields.parts))
                yield name, fields, {fields.parts[part]: found[part] for part in fields.parts}
            elif isinstance(codecs[fields.parts[""]], Scaler):
                yield name, fields, {fields.parts[""]: numbers(columns[name])}
            else:
                one_per_row(columns[name])
                yield name, fields, None
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from error


def encode_columns(columns: Mapping[str, Column], codecs: Codecs, uniform: Tensor | None) -> dict[str, Tensor]:
    """Encodes columns of N natural values as float32 [N] and long [N] by field, from `uniform` [N, num_draws(codecs)].

    Raises:
        ValueError: the columns are not those of the codecs, or a codec does not accept a value.
    """
    check_columns(columns, codecs)
    fields: dict[str, Tensor] = {}
    number = 0
    for column, names, parts in numbers_of_fields(columns, codecs):
        try:
            for name, cells in (parts or {column: columns[column]}).items():
                codec = codecs[name]
                if isinstance(codec, Categories):
                    fields[name] = codec.encode(cells)
                    continue
                draws = None if uniform is None else uniform[:, number : number + 2]
                number += 2
                values = torch.from_numpy(np.asarray(cells))
                missing = values.isnan()
                if names.companion is not None:
                    fields[names.companion] = missing.long()
                elif missing.any():
                    raise ValueError(
                        f"{int(missing.sum())} of {len(values)} cells are missing; fit the codecs on rows with missing cells"
                    )
                fields[name] = _encoded(values, missing, codec, draws)
        except ValueError as error:
            raise ValueError(f"column {column!r}: {error}") from error
    return {name: fields[name] for name in codecs}


def _encoded(values: Tensor, missing: Tensor, codec: Scaler, draws: Tensor | None) -> Tensor:
    noise, place = (None, torch.tensor(0.5)) if draws is None else draws.unbind(1)
    # Half of 2^-53, the step of uniform draws: 0 would become −∞.
    drawn = codec.inverse(torch.special.ndtri(place.double().clamp(min=2.0**-54)))
    values = torch.where(missing, drawn, values)
    return codec.transform(values if noise is None else codec.dequantize(values, noise))


def decode_columns(fields: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> dict[str, list[Any]]:
    """Decodes natural numbers [N] and ids [N] by field into lists by column."""
    columns: dict[str, list[Any]] = {}
    for column, names in fields_of_columns(codecs).items():
        try:
            values: list[Any]
            if "" not in names.parts:
                values = joined_dates({part: fields[name].tolist() for part, name in names.parts.items()})
            else:
                values = _decoded(fields[names.parts[""]], codecs[names.parts[""]])
            if names.companion is not None:
                missing = fields[names.companion].tolist()
                values = [None if gone else value for gone, value in zip(missing, values, strict=True)]
            columns[column] = values
        except ValueError as error:
            raise ValueError(f"field {column!r}: {error}") from error
    return columns


def _decoded(entries: Tensor, codec: Codec) -> list[Any]:
    if isinstance(codec, Categories):
        return codec.decode(entries)
    values = entries.tolist()
    whole = isinstance(codec, Scaler) and codec.digits is not None and codec.digits <= 0
    return [round(value) for value in values] if whole else values


def with_shape(field: Tensor, length: int) -> Tensor:
    """Reshapes [B·L] to [B, L, 1] for numbers, [B, L] for categories."""
    return field.reshape(-1, length, 1) if field.is_floating_point() else field.reshape(-1, length)
