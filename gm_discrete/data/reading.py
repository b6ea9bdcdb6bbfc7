"""HiddenStates with `datasets`, with errors that say what to do, and what is held out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError


def read_splits(
    source: str | os.PathLike[str],
    name: str | None,
    choice: str,
    argument: str,
    cache_dir: str | os.PathLike[str] | None,
    **options: Any,
) -> Any:
    """The splits of a folder, of files or of a hub data set.

    Args:
        name: configuration of a hub data set.
        choice: what else could be given, for the error; argument: as what it was given.

    Raises:
        ValueError: it is offline or absent, malformed, or empty.
    """
    try:
        return load_dataset(str(source), name, cache_dir=None if cache_dir is None else str(cache_dir), **options)
    except (OSError, DatasetsError, StopIteration) as error:
        raise ValueError(
            f"{argument}={str(source)!r} cannot be read ({error.__cause__ or error or 'it is empty'}); give {choice}"
        ) from error


def split_of(
    splits: Mapping[Any, Any], argument: str, source: str, split: str, size: float | int | None
) -> Dataset | IterableDataset:
    """A split; validation is held out of training where there is none: so many rows, or such a part, by a fixed seed.

    Args:
        argument: as what the source was given, for the error.

    Raises:
        ValueError: there is no such split, or `size` leaves nothing.
    """
    if split in splits and (split != "train" or "validation" in splits or size == 0):
        return splits[split]
    if split not in ("train", "validation") or "train" not in splits:
        raise ValueError(f"split={split!r} is not in {argument}={source!r}; it has {', '.join(splits)}")
    rows: Dataset | IterableDataset = splits["train"]
    if isinstance(rows, IterableDataset):
        size = 1000 if size is None else size
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"validation_size={size} of a stream must be a number of rows, at least 1")
        return rows.skip(size) if split == "train" else rows.take(size)
    size = 0.05 if size is None else size
    count = max(1, round(size * len(rows))) if isinstance(size, float) else size
    if not 0 < count < len(rows):
        raise ValueError(f"validation_size={size} must be positive and leave some of the {len(rows)} rows to train on")
    # Shuffled, because folders come sorted by class, and tables by a column.
    parts = rows.train_test_split(count, seed=0)
    return parts["train"] if split == "train" else parts["test"]
