"""The spaces on which flows and diffusions move: numbers, an interval, rotations.

A step goes from x along a tangent vector u, by the exponential map: x + u for numbers, a geodesic for rotations. An *entry*
of a state is what moves and jumps as one: a number, or a whole rotation of four numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gm_discrete.generators import quaternions


class Space(ABC):
    """A space of states [B, …], whose tangent vectors have the state's shape.

    Attributes:
        entry_dims: how many trailing dimensions make one entry.
    """

    entry_dims: int = 0

    @abstractmethod
    def move(self, x: Tensor, u: Tensor) -> Tensor:
        """Where the tangent vector u at x leads."""

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The part of u that is tangent at x. That of standard normal noise is standard normal noise of the space."""
        return u

    def transported(self, u: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """The tangent vector at `target` that corresponds to u at `source`."""
        return u

    def axes(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """An orthonormal basis of the tangent vectors at x, each with the acceleration of its geodesic (`None`: 0)."""
        for i in range(x[0].numel()):
            axis = torch.zeros_like(x).flatten(1)
            axis[:, i] = 1
            yield axis.view_as(x), None


class Numbers(Space):
    """The real numbers, each by itself."""

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    def __repr__(self) -> str:
        return "NUMBERS"


@dataclass(frozen=True)
class Interval(Space):
    """Numbers between `low` and `high`, where a step that leads beyond the ends is reflected."""

    low: float
    high: float

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        width = self.high - self.low
        folded = torch.remainder(x + u - self.low, 2 * width)
        return self.low + torch.minimum(folded, 2 * width - folded)


class Rotations(Space):
    """Unit quaternions [..., 4] (see `quaternions`)."""

    entry_dims = 1

    def move(self, x: Tensor, u: Tensor) -> Tensor:
        return quaternions.move(x, u)

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return quaternions.tangent(x, u)

    def transported(self, u: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return quaternions.transported(u, source, target)

    def axes(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        flat = x.reshape(x.shape[0], -1, 4)
        for entry in range(flat.shape[1]):
            acceleration = torch.zeros_like(flat)
            acceleration[:, entry] = -flat[:, entry]  # a great circle of speed 1
            for unit in torch.eye(4, dtype=x.dtype, device=x.device)[1:]:
                axis = torch.zeros_like(flat)
                axis[:, entry] = quaternions.multiply(flat[:, entry], unit)
                yield axis.view_as(x), acceleration.view_as(x)

    def __repr__(self) -> str:
        return "ROTATIONS"


NUMBERS, ROTATIONS = Numbers(), Rotations()


def entries(mask: Tensor, space: Space) -> Tensor:
    """A mask of a state's shape → one of its entries; all numbers of an entry have one value."""
    return mask[(..., *[0] * space.entry_dims)] if space.entry_dims else mask


def whole(mask: Tensor, shape: Sequence[int], space: Space) -> Tensor:
    """A mask of a state's shape that marks whole entries: where all of their numbers are marked.

    Args:
        mask: of the state's shape; or of that of its entries, [B, L] for rotations.
        shape: of the state.
    """
    if not space.entry_dims:
        return mask
    mask = mask.all(-1, keepdim=True) if mask.shape == tuple(shape) else mask[..., None]
    return mask.expand(*mask.shape[:-1], shape[-1])


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Values [B, …] of the entries, or of the sequences [B], shaped to act on the state x [B, …]."""
    return values.view(*values.shape, *[1] * (x.dim() - values.dim()))
