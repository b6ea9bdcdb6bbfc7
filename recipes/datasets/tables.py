"""Packaged tables: diamonds and flights."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value
from pyarrow import csv, parquet

from gm_discrete import data
from gm_discrete.data.reading import read_splits
from recipes.datasets.packages import atomic_file, cache_file, package_folder, unpack_npm

PACKAGED = ("diamonds", "flights")
VEGA_VERSION = "3.2.1"
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""The split of each of ten consecutive flights."""
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
FLIGHT_COLUMNS = {"delay": "int64", "distance": "int64", "origin": "string", "destination": "string"}
TIME_COLUMNS = {"month": "string", "weekday": "string", "minute": "int64"}


def load_table(
    source: str | os.PathLike[str] = "diamonds",
    split: str = "train",
    *,
    name: str | None = None,
    streaming: bool = False,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """Loads one split of a table; a row is a dict of natural values. See `gm_discrete.data.load_table`.

    Args:
        source: "diamonds", "flights" (see these functions), or anything that `gm_discrete.data.load_table` reads.
        split: "train", "validation", "test", or another split of the source.
        name, validation_size: as in `gm_discrete.data.load_table`. Packaged tables have a validation split of their own.
        streaming: read rows on demand; returns an `IterableDataset`.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.
        options: further arguments of `gm_discrete.data.load_table`, for files.

    Raises:
        ImportError, FileNotFoundError: a packaged table is not installed; the message names the command.
        ValueError: the source or the split does not exist, or `validation_size` does not fit it.
    """
    if str(source) not in PACKAGED:
        try:
            options |= {"name": name, "streaming": streaming, "validation_size": validation_size}
            return data.load_table(source, split, cache_dir=cache_dir, **options)
        except ValueError as error:
            error.add_note(f"Packaged tables: {', '.join(PACKAGED)}.")
            raise
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(SPLITS)}")
    if wrong := [option for option, value in options.items() if value]:
        raise ValueError(
            f"{wrong[0]}={options[wrong[0]]!r} is for files, and {str(source)!r} is a packaged table; leave it out"
        )
    if validation_size is not None:
        raise ValueError(f"source={str(source)!r} has a validation split; leave validation_size={validation_size} out")
    if str(source) == "flights":
        return flights(split, streaming, cache_dir)
    rows = diamonds()[split]
    return rows.to_iterable_dataset() if streaming else rows


def diamonds() -> dict[str, Dataset]:
    """53,940 diamonds from the PyPI package `plotnine`: seven numbers, three categories; split 80/10/10 at random.

    Raises:
        ImportError: `plotnine` is not installed.
    """
    rows = Dataset(csv.read_csv(package_folder("plotnine") / "data/diamonds.csv"))
    # RandomState, because NumPy guarantees that its permutations never change.
    order = np.random.RandomState(0).permutation(len(rows))
    ends = [0, len(rows) * 8 // 10, len(rows) * 9 // 10, len(rows)]
    table = rows.data.table
    return {split: Dataset(table.take(order[ends[place] : ends[place + 1]])) for place, split in enumerate(SPLITS)}


def flights(
    split: str = "train", streaming: bool = False, cache_dir: str | os.PathLike[str] | None = None
) -> Dataset | IterableDataset:
    """3 M flights in the United States, January to June 2001, in random order; of every ten 8, 1 and 1 are in a split.

    Columns: `delay` in minutes, `distance` in miles, `origin` and `destination` (230 airports) and the columns of
    `departure_columns`.

    Raises:
        FileNotFoundError: `download_flights` has not been called.
    """
    file = cache_file("flights.parquet", cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run recipes.datasets.download_flights() once (npm, 18 MB)")
    splits: Any = read_splits(
        "parquet", None, "a parquet file", cache_dir, data_files={"train": [file]}, streaming=streaming
    )
    features = Features({column: Value(kind) for column, kind in (FLIGHT_COLUMNS | TIME_COLUMNS).items()})
    convert = partial(_convert_flights, places=SPLITS[split])
    options: dict[str, Any] = {} if streaming else {"desc": "Flights"}
    converted = (
        splits["train"]
        .with_format("arrow")
        .map(
            convert,
            batched=True,
            batch_size=10_000,
            with_indices=True,
            remove_columns=["date"],
            features=features,
            **options,
        )
    )
    return converted.with_format(None)


def download_flights(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads the npm package `vega-datasets`, keeps its flights in random order, and returns the file.

    Raises:
        RuntimeError: `npm` is missing or fails.
    """
    target = cache_file("flights.parquet", cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            rows = parquet.read_table(
                unpack_npm("vega-datasets", VEGA_VERSION, draft.parent) / "data/flights-3m.parquet"
            )
            # They are sorted by date, and a stream is read in the order of the file.
            parquet.write_table(rows.take(np.random.RandomState(0).permutation(len(rows))), draft)
    return target


def departure_columns(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of departure times (`datetime64`): `month` ("Jan"), `weekday` ("Mon"), `minute` of the day, 0 to 1439."""
    days = dates.astype("datetime64[D]")
    return {
        "month": np.array(MONTHS)[dates.astype("datetime64[M]").astype(int) % 12],
        "weekday": np.array(WEEKDAYS)[(days.astype(int) + 3) % 7],  # day 0, 1 January 1970, was a Thursday
        "minute": (dates.astype("datetime64[m]") - days).astype(int),
    }


def _convert_flights(table: pa.Table, indices: list[int], places: range) -> pa.Table:
    table = table.filter(pa.array(np.isin(np.asarray(indices) % 10, places)))
    kept = {column: table[column].cast(kind) for column, kind in FLIGHT_COLUMNS.items()}
    return pa.table(kept | departure_columns(table["date"].to_numpy()))
