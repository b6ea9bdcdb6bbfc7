"""Local files: which belong to which split, how their bytes become text, and the rows of JSON."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from fsspec.implementations.local import LocalFileSystem
from transformers.utils import logging

logger = logging.get_logger(__name__)

BLOCK = 2**20
"""Bytes that are read at once."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte order mark."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
SPLIT = re.compile(r"(?:^|[^a-z])(?:(train(?:ing)?)|(valid(?:ation)?|val|dev)|(test(?:ing)?|eval(?:uation)?))(?![a-z])")
"""The words in the path of a file that name its split, as in `datasets`."""


def local_files(source: str | os.PathLike[str], readers: Mapping[str, str]) -> dict[str, list[Path]]:
    """The files of a local file or folder by split, those of the most frequent reader; nothing if `source` is neither.

    A file belongs to the split that its name, or that of a folder in `source`, spells (train, validation, test …), or else
    to "train". A folder whose README names the files of its splits is left to `datasets`.

    Args:
        readers: names of readers by suffix.

    Raises:
        ValueError: it is a file of an unknown suffix, a folder without a file to read, or the path of no file.
    """
    path = Path(source)
    if path.is_file():
        if reader_of(path, readers) is None:
            raise ValueError(f"source={str(source)!r} has an unknown suffix; give one of {', '.join(readers)}")
        return {"train": [path]}
    if not path.is_dir():
        if path.is_absolute() or reader_of(path, readers):
            raise ValueError(
                f"source={str(source)!r} does not exist; give a file, a folder, or the id of a hub data set"
            )
        return {}
    readme = path / "README.md"
    if readme.is_file() and re.search(r"^configs:", readme.read_text(encoding="utf-8", errors="replace"), re.M):
        return {}
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    found = {file: reader for file in files if (reader := reader_of(file, readers))}
    if not found:
        raise ValueError(f"source={str(source)!r} is a folder without a file of {', '.join(readers)}; give another")
    usual = Counter(found.values()).most_common(1)[0][0]
    splits: dict[str, list[Path]] = {}
    for file, reader in found.items():
        if reader == usual:
            splits.setdefault(_split_of(file.relative_to(path)), []).append(file)
        else:
            logger.warning(f"{file} is not read: most files of {path} are {usual}")
    return splits


def reader_of(file: Path, readers: Mapping[str, str]) -> str | None:
    """The reader of a file; a compressed one (`.jsonl.gz`) is recognised by the suffix before."""
    return next((readers[suffix.lower()] for suffix in file.suffixes if suffix.lower() in readers), None)


def _split_of(file: Path) -> str:
    if shard := SHARD.fullmatch(file.name.split(".")[0]):
        return shard[1]
    words = SPLIT.search("/".join(file.parts).lower())
    return "train" if words is None else ("train", "validation", "test")[cast(int, words.lastindex) - 1]


def open_bytes(file: Path) -> IO[bytes]:
    """The content of a file, decompressed."""
    return cast(IO[bytes], LocalFileSystem().open(str(file.absolute()), "rb", compression="infer"))


def encoding_of(file: Path) -> str:
    """UTF-8, or UTF-16 or 32 by the byte order mark; Windows-1252 or Latin-1 for all else, with a warning.

    Raises:
        ValueError: it is not text, or UTF-8 but for some bytes.
    """
    with open_bytes(file) as stream:
        head = stream.read(BLOCK)
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > 0.2 * len(head):  # letters of most languages: every other byte is 0
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    if any(zeros):
        raise ValueError(f"{file} holds bytes that are 0, which no text has; give a text file")
    for name in ("utf-8", "cp1252", "latin-1"):
        decoder = codecs.getincrementaldecoder(name)()
        try:
            with open_bytes(file) as stream:
                while block := stream.read(BLOCK):
                    decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            if name == "utf-8":
                _check_not_utf_8(file)
            continue
        if name != "utf-8":
            logger.warning(f"{file} is not UTF-8; it is read as {name}. Give encoding=… if that is wrong")
        return name
    raise AssertionError("Latin-1 decodes everything")


def _check_not_utf_8(file: Path) -> None:
    """
    Raises:
        ValueError: the file holds characters of UTF-8 beside bytes that are none; in another encoding they are garbled.
    """
    bad, found = None, False
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                found |= not line.decode("utf-8").isascii()
            except UnicodeDecodeError as error:
                bad = bad or (number, line[error.start])
                found |= not line.decode("utf-8", "ignore").isascii()
            if bad and found:
                raise ValueError(
                    f"{file}, line {bad[0]}: the byte 0x{bad[1]:02X} is not UTF-8, and the file holds characters of UTF-8; "
                    'correct it, or give the encoding of the file, such as encoding="cp1252"'
                )


def open_text(file: Path, encoding: str | None = None) -> io.TextIOWrapper:
    """The text of a file, with `\\n` at the end of its lines; in its own encoding by default (`encoding_of`).

    Raises:
        ValueError: Python has no such encoding.
    """
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(
            f"encoding={encoding!r} is unknown; give one that Python has, such as utf-8 or latin-1"
        ) from error
    return io.TextIOWrapper(cast(Any, open_bytes(file)), encoding=encoding or encoding_of(file))


def named(file: Path, read: Callable[[], Any]) -> Any:
    """The result of `read`, with errors of the encoding as ones that name the file and the cure.

    Raises:
        ValueError: the file is not text of its encoding.
    """
    try:
        return read()
    except UnicodeError as error:
        raise ValueError(
            f"{file} is not text of this encoding ({error}); give another encoding=…, or leave it out"
        ) from error


def json_rows(file: Path, encoding: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a JSON file: a row a line, or a list of rows, which have their number for a line.

    Raises:
        ValueError: a line is not JSON, a row is not an object, or an object has two values of one name.
    """
    encoding = encoding or encoding_of(file)
    with open_text(file, encoding) as stream:
        first = next((line.strip() for line in stream if line.strip()), "")
    with open_text(file, encoding) as stream:
        for line, row in _list(file, stream.read()) if first.startswith("[") or first == "{" else _lines(file, stream):
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {line}: {str(row)[:40]!r} is no row; give an object with the columns")
            yield line, row


class _Twice(ValueError):
    """An object of JSON has two values of one name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return content


def _lines(file: Path, stream: IO[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        try:
            if line.strip():
                yield number, json.loads(line, object_pairs_hook=_object)
        except _Twice as error:
            raise ValueError(f"{file}, line {number}, has two values of {str(error)!r}; delete one") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}, is not JSON ({error}); correct or delete it") from error


def _list(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except _Twice as error:
        raise ValueError(
            f"{file}, line {_line_of_twice(text)}, has two values of {str(error)!r}; delete one"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); correct it, or give one row a line") from error
    if not isinstance(content, list):
        raise ValueError(
            f"{file} holds one object; give a list of rows, or one row a line (in pandas orient='records')"
        )
    yield from enumerate(content, 1)


def _line_of_twice(text: str) -> int:
    """The line where the row begins in which an object has two values of one name."""
    decoder, between, at = json.JSONDecoder(object_pairs_hook=_object), re.compile(r"[\s\[\],]*"), 0
    while True:
        at = cast(Any, between.match(text, at)).end()
        try:
            at = decoder.raw_decode(text, at)[1]
        except _Twice:
            return text.count("\n", 0, at) + 1
