"""Distances and torsion angles of a protein backbone: atoms N, CA and C of each residue, in Å.

`breaks` marks the residues that are not bonded to the one before them: the first of a chain, and those after a gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

N, CA, C = 0, 1, 2
"""Places of the atoms in a residue."""


def backbone(atoms: ArrayLike, name: str = "atoms") -> NDArray[np.float64]:
    """The atoms N, CA and C [L, 3, 3] of an array [L, ≥ 3, 3], checked.

    Raises:
        ValueError: the shape is another one, there is no residue, or a coordinate is infinite or NaN.
    """
    found = np.asarray(atoms, np.float64)
    if found.ndim != 3 or found.shape[1] < 3 or found.shape[2] != 3 or not len(found):
        raise ValueError(f"{name} has the shape {found.shape}; give [L, 3, 3]: N, CA and C of each of L ≥ 1 residues")
    if not np.isfinite(found[:, :3]).all():
        bad = int((~np.isfinite(found[:, :3])).any((1, 2)).argmax())
        raise ValueError(f"{name} of residue {bad} are {found[bad, :3].tolist()}; drop residues without coordinates")
    return found[:, :3]


def bonded(length: int, breaks: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Whether residues i and i + 1 are bonded, [L − 1]; all of them are without `breaks`.

    Raises:
        ValueError: `breaks` is not [L].
    """
    if breaks is None:
        return np.ones(length - 1, bool)
    found = np.asarray(breaks, bool)
    if found.shape != (length,):
        raise ValueError(f"breaks has the shape {found.shape}; give one value for each of the {length} residues")
    return ~found[1:]


def torsions(atoms: ArrayLike, breaks: ArrayLike | None = None) -> NDArray[np.float64]:
    """The torsion angles φ, ψ and ω of each residue in degrees [L, 3], NaN where an atom is missing.

    φ: C of the residue before, N, CA, C. ψ: N, CA, C, N of the residue after. ω: CA and C of the residue before, N, CA;
    180° is a planar trans peptide. Signs are those of IUPAC (1970, Biochemistry 9, 3471): a right-handed α-helix has
    φ ≈ −60° and ψ ≈ −45°.
    """
    x = backbone(atoms)
    joined = bonded(len(x), breaks)[:, None]
    before, after = x[:-1], x[1:]
    found = np.full((len(x), 3), np.nan)
    angles = [
        dihedral(before[:, C], after[:, N], after[:, CA], after[:, C]),
        dihedral(before[:, N], before[:, CA], before[:, C], after[:, N]),
        dihedral(before[:, CA], before[:, C], after[:, N], after[:, CA]),
    ]
    phi, psi, omega = np.where(joined, np.stack(angles, -1), np.nan).T
    found[1:, 0], found[:-1, 1], found[1:, 2] = phi, psi, omega
    return found


def dihedral(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The angle in degrees, in [−180, 180], by which c − d is turned against b − a about the axis from b to c."""
    axis = c - b
    left, right = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = np.linalg.norm(axis, axis=-1) * ((b - a) * right).sum(-1)
    return np.degrees(np.arctan2(sine, (left * right).sum(-1)))


def bend(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angle a–b–c in degrees, in [0, 180]."""
    left, right = a - b, c - b
    sine = np.linalg.norm(np.cross(left, right), axis=-1)
    return np.degrees(np.arctan2(sine, (left * right).sum(-1)))


def distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [L, L] between all points [L, 3]."""
    return np.linalg.norm(points[:, None] - points[None], axis=-1)
