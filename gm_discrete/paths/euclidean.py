"""Paths of real numbers, each independent of the others given the data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gm_discrete.arguments import whole
from gm_discrete.generators.landings import Bins, check_within
from gm_discrete.paths.continuous import ContinuousPath, Weights
from gm_discrete.paths.schedules import TimeLike


class EuclideanPath(ContinuousPath):
    """A path on real numbers, independent per coordinate given z, with generators that may be superposed.

    States are floating-point tensors [B, L, C] or [B, C, H, W]; the path itself takes any shape [B, …].

    Args:
        generators, stop: see `ContinuousPath`.
        num_channels: C.
        bins: over which a network predicts distributions of numbers; needed for the jump.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
    """

    def __init__(
        self, generators: Weights | None, num_channels: int, bins: Bins | dict[str, Any] | None, stop: float
    ) -> None:
        super().__init__(generators, stop)
        self.num_channels = whole("num_channels", num_channels, least=1)
        self.bins = Bins() if bins is None else Bins.of(bins)

    @property
    def num_inputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_channels

    def fill_unscored(self, x: Tensor) -> Tensor:
        return x.clamp(self.bins.low, self.bins.high)

    def check_pair(self, z: Tensor, x: Tensor, t: TimeLike, names: tuple[str, str] = ("z", "x")) -> None:
        super().check_pair(z, x, t, names)
        if {"belief", "landing"} & self.heads.keys():
            check_within(self.bins, z, names[0])
