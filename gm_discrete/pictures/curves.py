"""Curves of a trajectory over time: changes per step, entropy of the network's posteriors, unmasked positions, lengths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.generation.outputs import Trajectory
from gm_discrete.pictures.files import needed, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "changed": "#0b83b5",
    "unmasked": "#d99000",
    "masked again": "#d1495b",
    "entropy": "#5a4fcf",
    "done": "#3a7d44",
    "insertions": "#3a7d44",
    "deletions": "#d1495b",
    "substitutions": "#0b83b5",
    "length": "#3a7d44",
}
EDITS = ("insertions", "deletions", "substitutions")
SPREAD = (0.1, 0.9)
"""Quantiles over the batch that bound the bands."""


def plot_trajectory(trajectory: Trajectory, path: str | os.PathLike[str], mask_token_id: int | None = None) -> Path:
    """Writes a PNG with the number of changes in each step and, for discrete states, the entropy of the posteriors.

    Lines are means over the batch, bands reach from the 10 % to the 90 % quantile, entropies are in nats. With a mask the
    kinds of changes have separate lines, and the fraction of free positions that are unmasked is drawn, too. For strings so
    have insertions, deletions and substitutions, and the length is drawn.

    Args:
        trajectory: from `generate(..., output_trajectory=True)`.
        path: file to write.
        mask_token_id: the id of the mask, for discrete states that are no strings.

    Returns:
        The file.

    Raises:
        ValueError: `mask_token_id` is given, and the states are not discrete, or strings.
        ImportError: matplotlib is not installed.
    """
    states, times, numbers = trajectory.states, trajectory.times, trajectory.numbers
    if mask_token_id is not None and numbers is not None:
        raise ValueError(f"mask_token_id={mask_token_id}: strings have no masks; leave it out")
    if mask_token_id is not None and states.is_floating_point():
        raise ValueError(
            f"mask_token_id={mask_token_id} needs discrete states, and these are {states.dtype}; leave it out"
        )
    masked = None if mask_token_id is None else (states == mask_token_id).flatten(2)
    panels = 1 + (trajectory.entropy is not None) + (masked is not None) + (numbers is not None)
    figures = needed("matplotlib.figure")  # not pyplot, which would choose a backend for the whole process
    figure: Any = figures.Figure(figsize=(7, 0.6 + 1.9 * panels), layout="constrained")
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for name, values in _changes(trajectory, masked).items():
        middle, low, high = _summary(values)
        edges = {"step": "post", "color": COLOURS[name]}
        axes[0].step(times, _closed(middle), where="post", color=COLOURS[name], linewidth=1.6, label=name)
        axes[0].fill_between(times, _closed(low), _closed(high), alpha=0.2, linewidth=0, **edges)
    axes[0].set(ylabel="changes per step", ylim=(0, None))
    axes[0].legend(frameon=False, ncols=3)
    panel = 1
    if trajectory.entropy is not None:
        _band(axes[panel], times[:-1], trajectory.entropy, COLOURS["entropy"])
        axes[panel].set(ylabel="entropy (nats)", ylim=(0, None))
        panel += 1
    if masked is not None:
        free = ~trajectory.fixed.flatten(1)
        _band(axes[panel], times, (~masked & free).sum(2) / free.sum(1), COLOURS["done"])
        axes[panel].set(ylabel="unmasked", ylim=(0, 1.02))
    if numbers is not None:
        _band(axes[panel], times, (numbers >= 0).sum(2), COLOURS["length"])
        axes[panel].set(ylabel="length", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlabel="time t", xlim=(float(times[0]), float(times[-1])))
    figure.align_ylabels(axes)
    return write(path, lambda draft: figure.savefig(draft, format="png", dpi=120))


def _changes(trajectory: Trajectory, masked: Tensor | None) -> dict[str, Tensor]:
    """The numbers of changes by kind, [N, B] each; kinds that never occur are left out, unless there is no change at all."""
    if trajectory.edits is not None:
        kinds = dict(zip(EDITS, trajectory.edits.unbind(2), strict=True))
        return {name: values for name, values in kinds.items() if values.any()} or {"changed": trajectory.jumps}
    if masked is None:
        return {"changed": trajectory.jumps}
    before, after = masked[:-1], masked[1:]
    unmasked, again = (before & ~after).sum(2), (~before & after).sum(2)
    kinds = {"unmasked": unmasked, "masked again": again, "changed": trajectory.jumps - unmasked - again}
    return {name: values for name, values in kinds.items() if values.any()} or {"changed": trajectory.jumps}


def _summary(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and quantiles [N] over the batch, ignoring NaN."""
    values = values.double()
    low, high = values.nanquantile(torch.tensor(SPREAD, dtype=torch.float64), 1)
    return values.nanmean(1), low, high


def _closed(values: Tensor) -> Tensor:
    """The values with the last one repeated, for the end of the last step."""
    return torch.cat([values, values[-1:]])


def _band(axis: Axes, times: Tensor, values: Tensor, colour: str) -> None:
    """Draws mean and spread at the times that have values."""
    values = values.double()
    present = ~values.isnan().all(1)
    if not present.any():
        return
    middle, low, high = _summary(values[present])
    axis.plot(times[present], middle, color=colour, linewidth=1.6)
    axis.fill_between(times[present], low, high, color=colour, alpha=0.2, linewidth=0)
