"""Checkpoints that are complete or ignored."""

from __future__ import annotations

import json
import os
from pathlib import Path

MARKER = "COMPLETE"
"""Written last, with the sizes of all files. A folder without it, or that differs from it, is no checkpoint."""


STARTED = "SAVING"
"""Written first and removed last: what it lies in was left behind by a run that was killed while it saved."""


def mark_started(folder: str | os.PathLike[str]) -> None:
    """Withdraws the declaration of `mark_complete`, before the files are written anew."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / STARTED).touch()
    (Path(folder) / MARKER).unlink(missing_ok=True)


def mark_complete(folder: str | os.PathLike[str]) -> None:
    """Declares the checkpoint in `folder` complete, in one atomic step."""
    folder = Path(folder)
    draft = folder / f"{MARKER}.tmp"
    draft.write_text(json.dumps(_sizes(folder), indent=1, sort_keys=True))
    draft.replace(folder / MARKER)
    (folder / STARTED).unlink(missing_ok=True)


def is_broken(folder: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint was begun and never finished."""
    return (Path(folder) / STARTED).exists() and not is_complete(folder)


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether every file that was there when the checkpoint was finished still is, at its length."""
    marker = Path(folder) / MARKER
    try:
        expected = json.loads(marker.read_text())
    except (OSError, ValueError):
        return False
    return expected.items() <= _sizes(marker.parent).items()


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint in `output_dir`, whatever half-written one lies beside it; `None` if there is none."""
    found = [folder for folder in checkpoints(output_dir) if is_complete(folder)]
    return str(found[-1]) if found else None


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All checkpoint folders in the order of their steps."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[-1]))


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((MARKER, STARTED)))
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
