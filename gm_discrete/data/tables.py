"""Tables from local files or from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable

from gm_discrete.data.cells import DATES, PATTERNS, Cells, CellType, cell_types
from gm_discrete.data.columns import column_names
from gm_discrete.data.delimited import separator_of, string_batches
from gm_discrete.data.files import encoding_of, json_rows, local_files, named, reader_of
from gm_discrete.data.reading import choose_split, read_splits

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
"""The kind of each suffix."""
ROWS = 10_000
"""Rows of JSON that are converted at once."""


def load_table(
    source: str | os.PathLike[str] | pd.DataFrame,
    split: str = "train",
    *,
    name: str | None = None,
    streaming: bool = False,
    validation_size: float | int | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    text_columns: Sequence[str] = (),
    date_columns: Sequence[str] | Mapping[str, str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of a table; a row is a dict of natural values.

    The types of a CSV file's columns are those of all of its cells (see `data.cells`): codes such as 00037 stay text, and
    dates become dates. In JSON only dates are recognised, among strings. If the source has no validation split, it is held
    out of the training split: rows drawn with a fixed seed, or the first rows of a stream.

    Args:
        source: a .csv, .tsv, .json, .jsonl or .parquet file, a folder of such files, the id of a hub data set, or a pandas
            table.
        split: "train", "validation", or another split of the source.
        name: configuration of a hub data set.
        streaming: read rows on demand; returns an `IterableDataset`. Files of text are read once before, for their types.
        validation_size: size of the held-out split, a fraction or a number of rows: by default 0.05, for a stream 1000
            rows. 0 keeps all rows for training.
        separator: what separates the cells of a CSV file; by default that of comma, semicolon, tab and | which cuts all
            lines into equally many cells.
        encoding: by default UTF-8, or UTF-16 with a byte order mark, or else Windows-1252.
        decimal: "." or ",", where cells leave it open.
        text_columns: columns of a CSV or JSON file that are text, whatever they look like.
        date_columns: columns of a CSV or JSON file that must be dates, or by column their `strptime` format.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.

    Raises:
        ValueError: the source or the split does not exist; a file cannot be read (the message names file, row or column,
            and a cure); `validation_size` leaves no row to train on.
        TypeError: `source` is none of these.
    """
    given = {"separator": separator, "encoding": encoding, "decimal": decimal, "text_columns": text_columns}
    given["date_columns"] = date_columns
    if isinstance(source, pd.DataFrame):
        if wrong := [f"{option}={value!r}" for option, value in (given | {"name": name}).items() if value]:
            raise ValueError(f"{wrong[0]} is not for a pandas table; leave it out")
        rows: Any = _of_pandas(source)
        rows = rows.to_iterable_dataset() if streaming else rows
        return choose_split({"train": rows}, "a pandas table", split, validation_size)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source is a {type(source).__name__}; give a file, a folder, the id of a hub data set or a pandas table, and "
            "give other rows to fit_codecs and encoded_dataset directly"
        )
    files = {} if name else local_files(source, READERS)
    kind = reader_of(next(iter(files.values()))[0], READERS) if files else None
    if kind in ("csv", "json"):
        if decimal not in (None, ".", ","):
            raise ValueError(f"decimal={decimal!r} must be '.' or ','")
        dates = dict(date_columns) if isinstance(date_columns, Mapping) else dict.fromkeys(date_columns)
        first = next(iter(files.values()))[0]
        if kind == "csv":
            separator = separator or separator_of(first, encoding or encoding_of(first))
        types = _Types(tuple(PATTERNS) if kind == "csv" else DATES, separator or "", decimal, text_columns, dates)
        splits: Any = _read(files, _Reader(kind, separator, encoding), types, streaming)
        return choose_split(splits, source, split, validation_size)
    if wrong := [option for option, value in given.items() if value]:
        raise ValueError(f"{wrong[0]}={given[wrong[0]]!r} is for local CSV and JSON files, not for {str(source)!r}")
    options: dict[str, Any] = {"data_files": files} if files else {}
    accepted = "a csv, json or parquet file, a folder of them, or a hub id"
    splits = read_splits(kind or source, name, accepted, cache_dir, streaming=streaming, **options)
    return choose_split(splits, source, split, validation_size)


def _of_pandas(table: pd.DataFrame) -> Dataset:
    if not len(table):
        raise ValueError("source is a pandas table without rows; give at least one")
    table = table.set_axis(column_names(table.columns), axis=1)
    try:
        return Dataset.from_pandas(table, preserve_index=False)
    except pa.ArrowException as error:
        raise ValueError(f"source is a pandas table with values of different types: {error}; give one type") from error


@dataclass(frozen=True)
class _Reader:
    """Reads files batch by batch: their cells as strings, or the values of JSON."""

    kind: str
    separator: str | None
    encoding: str | None

    def __call__(self, file: Path) -> Iterator[pa.Table]:
        batches = self._strings(file) if self.kind == "csv" else self._values(file)
        while (batch := named(file, lambda: next(batches, None))) is not None:
            yield batch.rename_columns(column_names(batch.column_names))

    def _strings(self, file: Path) -> Iterator[pa.Table]:
        return (pa.Table.from_batches([batch]) for batch in string_batches(file, self.separator, self.encoding))

    def _values(self, file: Path) -> Iterator[pa.Table]:
        rows = json_rows(file, self.encoding)
        while some := list(islice(rows, ROWS)):
            names = dict.fromkeys(name for _, row in some for name in row)
            columns = {name: _json_column(file, name, [(line, row.get(name)) for line, row in some]) for name in names}
            yield pa.table(columns)


def _json_column(file: Path, name: str, cells: Sequence[tuple[int, Any]]) -> pa.Array:
    try:
        return pa.array([cell for _, cell in cells])
    except (pa.ArrowException, OverflowError) as error:
        found = {type(cell): (line, cell) for line, cell in reversed(cells) if cell is not None}
        shown = " and ".join(f"{str(cell)[:40]!r} in line {line}" for line, cell in found.values())
        raise ValueError(f"{file}, column {name!r}: {shown} do not fit together; give values of one type") from error


def _read(
    splits: Mapping[str, Sequence[Path]], read: _Reader, types: _Types, streaming: bool
) -> Mapping[str, Dataset | IterableDataset]:
    """The splits, with types that are those of all of their cells together."""
    kept: dict[str, list[tuple[Path, pa.Table]]] = {split: [] for split in splits}
    for split, files in splits.items():
        for file in files:
            for table in read(file):
                types.add(file, table)
                if not streaming:
                    kept[split].append((file, table))
    types.decide(", ".join(str(file) for files in splits.values() for file in files))
    if not streaming:
        empty = types.schema.empty_table()
        return {
            split: Dataset(pa.concat_tables([empty, *(types.convert(*part) for part in parts)]))
            for split, parts in kept.items()
        }
    info = DatasetInfo(features=Features.from_arrow_schema(types.schema))
    streams = {}
    for split, files in splits.items():
        rows = ArrowExamplesIterable(_stream, {"files": list(files), "read": read, "types": types})
        streams[split] = IterableDataset(rows, info=info)
    return streams


def _stream(files: list[Path], read: _Reader, types: _Types) -> Iterator[tuple[str, pa.Table]]:
    for file in files:
        for number, table in enumerate(read(file)):
            yield f"{file}_{number}", types.convert(file, table)


@dataclass
class _Types:
    """The types of the columns of a table: found in all of its files (`add`, `decide`), then used to convert them."""

    patterns: Sequence[str]
    separator: str
    decimal: str | None
    text_columns: Sequence[str]
    date_columns: Mapping[str, str | None]
    cells: dict[str, Cells] = field(default_factory=dict)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    chosen: dict[str, CellType] = field(default_factory=dict)

    def add(self, file: Path, table: pa.Table) -> None:
        """Considers further rows.

        Raises:
            ValueError: their columns do not fit those before.
        """
        if self.schema and "whole" in self.patterns and set(self.schema.names) != set(table.schema.names):
            raise ValueError(
                f"{file} has the columns {', '.join(table.schema.names)}, and the files before "
                f"{', '.join(self.schema.names)}; give all files the same columns, in any order, or load each alone"
            )
        try:
            self.schema = pa.unify_schemas([self.schema, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{file}: {error}; give each column values of one type") from error
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type):
                possible = set() if name in self.text_columns else set(self.patterns)
                for chunk in column.chunks:
                    self.cells.setdefault(name, Cells(possible)).add(chunk)

    def decide(self, files: str) -> None:
        """Chooses the types of the columns of these files.

        Raises:
            ValueError: there are no rows, a chosen column does not exist, or see `cell_types`.
        """
        if not self.schema:
            raise ValueError(f"{files}: there are no rows; give another file")
        if absent := [name for name in (*self.text_columns, *self.date_columns) if name not in self.cells]:
            raise ValueError(
                f"text_columns or date_columns names {absent[0]!r}, which {files} does not have as text; it has "
                f"{', '.join(self.cells)}"
            )
        try:
            self.chosen = cell_types(self.cells, self.decimal, self.separator, self.date_columns)
        except ValueError as error:
            raise ValueError(f"{files}: {error}") from error
        fields = [
            (name, self.chosen[name].arrow if name in self.chosen else self.schema.field(name).type)
            for name in self.schema.names
        ]
        self.schema = pa.schema(fields)

    def convert(self, file: Path, table: pa.Table) -> pa.Table:
        """The rows with values of their types.

        Raises:
            ValueError: a cell does not have the type; the message names column and cell.
        """
        columns = []
        for name, kind in zip(self.schema.names, self.schema.types, strict=True):
            cells = table[name].combine_chunks() if name in table.column_names else pa.nulls(len(table))
            try:
                columns.append(self.chosen[name].convert(cells) if pa.types.is_string(cells.type) else cells.cast(kind))
            except ValueError as error:
                raise ValueError(f"{file}, column {name!r}: {error}") from error
        return pa.table(columns, schema=self.schema)
