"""One run at a time in an output folder: a lock file that names the process which holds it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LOCK = "_RUNNING"
"""File with host, id and start of the process that uses its folder. `push_to_hub` leaves out names that start with `_`."""
TOUCHED_EVERY = 60.0
"""Seconds after which a run touches its lock again."""
STALE_AFTER = 600.0
"""Seconds without a touch after which a lock counts as left behind where its process cannot be looked up."""

Owner = dict[str, object]


@contextmanager
def locked(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Within this context no other run may use `output_dir`. It is for all processes of a run together, and may be nested.

    A lock whose process has ended is taken over, with a warning; that of another host, also if it was not touched for ten
    minutes. A run touches its lock every minute.

    Raises:
        ValueError: another run uses the folder, or it cannot be written to. All processes of this run raise it.
    """
    state, lock = PartialState(), None
    refusal: list[str | None] = [None]
    if state.is_main_process:
        try:
            lock = acquire(output_dir)
        except ValueError as error:
            refusal = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise ValueError(refusal[0])
    if lock is None:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_keep_touched, args=(lock, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _is_own(lock):
            lock.unlink(missing_ok=True)


def acquire(output_dir: str | os.PathLike[str]) -> Path | None:
    """Takes the lock of a folder for this process, and returns its file, or `None` if this process has it already.

    Raises:
        ValueError: the process that holds it still runs, or may run on another host; or the folder cannot be written to.
    """
    lock, given = Path(output_dir) / LOCK, f"output_dir={str(output_dir)!r}"
    if lock.is_dir():
        raise ValueError(f"{given} cannot be locked: {lock} is a folder, and must be a file; remove it")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return _acquired(lock)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{given} is a file, or lies in one; give a folder") from error
    except OSError as error:
        raise ValueError(f"{given} cannot be locked: {error}; give a folder that can be written to") from error


def _acquired(lock: Path) -> Path | None:
    with _opened(lock) as file:
        text = file.read()
        owner = _parsed(text)
        if owner == _own():
            return None
        _check_ended(lock, owner)
        if text:
            warnings.warn(f"{lock} is left from a run that was stopped; this run takes it over", stacklevel=5)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_own()))
    return lock


def _own() -> Owner:
    return {**machine(), "pid": os.getpid(), "started": started(os.getpid())}


def machine() -> Owner:
    """Where ids of processes can be compared: host, its start, and the namespace, which a container has for itself."""
    boot = namespace = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _is_own(lock: Path) -> bool:
    """Whether this process holds the lock: another host takes it over when this one has slept."""
    with suppress(OSError):
        return _parsed(lock.read_text(encoding="utf-8")) == _own()
    return False


def _keep_touched(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        with suppress(OSError):  # a file system that is away for a moment
            if _is_own(lock):
                os.utime(lock)


@contextmanager
def _opened(lock: Path) -> Iterator[IO[str]]:
    """The lock file, created if there is none. Within this context no other process can open it by this function.

    On a file system without `flock` two processes can, if they do so within a millisecond.
    """
    while True:
        with lock.open("a+", encoding="utf-8") as file:
            if fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, lock):  # else its owner has deleted it since it was opened
                file.seek(0)
                yield file
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _check_ended(lock: Path, owner: Owner) -> None:
    """
    Raises:
        ValueError: the owner of the lock still runs, or may.
    """
    folder, where = f"output_dir={str(lock.parent)!r}", f"process {owner.get('pid')} on {owner.get('host')}"
    if owner and any(owner.get(name) != value for name, value in machine().items()):
        age = time.time() - lock.stat().st_mtime
        if age < STALE_AFTER:
            raise ValueError(
                f"{folder} is in use by a run on another host or in another container ({where}), which touched {lock} "
                f"{max(age, 0):.0f} s ago: wait for its end, or give another output_dir. If it was killed, this run can "
                f"start {STALE_AFTER / 60:.0f} minutes after that touch, or at once if you delete {lock}"
            )
        return
    pid = owner.get("pid")
    if isinstance(pid, int) and started(pid) == owner.get("started"):
        raise ValueError(f"{folder} is in use by another run ({where}): wait for its end, or give another output_dir")


def _parsed(text: str) -> Owner:
    """The owner of a lock; empty if it was killed before it wrote its name."""
    with suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    return {}


def started(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same id; `None` if there is none."""
    if Path("/proc/self/stat").exists():  # in ticks since the host started: no clock that is set changes it
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]  # a zombie has ended
    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else None
