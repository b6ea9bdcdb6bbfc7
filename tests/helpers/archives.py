"""Files as `torch.save` writes them, of pickles that are written by hand; and what their reading does."""

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WATCHED: list[tuple[str, str]] | None = None
HARMLESS = ("object.__getattr__", "object.__setattr__", "sys._getframe", "marshal.loads")


def _watch(event: str, arguments: tuple) -> None:
    if _WATCHED is not None and event not in HARMLESS:
        _WATCHED.append((event, repr(arguments)[:200]))


sys.addaudithook(_watch)  # there is no way to remove one; outside `watched` it does nothing


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """The audit events of Python meanwhile: imports, files that are opened, processes, code that is compiled or run …"""
    global _WATCHED
    _WATCHED = found = []
    try:
        yield found
    finally:
        _WATCHED = None


def write_archive(file: Path, program: bytes, root: str = "archive", **storages: bytes) -> Path:
    """An archive of this pickle, and of storages by key with an underscore before it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{root}/data.pkl", program)
        archive.writestr(f"{root}/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"{root}/data/{key.removeprefix('_')}", data)
    return file
