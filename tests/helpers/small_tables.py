"""Runs on rows of a small table, and on notes of different lengths, small enough to be repeated often.

Imported by `test_field_training.py` and by `two_equal_processes.py`, which `forks.py` starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from gm_discrete import (
    Bins,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    SO3Path,
    UniformPath,
    quaternions,
)
from gm_discrete.data import SequenceCollator
from gm_discrete.data.scalers import Categories, StandardScaler
from gm_discrete.training import GMTrainer
from tests.helpers.small_run import small_trainer

BOTH = {"flow": 0.5, "jump": 0.5}
LINE = {"pitch": Categories([*"abcde"]), "gap": StandardScaler(0.0, 1.0)}
LENGTHS = (6, 2, 5, 1, 3)
"""Go round: every batch is padded differently, and processes hold different numbers of notes."""


def table_path(independent: bool = False) -> ProductPath:
    return ProductPath(
        cut=UniformPath(4), price=GaussianPath(BOTH, bins=Bins(-3, 3, 8)), depth=GaussianPath(data_std=0.7),
        independent_times=independent,
    )  # fmt: skip


def line_path() -> ProductPath:
    return ProductPath(pitch=MaskedPath(6), gap=GaussianPath())


PATHS = {
    "table": table_path(),
    "missing": table_path(),
    "independent": table_path(True),
    "lines": line_path(),
    "turns": ProductPath(cut=UniformPath(4), turn=SO3Path(BOTH, num_components=2)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "missing": {"loss_weights": {"cut": 0.5, "price": {"jump": 2.0}, "depth": 3.0}},
    "independent": {"num_classes": 2, "class_dropout": 0.25},
    "lines": {"fields": {"pitch": {"length": 6}, "gap": {"length": 6}}, "aligned": [["pitch", "gap"]]},
}


def rows(name: str = "table", count: int = 16, seed: int = 0) -> Dataset:
    """The price goes with the cut, and the depth against the price; of some rows a part is missing."""
    rng = torch.Generator().manual_seed(seed)
    if name == "lines":
        sizes = [LENGTHS[i % len(LENGTHS)] for i in range(count)]
        pitch = [torch.randint(5, (size,), generator=rng).tolist() for size in sizes]
        gaps = [[0.5 * (note - 2) for note in line] for line in pitch]
        return Dataset.from_dict({"pitch": [["abcde"[note] for note in line] for line in pitch], "gap": gaps})
    cut = torch.randint(4, (count,), generator=rng)
    price = 0.8 * (cut - 1.5) + 0.2 * torch.randn(count, generator=rng)
    depth = -0.5 * price + 0.1 * torch.randn(count, generator=rng)
    columns: dict[str, list[Any]] = {"cut": cut.tolist(), "price": price.tolist(), "depth": depth.tolist()}
    if name in ("missing", "independent"):
        columns["cut"] = [None if i % 5 == 0 else value for i, value in enumerate(columns["cut"])]
        columns["price"] = [None if i % 3 == 1 else value for i, value in enumerate(columns["price"])]
    if name == "turns":  # the angle goes with the cut
        turn = quaternions.exp(torch.stack([0.8 * cut, price, depth], 1))
        return Dataset.from_dict(
            {"cut": cut.tolist(), "turn": [None if i % 4 == 2 else q for i, q in enumerate(turn.tolist())]}
        )
    if name == "independent":
        columns["class_labels"] = [i % 2 for i in range(count)]
    return Dataset.from_dict(columns)


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows → fields; what is missing is not scored, and stands as 0."""
    batch: dict[str, Any] = {"fields": {}, "labels": {}}
    for name in ("cut", "price", "depth", "turn"):
        if name not in examples[0]:
            continue
        values: list[Any] = [row[name] for row in examples]
        if name == "cut":
            labels: Tensor = torch.tensor([-100 if value is None else value for value in values])[:, None]
            state = labels.clamp(min=0)
        elif name == "turn":
            labels = torch.tensor([[torch.nan] * 4 if value is None else value for value in values])[:, None]
            state = torch.where(labels.isnan(), torch.tensor([1.0, 0.0, 0.0, 0.0]), labels)
        else:
            labels = torch.tensor([torch.nan if value is None else value for value in values]).view(-1, 1, 1)
            state = labels.nan_to_num(0.0)
        batch["fields"][name], batch["labels"][name] = state, labels
    if "class_labels" in examples[0]:
        batch["class_labels"] = torch.tensor([row["class_labels"] for row in examples])
    return batch


def table_model(name: str = "table", seed: int = 0, **options: Any) -> GMModel:
    """Every weight is moved away from its initial value, at which most gradients vanish."""
    settings: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    model = GMModel(GMConfig(path=PATHS[name], **settings | OPTIONS.get(name, {}) | options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def table_trainer(
    folder: str | os.PathLike[str], name: str = "table", model: GMModel | None = None, **arguments: Any
) -> GMTrainer:
    collator: Any = SequenceCollator(LINE, dequantize=False) if name == "lines" else collate
    arguments = {"data": rows(name), "tokenizer": None, "data_collator": collator} | arguments
    return small_trainer(folder, arguments.pop("data"), model or table_model(name), **arguments)
