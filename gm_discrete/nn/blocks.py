"""Block-causal attention: a position sees its own block and the blocks before it, and what it has seen can be kept.

A block diffusion (Arriola et al. 2025, arXiv 2503.09573) writes p(z) = Π_b p(z^b | z^{<b}): each block is noised and
denoised given the clean blocks before it. In training a sequence is read twice at once, noisy and clean: the noisy block b
sees itself and the clean blocks < b, the clean block b the clean blocks ≤ b. As the network does not see the time, a block
that is done reads as a clean one, so that its keys and values never change again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def block_mask(length: int, start: int, size: int, twice: bool, attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the scores of attention, 0 where a query sees a key and −∞ where not: [B or 1, 1, Q, keys].

    Args:
        length: positions of a sequence, which are the keys; start: the first of those that ask.
        size: of a block.
        twice: whether the clean sequence stands behind the noisy one, in queries and keys.
        attention_mask: [B, length], 0 where padded.
        like: of the scores' type.
    """
    block = torch.arange(length, device=like.device) // size
    query, key = block[start:, None], block[None]
    seen = query >= key
    if twice:
        noisy = torch.cat([query == key, query > key], 1)
        seen = torch.cat([noisy, torch.cat([torch.zeros_like(seen), seen], 1)])
    seen = seen[None, None]
    if attention_mask is not None:
        real = attention_mask.bool().repeat(1, 2 if twice else 1)
        # A padded query sees itself alone: one that saw nothing would be no number.
        itself = torch.eye(seen.shape[3], dtype=torch.bool, device=like.device)[-seen.shape[2] :]
        seen = seen & real[:, None, None] | itself
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, torch.finfo(like.dtype).min)


class BlockCache:
    """Keys and values of the blocks that are done, by layer.

    Args:
        layers: (keys, values) by layer, each [B, heads, length, head_dim].
    """

    def __init__(self, layers: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = dict(layers or {})
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Number of positions that are kept."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of a layer, and behind it the keys and values [B, heads, S, head_dim] of what is read now."""
        if layer in self.layers:
            key, value = (torch.cat([old, new], 2) for old, new in zip(self.layers[layer], (key, value), strict=True))
        self.read[layer] = key, value
        return key, value

    def grown(self) -> BlockCache:
        """The cache that also keeps what was read last."""
        return BlockCache(self.read)

    def rows(self, rows: Tensor) -> BlockCache:
        """The cache of some of the sequences."""
        return BlockCache({layer: (key[rows], value[rows]) for layer, (key, value) in self.layers.items()})
