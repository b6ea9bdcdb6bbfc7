"""Which entries of a state share a position of the transformer: numbers of a vector, pixels of a patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.nn.config import Field


class Layout:
    """Entries ↔ (position, slot). Symbols have one slot, vectors [L, C] one for each channel, images [C, H, W] one for each
    channel and pixel of a patch; the patches go row by row.

    Args:
        field: its `image_shape`, `patch_size` and, of vectors, the path's channels.
    """

    def __init__(self, field: Field) -> None:
        self.image, self.patch, self.slots = field.image_shape, field.patch_size, field.slots
        self._kept: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def positions(self, x: Tensor) -> int:
        """Number of positions of the states [B, …]."""
        return x[0].numel() // self.slots

    def split(self, x: Tensor) -> Tensor:
        """[B, …] → [B, positions, slots]."""
        if self.image is None:
            return x.reshape(len(x), -1, self.slots)
        return x.flatten(1)[:, self._maps(x.device)[0]].view(len(x), -1, self.slots)

    def join(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[B, positions, slots] → [B, …] of the given shape."""
        if self.image is None:
            return values.reshape(shape)
        return values.flatten(1)[:, self._maps(values.device)[1]].view(*shape)

    def place(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """(position, slot) of entries of a flattened state."""
        if self.image is not None:
            entry = self._maps(entry.device)[1][entry]
        return entry // self.slots, entry % self.slots

    def _maps(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The entries of an image, patch by patch, and the place of each among them; kept for each device."""
        if device not in self._kept:
            channels, height, width = self.image or (1, 1, 1)
            size = self.patch
            grid = torch.arange(channels * height * width, device=device)
            grid = grid.view(channels, height // size, size, width // size, size)
            order = grid.permute(1, 3, 0, 2, 4).flatten()
            self._kept[device] = order, order.argsort()
        return self._kept[device]
