"""Runs on strings of a to d, small enough to be repeated often.

Imported by `test_edit_training.py`, `two_equal_processes.py` and `sharded_strings.py`, which `forks.py` starts.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset

from gm_discrete import EditPath, GMModel
from gm_discrete.training import GMTrainer
from tests.helpers.small_run import TOKENIZER, rows, small_model, small_trainer

RAGGED = (8, 3, 5, 1, 7)
"""Lengths that go round: every batch has another width, also on each of two processes."""
PRIOR: dict[str, Any] = {"prior": "uniform", "lengths": [1, 2, 3, 2, 1, 1]}
PATHS: dict[str, EditPath] = {
    name: EditPath(len(TOKENIZER), blank_token_id=TOKENIZER.pad_token_id, **options)  # type: ignore[arg-type]
    for name, options in {
        "empty": {}, "uniform": PRIOR, "random": {**PRIOR, "alignment": "random"}, "left": {**PRIOR, "alignment": "left"},
    }.items()
}  # fmt: skip


def words(count: int = 40, seed: int = 0) -> Dataset:
    return rows(count, RAGGED, seed)


def string_model(name: str = "uniform", seed: int = 0, **options: Any) -> GMModel:
    return small_model(PATHS[name], seed, **options)


def string_trainer(
    folder: str | os.PathLike[str], name: str = "uniform", model: GMModel | None = None, **arguments: Any
) -> GMTrainer:
    arguments = {"data": words(), **arguments}
    return small_trainer(folder, arguments.pop("data"), model or string_model(name), **arguments)
