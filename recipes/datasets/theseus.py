"""Packaged protein chains: lactate and malate dehydrogenases, trypsins, cytochromes c and three NMR structures."""

from __future__ import annotations

import gzip
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from gm_discrete.data.proteins import Chain, chain_example, chain_of_atoms, read_chains
from recipes.datasets.packages import atomic_file, cache_file, require, unpack_debian

CacheDir = str | os.PathLike[str] | None
THESEUS = "theseus.npz"
PACKAGE = "theseus-examples"
EXAMPLES = "usr/share/doc/theseus/examples"
SPLITS = ("train", "validation", "test")
SAME_FAMILY = 0.4
"""Identity of two sequences above which they are of one family, as in the subset ASTRAL 40 of SCOP."""
GAP = ord("-")


def load_theseus(split: str = "train", cache_dir: CacheDir = None) -> Dataset:
    """Protein chains of the Debian package `theseus-examples`: a chain per row, as `FrameCollator` takes it.

    Columns: `rotation`, `translation` and `residue` (see `chain_example`), `name`, `fold` and `family`. 494 chains with
    122,257 residues, 67 to 374 each: 225 lactate and malate dehydrogenases, 189 trypsins, 10 cytochromes c, and the 70
    models of three NMR structures.

    A family is in one split. Sequences of one fold with more than 40 % identity are of one family, and so are all that a
    chain of such pairs connects. Families of less than a tenth of their fold are for validation and test, in turn by size;
    larger ones, and folds of one family, are for training. So sequences are held out, but no fold: that of each chain for
    validation and test is in the training split.

    Args:
        split: "train", "validation" or "test".
        cache_dir: folder for the chains; the Hugging Face cache by default.

    Raises:
        FileNotFoundError: `download_theseus` has not been called.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not in theseus; give one of {', '.join(SPLITS)}")
    chains, folds, families = _cached(cache_dir)
    parts = split_by_family(folds, families)
    rows = [
        {"name": chain.name, "fold": fold, "family": family, **chain_example(chain)}
        for chain, fold, family, part in zip(chains, folds, families, parts, strict=True)
        if part == split
    ]
    return Dataset.from_list(rows).with_format("numpy")


def theseus_chains(split: str = "train", cache_dir: CacheDir = None) -> list[Chain]:
    """The chains of `load_theseus` as they were measured, in the same order.

    Raises:
        FileNotFoundError: `download_theseus` has not been called.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not in theseus; give one of {', '.join(SPLITS)}")
    chains, folds, families = _cached(cache_dir)
    return [chain for chain, part in zip(chains, split_by_family(folds, families), strict=True) if part == split]


def download_theseus(cache_dir: CacheDir = None, folder: str | os.PathLike[str] | None = None) -> Path:
    """Downloads the Debian package `theseus-examples` (21 MB), keeps the backbones of its chains, and returns the file.

    It needs Debian's `apt-get` and `dpkg-deb`, but no root rights, and installs nothing.

    Args:
        cache_dir: folder for the chains; the Hugging Face cache by default.
        folder: where the package is unpacked already, in place of a download.

    Raises:
        ImportError: gemmi is not installed.
        FileNotFoundError: `folder` is not that of the package.
        RuntimeError: a command is missing or fails.
    """
    require("gemmi", extra="proteins")
    target = cache_file(THESEUS, cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            if folder is None:
                unpack_debian(PACKAGE, draft.parent)
            examples = Path(folder or draft.parent) / EXAMPLES
            if not examples.is_dir():
                raise FileNotFoundError(f"{examples} does not exist; give the folder of the unpacked package {PACKAGE}")
            _save(draft, examples)
    return target


def families_of(names: Sequence[str], aligned: Sequence[str]) -> dict[str, str]:
    """The family of each sequence: the first name of those that more than 40 % identity connects.

    Identity is the number of columns of an alignment in which two sequences have the same letter, over the letters of the
    shorter one.

    Args:
        names: of the sequences.
        aligned: the sequences, with gaps "-", all of one length.
    """
    letters = np.array([np.frombuffer(sequence.encode("ascii"), np.uint8) for sequence in aligned])
    sizes = (letters != GAP).sum(1)
    first = np.arange(len(names))
    same = np.stack([((letters == row) & (row != GAP)).sum(1) for row in letters])
    near = same > SAME_FAMILY * np.minimum(sizes, sizes[:, None])
    while True:  # the lowest number spreads along pairs
        lower = np.where(near, first, len(names)).min(1)
        if (lower == first).all():
            return {name: names[index] for name, index in zip(names, first.tolist(), strict=True)}
        first = lower


def split_by_family(folds: Sequence[str], families: Sequence[str]) -> list[str]:
    """The split of each chain, by its fold and family (see `load_theseus`)."""
    chains: dict[str, Counter[str]] = defaultdict(Counter)
    for fold, family in zip(folds, families, strict=True):
        chains[fold][family] += 1
    held_out: dict[str, str] = {}
    for members in chains.values():
        small = sorted((-size, family) for family, size in members.items() if 10 * size < members.total())
        held_out |= {family: SPLITS[1 + place % 2] for place, (_, family) in enumerate(small)}
    return [held_out.get(family, "train") for family in families]


def _save(file: Path, examples: Path) -> None:
    chains, folds, families = zip(*_read(examples), strict=True)
    arrays: dict[str, NDArray[np.generic]] = {
        "name": np.array([chain.name for chain in chains]),
        "fold": np.array(folds),
        "family": np.array(families),
        "length": np.array([len(chain) for chain in chains]),
        "atoms": np.concatenate([chain.atoms for chain in chains]),
        "numbers": np.concatenate([chain.numbers for chain in chains]),
        "sequence": np.frombuffer("".join(chain.sequence for chain in chains).encode("ascii"), np.uint8),
        "insertions": np.frombuffer("".join(chain.insertions for chain in chains).encode("ascii"), np.uint8),
    }
    with file.open("wb") as stream:  # savez would add .npz to another name
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _read(examples: Path) -> Iterator[tuple[Chain, str, str]]:
    """Chains with their fold, that of their folder or else of their file, and family."""
    families: dict[str, str] = {}
    for file in sorted(examples.glob("*/*.a2m.gz")):  # alignments of the two large folds
        text = gzip.decompress(file.read_bytes()).decode("ascii")
        records = [record.split("\n") for record in text.split(">")[1:]]
        families |= families_of([record[0].strip() for record in records], ["".join(record[1:]) for record in records])
    for file in sorted(examples.rglob("*.pdb.gz")):
        fold = file.name.removesuffix(".pdb.gz") if file.parent == examples else file.parent.name
        family = families.get(file.name.removesuffix(".gz"), fold)
        for chain in read_chains(file, models="all"):
            yield chain, fold, family


def _cached(cache_dir: CacheDir) -> tuple[list[Chain], list[str], list[str]]:
    file = cache_file(THESEUS, cache_dir)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; run recipes.datasets.download_theseus() once (Debian, 21 MB)")
    with np.load(file) as stored:
        arrays = dict(stored)
    ends = arrays["length"].cumsum()
    text = {name: arrays[name].tobytes().decode("ascii") for name in ("sequence", "insertions")}
    chains = []
    for name, start, end in zip(arrays["name"].tolist(), ends - arrays["length"], ends, strict=True):
        part = slice(start, end)
        atoms, numbers = arrays["atoms"][part], arrays["numbers"][part]
        chains.append(chain_of_atoms(name, text["sequence"][part], atoms, numbers, text["insertions"][part]))
    return chains, arrays["fold"].tolist(), arrays["family"].tolist()
