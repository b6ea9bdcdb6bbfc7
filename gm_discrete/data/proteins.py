"""Protein chains: read from PDB and mmCIF files, as frames of residues, and written as PDB files."""

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
from torch import Tensor

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
PDB_ATOMS = ("N", "CA", "C", "O", "CB")
LARGEST_NUMBER = 9999
"""Of a residue in a PDB file, where it has four columns."""


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
        ValueError: the file is of another kind, damaged or cut off, holds no such residue, a coordinate that is no finite
            number, or a residue whose atoms lie on one line or point.
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
    """
    rotation, translation = geometry.frames_of(torch.from_numpy(chain.atoms), f"chain {chain.name!r}")
    residue = np.array([AMINO_ACIDS.index(letter) for letter in chain.sequence])
    return {"rotation": rotation.numpy(), "translation": translation.numpy(), "residue": residue}


def write_pdb(
    file: str | os.PathLike[str],
    rotation: Tensor,
    translation: Tensor,
    residue: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    chain: str = "A",
) -> Path:
    """Writes chains as a PDB file, as one model each: N, CA, C, O and, but for glycine, CB, with ideal geometry.

    Residues are numbered from 1, and one number is left out wherever a residue is not bonded to the one before. The file
    appears whole or not at all.

    Args:
        rotation: unit quaternions [L, 4] or [B, L, 4].
        translation: [L, 3] or [B, L, 3], in nm.
        residue: [L] or [B, L], numbered as in `AMINO_ACIDS`; glycine by default.
        mask: [L] or [B, L], 0 where padded; padding is not written.
        chain: the letter of the chain.

    Raises:
        ValueError: shapes do not fit, a number is not finite or too large for the format, a quaternion does not have
            length 1, a residue is still masked or unknown to `AMINO_ACIDS`, a chain has no residue or numbers above 9999, or
            `chain` is not one letter or digit.
    """
    if not (isinstance(chain, str) and len(chain) == 1 and chain.isascii() and chain.isalnum()):
        raise ValueError(f"chain={chain!r} must be one letter or digit")
    if rotation.ndim not in (2, 3) or rotation.shape[-1] != 4:
        raise ValueError(f"rotation has the shape {tuple(rotation.shape)}; give [L, 4] or [B, L, 4]")
    sizes = tuple(rotation.shape[:-1])
    residue = torch.full(sizes, AMINO_ACIDS.index("G")) if residue is None else residue
    mask = torch.ones(sizes, dtype=torch.bool) if mask is None else mask
    for name, value, shape in (
        ("translation", translation, (*sizes, 3)),
        ("residue", residue, sizes),
        ("mask", mask, sizes),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}; beside this rotation give {shape}")
    if residue.is_floating_point():
        raise ValueError(f"residue has dtype={residue.dtype}; give integers")
    parts = [part.detach().cpu() for part in (rotation, translation, residue, mask)]
    if rotation.ndim < 3:
        parts = [part[None] for part in parts]
    models = [_model_lines(chain, *(part[index] for part in parts)) for index in range(len(parts[0]))]
    lines = list(models[0]) if len(models) == 1 else []
    for number, model in enumerate(models if len(models) > 1 else []):
        lines += [f"MODEL     {number + 1:>4}", *model, "ENDMDL"]
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    try:
        draft.write_text("".join(f"{line:<80}\n" for line in [*lines, "END"]), encoding="ascii", newline="\n")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _model_lines(chain: str, rotation: Tensor, translation: Tensor, residue: Tensor, mask: Tensor) -> list[str]:
    rotation, translation, residue = rotation[mask != 0], translation[mask != 0], residue[mask != 0]
    if not len(residue):
        raise ValueError("mask leaves 0 residues of a chain; give at least one")
    wrong = residue[(residue < 0) | (residue > UNKNOWN)]
    if len(wrong):
        raise ValueError(
            f"residue holds {int(wrong[0])}; give 0 to {UNKNOWN}, as in AMINO_ACIDS, and unmask all residues"
        )
    atoms = geometry.atoms_of(rotation.float(), translation.float())
    farthest = float(atoms.abs().max())
    if farthest >= 1000:  # a coordinate has eight columns, three of them after the point and one for the sign
        raise ValueError(f"translation puts an atom at {farthest:.0f} Å; a PDB file holds less than 1000 Å")
    broken = ~geometry.bonded(atoms)
    numbers = torch.arange(1, len(residue) + 1)
    numbers[1:] += broken[:-1].cumsum(0)
    if int(numbers[-1]) > LARGEST_NUMBER:
        raise ValueError(
            f"a chain has residue numbers up to {int(numbers[-1])}, by {len(residue)} residues and their breaks; "
            f"a PDB file holds {LARGEST_NUMBER}"
        )
    codes = [CODES[symbol] for symbol in residue.tolist()]
    lines: list[str] = []
    for code, number, points in zip(codes, numbers.tolist(), atoms.tolist(), strict=True):
        for name, (x, y, z) in zip(PDB_ATOMS, points, strict=True):
            if name != "CB" or code != "GLY":
                lines.append(
                    f"ATOM  {len(lines) + 1:>5}  {name:<3} {code} {chain}{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
                    f"  1.00  0.00          {name[0]:>2}"
                )
    return [*lines, f"TER   {len(lines) + 1:>5}      {codes[-1]} {chain}{int(numbers[-1]):>4}"]


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
