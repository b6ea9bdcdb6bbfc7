"""Files that appear under their names only when all of them are written."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gm_discrete.training.lock import started

DRAFT = "_draft"
"""Begin of the name of the folder for files that are being written, beside their final places: they are moved, not copied.
Host and process follow, as the writers of several hosts may share a file system."""
CONFIGS = ("config.json", "adapter_config.json")
"""Without one of these files a folder is no model."""


@contextmanager
def published(folder: str | os.PathLike[str], is_writer: bool = True, replaces: str = "") -> Iterator[Path]:
    """Gives a folder to write files to. When the context ends they are moved to `folder`; after an error none of them is.

    Each file is replaced as a whole. A folder with the config of a model has all its other files: an earlier config is
    deleted before the first of them is moved, and the new one comes last. So a kill in between leaves a folder that is no
    model, and never parts of two models. Files without a config may be left of two generations.

    Args:
        folder: where the files will be.
        is_writer: whether this process writes: one of those that share the folder.
        replaces: a pattern such as "*.bin"; files of such names that were not written anew are deleted from `folder`.
    """
    folder = Path(folder)
    prefix = f"{DRAFT}-{socket.gethostname()}-"
    draft = folder / f"{prefix}{os.getpid()}"
    if is_writer:
        _delete_leftovers(folder, prefix)
        draft.mkdir(parents=True)
    try:
        yield draft
        if is_writer:
            _publish(draft, folder, replaces)
    finally:
        if is_writer:
            shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path, replaces: str) -> None:
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    configs = [draft / name for name in CONFIGS if draft / name in files]
    if configs:  # both are deleted: a whole model and an adapter in one folder would be read as one model
        for name in CONFIGS:
            (folder / name).unlink(missing_ok=True)
    for file in files:
        if file not in configs:
            move(file, folder / file.relative_to(draft))
    for old in folder.glob(replaces) if replaces else ():
        if old.name not in {file.name for file in files}:
            old.unlink()
    for config in configs:
        move(config, folder / config.name)


def _delete_leftovers(folder: Path, prefix: str) -> None:
    """Deletes drafts of this process and of those of this host that have ended; others may be in use."""
    for left in folder.glob(f"{DRAFT}-*"):
        pid = left.name.removeprefix(prefix)
        if left.name.startswith(prefix) and pid.isdigit() and (int(pid) == os.getpid() or started(int(pid)) is None):
            shutil.rmtree(left, ignore_errors=True)


def move(file: Path, target: Path) -> None:
    """Moves a file in place of another one, in one operation of the file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
