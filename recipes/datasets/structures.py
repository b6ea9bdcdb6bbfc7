"""Protein chains for training: of the packaged data set, or of a folder of PDB and mmCIF files."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from gm_discrete.data.proteins import Chain, chain_example, read_chains
from recipes.datasets.theseus import SPLITS, theseus_chains

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
"""Of files with structures, which may also be gzipped."""


def load_proteins(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    shortest: int = 40,
    held_out: float = 0.05,
    cache_dir: str | os.PathLike[str] | None = None,
) -> list[Chain]:
    """Unbroken chains: those of the data set, cut wherever a residue is not bonded to the one before.

    Args:
        source: "theseus" (see `load_theseus`), whose splits are by family; or a folder, of which all PDB and mmCIF files,
            plain or gzipped, are read, also in folders in it. Files that cannot be read are named and left out.
        split: "train", "validation" or "test".
        shortest: chains of fewer residues are left out.
        held_out: share of the files of a folder for validation, and the same for test. A hash of its name, up to the
            first point or underscore, decides on a file: so files that are added later change no other file's split, and
            1abc.pdb and 1abc_B.pdb share one. Related proteins of other names may be in different splits: cluster them by
            sequence beforehand, and name each file after its cluster.
        cache_dir: of the packaged data.

    Raises:
        FileNotFoundError: the folder does not exist, or the packaged data were not downloaded.
        ValueError: there is no such split, or no chain in it.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    if not 0 <= held_out < 0.5:
        raise ValueError(f"held_out={held_out} must be in [0, 0.5): two splits have this share of the files")
    packaged = str(source) == "theseus"
    chains = theseus_chains(split, cache_dir) if packaged else _read(Path(source), split, held_out)
    found = [piece for chain in chains for piece in unbroken(chain) if len(piece) >= shortest]
    if not found:
        raise ValueError(f"{source} has no chain of {shortest} or more residues for split={split!r}; give more files")
    return found


def frame_rows(chains: list[Chain]) -> Dataset:
    """A data set for `FrameCollator`, a chain per row."""
    return Dataset.from_list([{"name": chain.name, **chain_example(chain)} for chain in chains]).with_format("torch")


def unbroken(chain: Chain) -> list[Chain]:
    """The parts of a chain between its breaks, in their order."""
    starts = np.flatnonzero(chain.breaks).tolist()
    ends = [*starts[1:], len(chain)]
    return [_part(chain, slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def windows(chains: list[Chain], length: int) -> list[Chain]:
    """Successive parts of `length` residues, and shorter chains as they are; what is left at an end is dropped."""
    return [
        _part(chain, slice(start, start + length))
        for chain in chains
        for start in range(0, max(1, len(chain) - length + 1), length)
    ]


def _part(chain: Chain, part: slice) -> Chain:
    breaks = chain.breaks[part].copy()
    breaks[0] = True
    name = f"{chain.name}/{part.start}"
    return Chain(name, chain.sequence[part], chain.atoms[part], chain.numbers[part], chain.insertions[part], breaks)


def _read(folder: Path, split: str, held_out: float) -> Iterator[Chain]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one of PDB or mmCIF files, or 'theseus'")
    for file in sorted(folder.rglob("*")):
        if Path(file.name.removesuffix(".gz")).suffix.lower() in SUFFIXES and _split(file, held_out) == split:
            try:
                yield from read_chains(file)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)


def _split(file: Path, held_out: float) -> str:
    name = file.name.partition(".")[0].partition("_")[0].lower()
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:4], "big") / 2**32
    return SPLITS[2] if place < held_out else SPLITS[1] if place < 2 * held_out else SPLITS[0]
