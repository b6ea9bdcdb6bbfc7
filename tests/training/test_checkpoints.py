"""Checkpoints are complete or ignored, and no complete one is deleted before a newer one is complete."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gm_discrete import CosineSchedule, MaskedPath, UniformPath
from gm_discrete.training import EMACallback, GMTrainer, checkpointed, is_complete, last_complete_checkpoint
from gm_discrete.training import checkpoints as saved
from gm_discrete.training.checkpoints import (
    MARKER,
    STARTED,
    checkpoints,
    crc32,
    delete_old,
    is_unfinished,
    mark_complete,
    mark_started,
)
from tests.helpers.small_run import TOKENIZER, checkpoint, rows, small_model, small_trainer, weights

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "ema": 0.9}


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return path


def fake_checkpoint(path: Path, **files: str) -> Path:
    return folder_with(path, **{"model.safetensors": "1", saved.STATE: "{}"} | files)


def test_checkpoint__is_complete_once_marked_and_while_its_files_stay(tmp_path: Path) -> None:
    folder = fake_checkpoint(tmp_path / "checkpoint-1")
    folder_with(folder / "shard", part="123")
    assert not is_complete(folder)
    mark_complete(folder)
    assert is_complete(folder)
    (folder / "notes").write_text("more files do no harm", encoding="utf-8")
    assert is_complete(folder)
    (folder / "shard" / "part").write_text("12", encoding="utf-8")
    assert not is_complete(folder)
    mark_complete(folder)
    assert not is_unfinished(folder)
    mark_started(folder)
    mark_started(folder)
    assert not is_complete(folder)
    assert is_unfinished(folder)
    fake_checkpoint(tmp_path / "new").rename(folder / "new")
    for file in (folder / "new").iterdir():
        file.rename(folder / file.name)
    mark_complete(folder)
    assert is_complete(folder)
    assert not is_unfinished(folder)
    assert not is_complete(tmp_path / "nowhere")


@pytest.mark.parametrize("marker", ["", "{", '{"model": 5', "[]", "5", "{}", '{"model": {"size": null}}'])
def test_checkpoint__with_a_damaged_marker_is_incomplete(tmp_path: Path, marker: str) -> None:
    folder = folder_with(tmp_path / "checkpoint-1", model="12345")
    (folder / MARKER).write_text(marker, encoding="utf-8")
    assert not is_complete(folder)
    with pytest.warns(UserWarning, match=r"checkpoint-1 has a damaged COMPLETE marker"):
        assert last_complete_checkpoint(tmp_path) is None


@pytest.mark.parametrize("without", ["model.safetensors", saved.STATE])
def test_checkpoint__without_weights_or_state_has_a_damaged_marker(tmp_path: Path, without: str) -> None:
    folder = fake_checkpoint(tmp_path / "checkpoint-1")
    (folder / without).unlink()
    mark_complete(folder)
    assert saved.defect(folder) == "has a damaged COMPLETE marker"


@pytest.mark.parametrize(
    "weights",
    ["model-00001-of-00002.safetensors", "adapter_model.safetensors", "name/adapter_model.safetensors",
     "pytorch_model_fsdp_0/__0_0.distcp"],
)  # fmt: skip
def test_checkpoint__with_any_kind_of_weights_is_complete(tmp_path: Path, weights: str) -> None:
    folder = fake_checkpoint(tmp_path / "checkpoint-1")
    (folder / weights).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / weights)
    mark_complete(folder)
    assert is_complete(folder)


def test_checkpoint__of_an_earlier_version_is_named_as_such(tmp_path: Path) -> None:
    folder = fake_checkpoint(tmp_path / "checkpoint-1")
    (folder / MARKER).write_text('{"model.safetensors": 1, "trainer_state.json": 2}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"checkpoint-1' was written by an earlier version.*from_pretrained"):
        saved.check_resumed(folder)


def test_defect__reads_a_file_that_does_not_change_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = fake_checkpoint(tmp_path / "checkpoint-1"), []
    mark_complete(folder)
    monkeypatch.setattr(saved, "crc32", lambda file: read.append(file.name) or crc32(file))
    assert saved.defect(folder) is None
    assert saved.defect(folder) is None
    assert sorted(read) == ["model.safetensors", saved.STATE]
    (folder / "model.safetensors").write_text("2", encoding="utf-8")
    assert saved.defect(folder) == "is damaged: model.safetensors has changed since it was saved"


def test_last_complete_checkpoint__is_that_of_the_highest_step(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-best", "other-200"):
        fake_checkpoint(tmp_path / name)
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


def flip_a_bit(folder: Path, name: str = "model.safetensors") -> None:
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)


def flip_a_bit_of_the_average(folder: Path) -> None:
    flip_a_bit(folder, "ema-0.safetensors")


def flip_a_bit_of_the_optimizer(folder: Path) -> None:
    flip_a_bit(folder, "optimizer.pt")


def spoil_marker(folder: Path) -> None:
    (folder / MARKER).write_text("[]", encoding="utf-8")


DAMAGES = {
    remove_marker: MARKER, truncate_weights: "model.safetensors", remove_average: "ema-0.safetensors",
    flip_a_bit: "model.safetensors", flip_a_bit_of_the_average: "ema-0.safetensors",
    flip_a_bit_of_the_optimizer: "optimizer.pt", spoil_marker: MARKER,
}  # fmt: skip
"""What happens to the files of a checkpoint, and the file that is named."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = small_trainer(tmp_path_factory.mktemp("finished"), **SAVING)
    run.train()
    return weights(run.model)


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint__damaged_ones_are_skipped(
    tmp_path: Path, finished: dict[str, torch.Tensor], damage: Callable[[Path], None]
) -> None:
    small_trainer(tmp_path, **SAVING).train()
    last = checkpoint(tmp_path, 4)
    damage(last)
    resumed = small_trainer(tmp_path, model=small_model(seed=9), **SAVING)
    with pytest.raises(ValueError, match=rf"resume_from_checkpoint='{last}' .*{DAMAGES[damage]}"):
        resumed.train(resume_from_checkpoint=str(last))
    assert resumed.state.global_step == 0
    with pytest.warns(UserWarning, match=rf"checkpoint-4 .*{DAMAGES[damage]}.*skipped"):
        resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), finished, rtol=0, atol=0)
    assert is_complete(last)


def test_train__nothing_to_resume_from_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path / "checkpoint-2", model="1")
    cases: dict[str | bool, str] = {
        True: r"complete checkpoint .*checkpoint-2 has no COMPLETE",
        str(tmp_path / "checkpoint-2"): "checkpoint-2' has no COMPLETE",
        str(tmp_path / "checkpoint-3"): "checkpoint-3' does not exist",
    }
    for argument, message in cases.items():
        with pytest.raises(ValueError, match=message):
            small_trainer(tmp_path).train(resume_from_checkpoint=argument)


def test_train__a_checkpoint_of_weights_alone_is_not_resumed(tmp_path: Path) -> None:
    """Trainer would skip the missing state of the optimizer, and begin with a new one."""
    small_trainer(tmp_path, save_only_model=True, **SAVING).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 .*save_only_model=True"):
        small_trainer(tmp_path, **SAVING | {"max_steps": 6}).train(resume_from_checkpoint=True)


def test_checkpoint__without_averages_is_refused_by_a_run_with_them(tmp_path: Path) -> None:
    small_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 .*ema-0"):
        small_trainer(tmp_path, **SAVING | {"max_steps": 6}).train(resume_from_checkpoint=True)


CRASHES: dict[str, tuple[Any, str]] = {
    "before the optimizer": (GMTrainer, "_save_optimizer_and_scheduler"),
    "before the random state": (GMTrainer, "_save_rng_state"),
    "before the average": (EMACallback, "save"),
    "before the marker": (checkpointed, "mark_complete"),
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


def test_checkpoint__a_half_written_one_is_deleted(tmp_path: Path) -> None:
    """Its step is later, as that of one being written when a run with other `save_steps` was killed."""
    folder_with(tmp_path / "checkpoint-7", model="1", **{STARTED: ""})
    small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    assert is_complete(checkpoint(tmp_path, 4))


def test_checkpoint__damaged_ones_neither_displace_complete_ones_nor_are_deleted(tmp_path: Path) -> None:
    small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    folder_with(tmp_path / "checkpoint-7", model="1")
    small_trainer(tmp_path, save_total_limit=1, **SAVING | {"max_steps": 6}).train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-7"]
    assert is_complete(checkpoint(tmp_path, 6))


def test_train__does_not_begin_anew_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    small_trainer(tmp_path, **SAVING).train()
    remove_marker(checkpoint(tmp_path, 2))
    flip_a_bit(checkpoint(tmp_path, 4))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for resume in (None, True):
        with (
            pytest.warns(UserWarning, match=r"checkpoint-4 .*model\.safetensors"),
            pytest.raises(
                ValueError,
                match=rf"output_dir='{tmp_path}' .*checkpoint-2 has no COMPLETE marker; checkpoint-4 .*model\.safetensors",
            ),
        ):
            small_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=resume)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_train__begins_anew_after_a_kill_within_the_first_checkpoint(tmp_path: Path) -> None:
    folder_with(tmp_path / "checkpoint-2", model="1", **{STARTED: ""})
    small_trainer(tmp_path, **SAVING).train()
    assert is_complete(checkpoint(tmp_path, 2))


def test_delete_old__what_an_interruption_left_is_deleted_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-deleted checkpoint has another name, and is no checkpoint."""

    def stop(folder: Path) -> None:
        if not folder.exists():
            return
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saved, "_remove", stop)
        with pytest.raises(KeyboardInterrupt):
            small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    assert (tmp_path / "deleted-checkpoint-2").exists()
    small_trainer(tmp_path, save_total_limit=1, **SAVING).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_delete_old__keeps_the_newest_of_this_run(tmp_path: Path) -> None:
    """A later checkpoint, from which the user has gone back to an earlier one, is not among those that are counted."""
    for number in (2, 4, 10):
        fake_checkpoint(tmp_path / f"checkpoint-{number}")
        mark_complete(tmp_path / f"checkpoint-{number}")
    delete_old(tmp_path, limit=1, best=None, newest=4)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]


@pytest.mark.parametrize("write", [safetensors.torch.save_file, torch.save])
def test_checkpoint__a_full_disk_is_named_with_folder_cause_and_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: dict[str, torch.Tensor], write: Any
) -> None:
    """A limit on the size of files makes every writer fail as a full disk does: safetensors, torch and Python."""
    name = "save_model" if write is not torch.save else "_save_optimizer_and_scheduler"
    original = getattr(GMTrainer, name)

    def on_a_full_disk(self: GMTrainer, folder: str, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < 4:
            return original(self, folder, *args, **kwargs)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        try:
            return original(self, folder, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(GMTrainer, name, on_a_full_disk)
        with pytest.raises(OSError, match=rf"{checkpoint(tmp_path, 4)} could not .*: {checkpoint(tmp_path, 2)}\."):
            small_trainer(tmp_path, save_total_limit=1, **SAVING).train()
    resumed = small_trainer(tmp_path, model=small_model(seed=9), save_total_limit=1, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), finished, rtol=0, atol=0)


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
