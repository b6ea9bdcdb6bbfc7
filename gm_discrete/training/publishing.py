"""Files that appear under their names only when all of them are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = "_draft"
"""Folder for files that are being written, beside their final places, so that they are moved and not copied."""


@contextmanager
def published(folder: str | os.PathLike[str], is_writer: bool = True, replaces: str = "") -> Iterator[Path]:
    """Gives a folder to write files to. When the context ends they are moved to `folder`; after an error none of them is.

    A file of the same name is replaced as a whole. `config.json` comes last: a folder with it has all other files.

    Args:
        folder: where the files will be.
        is_writer: whether this process writes: one of those that share the folder.
        replaces: a pattern such as "*.bin"; files of such names that were not written anew are deleted from `folder`.
    """
    folder = Path(folder)
    draft = folder / DRAFT
    if is_writer:
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        draft.mkdir(parents=True)
    try:
        yield draft
        if is_writer:
            files = [path for path in draft.rglob("*") if path.is_file()]
            for old in folder.glob(replaces) if replaces else ():
                if not (draft / old.name).exists():
                    old.unlink()
            for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
                move(file, folder / file.relative_to(draft))
    finally:
        if is_writer:
            shutil.rmtree(draft, ignore_errors=True)


def move(file: Path, target: Path) -> None:
    """Moves a file in place of another one, in one operation of the file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
