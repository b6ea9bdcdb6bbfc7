"""A training step waits for the device at most once, and the check of its losses reads what was found a step before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gm_discrete import UniformPath, arguments
from gm_discrete.training import GMTrainer
from gm_discrete.training.checkpoints import checkpoints
from tests.helpers.small_images import picture_trainer
from tests.helpers.small_run import TOKENIZER, Recorder, checkpoint, poison, rows, small_model, small_trainer, weights
from tests.helpers.small_tables import table_trainer
from tests.helpers.waits import waits

QUIET: dict[str, Any] = {"logging_steps": 100, "max_steps": 3}
DATA = ("collator.py", "field_collator.py", "image_collator.py", "encoding.py")
"""Files that make batches, on the host."""


@pytest.fixture
def device_values() -> Iterator[None]:
    """The library takes the CPU for a device whose values are not to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "READABLE", set())
        yield


class Steps(Recorder):
    """Notes which of the waits found so far are of which step."""

    def __init__(self, found: list[str]) -> None:
        self.found, self.ends = found, [0]

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        pass

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(len(self.found))

    def of(self, step: int) -> list[str]:
        """Waits for the device of optimizer step `step`, without those of the check, whose flags have arrived."""
        return [
            wait for wait in self.found[self.ends[step - 1] : self.ends[step]]
            if not any(f"at {name}:" in wait for name in (*DATA, "finite.py"))
        ]  # fmt: skip


def trainer_of(kind: str, folder: Path) -> GMTrainer:
    if kind == "masked":
        return small_trainer(folder, ema=0.9, **QUIET)
    if kind == "padded, accumulated":
        return small_trainer(folder, rows(16, (8, 3, 5)), ema=0.9, gradient_accumulation_steps=2, **QUIET)
    if kind == "uniform":
        return small_trainer(folder, model=small_model(UniformPath(len(TOKENIZER))), **QUIET)
    if kind == "product":
        return table_trainer(folder, "independent", **QUIET)
    return picture_trainer(folder, kind, **QUIET)


@pytest.mark.parametrize("kind", ["masked", "uniform", "product", "flow", "flow and jump"])
def test_waiting__a_step_waits_at_most_once(tmp_path: Path, kind: str) -> None:
    """The first step also fills caches. What a loss needs once for each part is the number of its rows."""
    trainer = trainer_of(kind, tmp_path)
    with waits() as found:
        steps = Steps(found)
        trainer.add_callback(steps)
        trainer.train()
    for step in (2, 3):
        print(steps.of(step))
