"""Text data sets by name: packaged, from local files, or from the hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from gm_discrete.data.molecules import moses
from gm_discrete.data.packaged import gcide, shakespeare
from gm_discrete.data.reading import read_splits

PACKAGED: Mapping[str, Callable[[Any], Mapping[Any, Any]]] = {
    "shakespeare": lambda cache_dir: shakespeare(),
    "gcide": gcide,
    "moses": moses,
}
BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The loader of `datasets` for each suffix; compressed files (`.jsonl.gz`) are recognised by the suffix before."""


def load_text(
    source: str | os.PathLike[str] = "shakespeare",
    split: str = "train",
    *,
    name: str | None = None,
    text_column: str = "text",
    streaming: bool = False,
    sample_by: Literal["document", "line", "paragraph"] = "document",
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """One split of a text data set, with a single column `text`.

    Where a source has no validation split, its validation split is held out of its training split: the last rows of
    a data set (of a single row, the last characters), the first rows of a stream.

    Args:
        source: "shakespeare" or "gcide" (`gm_discrete.data.packaged`), "moses" (`gm_discrete.data.molecules`), a .txt,
            .json, .jsonl or .parquet file or a folder of them, or a data set of the hub.
        split: "train", "validation" or what else the source has.
        name: configuration of a hub data set, such as "wikitext-103-raw-v1".
        text_column: the column of the source that holds the text.
        streaming: reads while it is used; gives an `IterableDataset`.
        sample_by: what one row of a .txt file is. A whole file is tokenised at once, about 100 bytes per token.
        validation_size: what is held out, a fraction or a number of rows; 0.05 unless told, of a stream 1000 rows.
        cache_dir: where downloads and converted files are kept, instead of the cache of `datasets`.

    Raises:
        ImportError, FileNotFoundError: a packaged source is not installed; the message names the command.
        ValueError: there is no such source, split or column, the split is empty, or `validation_size` takes all of it.
    """
    if str(source) in PACKAGED:
        splits: Mapping[Any, Any] = PACKAGED[str(source)](cache_dir)
        if streaming:
            splits = {key: rows.to_iterable_dataset() for key, rows in splits.items()}
    else:
        splits = _load_splits(source, name, streaming, sample_by, cache_dir)
    if split in splits and (split != "train" or "validation" in splits):
        rows = _text_of(splits[split], source, text_column)
        if next(iter(rows), None) is None:
            raise ValueError(f"split={split!r} of source={str(source)!r} is empty; give another split or source")
        return rows
    if split not in ("train", "validation") or "train" not in splits:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(splits)}")
    train, validation = _hold_out(_text_of(splits["train"], source, text_column), validation_size)
    return train if split == "train" else validation


def _load_splits(
    source: str | os.PathLike[str],
    name: str | None,
    streaming: bool,
    sample_by: str,
    cache_dir: str | os.PathLike[str] | None,
) -> DatasetDict | IterableDatasetDict:
    path, options = Path(source), {}
    builders = Counter(builder for file in (path, *path.rglob("*")) if (builder := _builder(file)))
    if builders and builders.most_common(1)[0][0] == "text":
        options["sample_by"] = sample_by
    if path.is_file():
        if not builders:
            raise ValueError(f"source={str(source)!r} has an unknown suffix; give one of {', '.join(BUILDERS)}")
        source, options["data_files"] = next(iter(builders)), str(path)
    choice = f"{', '.join(PACKAGED)}, a file or folder of text, or a data set that the hub has"
    return read_splits(source, name, choice, "source", cache_dir, streaming=streaming, **options)


def _builder(file: Path) -> str | None:
    return next((BUILDERS[suffix] for suffix in file.suffixes if suffix in BUILDERS), None)


def _text_of(rows: Dataset | IterableDataset, source: str | os.PathLike[str], column: str) -> Dataset | IterableDataset:
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
            raise ValueError(f"validation_size={size} is a fraction of a stream; give a number of rows")
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
            cut = round((1 - size) * len(text))
            rows = Dataset.from_dict({"text": [text[:cut], text[cut:]]})
        size = max(1, round(size * len(rows)))
    cut = len(rows) - size
    if not 0 < cut < len(rows):
        raise ValueError(
            f"validation_size={size} must be at least 1 and leave some of the {len(rows)} rows to train on"
        )
    return rows.select(range(cut)), rows.select(range(cut, len(rows)))
