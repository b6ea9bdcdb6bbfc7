"""Protein chains: read from PDB and mmCIF files, and as frames of their residues."""

from __future__ import annotations

import gzip
import importlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gm_discrete.data import protein_geometry as geometry

if TYPE_CHECKING:
    import gemmi

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWYX"
"""The one-letter code of each symbol of the field `residue`: the twenty standard amino acids, and X for any other."""
UNKNOWN = AMINO_ACIDS.index("X")
CODES = (
    "ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU", "MET",
    "ASN", "PRO", "GLN", "ARG", "SER", "THR", "VAL", "TRP", "TYR", "UNK",
)  # fmt: skip
"""Three-letter codes in the order of `AMINO_ACIDS`."""
LETTERS = {**dict(zip(CODES, AMINO_ACIDS, strict=True)), "MSE": "M"}
"""Selenomethionine stands for methionine: it is put in its place to solve a crystal."""
BACKBONE = ("N", "CA", "C")
PDB_COLUMNS = 72
"""Columns of a PDB file that are read. Those after them hold no coordinates, and in files of before 1997 other things."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A protein chain of L residues, each with its N, CA and C.

    Args:
        name: of the file, the chain and, if all models were read, the model, such as `1abc:A:1`.
        sequence: L letters of `AMINO_ACIDS`.
        atoms: float32 [L, 3, 3], N, CA and C in Å.
        numbers: int64 [L], the residue numbers of the file's authors. They need not be unique: see `insertions`.
        insertions: L insertion codes, blank where there is none; 52A follows 52.
        breaks: bool [L], true where a residue is not bonded to the one before, because C and N are more than 2.5 Å apart;
            always at the first. A jump of `numbers` alone is no break: some authors number as a related protein is numbered.
    """

    name: str
    sequence: str
    atoms: NDArray[np.float32]
    numbers: NDArray[np.int64]
    insertions: str
    breaks: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sequence)


def read_chains(file: str | os.PathLike[str], models: Literal["first", "all"] = "first") -> list[Chain]:
    """The protein chains of a PDB or mmCIF file, plain or gzipped, in their order.

    A residue counts if it is an amino acid with N, CA and C. Others are left out, and so are water, ligands and nucleic
    acids. Of alternative locations, and of alternative residues at one place, the one with the highest occupancy is taken.

    Args:
        models: the first model of the file, or all of them, such as those of an NMR structure.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: gemmi is not installed.
        ValueError: the file is of another kind, damaged or cut off within a line, holds no such residue, a coordinate that
            is no finite number, or a residue whose atoms lie on one line or point.
    """
    if models not in ("first", "all"):
        raise ValueError(f"models={models!r} must be 'first' or 'all'")
    file = Path(file)
    structure = _structure(file)
    stem = file.name.removesuffix(".gz")
    stem = stem.rpartition(".")[0] or stem
    chains = []
    for place, model in enumerate(structure if models == "all" else list(structure)[:1]):
        for part in model:
            name = ":".join(filter(None, (stem, part.name.strip(), str(place + 1) if models == "all" else "")))
            residues = list(_residues(part))
            if residues:
                chains.append(_chain(name, residues, file))
    if not chains:
        raise ValueError(f"{file} has no amino acid with N, CA and C; give a file with the backbone of a protein")
    return chains


def chain_of_atoms(
    name: str, sequence: str, atoms: NDArray[np.float32], numbers: NDArray[np.int64], insertions: str
) -> Chain:
    """A `Chain` whose breaks are those of its atoms."""
    bonded = geometry.bonded(torch.from_numpy(atoms)).numpy()
    return Chain(name, sequence, atoms, numbers, insertions, np.concatenate([[True], ~bonded[:-1]]))


def chain_example(chain: Chain) -> dict[str, NDArray[Any]]:
    """A row of a data set for `FrameCollator`: `rotation` float32 [L, 4], `translation` [L, 3] in nm, `residue` int64 [L].

    Residues are numbered as in `AMINO_ACIDS`.

    Raises:
        ValueError: the chain has no residue, a letter is no amino acid, or N, CA and C of a residue make no frame.
    """
    if not len(chain) or len(chain.sequence) != len(chain.atoms):
        raise ValueError(f"chain {chain.name!r} has {len(chain.atoms)} residues and {len(chain.sequence)} letters")
    if unknown := set(chain.sequence) - set(AMINO_ACIDS):
        raise ValueError(f"chain {chain.name!r} has the letters {''.join(sorted(unknown))}; give {AMINO_ACIDS}")
    rotation, translation = geometry.frames_of(torch.from_numpy(chain.atoms), f"chain {chain.name!r}")
    residue = np.array([AMINO_ACIDS.index(letter) for letter in chain.sequence])
    return {"rotation": rotation.numpy(), "translation": translation.numpy(), "residue": residue}


def _structure(file: Path) -> gemmi.Structure:
    """The gemmi.Structure of a file."""
    try:
        gemmi = importlib.import_module("gemmi")
    except ImportError as error:
        raise ImportError("read_chains needs gemmi: pip install 'gm_discrete[proteins]'") from error
    data = file.read_bytes()
    try:
        text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is a damaged gzip file ({error}); fetch it anew") from error
    try:
        if _first_word(text).lower().startswith(b"data_"):
            block = gemmi.cif.read_string(text.decode("utf-8", "replace")).sole_block()
            return gemmi.make_structure_from_block(block)
        _check_pdb(text)
        return gemmi.read_pdb_string(text, max_line_length=PDB_COLUMNS)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} cannot be read ({error}); give a whole PDB or mmCIF file") from error


def _first_word(text: bytes) -> bytes:
    return next((line.strip() for line in text.splitlines() if line.strip() and not line.startswith(b"#")), b"")


def _check_pdb(text: bytes) -> None:
    """Checks coordinates of the backbone, which gemmi would read as 0 if they are no numbers, and the end of the file."""
    lines = text.splitlines()
    records = [number for number, line in enumerate(lines) if line.startswith((b"ATOM  ", b"HETATM"))]
    if not records:
        raise ValueError("it has neither a line that begins with ATOM, nor one that begins with data_")
    for number in records:
        line = lines[number]
        if line[12:16].strip() in (b"N", b"CA", b"C"):
            try:
                finite = all(math.isfinite(float(line[start : start + 8])) for start in (30, 38, 46))
            except ValueError:
                finite = False
            if not finite or len(line) < 54:
                shown = line[30:54].decode("latin-1")
                raise ValueError(f"line {number + 1} has the coordinates {shown!r}, which are not three finite numbers")
    last = len(lines) - 1
    if last == records[-1] and not text.endswith(b"\n") and len(lines[last]) < len(lines[last - 1]):
        raise ValueError(f"it is cut off in line {last + 1}")


def _residues(part: gemmi.Chain) -> Iterator[tuple[gemmi.Residue, list[list[float]]]]:
    """The amino acids of a gemmi.Chain with their N, CA and C."""
    found = []
    for _, group in groupby(part, key=lambda residue: residue.seqid):
        options = [(residue, atoms) for residue in group if _is_amino_acid(residue) and (atoms := _backbone(residue))]
        if options:
            found.append(max(options, key=lambda option: option[1][1].occ))  # the first of equals
    places = [(residue, [atom.pos.tolist() for atom in atoms]) for residue, atoms in found]
    near = [math.dist(one[2], other[0]) <= geometry.LONGEST_BOND for (_, one), (_, other) in pairwise(places)]
    for place, before, after in zip(places, [False, *near], [*near, False], strict=False):
        if place[0].het_flag != "H" or before or after:  # a HETATM record that is bonded to nothing is a ligand
            yield place


def _is_amino_acid(residue: gemmi.Residue) -> bool:
    kind = importlib.import_module("gemmi").find_tabulated_residue(residue.name)
    return kind.is_amino_acid() or (not kind.found() and residue.het_flag == "A")


def _backbone(residue: gemmi.Residue) -> list[gemmi.Atom]:
    """N, CA and C, each of the highest occupancy; nothing if one is missing."""
    options: dict[str, list[gemmi.Atom]] = {name: [] for name in BACKBONE}
    for atom in residue:
        if atom.name in options:
            options[atom.name].append(atom)
    return [max(atoms, key=lambda atom: atom.occ) for atoms in options.values()] if all(options.values()) else []


def _chain(name: str, residues: Sequence[tuple[gemmi.Residue, list[list[float]]]], file: Path) -> Chain:
    atoms = torch.tensor([points for _, points in residues])
    try:
        geometry.frames_of(atoms, "it")
    except ValueError as error:
        raise ValueError(f"{file}, chain {name!r} (positions count from 0): {error}") from error
    numbers = np.array([residue.seqid.num for residue, _ in residues])
    insertions = "".join(residue.seqid.icode for residue, _ in residues)
    sequence = "".join(LETTERS.get(residue.name, "X") for residue, _ in residues)
    return chain_of_atoms(name, sequence, atoms.numpy(), numbers, insertions)
