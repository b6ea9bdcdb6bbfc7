"""One run at a time in an output folder: a lock file that names the process which holds it."""

from __future__ import annotations

import json
import os
import socket
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

Owner = dict[str, object]


@contextmanager
def locked(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Within this context no other run may use `output_dir`. It is for all processes of a run together, and may be nested.

    A lock whose process has ended is taken over, with a warning.

    Raises:
        ValueError: another run uses the folder. All processes of this run raise it.
    """
    state, lock = PartialState(), None
    refusal: list[str | None] = [None]
    if state.is_main_process:
        try:
            lock = acquire(output_dir)
        except (ValueError, OSError) as error:
            refusal = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise ValueError(refusal[0])
    try:
        yield
    finally:
        if lock is not None:
            lock.unlink(missing_ok=True)


def acquire(output_dir: str | os.PathLike[str]) -> Path | None:
    """Takes the lock of a folder for this process, and returns its file, or `None` if this process has it already.

    Raises:
        ValueError: the process that holds it still runs, or it is on another host, where that cannot be checked.
    """
    lock = Path(output_dir) / LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
    with _opened(lock) as file:
        text = file.read()
        owner = _parsed(text)
        if owner == own:
            return None
        _check_ended(lock, owner)
        if text:
            warnings.warn(f"{lock} is left from a run that was stopped; this run takes it over", stacklevel=4)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(own))
    return lock


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
    if owner and owner.get("host") != socket.gethostname():
        raise ValueError(
            f"{folder} is in use by a run on another host ({where}): wait for its end, or give another output_dir. If it "
            f"does not run any more, delete {lock}"
        )
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
