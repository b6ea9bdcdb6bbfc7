"""Prompts with completions, and conversations, from local files or from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetsError

from gm_discrete.data.files import json_rows, local_files, named, reader_of
from gm_discrete.data.reading import choose_split, read_splits

READERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
COLUMNS = ("messages", "prompt", "completion")

PAIRS = Features({"prompt": Value("string"), "completion": Value("string")})
CONVERSATIONS = Features(
    {"messages": List({"role": Value("string"), "content": Value("string"), "weight": Value("int8")})}
)


def load_chat(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads one split of a data set of prompts with completions, or of conversations, for `tokenize_chat`.

    A row has the columns `prompt` and `completion`, two texts; or `messages`, a list of {"role", "content"}, in which a
    message may have a `weight`, 0 if it is not scored. A `prompt` and a `completion` may also be lists of messages: those of
    the prompt are then not scored. Rows come back as `{"prompt", "completion"}`, or as `{"messages"}` with weights; other
    columns are left out. If the source has no validation split, random rows are held out of the training split.

    Args:
        source: a .json, .jsonl or .parquet file, a folder of such files, or the id of a hub data set.
        split: "train", "validation", or another split of the source.
        name: configuration of a hub data set.
        columns: names in the source of `messages`, `prompt` and `completion`, where they differ.
        encoding: of local files; by default it is found from their content.
        validation_size: size of the held-out split, a fraction or a number of rows; by default 0.05; 0 for none.
        cache_dir: folder for downloads and converted files; the cache of `datasets` by default.

    Raises:
        ValueError: the source or the split does not exist, a row lacks the columns or holds something else in them, or
            `validation_size` leaves nothing to train on.
    """
    if unknown := (columns or {}).keys() - set(COLUMNS):
        raise ValueError(f"columns names {', '.join(sorted(unknown))}; give names of {', '.join(COLUMNS)}")
    names = {column: (columns or {}).get(column, column) for column in COLUMNS}
    files = {} if name else local_files(source, READERS)
    folder: Any = None if cache_dir is None else str(cache_dir)
    if not files or reader_of(next(iter(files.values()))[0], READERS) == "parquet":
        options: dict[str, Any] = {"data_files": files} if files else {}
        accepted = "a json, jsonl or parquet file, a folder of them, or a hub id"
        splits: Any = read_splits("parquet" if files else source, name, accepted, cache_dir, **options)
        rows = choose_split(splits, source, split, validation_size)
        return _checked_columns(rows, str(source), names)
    splits = {}
    for part, group in files.items():
        arguments = {"files": [str(file) for file in group], "names": names, "encoding": encoding}
        first = next(_json_rows(**arguments), None)
        if first is None:
            raise ValueError(
                f"source={str(source)!r} is empty: {', '.join(arguments['files'])} without rows; give another"
            )
        arguments["versions"] = [file.stat().st_mtime_ns for file in group]  # the cache is found by the arguments
        features = PAIRS if "prompt" in first else CONVERSATIONS
        try:
            splits[part] = Dataset.from_generator(_json_rows, features, cache_dir=folder, gen_kwargs=arguments)
        except DatasetsError as error:
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            raise ValueError(f"source={str(source)!r} cannot be read ({error.__cause__ or error})") from error
    return choose_split(splits, source, split, validation_size)


def _json_rows(
    files: Sequence[str], names: Mapping[str, str], encoding: str | None, versions: Sequence[int] = ()
) -> Iterator[dict[str, Any]]:
    kind = None
    for file in map(Path, files):
        rows = json_rows(file, encoding)
        while (found := named(file, lambda rows=rows: next(rows, None))) is not None:
            row = checked_row(found[1], names, f"{file}, line {found[0]}")
            kind = kind or set(row)
            if set(row) != kind:
                raise ValueError(
                    f"{file}, line {found[0]}, has {' and '.join(row)}, and rows before it {' and '.join(sorted(kind))}; "
                    "give rows of one kind"
                )
            yield row


def _checked_columns(rows: Dataset, source: str, names: Mapping[str, str]) -> Dataset:
    """The rows of a data set with their columns as `load_chat` returns them."""
    if not len(rows):
        raise ValueError(f"source={source!r} is empty; give at least one row")
    features = PAIRS if "prompt" in checked_row(rows[0], names, f"{source}, row 0") else CONVERSATIONS

    def checked(row: dict[str, Any], index: int) -> dict[str, Any]:
        return checked_row(row, names, f"{source}, row {index}")

    return rows.map(
        checked, with_indices=True, remove_columns=rows.column_names, features=features, desc="Reading conversations"
    )


def checked_row(row: Mapping[str, Any], names: Mapping[str, str], place: str) -> dict[str, Any]:
    """The row of a source as one of `load_chat`.

    Args:
        names: the columns of the source by those of `load_chat`.
        place: of the row, for the error message.

    Raises:
        ValueError: it has no such columns, or they hold something else.
    """
    messages, prompt, completion = (row.get(names[column]) for column in COLUMNS)
    if messages is not None:
        return {"messages": checked_messages(messages, place, names["messages"])}
    if prompt is None or completion is None:
        wanted = f"{names['messages']!r}, or {names['prompt']!r} and {names['completion']!r}"
        raise ValueError(f"{place} has {', '.join(row) or 'no columns'}; give {wanted}, or other names in columns")
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": completion}
    before = checked_messages(prompt, place, names["prompt"])
    after = checked_messages(completion, place, names["completion"])
    return {"messages": [*({**message, "weight": 0} for message in before), *after]}


def checked_messages(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """The messages of a conversation, each with a role, a content and a weight.

    Raises:
        ValueError: it is no list of messages with texts.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{place}: {column!r} is {str(value)[:40]!r}; give a list of messages, at least one")
    found = []
    for message in value:
        role, content = (
            (message.get(key) for key in ("role", "content")) if isinstance(message, Mapping) else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"{place}: {column!r} holds {str(message)[:60]!r}; give messages with a role and a content, two texts "
                "(tools and pictures are not supported)"
            )
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            raise ValueError(f"{place}: a message of {column!r} has weight={weight!r}; give 0, 1 or none")
        found.append({"role": role, "content": content, "weight": 1 if weight is None else int(weight)})
    return found
