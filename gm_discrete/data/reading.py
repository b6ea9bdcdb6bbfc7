"""Splits of local files, folders and hub data sets, with a validation split held out where there is none."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetsError

Rows = TypeVar("Rows", bound=Dataset | IterableDataset)


def read_splits(
    source: str | os.PathLike[str],
    name: str | None,
    accepted: str,
    cache_dir: str | os.PathLike[str] | None,
    *,
    data_files: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None,
    **options: Any,
) -> DatasetDict | IterableDatasetDict:
    """Reads all splits of a folder, of files or of a hub data set.

    Args:
        source: a folder, the name of a file reader of `datasets` (with `data_files` among the options), or a hub id.
        name: configuration of a hub data set.
        accepted: what `source` may be, for the error message.
        cache_dir: where converted files are kept; the cache of `datasets` by default.
        data_files: files by split.
        options: further arguments of `datasets.load_dataset`.

    Raises:
        ValueError: the source is absent, unreachable, malformed or empty.
    """
    if data_files is not None:  # escaped, because `datasets` takes the names of files for patterns
        options["data_files"] = {part: [glob.escape(str(file)) for file in files] for part, files in data_files.items()}
    try:
        return load_dataset(str(source), name, cache_dir=None if cache_dir is None else str(cache_dir), **options)  # pyright: ignore[reportReturnType]
    except (OSError, DatasetsError, StopIteration) as error:
        raise ValueError(
            f"source={str(source)!r} cannot be read ({error.__cause__ or error or 'it is empty'}); give {accepted}"
        ) from error


def choose_split(
    splits: Mapping[Any, Rows],
    source: str | os.PathLike[str],
    split: str,
    validation_size: float | int | None,
    *,
    shuffle: bool = True,
) -> Rows:
    """Returns a split; a missing validation split is held out of the training split.

    Args:
        source: for the error message.
        validation_size: a fraction or a number of rows; `None`: 0.05, or the first 1000 rows of a stream; 0: none.
        shuffle: hold out rows at random with a fixed seed, not the last ones. Folders are sorted by class, and tables often
            by a column.

    Raises:
        ValueError: there is no such split, or `validation_size` leaves no row in one of the parts.
    """
    if split in splits and (split != "train" or "validation" in splits or validation_size == 0):
        return splits[split]
    if split not in ("train", "validation") or "train" not in splits:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(splits)}")
    rows: Any = splits["train"]
    if isinstance(rows, IterableDataset):
        size = 1000 if validation_size is None else validation_size
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"validation_size={size} must be a number of rows, at least 1, when the source is a stream"
            )
        return rows.skip(size) if split == "train" else rows.take(size)  # pyright: ignore[reportReturnType]
    size = 0.05 if validation_size is None else validation_size
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"validation_size={size} must be a fraction between 0 and 1, or a whole number of rows")
    count = max(1, round(size * len(rows))) if isinstance(size, float) else size
    if not 0 < count < len(rows):
        raise ValueError(f"validation_size={size} must be positive and leave some of the {len(rows)} rows to train on")
    parts = rows.train_test_split(count, seed=0) if shuffle else rows.train_test_split(count, shuffle=False)
    return parts["train"] if split == "train" else parts["test"]
