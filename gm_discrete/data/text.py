"""Text from local files or from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetsError

from gm_discrete.data.delimited import string_batches
from gm_discrete.data.files import json_rows, local_files, named, open_text, reader_of
from gm_discrete.data.reading import choose_split, read_splits

READERS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".smi": "smiles",
    ".smiles": "smiles",
    ".parquet": "parquet",
}
"""The kind of each suffix; a compressed file (`.jsonl.gz`) is recognised by the suffix before."""

SampleBy = Literal["document", "line", "paragraph"]
TEXT = Features({"text": Value("string")})


def load_text(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    name: str | None = None,
    text_column: str = "text",
    streaming: bool = False,
    sample_by: SampleBy = "document",
    encoding: str | None = None,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of a text data set, with the single column `text`.

    If the source has no validation split, it is held out of the training split: the last rows of a data set (the last
    characters of a single row), or the first rows of a stream.

    Args:
        source: a .txt, .csv, .json, .jsonl, .parquet or .smi file, a folder of such files, or the id of a hub data set. A
            row of a .smi file is the first word of a line, which is the SMILES of a molecule.
        split: "train", "validation", or another split of the source.
        name: configuration of a hub data set, such as "wikitext-103-raw-v1".
        text_column: the column of the source that holds the text.
        streaming: read rows on demand; returns an `IterableDataset`.
        sample_by: what one row of a .txt file is; lines and paragraphs that are empty are left out. A row is tokenised at
            once, which takes about 100 bytes per token.
        encoding: of local files; by default UTF-8, or UTF-16 with a byte order mark, or else Windows-1252.
        validation_size: size of the held-out split, a fraction or a number of rows: by default 0.05, for a stream 1000
            rows; 0 for none.
        cache_dir: folder for downloads and converted files; the cache of `datasets` by default.

    Raises:
        ValueError: the source, the split or the column does not exist, the split is empty, a row has no text, or
            `validation_size` leaves nothing to train on.
    """
    if sample_by not in ("document", "line", "paragraph"):
        raise ValueError(f"sample_by={sample_by!r} must be 'document', 'line' or 'paragraph'")
    splits: Any = _read(source, name, text_column, streaming, sample_by, encoding, cache_dir)
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
    column: str,
    streaming: bool,
    sample_by: SampleBy,
    encoding: str | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Any:
    files = {} if name else local_files(source, READERS)
    kind = reader_of(next(iter(files.values()))[0], READERS) if files else None
    if kind in (None, "parquet"):
        options: dict[str, Any] = {"data_files": files} if files else {}
        accepted = "a txt, csv, json, parquet or smi file, a folder of them, or a hub id"
        return read_splits(kind or source, name, accepted, cache_dir, streaming=streaming, **options)
    splits = {}
    for split, group in files.items():
        arguments: dict[str, Any] = {"kind": kind, "column": column, "sample_by": sample_by, "encoding": encoding}
        arguments["files"] = [str(file) for file in group]
        arguments["versions"] = [file.stat().st_mtime_ns for file in group]  # the cache is found by the arguments
        if next(_texts(**arguments), None) is None:
            raise ValueError(
                f"source={str(source)!r} is empty: {', '.join(arguments['files'])} without text; give another"
            )
        try:
            if streaming:
                splits[split] = IterableDataset.from_generator(_texts, features=TEXT, gen_kwargs=arguments)
            else:
                folder: Any = None if cache_dir is None else str(cache_dir)
                splits[split] = Dataset.from_generator(_texts, features=TEXT, gen_kwargs=arguments, cache_dir=folder)
        except DatasetsError as error:
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise ValueError(f"source={str(source)!r} cannot be read ({error.__cause__ or error})") from error
    return splits


def _texts(
    files: Sequence[str], versions: Sequence[int], kind: str, column: str, sample_by: SampleBy, encoding: str | None
) -> Iterator[dict[str, str]]:
    for name in files:
        file = Path(name)
        if kind == "text":
            texts = _of_text(file, sample_by, encoding)
        elif kind == "smiles":
            texts = _of_smiles(file, encoding)
        else:
            texts = (_of_json if kind == "json" else _of_csv)(file, column, encoding)
        while (text := named(file, lambda texts=texts: next(texts, None))) is not None:
            yield {"text": text}


def _of_text(file: Path, sample_by: SampleBy, encoding: str | None) -> Iterator[str]:
    with open_text(file, encoding) as stream:
        if sample_by == "document":
            if text := stream.read():
                yield text
        elif sample_by == "line":
            yield from (line.rstrip("\n") for line in stream if line.strip())
        else:
            for full, lines in groupby(stream, lambda line: bool(line.strip())):
                if full:
                    yield "".join(lines).rstrip("\n")


def _of_smiles(file: Path, encoding: str | None) -> Iterator[str]:
    with open_text(file, encoding) as stream:
        yield from (line.split()[0] for line in stream if line.strip())


def _of_json(file: Path, column: str, encoding: str | None) -> Iterator[str]:
    for line, row in json_rows(file, encoding):
        if column not in row:
            raise ValueError(
                f"text_column={column!r} is not in source={str(file)!r}, line {line}; it has {', '.join(row)}"
            )
        if not isinstance(row[column], str):
            raise ValueError(f"{file}, line {line}: {column!r} is {row[column]!r}, no text; correct or delete the line")
        yield row[column]


def _of_csv(file: Path, column: str, encoding: str | None) -> Iterator[str]:
    for batch in string_batches(file, None, encoding):
        if column not in batch.column_names:
            raise ValueError(
                f"text_column={column!r} is not in source={str(file)!r}; it has {', '.join(batch.column_names)}"
            )
        yield from (text for text in batch[column].to_pylist() if text)


def _select_text(
    rows: Dataset | IterableDataset, source: str | os.PathLike[str], column: str
) -> Dataset | IterableDataset:
    if rows.features == TEXT:
        return rows
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
