"""Checkpoints: complete ones are marked, all others are ignored."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from gm_discrete.models import GMConfig

MARKER = "COMPLETE"
"""File written last, with the sizes of all files. A folder without it, or that differs from it, is not a checkpoint."""
STARTED = "SAVING"
"""File written first and removed last: a folder with it is left from a run that was killed while saving."""


def mark_started(folder: str | os.PathLike[str]) -> None:
    """Marks the checkpoint in `folder` as incomplete, before its files are written."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / STARTED).touch()
    (Path(folder) / MARKER).unlink(missing_ok=True)


def mark_complete(folder: str | os.PathLike[str]) -> None:
    """Marks the checkpoint in `folder` as complete, atomically."""
    folder = Path(folder)
    draft = folder / f"{MARKER}.tmp"
    draft.write_text(json.dumps(_sizes(folder), indent=1, sort_keys=True), encoding="utf-8")
    draft.replace(folder / MARKER)
    (folder / STARTED).unlink(missing_ok=True)


def is_broken(folder: str | os.PathLike[str]) -> bool:
    """Whether saving the checkpoint was started and not finished."""
    return (Path(folder) / STARTED).exists() and not is_complete(folder)


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether every file of the finished checkpoint is still there, with its size."""
    marker = Path(folder) / MARKER
    try:
        expected = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return expected.items() <= _sizes(marker.parent).items()


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint in `output_dir`; `None` if there is none."""
    found = [folder for folder in checkpoints(output_dir) if is_complete(folder)]
    return str(found[-1]) if found else None


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All checkpoint folders, complete or not, in the order of their steps."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[-1]))


def delete_old(output_dir: str | os.PathLike[str], limit: int | None, best: str | None) -> None:
    """Deletes unfinished checkpoints and, beyond the newest `limit`, complete ones other than the best."""
    for folder in filter(is_broken, checkpoints(output_dir)):
        shutil.rmtree(folder)
    complete = [folder for folder in checkpoints(output_dir) if is_complete(folder)]
    for folder in complete[: -limit if limit else 0]:
        if best is None or folder.resolve() != Path(best).resolve():
            shutil.rmtree(folder)


def check_config(checkpoint: str | os.PathLike[str], config: GMConfig) -> None:
    """
    Raises:
        ValueError: the checkpoint was written by a model with another config.
    """
    saved = GMConfig.from_pretrained(checkpoint)
    from_tokenizer = {"pad_token_id", "bos_token_id", "eos_token_id"}  # Trainer sets them
    names = GMConfig.__annotations__.keys() - from_tokenizer
    if changed := [name for name in names if getattr(saved, name) != getattr(config, name)]:
        name = min(changed, key=lambda name: (name != "path", name))
        raise ValueError(
            f"{checkpoint} belongs to another model: its {name} is {getattr(saved, name)!r}, here {getattr(config, name)!r}"
        )


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((MARKER, STARTED)))
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
