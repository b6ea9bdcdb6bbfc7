"""Batches of tables and sequences: continuous and discrete fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gm_discrete.data.encoding import ENCODED, encode_rows, record_type
from gm_discrete.data.fields import Codecs, decode_columns, encode_columns, num_draws, with_shape
from gm_discrete.data.scalers import Codec, Scaler

IGNORED = -100
"""The label of an entry that is not scored, for discrete fields."""


@dataclass(frozen=True)
class TableCollator:
    """Batches rows of a table: `fields`, numbers float32 [B, 1, 1] and categories long [B, 1]; `labels`, the same.

    Rows hold natural values, or are those of `encoded_dataset`, which are faster. A pandas table is taken as well.

    Args:
        codecs: the codec of every column (see `fit_codecs`); those given to `encoded_dataset`, if that was used.
        dequantize: see `encode_rows`. The noise comes from torch's global random state, which a DataLoader seeds in its
            workers.

    Raises:
        ValueError: (when called) the columns are not those of the codecs, or a codec does not accept a value.
    """

    codecs: Codecs
    dequantize: bool = True

    def __call__(self, examples: Sequence[Mapping[str, Any]] | pd.DataFrame) -> dict[str, dict[str, Tensor]]:
        if not isinstance(examples, pd.DataFrame) and isinstance(examples[0].get(ENCODED), bytes):
            fields = _decoded(examples, self.codecs)
        else:
            fields = encode_rows(examples, self.codecs, torch.default_generator if self.dequantize else None)
        return {"fields": fields, "labels": dict(fields)}


@dataclass(frozen=True)
class SequenceCollator:
    """Batches sequences, padded on the right: numbers float32 [B, L, 1] and categories long [B, L] by field.

    Takes `{column: list of natural values}` per example, with lists of one length. Returns `fields`, 0 where padded;
    `labels`, the same but NaN and −100 where padded; and, if there is padding, `attention_mask`, long [B, L], 0 where
    padded, for every field.

    Args:
        codecs: the codec of every column (see `fit_codecs`).
        length: L; the length of the longest example by default.
        dequantize: see `encode_rows`. The noise comes from torch's global random state.

    Raises:
        ValueError: `length` is not positive; (when called) the lists of an example differ in length, are empty or longer
            than `length`; the columns are not those of the codecs, or a codec does not accept a value.
    """

    codecs: Codecs
    length: int | None = None
    dequantize: bool = True

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        sizes = [_size(example) for example in examples]
        length = max(sizes) if self.length is None else self.length
        if max(sizes) > length:
            raise ValueError(f"a sequence has {max(sizes)} entries, and length={length}; cut it, or raise length")
        columns = {name: [cell for row in examples for cell in row[name]] for name in examples[0]}
        uniform = torch.rand(sum(sizes), num_draws(self.codecs), dtype=torch.float64) if self.dequantize else None
        mask = torch.arange(length) < torch.tensor(sizes)[:, None]  # [B, L]
        batch: dict[str, dict[str, Tensor]] = {"fields": {}, "labels": {}}
        for name, entries in encode_columns(columns, self.codecs, uniform).items():
            ignored = torch.nan if entries.is_floating_point() else IGNORED
            for part, padding in (("fields", 0), ("labels", ignored)):
                padded = torch.full(mask.shape, padding, dtype=entries.dtype)
                padded[mask] = entries
                batch[part][name] = with_shape(padded, length)
        if not bool(mask.all()):  # attention without a mask is faster
            batch["attention_mask"] = {name: mask.long() for name in batch["fields"]}
        return batch


def decode_sequences(
    values: Mapping[str, Tensor], codecs: Mapping[str, Codec], attention_mask: Mapping[str, Tensor] | None = None
) -> list[dict[str, list[Any]]]:
    """Decodes what `generate` returns for sequences into lists by column, for each sequence.

    Args:
        values: natural numbers [B, L, 1] and ids [B, L] by field.
        attention_mask: [B, L] by field, 0 where padded; the same for all fields.

    Raises:
        ValueError: a field of the codecs is absent, has another shape, or holds an impossible value.
    """
    absent = [name for name in codecs if name not in values]
    if absent:
        raise ValueError(f"values have no field {absent[0]!r}; they have {', '.join(values)}")
    shape = tuple(values[next(iter(codecs))].shape[:2])
    for name, codec in codecs.items():
        found, expected = tuple(values[name].shape), (*shape, 1) if isinstance(codec, Scaler) else shape
        if found != expected or len(shape) != 2:
            raise ValueError(f"field {name!r} has the shape {found}; give [B, L, 1] for numbers, [B, L] for categories")
    masks = torch.ones(shape) if attention_mask is None else next(iter(attention_mask.values()))
    rows = []
    for number, mask in enumerate(masks.bool()):
        rows.append(decode_columns({name: values[name][number].flatten()[mask] for name in codecs}, codecs))
    return rows


def _size(example: Mapping[str, Any]) -> int:
    sizes = {name: len(cells) for name, cells in example.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        raise ValueError(f"a sequence has lists of the lengths {sizes}; give lists of one length, at least 1")
    return next(iter(sizes.values()))


def _decoded(examples: Sequence[Mapping[str, Any]], codecs: Codecs) -> dict[str, Tensor]:
    """The fields of rows of `encoded_dataset`."""
    kind = record_type(codecs)
    rows: list[Any] = [example.get(ENCODED) for example in examples]
    wrong = next((row for row in rows if not isinstance(row, bytes) or len(row) != kind.itemsize), None)
    if wrong is not None or None in rows:
        raise ValueError(f"rows hold {wrong!r}, which these codecs did not encode; use those of encoded_dataset")
    records = np.frombuffer(b"".join(rows), kind)
    fields = {}
    for name, codec in codecs.items():
        column = records[name].astype(np.float32 if isinstance(codec, Scaler) else np.int64)
        fields[name] = with_shape(torch.from_numpy(column), 1)
    return fields
