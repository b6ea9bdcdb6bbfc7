"""Scores of one protein backbone: bonds, angles, clashes, Ramachandran plot, secondary structure, size.

Everywhere `atoms` are N, CA and C of each residue, [L, ≥ 3, 3] in Å, and `breaks` [L] marks the residues that are not
bonded to the one before them. A chain without breaks is taken to be bonded throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.datasets.packages import require
from recipes.protein_geometry import CA, C, N, backbone, bend, bonded, distances, torsions

if TYPE_CHECKING:
    from biotite.structure import AtomArray

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
TRANS = 150.0
"""|ω| in degrees above which a peptide bond is trans and planar, by MolProbity's 30°."""
LEFT_HANDED = ((20.0, 120.0), (-30.0, 90.0))
"""φ and ψ in degrees of the left-handed helix; of real residues some 5 % are in it, most of them glycine."""
CELL, BANDWIDTH = 5, 8
"""Width of the cells of a Ramachandran plot, and standard deviation of its smoothing, in degrees."""
FAVOURED, ALLOWED = 0.98, 0.9995
"""Shares of the residues within the two contours (Lovell et al. 2003, Proteins 50, 437)."""


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
    scores["ca_ca/deviation"] = _mean(np.abs(steps - CA_CA))
    scores |= {f"ca_ca/{reach}": _mean(np.abs(steps - CA_CA) < reach) for reach in (0.1, 0.3)}
    scores["ca_ca/valid"] = _mean(steps < CA_CA + 0.1)
    counts = {
        "breaks": int((steps > BREAK).sum()),
        "ca_clashes": _pairs_within(x[:, CA], np.arange(len(x)), CA_CLASH, 3),
        "atom_clashes": _pairs_within(x.reshape(-1, 3), np.arange(len(x)).repeat(3), ATOM_CLASH, 2),
    }
    unbroken, free = counts["breaks"] == 0, counts["ca_clashes"] + counts["atom_clashes"] == 0
    flags = {"unbroken": unbroken, "clash_free": free, "valid": unbroken and free}
    return scores | {name: count / len(x) for name, count in counts.items()} | {k: float(v) for k, v in flags.items()}


@final
@dataclass(frozen=True)
class RamachandranRegions:
    """The favoured and the allowed region of φ and ψ: the smallest ones with 98 % and 99.95 % of real residues.

    The density is a histogram with cells of 5°, smoothed by a periodic Gaussian of 8°. Published contours are grids of many
    thousand numbers, one for each kind of residue, and backbones have no kinds; the contours of the training data tell
    whether samples lie where the data lie. The outer one needs some 10,000 residues or more. Of 116,000 residues of all
    kinds the favoured region is 38 % of the plane, the score of angles at random: `distance` is sharper.
    Source: Lovell et al. 2003, Proteins 50, 437, for the method and the two shares.

    Args:
        density: [72, 72], over φ and ψ from −180°.
        favoured: density on the contour of 98 %.
        allowed: that on the contour of 99.95 %.
    """

    density: NDArray[np.float64]
    favoured: float
    allowed: float

    @classmethod
    def of(cls, chains: Iterable[ArrayLike], breaks: Sequence[ArrayLike | None] | None = None) -> RamachandranRegions:
        """The regions of the residues of these backbones.

        Raises:
            ImportError: scipy is not installed.
            ValueError: no residue has both angles.
        """
        listed = list(chains)
        marks = [None] * len(listed) if breaks is None else breaks
        found = [_phi_psi(torsions(atoms, mark)) for atoms, mark in zip(listed, marks, strict=True)]
        angles = np.concatenate(found) if found else np.empty((0, 2))
        if not len(angles):
            raise ValueError(f"chains has {len(listed)} chains without a residue between two others; give longer ones")
        density = _density(angles)
        favoured, allowed = np.quantile(density[_cells(angles)], [1 - FAVOURED, 1 - ALLOWED])
        return cls(density, float(favoured), float(allowed))

    def shares(self, angles: NDArray[np.float64]) -> dict[str, float]:
        """The shares of torsion angles [L, ≥ 2] that are `favoured`, `allowed` but not favoured, and `outliers`."""
        values = self.density[_cells(_phi_psi(angles))]
        inner, outer = _mean(values >= self.favoured), _mean(values >= self.allowed)
        return {"favoured": inner, "allowed": outer - inner, "outliers": 1 - outer}

    def distance(self, angles: NDArray[np.float64]) -> float:
        """The total variation distance, ½ Σ |p − q| in [0, 1], between the density of torsion angles [L, ≥ 2] and this one.

        Few residues are far from any density by chance: compare sets of about one size, and with held-out chains.
        """
        return float(np.abs(_density(_phi_psi(angles)) - self.density).sum() / 2)


def torsion_scores(
    atoms: ArrayLike, breaks: ArrayLike | None = None, regions: RamachandranRegions | None = None
) -> dict[str, float]:
    """Shares of residues by their torsion angles, and the planarity of peptide bonds.

    `favoured`, `allowed` and `outliers` if there are regions; `left_handed`, those in the region `LEFT_HANDED`; `trans`, the
    share of peptide bonds with |ω| > 150°; `omega`, the mean deviation of these from 180°, in degrees.
    """
    angles = torsions(atoms, breaks)
    scores = {} if regions is None else regions.shares(angles)
    left = [
        (low < column) & (column < high) for column, (low, high) in zip(_phi_psi(angles).T, LEFT_HANDED, strict=True)
    ]
    omega = np.abs(angles[:, 2][np.isfinite(angles[:, 2])])
    trans = omega > TRANS
    return scores | {"left_handed": _mean(left[0] & left[1]), "trans": _mean(trans), "omega": _mean(180 - omega[trans])}


def secondary_structure(atoms: ArrayLike, breaks: ArrayLike | None = None) -> dict[str, float]:
    """Shares of residues in a `helix`, a `strand` and a `coil`, by P-SEA, which uses CA alone.

    Left-handed helices count as helices, since distances alone suffice: compare `left_handed` of `torsion_scores`. Chains
    of five residues or fewer are coil.
    Source: Labesse et al. 1997, CABIOS 13, 291, as `biotite.structure.annotate_sse`.

    Raises:
        ImportError: biotite is not installed.
    """
    require("biotite", extra="scores")
    from biotite.structure import annotate_sse

    found = annotate_sse(atom_array(atoms, breaks))
    return {name: _mean(found == code) for name, code in {"helix": "a", "strand": "b", "coil": "c"}.items()}


def radius(atoms: ArrayLike) -> dict[str, float]:
    """`radius`: radius of gyration of CA in Å; `radius_ratio`: that over 2.2 L^0.38 Å, the size of a globular protein.

    Source of the power: Skolnick, Kolinski and Ortiz 1997, J. Mol. Biol. 265, 217.
    """
    points = backbone(atoms)[:, CA]
    found = float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))
    return {"radius": found, "radius_ratio": found / (2.2 * len(points) ** 0.38)}


def evaluate_backbone(
    atoms: ArrayLike, breaks: ArrayLike | None = None, regions: RamachandranRegions | None = None
) -> dict[str, float]:
    """All scores of one backbone, by name."""
    return {
        **geometry(atoms, breaks),
        **torsion_scores(atoms, breaks, regions),
        **secondary_structure(atoms, breaks),
        **radius(atoms),
    }


def atom_array(atoms: ArrayLike, breaks: ArrayLike | None = None, residues: Sequence[str] | None = None) -> AtomArray:
    """The backbone as atoms of biotite; numbers of residues jump at breaks.

    Args:
        residues: names of three letters, alanine by default.

    Raises:
        ImportError: biotite is not installed.
    """
    require("biotite", extra="scores")
    from biotite.structure import AtomArray

    x = backbone(atoms)
    numbers = np.arange(1, len(x) + 1) + np.concatenate([[0], (~bonded(len(x), breaks)).cumsum()])
    array = AtomArray(3 * len(x))
    array.coord = x.reshape(-1, 3).astype(np.float32)
    annotations = {
        "chain_id": ["A"] * len(array),
        "res_id": numbers.repeat(3),
        "res_name": np.repeat(residues or ["ALA"] * len(x), 3),
        "atom_name": np.tile(["N", "CA", "C"], len(x)),
        "element": np.tile(["N", "C", "C"], len(x)),
    }
    for name, values in annotations.items():
        array.set_annotation(name, np.asarray(values))
    return array


def _deviations(
    kind: str, found: dict[str, NDArray[np.float64]], ideal: dict[str, tuple[float, float]]
) -> dict[str, float]:
    off = {name: np.abs(values - ideal[name][0]) for name, values in found.items()}
    within = np.concatenate([values <= OUTLIER * ideal[name][1] for name, values in off.items()])
    return {f"{kind}/{name}": _mean(values) for name, values in off.items()} | {f"{kind}s": _mean(within)}


def _pairs_within(points: NDArray[np.float64], residues: NDArray[np.int_], reach: float, apart: int) -> int:
    """The number of pairs nearer than `reach` in residues with |i − j| ≥ `apart`."""
    near = distances(points) < reach
    return int((near & (residues[None] - residues[:, None] >= apart)).sum())


def _length(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(a - b, axis=-1)


def _phi_psi(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """φ and ψ [N, 2] of the residues that have both."""
    found = angles[:, :2]
    return found[np.isfinite(found).all(1)]


def _density(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smoothed histogram [72, 72] of φ and ψ [N, 2], whose sum is 1."""
    require("scipy", extra="scores")
    from scipy.ndimage import gaussian_filter

    counts = np.zeros((360 // CELL, 360 // CELL))
    np.add.at(counts, _cells(angles), 1)
    return cast("NDArray[np.float64]", gaussian_filter(counts / len(angles), BANDWIDTH / CELL, mode="wrap"))


def _cells(angles: NDArray[np.float64]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    places = ((angles + 180) // CELL).astype(int) % (360 // CELL)
    return places[:, 0], places[:, 1]


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")
