"""What is published appears whole, or not at all."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gm_discrete.training import published, publishing
from tests.helpers.small_run import checkpoint, small_model, small_trainer, weights


def test_published__files_are_moved_at_the_end_and_config_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    monkeypatch.setattr(
        "gm_discrete.training.publishing.move",
        lambda file, target: (moved.append(str(target.relative_to(tmp_path))), file.replace(target))[1],
    )
    (tmp_path / "part").mkdir()
    (tmp_path / "old.txt").write_text("old", encoding="utf-8")
    with published(tmp_path) as draft:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (draft / name).write_text("new", encoding="utf-8")
        assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["old.txt"]
    assert moved == ["model.safetensors", "tokenizer.json", "config.json"]
    assert not draft.exists()
    assert (tmp_path / "old.txt").read_text(encoding="utf-8") == "old"


def test_published__an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    for pid in (os.getpid(), 2**22 + 1):
        left = tmp_path / f"_draft-{socket.gethostname()}-{pid}"
        left.mkdir()
        (left / "b.txt").write_text("of a run that was killed", encoding="utf-8")

    def write() -> None:
        with published(tmp_path) as draft:
            assert list(draft.iterdir()) == []
            (draft / "a.txt").write_text("ne", encoding="utf-8")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == {"a.txt": "old"}


def test_published__leaves_drafts_that_may_be_in_use(tmp_path: Path) -> None:
    used = [
        tmp_path / f"_draft-{host}" for host in (f"elsewhere-{2**22 + 1}", f"{socket.gethostname()}-{os.getppid()}")
    ]
    for left in used:
        left.mkdir()
    with published(tmp_path) as draft:
        assert draft not in used
    assert sorted(tmp_path.iterdir()) == sorted(used)


def test_published__a_kill_leaves_no_config_over_files_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every move: the config is there with all files of one model, or not at all, and old parts outlive the new."""
    old = ("config.json", "model-1.safetensors", "model-2.safetensors")
    for name in old:
        (tmp_path / name).write_text("old", encoding="utf-8")
    seen: list[set[str]] = []
    move = publishing.move

    def watched(file: Path, target: Path) -> None:
        seen.append({path.name for path in tmp_path.iterdir() if path.is_file()})
        move(file, target)

    monkeypatch.setattr(publishing, "move", watched)
    with published(tmp_path, replaces="*model*.safetensors*") as draft:
        for name in ("config.json", "model.safetensors"):
            (draft / name).write_text("new", encoding="utf-8")
    assert seen == [set(old) - {"config.json"}, {"model.safetensors"}]
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_save_model__replaces_all_weights_of_an_earlier_model(tmp_path: Path) -> None:
    """`from_pretrained` would take `model.safetensors` before the parts of a newer model, or an index before nothing."""
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("of the user", encoding="utf-8")
    trainer = small_trainer(tmp_path / "run")
    trainer.save_model(str(tmp_path))
    assert {file.name for file in tmp_path.glob("*model*")} == {"model.safetensors"}
    assert (tmp_path / "notes.txt").exists()


def test_save_model__on_a_full_disk_leaves_the_earlier_model(tmp_path: Path) -> None:
    """A limit on the size of files makes writers fail as a full disk does."""
    small_trainer(tmp_path).save_model()
    first = load_file(tmp_path / "model.safetensors")
    trainer = small_trainer(tmp_path, model=small_model(seed=1), save_strategy="steps", save_steps=4)
    trainer.train()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{tmp_path} could not be written: .*: {checkpoint(tmp_path, 4)}\."):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    now = load_file(tmp_path / "model.safetensors")
    assert all(bool((now[name] == first[name]).all()) for name in first)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 16
    trainer.save_model()
    now = load_file(tmp_path / "model.safetensors")
    assert all(bool((now[name] == value).all()) for name, value in weights(trainer.model).items())


def test_published__a_folder_is_a_whole_model_or_an_adapter(tmp_path: Path) -> None:
    """With both configs transformers would load the weights of one below those of the other."""
    for name, other in (publishing.CONFIGS, publishing.CONFIGS[::-1]):
        with published(tmp_path) as draft:
            (draft / name).write_text("{}", encoding="utf-8")
            (draft / "README.md").write_text(name, encoding="utf-8")
        assert (tmp_path / name).exists()
        assert not (tmp_path / other).exists()
    with published(tmp_path) as draft:  # neither: the model stays
        (draft / "metrics.json").write_text("{}", encoding="utf-8")
    assert (tmp_path / publishing.CONFIGS[1]).exists()
