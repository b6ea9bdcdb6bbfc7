"""Which entries of a state share a position of the transformer: numbers of a vector, pixels of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from gm_discrete.models.config import GMConfig


class Layout:
    """Entries ↔ (position, slot). Symbols have one slot, vectors [L, C] one for each channel, images [C, H, W] one for each
    channel and pixel of a patch; the patches go row by row.

    Args:
        config: its `image_shape`, `patch_size` and, of vectors, the path's channels.
    """

    def __init__(self, config: GMConfig) -> None:
        self.image = tuple(config.image_shape) if config.image_shape else None
        self.patch = config.patch_size
        self.slots = math.prod((self.image[0], self.patch, self.patch)) if self.image else config.num_channels

    def positions(self, x: Tensor) -> int:
        """Number of positions of the states [B, …]."""
        return x[0].numel() // self.slots

    def split(self, x: Tensor) -> Tensor:
        """[B, …] → [B, positions, slots]."""
        if self.image is None:
            return x.reshape(len(x), -1, self.slots)
        return x.flatten(1)[:, self._order.to(x.device)].view(len(x), -1, self.slots)

    def join(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[B, positions, slots] → [B, …] of the given shape."""
        if self.image is None:
            return values.reshape(shape)
        return values.flatten(1)[:, self._place.to(values.device)].view(*shape)

    def place(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """(position, slot) of entries of a flattened state."""
        if self.image is not None:
            entry = self._place.to(entry.device)[entry]
        return entry // self.slots, entry % self.slots

    @cached_property
    def _order(self) -> Tensor:
        """The entries of an image, patch by patch."""
        channels, height, width = self.image or (1, 1, 1)
        size = self.patch
        grid = torch.arange(channels * height * width, device="cpu")
        grid = grid.view(channels, height // size, size, width // size, size)
        return grid.permute(1, 3, 0, 2, 4).flatten()

    @cached_property
    def _place(self) -> Tensor:
        return self._order.argsort()
