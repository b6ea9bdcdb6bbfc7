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
from recipes.protein_geometry import CA, backbone, bonded, geometry, mean, torsions

if TYPE_CHECKING:
    from biotite.structure import AtomArray

TRANS = 150.0
"""|ω| in degrees above which a peptide bond is trans and planar, by MolProbity's 30°."""
LEFT_HANDED = ((20.0, 120.0), (-30.0, 90.0))
"""φ and ψ in degrees of the left-handed helix; of real residues some 5 % are in it, most of them glycine."""
CELL, BANDWIDTH = 5, 8
"""Width of the cells of a Ramachandran plot, and standard deviation of its smoothing, in degrees."""
FAVOURED, ALLOWED = 0.98, 0.9995
"""Shares of the residues within the two contours (Lovell et al. 2003, Proteins 50, 437)."""


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
        inner, outer = mean(values >= self.favoured), mean(values >= self.allowed)
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
    return scores | {"left_handed": mean(left[0] & left[1]), "trans": mean(trans), "omega": mean(180 - omega[trans])}


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
    return {name: mean(found == code) for name, code in {"helix": "a", "strand": "b", "coil": "c"}.items()}


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
