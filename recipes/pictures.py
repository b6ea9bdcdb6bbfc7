"""Pictures of samples: grids of images, their steps as an animation, columns of real and synthetic tables."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot

WIDTH = 640
"""Approximate width in pixels to which a grid of small images is enlarged."""
DURATION, LAST_DURATION = 80, 3000
"""Milliseconds per frame, and of the last frame."""
COLUMNS = 5
"""Columns of a table that are drawn side by side."""
SHADES = {"real": "#7a8794", "synthetic": "#d1495b"}


def image_grid(images: Tensor, path: str | os.PathLike[str], columns: int | None = None) -> Path:
    """Writes images uint8 [B, C, H, W] row by row as one PNG, with small pixels enlarged.

    Args:
        columns: images in a row; as many as rows by default.

    Raises:
        ValueError: `images` is not uint8 or empty, or `columns` < 1.
    """
    return _save([_grid(images, columns)], path, "PNG")


def animate_images(states: Sequence[Tensor], path: str | os.PathLike[str], columns: int | None = None) -> Path:
    """Writes the states of a batch, each uint8 [B, C, H, W], as a GIF of their grids; the last one is shown longer.

    Raises:
        ValueError: there is no state, the shapes differ, or `image_grid` does not accept a state.
    """
    shapes = {tuple(state.shape) for state in states}
    if len(shapes) != 1:
        raise ValueError(f"states has the shapes {sorted(shapes)}; give at least one state, all of one shape")
    return _save([_grid(state, columns) for state in states], path, "GIF")


def _grid(images: Tensor, columns: int | None) -> Image.Image:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images has the shape {tuple(images.shape)} and dtype={images.dtype}; give torch.uint8 [B, C, H, W] with "
            "1 or 3 channels"
        )
    columns = round(len(images) ** 0.5) if columns is None else min(columns, len(images))
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    _, channels, height, width = images.shape
    rows = -(-len(images) // columns)
    filled = torch.full((rows * columns, channels, height + 1, width + 1), 255, dtype=torch.uint8)  # lines of one pixel
    filled[: len(images), :, :-1, :-1] = images.cpu()
    table = filled.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [H', W', C]
    picture = Image.fromarray(table[:-1, :-1].expand(-1, -1, 3).contiguous().numpy())
    factor = max(1, round(WIDTH / picture.width))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def compare_columns(
    real: Mapping[str, Sequence[Any]], synthetic: Mapping[str, Sequence[Any]], path: str | os.PathLike[str]
) -> Path:
    """Draws every column of a synthetic and a real table as a PNG: numbers as histograms, categories as bars.

    Dates are drawn as years, times of day as hours. A histogram covers the range
    between the 0.5 % and the 99.5 % quantile of the real column.

    Raises:
        ValueError: the tables have different columns.
    """
    if real.keys() != synthetic.keys():
        raise ValueError(f"real has the columns {', '.join(real)}; synthetic has {', '.join(synthetic)}")
    rows = -(-len(real) // COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(3 * COLUMNS, 2.2 * rows), layout="constrained", squeeze=False
    )
    for axes, name in zip(grid.flat, real, strict=False):
        tables = {"real": _drawable(real[name]), "synthetic": _drawable(synthetic[name])}
        kinds = {type(value) for values in tables.values() for value in values}
        if kinds and kinds <= {int, float}:
            _histograms(axes, tables)
        elif kinds:
            _bars(axes, tables)
        axes.set_title(name, fontsize=9, parse_math=False)  # a name may hold a $
        axes.set_yticks([])
    for axes in grid.flat[len(real) :]:
        axes.axis("off")
    grid.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return Path(path)


def _drawable(values: Sequence[Any]) -> list[Any]:
    """The values that are not missing; dates as years, times of day as hours."""
    found = []
    for value in values:
        if isinstance(value, datetime.date):
            day = 0.0 if not isinstance(value, datetime.datetime) else (value.hour + value.minute / 60) / 24
            found.append(value.year + (value.timetuple().tm_yday - 1 + day) / 366)
        elif isinstance(value, datetime.time):
            found.append(value.hour + value.minute / 60 + value.second / 3600)
        elif value is not None and value == value:
            found.append(value)
    return found


def _histograms(axes: Any, tables: Mapping[str, Sequence[float]]) -> None:
    values = torch.tensor(tables["real"] or tables["synthetic"], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    for label, numbers in tables.items():
        inside = [number for number in numbers if low <= number <= high]
        if inside:  # a density of no values is not defined
            axes.hist(inside, 60, (low, high), True, histtype="step", color=SHADES[label], label=label)


def _bars(axes: Any, tables: Mapping[str, Sequence[Any]]) -> None:
    names = sorted({value for values in tables.values() for value in values}, key=str)
    for shift, (label, values) in zip((-0.2, 0.2), tables.items(), strict=True):
        counts = Counter(values)
        heights = [counts[name] / max(1, len(values)) for name in names]
        axes.bar([i + shift for i in range(len(names))], heights, 0.4, color=SHADES[label], label=label)
    axes.set_xticks(range(len(names)), map(str, names), rotation=45, fontsize=7, parse_math=False)


def _save(frames: list[Image.Image], path: str | os.PathLike[str], form: str) -> Path:
    """Writes a file; it is replaced as a whole, never left half written."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    if form == "PNG":
        frames[0].save(draft, form)
    else:
        durations = [DURATION] * (len(frames) - 1) + [LAST_DURATION]
        frames[0].save(draft, form, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    draft.replace(target)
    return target
