"""Reading with `datasets`, with errors that say what to do."""

from __future__ import annotations

import os
from typing import Any

from datasets import load_dataset
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
