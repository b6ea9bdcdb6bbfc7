"""Small proteins built from dihedral angles, and the files that hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

THREE = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE", "K": "LYS", "L": "LEU",
    "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR",
    "X": "UNK",
}  # fmt: skip
HELIX = (-57.0, -47.0)
STRAND = (-120.0, 130.0)
TURN = ((55.0, 38.0), (78.0, 20.0))
"""φ and ψ of a turn of type I', which joins the strands of a hairpin."""
CIF_COLUMNS = (
    "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id", "label_entity_id",
    "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv", "auth_seq_id",
    "auth_asym_id", "pdbx_PDB_model_num",
)  # fmt: skip


def placed(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, dihedral: float) -> Tensor:
    """d with |d − c| = length, the angle b, c, d and the dihedral angle a, b, c, d, in degrees."""
    angle, dihedral = math.radians(angle), math.radians(dihedral)
    forward = torch.nn.functional.normalize(c - b, dim=0)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, forward), dim=0)
    local = (-math.cos(angle), math.sin(angle) * math.cos(dihedral), math.sin(angle) * math.sin(dihedral))
    return c + length * (local[0] * forward + local[1] * torch.linalg.cross(normal, forward) + local[2] * normal)


def backbone(angles: Sequence[tuple[float, float]]) -> Tensor:
    """N, CA and C float64 [L, 3, 3] in Å of a chain with the φ and ψ, in degrees, and ω = 180°."""
    start = math.radians(111.0)
    points = [torch.zeros(3, dtype=torch.float64), torch.tensor([1.459, 0.0, 0.0], dtype=torch.float64)]
    points.append(points[1] + 1.525 * torch.tensor([-math.cos(start), math.sin(start), 0.0], dtype=torch.float64))
    for (_, psi), (phi, _) in pairwise(angles):
        for length, angle, dihedral in ((1.336, 117.2, psi), (1.459, 121.7, 180.0), (1.525, 111.0, phi)):
            points.append(placed(*points[-3:], length, angle, dihedral))
    return torch.stack(points).reshape(-1, 3, 3)


def helix(length: int = 12) -> Tensor:
    return backbone([HELIX] * length)


def hairpin(strand: int = 6) -> Tensor:
    return backbone([*[STRAND] * strand, *TURN, *[STRAND] * strand])


def pdb_text(
    atoms: Tensor | np.ndarray,
    sequence: str,
    numbers: Sequence[int] | None = None,
    *,
    chain: str = "A",
    insertions: str | None = None,
    tail: str = "",
) -> str:
    """The ATOM records of N, CA and C [L, 3, 3]; `tail` stands in columns 73 to 80."""
    insertions = insertions or " " * len(sequence)
    lines = []
    for place, (letter, points) in enumerate(zip(sequence, torch.as_tensor(atoms).tolist(), strict=True)):
        number = place + 1 if numbers is None else numbers[place]
        for name, point in zip(("N", "CA", "C"), points, strict=True):
            lines.append(pdb_line(name, THREE[letter], number, point, chain=chain, insertion=insertions[place]) + tail)
    return "\n".join([*lines, "TER", "END", ""])


def pdb_line(
    name: str,
    residue: str,
    number: int,
    point: Sequence[float],
    *,
    chain: str = "A",
    insertion: str = " ",
    location: str = " ",
    occupancy: float = 1.0,
    record: str = "ATOM",
) -> str:
    x, y, z = point
    return (
        f"{record:<6}    1  {name:<3}{location}{residue:>3} {chain}{number:>4}{insertion}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}  0.00"
    ).ljust(72)


def mmcif_text(atoms: Tensor, sequence: str, numbers: Sequence[int], insertions: str, chain: str = "A") -> str:
    rows = []
    for place, points in enumerate(atoms.tolist()):
        for name, (x, y, z) in zip(("N", "CA", "C"), points, strict=True):
            code, insertion = THREE[sequence[place]], insertions[place].replace(" ", "?")
            rows.append(
                f"ATOM {len(rows) + 1} {name[0]} {name} . {code} {chain} 1 {place + 1} {insertion} {x:.3f} {y:.3f} {z:.3f} "
                f"1.00 0.00 {numbers[place]} {chain} 1"
            )
    return "\n".join(["data_TEST", "loop_", *(f"_atom_site.{column}" for column in CIF_COLUMNS), *rows, ""])
