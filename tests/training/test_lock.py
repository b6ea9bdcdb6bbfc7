"""Two runs never share an output folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gm_discrete.training import locked
from gm_discrete.training.lock import LOCK, STALE_AFTER, acquire, machine, started
from recipes import common
from tests.helpers.small_run import small_trainer


@pytest.fixture
def other() -> Iterator[int]:
    """The id of a process that runs."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def lock(folder: Path, **owner: Any) -> Path:
    file = folder / LOCK
    file.write_text(json.dumps({**machine(), "pid": os.getpid(), "started": "1", **owner}), encoding="utf-8")
    return file


def test_lock__of_a_running_process_is_refused(tmp_path: Path, other: int) -> None:
    file = lock(tmp_path, pid=other, started=started(other))
    trainer = small_trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match=rf"output_dir='{tmp_path}' is in use .*process {other} "):
        trainer.train()
    assert trainer.state.global_step == 0
    assert list(tmp_path.iterdir()) == [file]


OTHERS = {"host": "elsewhere", "boot": "before", "namespace": "pid:[1]"}


@pytest.mark.parametrize("name", OTHERS)
def test_lock__of_another_host_is_refused_until_it_is_stale(tmp_path: Path, name: str) -> None:
    file = lock(tmp_path, **{name: OTHERS[name]})
    touched = time.time() - STALE_AFTER
    os.utime(file, (touched + 60, touched + 60))
    with pytest.raises(ValueError, match=rf"output_dir=.*another host.*5[34]\d s ago.*delete {file}"):
        small_trainer(tmp_path).train()
    os.utime(file, (touched, touched))
    with pytest.warns(UserWarning, match=LOCK), locked(tmp_path):
        assert json.loads(file.read_text(encoding="utf-8"))["host"] == machine()["host"]
    assert not file.exists()


def test_lock__is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gm_discrete.training.lock.TOUCHED_EVERY", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_lock__that_another_host_took_over_is_left_to_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        file = lock(tmp_path, host="elsewhere")
    assert file.exists()


@pytest.mark.parametrize("wrong", ["a file", "in a file", "the lock is a folder"])
def test_lock__names_an_output_dir_that_cannot_be_used(tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "run"
    if wrong == "the lock is a folder":
        (folder / LOCK).mkdir(parents=True)
    else:
        folder.touch()
    folder = folder / "below" if wrong == "in a file" else folder
    cure = "_RUNNING is a folder.*remove it" if wrong == "the lock is a folder" else "is a file.*give a folder"
    with pytest.raises(ValueError, match=rf"output_dir='{folder}' .*{cure}"), locked(folder):
        pass


@pytest.mark.parametrize("left", ["another start", "no such process", "a zombie", "empty", "not JSON", "a list"])
def test_lock__of_a_process_that_has_ended_is_taken_over(tmp_path: Path, other: int, left: str) -> None:
    if left == "another start":
        lock(tmp_path, pid=other, started="17")
    elif left == "no such process":
        lock(tmp_path, pid=2**22 + 1, started="17")
    elif left == "a zombie":
        began = started(other)
        os.kill(other, signal.SIGKILL)
        while started(other) is not None:
            time.sleep(0.001)
        lock(tmp_path, pid=other, started=began)
    else:
        (tmp_path / LOCK).write_text({"empty": "", "not JSON": '{"pid": ', "a list": "[]"}[left], encoding="utf-8")
    with pytest.warns(UserWarning, match=LOCK) if left != "empty" else locked(tmp_path), locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_lock__is_nested_and_released_after_an_error(tmp_path: Path) -> None:
    def run() -> None:
        with locked(tmp_path):
            small_trainer(tmp_path, max_steps=1).train()
            assert (tmp_path / LOCK).exists()
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert list(tmp_path.iterdir()) == []


def test_lock__one_of_many_processes_gets_it(tmp_path: Path) -> None:
    """Six times four processes start at once, half of the times where a lock was left behind."""
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if attempt % 2:
            lock(folder, started="17")
        begin, processes = folder / "begin", []
        for _ in range(4):
            if not (process := os.fork()):
                while not begin.exists():
                    time.sleep(0.0002)
                try:
                    taken = acquire(folder)
                    while not (folder / "end").exists():
                        time.sleep(0.001)
                    os._exit(1 if taken else 2)
                except ValueError:
                    os._exit(0)
                finally:
                    os._exit(3)
            processes.append(process)
        begin.touch()
        codes = [
            os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in finished_but_one(processes, folder)
        ]
        assert sorted(codes) == [0] * 3 + [1]


def finished_but_one(processes: list[int], folder: Path) -> list[int]:
    """Lets the process that holds the lock end, when all others have ended."""
    waiting = set(processes)
    deadline = time.monotonic() + 10
    while len(waiting) > 1 and time.monotonic() < deadline:
        waiting = {process for process in waiting if started(process) is not None}  # the others are zombies
        time.sleep(0.001)
    (folder / "end").touch()
    return processes


@pytest.mark.parametrize("name", ["text", "images", "mixed", "toy"])
def test_recipe__does_not_start_where_another_run_is(
    tmp_path: Path, other: int, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = pytest.importorskip(f"recipes.{name}")
    lock(tmp_path, pid=other, started=started(other))
    arguments = ["--output_dir", str(tmp_path), *([] if name == "toy" else ["--use_cpu", "true"])]
    with pytest.raises(ValueError, match=rf"output_dir='{tmp_path}' is in use"):
        recipe.main(arguments)
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


# What a recipe reads when it is started again


def test_check_run__a_damaged_record_is_named(tmp_path: Path) -> None:
    small_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    common.check_run(tmp_path, {"seed": 1})
    for content in ('{"seed": ', "[]", ""):
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{tmp_path}/run\.json is damaged"):
            common.check_run(tmp_path, {"seed": 1})
        assert (tmp_path / "run.json").read_text(encoding="utf-8") == content


def test_check_run__does_not_begin_anew_where_no_checkpoint_is_complete(tmp_path: Path) -> None:
    small_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    common.check_run(tmp_path, {"seed": 1})
    (tmp_path / "checkpoint-4" / "COMPLETE").unlink()
    with (
        pytest.warns(UserWarning, match="checkpoint-4 has no COMPLETE"),
        pytest.raises(ValueError, match="checkpoint-4 has no COMPLETE marker"),
    ):
        common.check_run(tmp_path, {"seed": 2})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"seed": 1}


def test_recipe__a_checkpoint_to_resume_from_is_no_argument(tmp_path: Path) -> None:
    recipe = pytest.importorskip("recipes.text")
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--resume_from_checkpoint", "checkpoint-2"]
    with pytest.raises(ValueError, match="resume_from_checkpoint='checkpoint-2'"):
        recipe.main(arguments)
