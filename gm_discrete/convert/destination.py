"""The folder that a conversion writes: complete, or absent."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


def checked(destination: str | Path) -> Path:
    """
    Raises:
        FileExistsError: it is not empty.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"destination={str(destination)!r} is not empty: give a new folder")
    return destination


@contextmanager
def written(destination: Path) -> Iterator[Path]:
    """A folder beside the destination, to be filled, which takes its place unless there is an error."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as work:
        ready = Path(work) / "model"
        ready.mkdir()
        yield ready
        ready.replace(destination)
    logger.info("written: %s", destination)
