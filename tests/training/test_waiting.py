"""A training step waits for the device only for the rows of its losses; losses are checked a step later."""

from __future__ import annotations

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
ELSEWHERE = ("collator.py", "batches.py", "image_collator.py", "small_tables.py", "finite.py", "masking_utils.py")
"""Files that make batches on the host; the check, whose flags have arrived; and masks of padding, which need not be read."""


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
        """Waits for the device in an optimizer step."""
        return [
            wait for wait in self.found[self.ends[step - 1] : self.ends[step]]
            if not any(f"at {name}:" in wait for name in ELSEWHERE)
        ]  # fmt: skip


def trainer_of(kind: str, folder: Path) -> GMTrainer:
    if kind == "masked":
        return small_trainer(folder, muon=True, ema=0.9, **QUIET)
    if kind == "padded, accumulated":
        return small_trainer(folder, rows(64, (8, 3, 5)), ema=0.9, gradient_accumulation_steps=2, **QUIET)
    if kind == "uniform":
        return small_trainer(folder, model=small_model(UniformPath(len(TOKENIZER))), **QUIET)
    if kind == "product":
        return table_trainer(folder, "independent", **QUIET)
    return picture_trainer(folder, kind, **QUIET)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("masked", 1), ("padded, accumulated", 2), ("uniform", 1), ("flow", 0), ("flow and jump", 1), ("product", 2)],
)
def test_waiting__a_step_waits_only_for_the_rows_of_its_losses(tmp_path: Path, kind: str, most: int) -> None:
    """Once for each loss of jumps: of a micro-step, and of a field of a product. The first step also fills caches."""
    trainer = trainer_of(kind, tmp_path)
    with waits() as found:
        steps = Steps(found)
        trainer.add_callback(steps)
        trainer.train()
    for step in (2, 3):
        assert len(steps.of(step)) == most
        assert all("nonzero at bregman.py" in wait for wait in steps.of(step))


@pytest.mark.usefixtures("device_values")
def test_waiting__a_loss_that_is_not_finite_stops_a_step_later(tmp_path: Path) -> None:
    """The weights and their average are those of the last good step, as a fused optimizer skips the bad one."""
    model, recorder = small_model(), Recorder()
    poison(model, call=6, value=float("nan"))  # the second micro-step of step 3
    arguments = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 8}
    trainer = small_trainer(tmp_path, rows(64), model, ema=0.9, callbacks=[recorder], logging_steps=100, **arguments)
    with pytest.raises(FloatingPointError, match=r"nan at step 3; .*unchanged.*checkpoint-2"):
        trainer.train()
    assert trainer.state.global_step == 3
    saved = load_file(checkpoint(tmp_path, 2) / "model.safetensors")
    torch.testing.assert_close(weights(model), saved, rtol=0, atol=0)
    assert trainer.ema is not None
    assert all(bool(average.isfinite().all()) for average in trainer.ema.average.values())


@pytest.mark.usefixtures("device_values")
@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("what", ["save", "log", "end"])
def test_waiting__bad_weights_are_not_saved(tmp_path: Path, what: str, muon: bool) -> None:
    """A loss is read before the checkpoint, the log or the end of the same step."""
    model = small_model()
    poison(model, call=3, value=float("inf"))
    options: dict[str, Any] = {"save_strategy": "no", "logging_steps": 100, "max_steps": 3 if what == "end" else 5}
    options |= {"save": {"save_strategy": "steps", "save_steps": 3}, "log": {"logging_steps": 3}, "end": {}}[what]
    trainer = small_trainer(tmp_path, rows(64), model, muon=muon, **options)
    with pytest.raises(FloatingPointError, match=r"(inf|nan) at step 3; "):
        trainer.train()
    assert trainer.state.global_step == 3
    assert not checkpoints(tmp_path)
    if muon:  # its weights have changed
        with pytest.raises(FloatingPointError, match="step 3"):
            trainer.save_model(str(tmp_path / "model"))
        assert not (tmp_path / "model" / "config.json").exists()


@pytest.mark.usefixtures("device_values")
def test_waiting__evaluation_reads_the_losses_first(tmp_path: Path) -> None:
    model = small_model()
    poison(model, call=2, value=float("nan"))
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 100}
    trainer = small_trainer(tmp_path, rows(64), model, eval_dataset=rows(4), **options)
    with pytest.raises(FloatingPointError, match="nan at step 2; "):
        trainer.train()
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)


def test_waiting__trains_the_same_weights(tmp_path: Path) -> None:
    found = []
    for readable in (True, False):
        model = small_model()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arguments, "READABLE", {"cpu"} if readable else set())
            small_trainer(tmp_path / str(readable), rows(64), model, logging_steps=2).train()
        found.append(weights(model))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
