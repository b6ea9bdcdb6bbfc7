"""Which fields of a state can be frames: one of rotations, and one of points that share its positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gm_discrete.generators.spaces import ROTATIONS
from gm_discrete.nn.field import Field
from gm_discrete.paths import GaussianPath

OFF_CENTRE = 1e-3
"""Greatest mean of the points, in standard deviations: that of centred data is 0 up to rounding."""


def check_frames(frames: Sequence[str], fields: Mapping[str, Field], groups: Sequence[Sequence[str]]) -> None:
    """
    Args:
        frames: the names of the rotations and of the points.
        fields: all fields, by name; groups: the names of those that share positions.

    Raises:
        ValueError: they are no such fields, what their paths predict depends on the axes of space, or other fields have
            positions of their own.
    """
    given = f"frames={list(frames)}"
    if "" in fields:
        raise ValueError(f"{given} are two fields of a ProductPath, and this path has a single one; leave frames out")
    if set(frames) - fields.keys():
        raise ValueError(f"{given} must be names of fields; the path has {', '.join(fields)}")
    rotation, points = (fields[name].path for name in frames)
    if rotation.space is not ROTATIONS:
        raise ValueError(f"{given}: the first must be a field of rotations, such as SO3Path(), and has {rotation!r}")
    if not isinstance(points, GaussianPath) or points.num_channels != 3 or points.heads.keys() != {"flow"}:
        raise ValueError(
            f"{given}: the second must be a field of points, GaussianPath(num_channels=3) with a flow or diffusion and "
            f"without bins, and has {points!r}"
        )
    if abs(points.data_mean) > OFF_CENTRE * points.data_std:
        raise ValueError(
            f"{given}: {frames[1]} has data_mean={points.data_mean}, the same for x, y and z, which singles out "
            "a direction; centre the points of each example, and set data_mean=0"
        )
    if len(groups) > 1:
        raise ValueError(f"{given}: all fields must share positions; set aligned=[{list(fields)}]")
