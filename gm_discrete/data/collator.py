"""Padded batches of tokenised examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gm_discrete.data.batches import attends_to_all

IGNORED = -100
"""The label of a position that is not scored."""


@dataclass(frozen=True)
class TokenCollator:
    """Batches examples of clean tokens, padded on the right. It draws no noise: `GMTrainer` does.

    Takes `{"input_ids": [l], optional "attention_mask": [l], optional "labels": [l], optional "source_ids": [l]}` per
    example. Returns, all `torch.long`: `input_ids` [B, L], the clean tokens; `attention_mask` [B, L], 0 on padding, with
    the numbers of documents that examples have (see `pack`), and left out if all tokens of every row attend to each other;
    `labels` [B, L], those of the example or else its tokens, and −100 (not scored) on padding; and `source_ids` [B, L], the
    x_0 of a coupled path, if the examples have them.

    >>> batch = TokenCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[1, 2, 3], [4, 9, 9]], [[1, 2, 3], [4, -100, -100]])

    Args:
        pad_token_id: the token that fills `input_ids` after the end of an example.
        pad_to_multiple_of: L is rounded up to a multiple of this.

    Raises:
        ValueError: (when called) an example is empty, has another column, or columns of different lengths.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        columns: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for example in examples:
            for name, row in _rows(example).items():
                columns.setdefault(name, []).append(row)
        if len({len(rows) for rows in columns.values()}) > 1:
            raise ValueError("source_ids is missing in some examples of the batch; give it in all or in none")
        filling = {
            "attention_mask": 0,
            "labels": IGNORED,
            "input_ids": self.pad_token_id,
            "source_ids": self.pad_token_id,
        }
        batch = {name: self._pad(rows, filling[name]) for name, rows in columns.items()}
        if attends_to_all(batch["attention_mask"]):
            del batch["attention_mask"]  # attention without a mask is faster
        return batch

    def _pad(self, rows: list[Tensor], filling: int) -> Tensor:
        batch = pad_sequence(rows, batch_first=True, padding_value=filling)  # [B, max l]
        missing = -batch.shape[1] % self.pad_to_multiple_of
        return torch.nn.functional.pad(batch, (0, missing), value=filling)


def _rows(example: Mapping[str, Any]) -> dict[str, Tensor]:
    unknown = example.keys() - {"input_ids", "attention_mask", "labels", "source_ids"}
    if unknown or "input_ids" not in example:
        raise ValueError(
            f"example has the columns {sorted(example)}; give input_ids and optionally attention_mask, labels, source_ids, "
            "and drop others with dataset.remove_columns"
        )
    rows = {name: torch.as_tensor(row, dtype=torch.long) for name, row in example.items()}
    tokens = rows["input_ids"]
    if tokens.ndim != 1 or not len(tokens) or any(row.shape != tokens.shape for row in rows.values()):
        shapes = {name: tuple(row.shape) for name, row in rows.items()}
        raise ValueError(f"example has columns of the shapes {shapes}; give columns of one shape [l], l ≥ 1")
    mask = rows.get("attention_mask", torch.ones_like(tokens))
    labels = rows.get("labels", tokens).masked_fill(mask == 0, IGNORED)
    source = {"source_ids": rows["source_ids"]} if "source_ids" in rows else {}
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, **source}
