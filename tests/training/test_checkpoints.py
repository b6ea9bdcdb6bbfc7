"""Checkpoints are complete or ignored, and no complete one is deleted before a newer one is complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gm_discrete import CosineSchedule, MaskedPath, UniformPath
from gm_discrete.training import EMACallback, GMTrainer, is_complete, last_complete_checkpoint, trainer
from gm_discrete.training.checkpoints import MARKER, STARTED, checkpoints, is_broken, mark_complete, mark_started
from tests.helpers.small_run import TOKENIZER, checkpoint, rows, small_model, small_trainer, weights

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "ema": 0.9}


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return path


def test_checkpoint__is_complete_once_marked_and_while_its_files_stay(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "checkpoint-1", model="12345", state="{}")
    folder_with(folder / "shard", part="123")
    assert not is_complete(folder)
    mark_complete(folder)
    assert is_complete(folder)
    (folder / "notes").write_text("more files do no harm", encoding="utf-8")
    assert is_complete(folder)
    (folder / "shard" / "part").write_text("12", encoding="utf-8")
    assert not is_complete(folder)
    mark_complete(folder)
    assert not is_broken(folder)
    mark_started(folder)
    mark_started(folder)
    assert not is_complete(folder)
    assert is_broken(folder)
    mark_complete(folder)
    assert is_complete(folder)
    assert not is_broken(folder)
    assert not is_complete(tmp_path / "nowhere")


@pytest.mark.parametrize("marker", ["", "{", '{"model": 5'])
def test_checkpoint__with_a_truncated_marker_is_incomplete(tmp_path: Path, marker: str) -> None:
    folder = folder_with(tmp_path / "checkpoint-1", model="12345")
    (folder / MARKER).write_text(marker, encoding="utf-8")
    assert not is_complete(folder)


def test_last_complete_checkpoint__is_that_of_the_highest_step(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-best", "other-200"):
        folder_with(tmp_path / name, model="1")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-9", "checkpoint-10", "other-200"):
        mark_complete(tmp_path / name)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def remove_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_average(folder: Path) -> None:
    (folder / "ema-0.safetensors").unlink()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = small_trainer(tmp_path_factory.mktemp("finished"), **SAVING)
    run.train()
    return weights(run.model)


@pytest.mark.parametrize("damage", [remove_marker, truncate_weights, remove_average])
def test_checkpoint__damaged_ones_are_skipped(
    tmp_path: Path, finished: dict[str, torch.Tensor], damage: Callable[[Path], None]
) -> None:
    small_trainer(tmp_path, **SAVING).train()
    last = checkpoint(tmp_path, 4)
    damage(last)
    assert last_complete_checkpoint(tmp_path) == str(checkpoint(tmp_path, 2))
    resumed = small_trainer(tmp_path, model=small_model(seed=9), **SAVING)
    with pytest.raises(ValueError, match=r"checkpoint-4.*complete"):
        resumed.train(resume_from_checkpoint=str(last))
    assert resumed.state.global_step == 0
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), finished, rtol=0, atol=0)
    assert is_complete(last)


def test_train__nothing_to_resume_from_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path / "checkpoint-2", model="1")
    for argument in (True, str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-3")):
        with pytest.raises(ValueError, match=r"complete checkpoint"):
            small_trainer(tmp_path).train(resume_from_checkpoint=argument)


def test_checkpoint__without_averages_is_refused_by_a_run_with_them(tmp_path: Path) -> None:
    small_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 .*ema-0"):
        small_trainer(tmp_path, **SAVING | {"max_steps": 6}).train(resume_from_checkpoint=True)


CRASHES: dict[str, tuple[Any, str]] = {
    "before the optimizer": (GMTrainer, "_save_optimizer_and_scheduler"),
    "before the random state": (GMTrainer, "_save_rng_state"),
    "before the average": (EMACallback, "save"),
    "before the marker": (trainer, "mark_complete"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_checkpoint__a_crash_while_saving_leaves_the_last_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: dict[str, torch.Tensor], name: str
) -> None:
    owner, method = CRASHES[name]
    original, saves = getattr(owner, method), iter(range(100))

    def crash(*args: Any, **kwargs: Any) -> Any:
        if next(saves) == 1:
            raise OSError("no space left")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, crash)
    with pytest.raises(OSError, match="no space left"):
        small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert last_complete_checkpoint(tmp_path) == str(checkpoint(tmp_path, 2))

    resumed = small_trainer(tmp_path, model=small_model(seed=9), save_total_limit=1, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), finished, rtol=0, atol=0)
    assert [path.name for path in checkpoints(tmp_path) if is_complete(path)] == ["checkpoint-4"]
    assert len(checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("ours", [True, False])
def test_checkpoint__a_half_written_one_does_not_displace_complete_ones(tmp_path: Path, ours: bool) -> None:
    """Its step is later, as that of one being written when a run with other `save_steps` was killed.

    It is deleted if a run of ours started it; other folders, or changed ones, are not.
    """
    folder_with(tmp_path / "checkpoint-7", model="1", **{STARTED: ""} if ours else {})
    small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    assert last_complete_checkpoint(tmp_path) == str(checkpoint(tmp_path, 4))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"] + ["checkpoint-7"] * (not ours)


def test_train__a_new_run_does_not_start_among_checkpoints(tmp_path: Path) -> None:
    small_trainer(tmp_path, **SAVING).train()
    with pytest.raises(ValueError, match=r"output_dir=.*checkpoint-4 .*resume_from_checkpoint=True"):
        small_trainer(tmp_path, **SAVING).train()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"path": UniformPath(len(TOKENIZER), special_token_ids=TOKENIZER.all_special_ids)}, "path"),
        ({"path": MaskedPath(len(TOKENIZER), TOKENIZER.mask_token_id, CosineSchedule())}, "path"),
    ],
)
def test_checkpoint__of_another_model_is_refused(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    small_trainer(tmp_path, **SAVING).train()
    other = small_trainer(tmp_path, model=small_model(**options), **SAVING | {"max_steps": 6})
    with pytest.raises(ValueError, match=rf"checkpoint-4 .*{name} "):
        other.train(resume_from_checkpoint=True)


def test_from_pretrained__truncated_weights_are_refused(tmp_path: Path) -> None:
    run = small_trainer(tmp_path, rows())
    run.save_model(str(tmp_path / "model"))
    truncate_weights(tmp_path / "model")
    with pytest.raises(Exception, match=r"(?i)incomplete|invalid|header|size|truncated"):
        type(run.model).from_pretrained(tmp_path / "model")
