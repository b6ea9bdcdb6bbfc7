"""Tables by name: packaged, from local files, or from the hub."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value
from pyarrow import csv, parquet

from gm_discrete.data.packaged import cached, drafted, package_folder, unpack_npm
from gm_discrete.data.reading import read_splits, split_of

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
VEGA_VERSION = "3.2.1"
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Of every ten flights."""
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
FLIGHTS = {"delay": "int64", "distance": "int64", "origin": "string", "destination": "string"}
FLIGHT_TIMES = {"month": "string", "weekday": "string", "minute": "int64"}


def load_table(
    source: str | os.PathLike[str] = "diamonds",
    split: str = "train",
    *,
    name: str | None = None,
    streaming: bool = False,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """One split of a table, a row of natural values each.

    Where a source has no validation split, its validation split is held out of its training split: rows drawn by a
    fixed seed, of a stream the first rows.

    Args:
        source: "diamonds" or "flights" (see these functions), a .csv, .json, .jsonl or .parquet file or a folder of
            them, or a data set of the hub.
        split: "train", "validation", "test" or what else the source has.
        name: configuration of a hub data set.
        streaming: reads while it is used; gives an `IterableDataset`.
        validation_size: what is held out, a fraction or a number of rows; 0.05 unless told, of a stream 1000 rows.
            With 0 all rows are trained on. Packaged tables have splits of their own.
        cache_dir: where downloads and converted files are kept, instead of the cache of Hugging Face.

    Raises:
        ImportError, FileNotFoundError: a packaged source is not there; the message names the command.
        ValueError: there is no such source or split, or `validation_size` takes all of it.
    """
    if str(source) in ("diamonds", "flights"):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(SPLITS)}")
        if validation_size is not None:
            raise ValueError(f"source={str(source)!r} has a validation split; leave validation_size out")
        if str(source) == "flights":
            return flights(split, streaming, cache_dir)
        rows = diamonds()[split]
        return rows.to_iterable_dataset() if streaming else rows
    options: dict[str, Any] = {"streaming": streaming}
    if (path := Path(source)).is_file():
        builder = next((BUILDERS[suffix] for suffix in path.suffixes if suffix in BUILDERS), None)
        if builder is None:
            raise ValueError(f"source={str(source)!r} has an unknown suffix; give one of {', '.join(BUILDERS)}")
        source, options["data_files"] = builder, str(path)
    choice = "diamonds, flights, a file or folder of csv or parquet, or a data set that the hub has"
    splits = read_splits(source, name, choice, "source", cache_dir, **options)
    return split_of(splits, "source", str(path), split, validation_size)


def diamonds() -> dict[str, Dataset]:
    """53,940 diamonds from the package `plotnine`: seven numbers, three categories; split 80/10/10 by a fixed seed.

    Raises:
        ImportError: `plotnine` is not installed.
    """
    rows = Dataset(csv.read_csv(package_folder("plotnine") / "data/diamonds.csv"))
    # RandomState, because NumPy promises that its permutations stay what they are.
    order = np.random.RandomState(0).permutation(len(rows))
    cuts = [0, len(rows) * 8 // 10, len(rows) * 9 // 10, len(rows)]
    table = rows.data.table
    return {split: Dataset(table.take(order[cuts[place] : cuts[place + 1]])) for place, split in enumerate(SPLITS)}


def flights(
    split: str = "train", streaming: bool = False, cache_dir: str | os.PathLike[str] | None = None
) -> Dataset | IterableDataset:
    """3 M flights in the United States, January to June 2001, in random order; split 80/10/10, of every ten in turn.

    Columns: `delay` in minutes, `distance` in miles, `origin` and `destination` (230 airports) and the columns of
    `departure`.

    Raises:
        FileNotFoundError: `download_flights` has not been called.
    """
    file = cached("flights.parquet", cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run gm_discrete.data.download_flights() once (npm, 18 MB)")
    rows = read_splits(
        "parquet", None, "a parquet file", "source", cache_dir, data_files=str(file), streaming=streaming
    )
    features = Features({column: Value(kind) for column, kind in (FLIGHTS | FLIGHT_TIMES).items()})
    convert = partial(_convert_flights, places=SPLITS[split])
    options: dict[str, Any] = {} if streaming else {"desc": "Flights"}
    converted = (
        rows["train"]
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
    """Fetches the npm package `vega-datasets` and keeps its flights, in random order; returns the file.

    Raises:
        RuntimeError: `npm` is missing or fails.
    """
    target = cached("flights.parquet", cache_dir)
    if not target.exists():
        with drafted(target) as draft:
            rows = parquet.read_table(
                unpack_npm("vega-datasets", VEGA_VERSION, draft.parent) / "data/flights-3m.parquet"
            )
            # They come by date; a stream is read as it lies.
            parquet.write_table(rows.take(np.random.RandomState(0).permutation(len(rows))), draft)
    return target


def departure(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Dates (`datetime64`) → `month` ("Jan"), `weekday` ("Mon") and `minute` of the day, 0 to 1439."""
    days = dates.astype("datetime64[D]")
    return {
        "month": np.array(MONTHS)[dates.astype("datetime64[M]").astype(int) % 12],
        "weekday": np.array(WEEKDAYS)[(days.astype(int) + 3) % 7],  # day 0, 1 January 1970, was a Thursday
        "minute": (dates.astype("datetime64[m]") - days).astype(int),
    }


def _convert_flights(table: pa.Table, indices: list[int], places: range) -> pa.Table:
    table = table.filter(pa.array(np.isin(np.asarray(indices) % 10, places)))
    kept = {column: table[column].cast(kind) for column, kind in FLIGHTS.items()}
    return pa.table(kept | departure(table["date"].to_numpy()))
