"""Block-causal attention: a position attends to its own block and those before it, whose keys and values can be kept.

A block diffusion (Arriola et al. 2025, arXiv 2503.09573) writes p(z) = Π_b p(z^b | z^{<b}): each block is noised and
denoised conditioned on the clean blocks before it. In training a sequence enters twice at once, noisy and clean: the noisy
block b attends to itself and to the clean blocks < b, the clean block b to the clean blocks ≤ b. The network is not
conditioned on the time, so that a finished block has the keys and values of a clean one, and they never change again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.masks import additive, same_document


def block_attention(
    config: GMConfig, hidden: Tensor, twice: bool, attention_mask: Tensor | None, cache: BlockCache | None
) -> tuple[Tensor, Tensor]:
    """(what is added to attention scores, the place of every position in its sequence) of states [B, Q, D].

    Args:
        twice: whether the states are those of the noisy sequence and, after it, of the clean one.
        attention_mask: [B, L] of whole sequences, 0 where padded; different positive numbers are of different documents.
        cache: of the blocks before the states.

    Raises:
        ValueError: the attention implementation takes no mask of this form.
    """
    if config._attn_implementation not in (None, "sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} has no block-causal mask: "
            "a model with a block_size takes 'sdpa' or 'eager'"
        )
    start, repeats = 0 if cache is None else cache.length, 2 if twice else 1
    length = start + hidden.shape[1] // repeats
    position = torch.arange(start, length, device=hidden.device).repeat(repeats)
    return block_mask(length, start, config.block_size or 1, twice, attention_mask, hidden), position


def block_mask(length: int, start: int, size: int, twice: bool, attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """What is added to attention scores, 0 where a query attends to a key and −∞ elsewhere: [B or 1, 1, Q, keys].

    Args:
        length: positions of a sequence, which are the keys; start: the first query.
        size: of a block.
        twice: whether queries and keys are the noisy sequence followed by the clean one.
        attention_mask: [B, length], 0 where padded; different positive numbers are of different documents.
        like: a tensor of the scores' type.
    """
    block = torch.arange(length, device=like.device) // size
    query, key = block[start:, None], block[None]
    visible = query >= key
    if twice:
        noisy = torch.cat([query == key, query > key], 1)
        visible = torch.cat([noisy, torch.cat([torch.zeros_like(visible), visible], 1)])
    visible = visible[None, None]
    if attention_mask is not None:
        query, key = (part.repeat(1, 2 if twice else 1) for part in (attention_mask[:, start:], attention_mask))
        visible = visible & same_document(query, key)  # never empty: a query attends to itself
    return additive(visible, like.dtype)


class BlockCache:
    """Keys and values of the finished blocks, by layer.

    Args:
        layers: (keys, values) by layer, each [B, heads, length, head_dim].
        last: the hidden state [B, 1, D] of the last position, for backbones that read the belief about the next one there.
    """

    def __init__(self, layers: Mapping[int, tuple[Tensor, Tensor]] | None = None, last: Tensor | None = None) -> None:
        self.layers, self.last = dict(layers or {}), last
        self.latest: dict[int, list[Tensor]] = {}
        self.latest_last: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of positions in the cache."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def entry(self, layer: int) -> list[Tensor]:
        """The cached keys and values of a layer, or an empty list: to it the layer appends the current positions'."""
        self.latest[layer] = entry = list(self.layers.get(layer, ()))
        return entry

    def grown(self) -> BlockCache:
        """The cache with the positions of the last forward call appended."""
        return BlockCache({layer: (key, value) for layer, (key, value) in self.latest.items()}, self.latest_last)

    def rows(self, rows: Tensor) -> BlockCache:
        """The cache of some of the sequences."""
        last = None if self.last is None else self.last[rows]
        return BlockCache({layer: (key[rows], value[rows]) for layer, (key, value) in self.layers.items()}, last)


def append(entry: list[Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Appends keys and values [B, heads, S, head_dim] to those of a layer (see `BlockCache.entry`), and returns them all."""
    if entry:
        key, value = torch.cat([entry[0], key], 2), torch.cat([entry[1], value], 2)
    entry[:] = key, value
    return key, value
