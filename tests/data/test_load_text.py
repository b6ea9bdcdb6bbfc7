"""Text from local files: rows, splits, held-out rows, errors."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from gm_discrete.data import load_text

LINES = [f"line {number}\n" for number in range(40)]


def texts(dataset: Dataset | IterableDataset) -> list[str]:
    assert dataset.column_names == ["text"]
    rows: Any = dataset
    return [row["text"] for row in rows]


def write_jsonl(file: Path, column: str, values: list[str]) -> Path:
    file.write_text("".join(json.dumps({column: value, "number": 1}) + "\n" for value in values), encoding="utf-8")
    return file


def test_load_text__one_file_is_one_document_split_by_characters(tmp_path: Path) -> None:
    file = tmp_path / "all.txt"
    file.write_text("".join(LINES), encoding="utf-8")
    train, validation = (texts(load_text(file, split, cache_dir=tmp_path)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (1, 1)
    assert train[0] + validation[0] == "".join(LINES)
    assert len(validation[0]) == round(0.05 * len("".join(LINES)))
    by_line = texts(load_text(file, "validation", sample_by="line", cache_dir=tmp_path, validation_size=0.25))
    assert by_line == [line.strip() for line in LINES[30:]]


def test_load_text__a_folder_has_a_row_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name}\n\n{name}\n", encoding="utf-8")
    (folder / "README.md").write_text("Not a play.", encoding="utf-8")
    assert texts(load_text(folder, cache_dir=tmp_path / "cache")) == ["a\n\na\n", "b\n\nb\n"]
    assert texts(load_text(folder, "validation", cache_dir=tmp_path / "cache")) == ["c\n\nc\n"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_load_text__files_of_rows(tmp_path: Path, suffix: str) -> None:
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
def test_load_text__keeps_the_splits_of_the_source(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    parts = {"train": LINES[:5], "validation": LINES[5:7], "test": LINES[7:8]}
    for split, part in parts.items():
        write_jsonl(folder / f"{split}.jsonl", "text", part)
    for split, part in parts.items():
        assert texts(load_text(folder, split, streaming=streaming, cache_dir=tmp_path / "cache")) == part


def test_load_text__holds_out_the_first_rows_of_a_stream(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", "story", LINES)
    options: dict[str, Any] = {"text_column": "story", "streaming": True, "validation_size": 15}
    validation, train = load_text(file, "validation", **options), load_text(file, "train", **options)
    assert isinstance(train, IterableDataset)
    assert (texts(validation), texts(train)) == (LINES[:15], LINES[15:])
    with pytest.raises(ValueError, match="validation_size=1000 "):
        load_text(file, text_column="story", streaming=True)
    with pytest.raises(ValueError, match=r"validation_size=0\.1 "):
        load_text(file, text_column="story", streaming=True, validation_size=0.1)


def test_load_text__errors_name_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    file = write_jsonl(tmp_path / "rows.jsonl", "story", LINES)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"source='someone/nothing'"):
        load_text("someone/nothing", **options)
    with pytest.raises(ValueError, match=r"source=.*nowhere"):
        load_text(tmp_path / "nowhere.txt", **options)
    with pytest.raises(ValueError, match=r"text_column='text'.*source=.*story, number"):
        load_text(file, **options)
    with pytest.raises(ValueError, match=r"split='test'.*source=.*train"):
        load_text(file, "test", text_column="story", **options)
    with pytest.raises(ValueError, match=r"validation_size=40 .*40 rows"):
        load_text(file, text_column="story", validation_size=40, **options)
    with pytest.raises(ValueError, match=r"validation_size=1\.5 .*fraction"):
        load_text(file, text_column="story", validation_size=1.5, **options)
    (tmp_path / "picture.png").touch()
    with pytest.raises(ValueError, match=r"source=.*picture\.png.*\.txt, \.json"):
        load_text(tmp_path / "picture.png", **options)


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_load_text__an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is empty|cannot be read|leave some of the 0 rows"):
        load_text(tmp_path / name, sample_by="line", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("all.TXT", "a b\n\nc\nd\n", {"sample_by": "line"}, ["a b", "c", "d"]),
        ("all.txt", "a b\n\n\nc\nd\n", {"sample_by": "paragraph"}, ["a b", "c\nd"]),
        ("all [1].txt", "a b\n\nc\n", {}, ["a b\n\nc\n"]),
        ("rows.csv", 'id;text\n1;"a; b, c"\n2;d\n', {}, ["a; b, c", "d"]),
        ("rows.smi", "CCO ethanol\nC1CC1\tring\n\nC\n", {}, ["CCO", "C1CC1", "C"]),
        ("rows.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": "x", "m": []}\n', {}, ["a", "b"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_load_text__rows_of_a_file(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], expected: list[str], encoding: str
) -> None:
    (tmp_path / name).write_bytes(content.replace("b", "ß").encode(encoding))
    expected = [text.replace("b", "ß") for text in expected]
    found = load_text(tmp_path / name, validation_size=0, cache_dir=tmp_path / "cache", **options)
    assert texts(found) == expected
    assert texts(load_text(tmp_path / name, validation_size=0, streaming=True, **options)) == expected


def test_load_text__a_changed_file_is_read_again(tmp_path: Path) -> None:
    for text in ("one", "another"):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        assert texts(load_text(tmp_path / "a.txt", validation_size=0, cache_dir=tmp_path / "cache")) == [text]


def test_load_text__rows_without_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: 'text'"):
        load_text(file, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="sample_by='word'"):
        load_text(file, sample_by="word")  # type: ignore[arg-type]
