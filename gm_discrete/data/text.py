"""Text from local files or from the hub."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from gm_discrete.data.reading import read_splits

READERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The file reader of `datasets` for each suffix; a compressed file (`.jsonl.gz`) is recognised by the suffix before."""


def load_text(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    name: str | None = None,
    text_column: str = "text",
    streaming: bool = False,
    sample_by: Literal["document", "line", "paragraph"] = "document",
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of a text data set, with the single column `text`.

    If the source has no validation split, it is held out of the training split: the last rows of a data set (the last
    characters of a single row), or the first rows of a stream.

    Args:
        source: a .txt, .json, .jsonl or .parquet file, a folder of such files, or the id of a hub data set.
        split: "train", "validation", or another split of the source.
        name: configuration of a hub data set, such as "wikitext-103-raw-v1".
        text_column: the column of the source that holds the text.
        streaming: read rows on demand; returns an `IterableDataset`.
        sample_by: what one row of a .txt file is. A row is tokenised at once, which takes about 100 bytes per token.
        validation_size: size of the held-out split, a fraction or a number of rows: by default 0.05, for a stream 1000
            rows.
        cache_dir: folder for downloads and converted files; the cache of `datasets` by default.

    Raises:
        ValueError: the source, the split or the column does not exist, the split is empty, or `validation_size` leaves
            nothing to train on.
    """
    splits = _read(source, name, streaming, sample_by, cache_dir)
    if split in splits and (split != "train" or "validation" in splits):
        rows = _select_text(splits[split], source, text_column)
        if next(iter(rows), None) is None:
            raise ValueError(f"split={split!r} of source={str(source)!r} is empty; give another split or source")
        return rows
    if split not in ("train", "validation") or "train" not in splits:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(map(str, splits))}")
    train, validation = _hold_out(_select_text(splits["train"], source, text_column), validation_size)
    return train if split == "train" else validation


def _read(
    source: str | os.PathLike[str],
    name: str | None,
    streaming: bool,
    sample_by: str,
    cache_dir: str | os.PathLike[str] | None,
) -> DatasetDict | IterableDatasetDict:
    path, reader = Path(source), str(source)
    options: dict[str, Any] = {"streaming": streaming}
    readers = Counter(found for file in (path, *path.rglob("*")) if (found := _reader(file)))
    if readers and readers.most_common(1)[0][0] == "text":  # the reader that `datasets` chooses for a folder
        options["sample_by"] = sample_by
    if path.is_file():
        if not readers:
            raise ValueError(f"source={str(source)!r} has an unknown suffix; give one of {', '.join(READERS)}")
        reader, options["data_files"] = next(iter(readers)), str(path)
    accepted = "a txt, json or parquet file, a folder of them, or a hub id"
    return read_splits(reader, name, accepted, cache_dir, **options)


def _reader(file: Path) -> str | None:
    return next((READERS[suffix] for suffix in file.suffixes if suffix in READERS), None)


def _select_text(
    rows: Dataset | IterableDataset, source: str | os.PathLike[str], column: str
) -> Dataset | IterableDataset:
    if rows.column_names is not None and column not in rows.column_names:
        raise ValueError(
            f"text_column={column!r} is not in source={str(source)!r}; it has {', '.join(rows.column_names)}"
        )
    rows = rows.select_columns(column)
    return rows if column == "text" else rows.rename_column(column, "text")


def _hold_out(
    rows: Dataset | IterableDataset, size: float | int | None
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """The training and the validation part of the rows of a source that has no validation split."""
    if isinstance(rows, IterableDataset):
        size = 1000 if size is None else size
        if not isinstance(size, int):
            raise ValueError(f"validation_size={size} must be a number of rows when the source is a stream")
        train, validation = rows.skip(size), rows.take(size)
        if size < 1 or next(iter(train), None) is None:
            raise ValueError(f"validation_size={size} must be at least 1 and leave rows of the stream to train on")
        return train, validation
    size = 0.05 if size is None else size
    if isinstance(size, float):
        if not 0 < size < 1:
            raise ValueError(f"validation_size={size} must be a fraction between 0 and 1, or a whole number of rows")
        if len(rows) == 1:
            text = rows[0]["text"]
            end = round((1 - size) * len(text))
            rows = Dataset.from_dict({"text": [text[:end], text[end:]]})
        size = max(1, round(size * len(rows)))
    end = len(rows) - size
    if not 0 < end < len(rows):
        raise ValueError(
            f"validation_size={size} must be at least 1 and leave some of the {len(rows)} rows to train on"
        )
    return rows.select(range(end)), rows.select(range(end, len(rows)))
