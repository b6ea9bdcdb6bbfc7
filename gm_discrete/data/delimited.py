"""Text files with a separator between cells: which separator it is, and their cells as strings."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from gm_discrete.data.files import encoding_of, named, open_bytes, open_text

SEPARATORS = (",", ";", "\t", "|")
SAMPLE = 2**18
"""Characters from which the separator is found; the whole file is then checked against it."""
SEPARATOR_LINE = re.compile(r"sep=([^\n])\n", re.IGNORECASE)
"""The line in which Excel names the separator."""
CHUNK = 2**24
"""Bytes that are read at once; a row must fit."""


def separator_of(file: Path, encoding: str) -> str:
    """The separator that cuts the first line and all others into equally many cells, and into most; a comma if none does.

    Excel names it in a line of its own before the others, `sep=;`.
    """
    with open_text(file, encoding) as stream:
        sample = named(file, lambda: stream.read(SAMPLE))
    if line := SEPARATOR_LINE.match(sample):
        return line[1]
    counts: dict[str, list[int]] = {}
    for separator in SEPARATORS:
        rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator) if row]
        counts[separator] = [len(row) for row in (rows[:-1] if len(sample) == SAMPLE else rows)] or [1]
    splits = [separator for separator in SEPARATORS if counts[separator][0] > 1] or list(SEPARATORS)
    even = [separator for separator in splits if len(set(counts[separator])) == 1]
    return max(even or splits, key=lambda separator: counts[separator][0])


def string_batches(file: Path, separator: str | None, encoding: str | None) -> Iterator[pa.RecordBatch]:
    """The cells of a file as strings, batch by batch.

    Raises:
        ValueError: the file is empty, two columns have one name, a row has another number of cells than the first line, or
            a quotation mark is not closed.
    """
    encoding = encoding or encoding_of(file)
    separator = separator or separator_of(file, encoding)
    skipped, names = named(file, lambda: _first_row(file, separator, encoding))
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file} has more than one column {twice[0]!r} in its first line; rename all but one")
    bad: list[Any] = []

    def refuse(row: Any) -> str:
        bad.append(row)
        return "error"

    try:
        with open_bytes(file) as stream:
            batches = arrow_csv.open_csv(
                stream,
                arrow_csv.ReadOptions(use_threads=False, block_size=CHUNK, encoding=encoding, skip_rows=skipped),
                arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
                arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}),
            )
            last = None
            for batch in batches:
                yield batch
                last = batch if len(batch) else last
    except pa.ArrowInvalid as error:
        if not bad:
            raise ValueError(f"{file} cannot be read as a table: {error}") from error
        row = bad[0]
        raise ValueError(
            f"{file}, row {row.number}: {row.actual_columns} cells between {separator!r}, and the first line has "
            f"{row.expected_columns}; correct the row ({row.text[:60]!r}), or give separator=…"
        ) from error
    if last is not None and "\n" in (last[-1][-1].as_py() or "") and not _ends_with_quote(file, encoding):
        raise ValueError(
            f"{file}: the last row has a quotation mark that is never closed: {last[-1][-1].as_py()[:60]!r}"
        )


def _first_row(file: Path, separator: str, encoding: str) -> tuple[int, list[str]]:
    """How many lines precede the first row, 0 or 1, and that row."""
    with open_text(file, encoding) as stream:
        first = stream.readline()
        named_there = bool(SEPARATOR_LINE.match(first))
        lines = stream if named_there else chain([first], stream)
        return int(named_there), next((row for row in csv.reader(lines, delimiter=separator) if row), [])


def _ends_with_quote(file: Path, encoding: str) -> bool:
    with open_text(file, encoding) as stream:
        return _tail(stream).rstrip().endswith('"')


def _tail(stream: IO[str]) -> str:
    tail = ""
    while block := stream.read(CHUNK):
        tail = (tail + block)[-1000:]
    return tail
