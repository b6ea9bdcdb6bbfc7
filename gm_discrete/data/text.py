"""Text from local files or from the hub."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from gm_discrete.data.reading import choose_split, read_splits

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
            rows; 0 for none.
        cache_dir: folder for downloads and converted files; the cache of `datasets` by default.

    Raises:
        ValueError: the source, the split or the column does not exist, the split is empty, or `validation_size` leaves
            nothing to train on.
    """
    splits = _read(source, name, streaming, sample_by, cache_dir)
    train: Any = splits.get("train")
    held_out = split in ("train", "validation") and "validation" not in splits
    size = (1000 if streaming else 0.05) if validation_size is None else validation_size
    if held_out and isinstance(train, Dataset) and len(train) == 1 and isinstance(size, float) and 0 < size < 1:
        return _halves(_select_text(train, source, text_column), split, size)  # pyright: ignore[reportArgumentType]
    chosen: Any = choose_split(splits, source, split, size, shuffle=False)
    rows = _select_text(chosen, source, text_column)
    if next(iter(rows), None) is None:
        raise ValueError(
            f"split={split!r} of source={str(source)!r} is empty; give another, and validation_size={size} must leave rows "
            "to train on"
        )
    return rows


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


def _halves(rows: Dataset, split: str, share: float) -> Dataset:
    """A single row cut into its training and its validation part."""
    text = rows[0]["text"]
    end = round((1 - share) * len(text))
    return Dataset.from_dict({"text": [text[:end] if split == "train" else text[end:]]})
