"""Distances, angles and torsion angles of a protein backbone: atoms N, CA and C of each residue, in Å.

`breaks` marks the residues that are not bonded to the one before them: the first of a chain, and those after a gap.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gm_discrete.data import protein_geometry

N, CA, C = 0, 1, 2
"""Places of the atoms in a residue."""
BONDS = {"N-CA": (1.459, 0.020), "CA-C": (1.525, 0.026), "C-N": (1.336, 0.023)}
"""Mean and standard deviation in Å: Engh and Huber 2001, International Tables for Crystallography F, table 18.3.2.1."""
ANGLES = {"N-CA-C": (111.0, 2.7), "CA-C-N": (117.2, 2.2), "C-N-CA": (121.7, 2.5)}
"""Likewise in degrees."""
OUTLIER = 4
"""Standard deviations beyond which MolProbity counts a length or an angle as an outlier (Chen et al. 2010, Acta Cryst. D66,
12)."""
CA_CA = 3.8
"""Distance in Å of neighbouring CA with a trans peptide bond; with a cis bond it is 2.9."""
BREAK = 4.5
"""Distance in Å of neighbouring CA beyond which a chain is broken: no peptide bond spans it, however bent."""
CA_CLASH, ATOM_CLASH = 3.3, 2.0
"""Distances in Å below which two CA, and two backbone atoms, overlap. In 427 experimental chains the nearest CA are 3.30 Å
apart, 3.53 Å or less in 5 % of the chains, and one chain has atoms nearer than 2 Å."""
REGIONS = {"alpha": ((-100.0, -35.0), (-80.0, -5.0)), "beta": ((-180.0, -45.0), (90.0, 195.0))}
"""φ and ψ in degrees around right-handed helices and around strands; ψ may be beyond 180°."""


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
    """`gm_discrete.data.protein_geometry.dihedral` in degrees."""
    points = (torch.from_numpy(np.ascontiguousarray(point)) for point in (a, b, c, d))
    return np.degrees(protein_geometry.dihedral(*points).numpy())


def bend(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """The angle a–b–c in degrees, in [0, 180]."""
    left, right = a - b, c - b
    sine = np.linalg.norm(np.cross(left, right), axis=-1)
    return np.degrees(np.arctan2(sine, (left * right).sum(-1)))


def distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [L, L] between all points [L, 3]."""
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def geometry(atoms: ArrayLike, breaks: ArrayLike | None = None) -> dict[str, float]:
    """Lengths, angles, breaks and clashes.

    - `bond/…`, `angle/…`: mean absolute deviation from `BONDS` and `ANGLES`, in Å and degrees. `bonds` and `angles`: the
      share within four standard deviations.
    - `ca_ca/deviation`: mean |d − 3.8| in Å of bonded CA; `ca_ca/0.1`, `ca_ca/0.3`: the share closer than that to 3.8;
      `ca_ca/valid`: the share with d < 3.9, the `ca_ca_valid_percent` of FrameDiff (arXiv 2302.02277) and its successors.
    - `breaks`: bonded pairs with CA more than 4.5 Å apart, per residue.
    - `ca_clashes`: pairs of CA nearer than 3.3 Å with |i − j| > 2, per residue; `atom_clashes`: pairs of
      backbone atoms nearer than 2 Å in residues that are neither the same nor neighbours.
    - `unbroken`, `clash_free`: 1 if there is none of them. `valid`: both. FrameDiff, FoldFlow (arXiv 2310.02391) and
      FrameFlow report such violations as shares of residues; the flag asks for chains without any.

    NaN stands for the mean of nothing.
    """
    x = backbone(atoms)
    joined = bonded(len(x), breaks)
    before, after = x[:-1][joined], x[1:][joined]
    lengths = {
        "N-CA": _length(x[:, N], x[:, CA]),
        "CA-C": _length(x[:, CA], x[:, C]),
        "C-N": _length(before[:, C], after[:, N]),
    }
    angles = {
        "N-CA-C": bend(x[:, N], x[:, CA], x[:, C]),
        "CA-C-N": bend(before[:, CA], before[:, C], after[:, N]),
        "C-N-CA": bend(before[:, C], after[:, N], after[:, CA]),
    }
    scores = _deviations("bond", lengths, BONDS) | _deviations("angle", angles, ANGLES)
    steps = _length(before[:, CA], after[:, CA])
    scores["ca_ca/deviation"] = mean(np.abs(steps - CA_CA))
    scores |= {f"ca_ca/{reach}": mean(np.abs(steps - CA_CA) < reach) for reach in (0.1, 0.3)}
    scores["ca_ca/valid"] = mean(steps < CA_CA + 0.1)
    counts = {
        "breaks": int((steps > BREAK).sum()),
        "ca_clashes": _pairs_within(x[:, CA], np.arange(len(x)), CA_CLASH, 3),
        "atom_clashes": _pairs_within(x.reshape(-1, 3), np.arange(len(x)).repeat(3), ATOM_CLASH, 2),
    }
    unbroken, free = counts["breaks"] == 0, counts["ca_clashes"] + counts["atom_clashes"] == 0
    flags = {"unbroken": unbroken, "clash_free": free, "valid": unbroken and free}
    return scores | {name: count / len(x) for name, count in counts.items()} | {k: float(v) for k, v in flags.items()}


def _deviations(
    kind: str, found: dict[str, NDArray[np.float64]], ideal: dict[str, tuple[float, float]]
) -> dict[str, float]:
    off = {name: np.abs(values - ideal[name][0]) for name, values in found.items()}
    within = np.concatenate([values <= OUTLIER * ideal[name][1] for name, values in off.items()])
    return {f"{kind}/{name}": mean(values) for name, values in off.items()} | {f"{kind}s": mean(within)}


def _pairs_within(points: NDArray[np.float64], residues: NDArray[np.int_], reach: float, apart: int) -> int:
    """The number of pairs nearer than `reach` in residues with |i − j| ≥ `apart`."""
    near = distances(points) < reach
    return int((near & (residues[None] - residues[:, None] >= apart)).sum())


def _length(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(a - b, axis=-1)


def torsion_shares(atoms: ArrayLike, breaks: ArrayLike | None = None) -> dict[str, float]:
    """The shares of residues whose φ and ψ are in `REGIONS`, by name: what helices and strands have, wherever it is."""
    angles = torsions(atoms, breaks)[:, :2]
    angles = angles[np.isfinite(angles).all(1)]
    shares = {}
    for name, (phi, psi) in REGIONS.items():
        inside = (phi[0] < angles[:, 0]) & (angles[:, 0] < phi[1]) & ((angles[:, 1] - psi[0]) % 360 < psi[1] - psi[0])
        shares[name] = mean(inside)
    return shares


def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    """The mean, NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")
