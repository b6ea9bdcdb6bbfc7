"""The picture of the processes of rotations: see rotations.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rotations import ALL, METHODS, toy
from torch import Tensor

from gm_discrete import quaternions, simulate, time_grid

ROWS = ("flow", "jump", "diffusion", "flow + jump")
COLUMNS = (0.0, 0.25, 0.5, 0.75, 1.0)
AXIS = torch.tensor([0.0, 0.0, 1.0])


def picture(file: Path, number: int, steps: int) -> None:
    """A row for each process, a column for each time.

    A rotation is a point on the sphere, where it takes the z-axis; the colour is the angle by which it is turned about that
    point; the z-axis points to the reader. Points on the far side are pale.

    Args:
        file: PNG.
        number: of rotations; the same noise for every process.
        steps: of the processes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.75 * len(COLUMNS) + 0.3, 1.75 * len(ROWS) + 0.3), layout="constrained")
    axes = figure.subplots(len(ROWS), len(COLUMNS))
    for row, name in zip(axes, ROWS, strict=True):
        for axis, time, x in zip(row, COLUMNS, states(name, number, steps), strict=True):
            _sphere(axis, x)
            if name == ROWS[0]:
                axis.set_title(f"t = {time:g}", fontsize=10)
        row[0].text(-0.08, 0.5, name, transform=row[0].transAxes, rotation=90, ha="center", va="center", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".draft")
    figure.savefig(draft, format="png", dpi=80)
    draft.replace(file)


@torch.no_grad()
def states(name: str, number: int, steps: int) -> list[Tensor]:
    """Rotations [number, 4] of a process at the times of the columns, from the exact posterior."""
    model, rng = toy(METHODS[name][0] if name in METHODS else ALL), torch.Generator().manual_seed(0)
    grid = time_grid(model.path, steps, "linear")
    x_0 = model.path.prior((number, 1, 4), rng)
    places = [int((grid - time).abs().argmin()) for time in COLUMNS[1:-1]]
    run = simulate(model, x_0, grid, rng, "tau_leaping", save_at=places, return_info=True)
    return [x[:, 0] for x in (x_0, *run.states, run.x)]


def _sphere(axis: object, x: Tensor) -> None:
    """The rotations as points of a sphere, in Matplotlib's `axis`."""
    from matplotlib.patches import Circle

    x = x.float()
    point = quaternions.rotate(x, AXIS)
    seen = point.numpy()
    color = _turn(x, point)
    front = seen[:, 2] >= 0
    axis.add_patch(Circle((0, 0), 1, facecolor="0.97", edgecolor="0.75", lw=0.6))  # pyright: ignore[reportAttributeAccessIssue]
    for side, alpha in ((~front, 0.25), (front, 0.95)):
        axis.scatter(  # pyright: ignore[reportAttributeAccessIssue]
            seen[side, 0], seen[side, 1], c=color[side], cmap="hsv", vmin=0, vmax=1, s=7, lw=0, alpha=alpha
        )
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")  # pyright: ignore[reportAttributeAccessIssue]
    axis.axis("off")  # pyright: ignore[reportAttributeAccessIssue]


def _turn(x: Tensor, point: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The turn about the point, as a part of a whole one: beyond that of the shortest rotation from the z-axis to it."""
    half = torch.cat([1 + (point * AXIS).sum(-1, keepdim=True), torch.linalg.cross(AXIS.expand_as(point), point)], -1)
    left = quaternions.multiply(quaternions.conjugate(quaternions.normalized(half)), x)  # a rotation about the z-axis
    return (2 * torch.atan2(left[:, 3], left[:, 0]) / (2 * torch.pi)).remainder(1).numpy()
