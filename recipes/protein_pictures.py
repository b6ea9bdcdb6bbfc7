"""A picture of protein backbones: traces of CA, contact maps, and Ramachandran plots of samples and data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which would choose a backend for the whole process
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from numpy.typing import ArrayLike, NDArray

from gm_discrete.pictures.files import write
from recipes.protein_geometry import CA, backbone, bonded, distances, torsions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d import Axes3D

CONTACT = 8.0
"""Distance in Å below which two CA are in contact, as in CASP."""
COLOURS = "viridis"
"""Map from the place in a chain to a colour, from its N to its C end."""


def protein_picture(
    samples: Sequence[ArrayLike],
    path: str | os.PathLike[str],
    reference: Sequence[ArrayLike] | None = None,
    *,
    shown: int = 4,
    breaks: Sequence[ArrayLike | None] | None = None,
    reference_breaks: Sequence[ArrayLike | None] | None = None,
) -> Path:
    """Writes a PNG with one column for each of the first samples and one of Ramachandran plots.

    A column has the trace of CA in three dimensions, coloured from N end to C end and viewed along its shortest axis, above
    the contact map, the pairs of CA less than 8 Å apart. The last column has φ and ψ of all samples above those of the
    reference.

    Args:
        samples: backbones [L, ≥ 3, 3] in Å: N, CA, C and perhaps more atoms.
        path: file to write.
        reference: backbones of real proteins.
        shown: number of samples with a column of their own.
        breaks: for each sample, which residues are not bonded to the one before, [L]; none by default.
        reference_breaks: likewise for the reference.

    Returns:
        The file.

    Raises:
        ValueError: there is no sample, `shown` < 1, or a backbone has another shape.
    """
    if not len(samples) or shown < 1:
        raise ValueError(f"samples has {len(samples)} backbones and shown={shown}; both must be at least 1")
    marks = [None] * len(samples) if breaks is None else breaks
    columns = min(shown, len(samples))
    figure = Figure(figsize=(3 * (columns + 1), 6.2), layout="constrained")
    for place in range(columns):
        trace = cast("Axes3D", figure.add_subplot(2, columns + 1, place + 1, projection="3d"))
        _draw_trace(trace, samples[place], marks[place])
        _draw_contacts(figure.add_subplot(2, columns + 1, columns + place + 2), samples[place])
    _draw_torsions(figure.add_subplot(2, columns + 1, columns + 1), samples, marks, "samples", "#d1495b")
    if reference is not None:
        others = [None] * len(reference) if reference_breaks is None else reference_breaks
        _draw_torsions(figure.add_subplot(2, columns + 1, 2 * columns + 2), reference, others, "data", "#7a8794")
    return write(path, lambda draft: figure.savefig(draft, format="png", dpi=100))


def _draw_trace(axes: Axes3D, atoms: ArrayLike, breaks: ArrayLike | None) -> None:
    points = _facing(backbone(atoms)[:, CA])
    joined = bonded(len(points), breaks)
    segments = np.stack([points[:-1], points[1:]], 1)[joined]
    if len(segments):  # matplotlib refuses a collection of none
        lines = Line3DCollection(list(segments), cmap=COLOURS, linewidths=2)
        lines.set_array(np.arange(len(points) - 1)[joined])
        axes.add_collection3d(lines)
    reach = 0.7 * float(np.abs(points).max()) + 1  # the trace fills the margin of the frame, which is off
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axes.view_init(elev=90, azim=-90)  # along the last axis
    axes.set_axis_off()
    axes.set_title(f"{len(points)} residues", fontsize=9)


def _draw_contacts(axes: Axes, atoms: ArrayLike) -> None:
    near = distances(backbone(atoms)[:, CA]) < CONTACT
    axes.imshow(near, cmap="Greys", origin="lower", vmin=0, vmax=1.2, interpolation="nearest")
    axes.set_title(f"CA within {CONTACT:g} Å", fontsize=9)
    axes.tick_params(labelsize=7)


def _draw_torsions(
    axes: Axes, chains: Sequence[ArrayLike], breaks: Sequence[ArrayLike | None], name: str, colour: str
) -> None:
    angles = np.concatenate([torsions(atoms, mark)[:, :2] for atoms, mark in zip(chains, breaks, strict=True)])
    angles = angles[np.isfinite(angles).all(1)]
    size, alpha = (6, 0.6) if len(angles) < 2000 else (2, 0.25)  # so that dense regions do not fill up
    axes.scatter(*angles.T, s=size, alpha=alpha, color=colour, linewidths=0)
    ticks = [-180, -90, 0, 90, 180]
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xticks=ticks, yticks=ticks, aspect="equal", xlabel="φ", ylabel="ψ")
    axes.set_title(f"{name}: {len(angles)} residues", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _facing(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points about their mean, turned so that their longest extent is x and their shortest z; never mirrored."""
    centred = points - points.mean(0)
    axes = np.linalg.svd(centred, full_matrices=True)[2].T
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    return centred @ axes
