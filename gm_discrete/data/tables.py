"""Tables from local files or from the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from gm_discrete.data.reading import choose_split, read_splits

READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The file reader of `datasets` for each suffix."""


def load_table(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    name: str | None = None,
    streaming: bool = False,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of a table; a row is a dict of natural values.

    If the source has no validation split, it is held out of the training split: rows drawn with a fixed seed, or the
    first rows of a stream.

    Args:
        source: a .csv, .json, .jsonl or .parquet file, a folder of such files, or the id of a hub data set.
        split: "train", "validation", or another split of the source.
        name: configuration of a hub data set.
        streaming: read rows on demand; returns an `IterableDataset`.
        validation_size: size of the held-out split, a fraction or a number of rows: by default 0.05, for a stream 1000
            rows. 0 keeps all rows for training.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.

    Raises:
        ValueError: the source or the split does not exist, or `validation_size` leaves no row to train on.
    """
    path, reader = Path(source), str(source)
    options: dict[str, Any] = {"streaming": streaming}
    if path.is_file():
        known = [READERS[suffix] for suffix in path.suffixes if suffix in READERS]
        if not known:
            raise ValueError(f"source={str(source)!r} has an unknown suffix; give one of {', '.join(READERS)}")
        reader, options["data_files"] = known[0], str(path)
    splits = read_splits(
        reader, name, "a csv, json or parquet file, a folder of them, or a hub id", cache_dir, **options
    )
    return choose_split(splits, source, split, validation_size)
