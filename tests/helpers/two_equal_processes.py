"""What `test_field_training.py`, `test_image_training.py` and `test_edit_training.py` start twice, each with its kind.

Their runs, each process on its half of the batch.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.small_images import picture_trainer, pictures
from tests.helpers.small_run import STABLE, losses, weights
from tests.helpers.small_strings import PATHS as STRINGS
from tests.helpers.small_strings import string_trainer, words
from tests.helpers.small_tables import PATHS, rows, table_trainer


def train_fields(folder: Path, name: str, world_size: int) -> Any:
    """Four steps on batches of four, or of eight in two parts."""
    accumulated = name == "accumulated"
    kind = "missing" if accumulated else name
    trainer = table_trainer(
        folder / name, kind, data=rows(kind, 40), ema=0.9, per_device_train_batch_size=4 // world_size,
        gradient_accumulation_steps=2 if accumulated else 1, eval_dataset=rows(kind, 6, seed=1),
        per_device_eval_batch_size=1, **STABLE,
    )  # fmt: skip
    trainer.train()
    return trainer


def train_images(folder: Path, name: str, world_size: int) -> Any:
    """Four steps on batches of four, with classes, some of which are left out."""
    trainer = picture_trainer(
        folder / name, name, ema=0.9, per_device_train_batch_size=4 // world_size, eval_dataset=pictures(6, seed=1),
        per_device_eval_batch_size=1, **STABLE,
    )  # fmt: skip
    trainer.train()
    return trainer


def train_strings(folder: Path, name: str, world_size: int) -> Any:
    """Four steps on batches of four, or of eight in two parts."""
    accumulated = name == "accumulated"
    trainer = string_trainer(
        folder / name, "uniform" if accumulated else name, ema=0.9, per_device_train_batch_size=4 // world_size,
        gradient_accumulation_steps=2 if accumulated else 1, eval_dataset=words(6, seed=1),
        per_device_eval_batch_size=1, num_eval_samples=2, **STABLE,
    )  # fmt: skip
    trainer.train()
    return trainer


RUNS: dict[str, tuple[Callable[[Path, str, int], Any], tuple[str, ...]]] = {
    "fields": (train_fields, (*PATHS, "accumulated")),
    "images": (train_images, ("flow and jump", "masked")),
    "strings": (train_strings, (*STRINGS, "accumulated")),
}
"""kind → what trains, and the names of the runs."""


def main(folder: Path, kind: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    gc.freeze()  # every training run ends with a full collection
    train, names = RUNS[kind]
    record: dict[str, Any] = {}
    for name in names:
        trainer = train(folder, name, world_size)
        record[name] = {"losses": losses(trainer), "metrics": [trainer.evaluate(), trainer.evaluate()]}
        save_file(weights(trainer.model), folder / f"{name}-{rank}.safetensors")
        (folder / f"record-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
