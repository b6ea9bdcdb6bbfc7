"""Blocks of positions: attention that is causal from block to block, and caches of keys and values around a block.

A block diffusion (Arriola et al. 2025, arXiv 2503.09573) writes p(z) = Π_b p(z^b | z^{<b}): each block is noised and
denoised conditioned on the clean blocks before it. In training a sequence enters twice at once, noisy and clean: the noisy
block b attends to itself and to the clean blocks < b, the clean block b to the clean blocks ≤ b. The network is not
conditioned on the time, so that a finished block has the keys and values of a clean one, and they never change again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gm_discrete.generators.rows import on_device
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.masks import PLAIN, additive, same_document


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


def window_attention(
    config: GMConfig, hidden: Tensor, documents: Tensor | None, cache: BlockCache
) -> tuple[Tensor | None, Tensor]:
    """(mask, places in their sequence) of states [B, Q, D] that attend to themselves and to all that the cache holds.

    Args:
        documents: numbers of documents [B, L] of the whole sequences, 0 where padded.

    Raises:
        ValueError: the attention implementation takes no mask of this form.
    """
    start, stop = cache.length, cache.length + hidden.shape[1]
    place = torch.arange(start, stop, device=hidden.device)
    if documents is None:
        return None, place
    name = config._attn_implementation or "sdpa"
    if name not in PLAIN:
        raise ValueError(
            f"attn_implementation={name!r} has no mask for padding or documents around a block: with cache='prefix' or "
            "'dual' such batches take 'sdpa' or 'eager'"
        )
    same = same_document(documents[:, start:stop], documents)
    return same if name == "sdpa" else additive(same, hidden.dtype), place


class BlockCache:
    """Keys and values of the positions before those that are evaluated, and perhaps of those after them, by layer.

    Args:
        layers: (keys, values) by layer, each [B, heads, positions, head_dim]; with positions after the evaluated ones
            (keys before, values before, keys after, values after).
        last: the hidden state [B, 1, D] of the last position before, for backbones that read the belief about the next one
            there.
        recording: whether it is empty, and made for the keys and values that an evaluation leaves in `latest`.
    """

    def __init__(
        self,
        layers: Mapping[int, tuple[Tensor, ...]] | None = None,
        last: Tensor | None = None,
        recording: bool = False,
    ) -> None:
        self.layers, self.last, self.recording = dict(layers or {}), last, recording
        self.latest: dict[int, list[Tensor]] = {}
        self.latest_last: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of positions before those that are evaluated."""
        return self.layers[0][0].shape[2] if self.layers else 0

    @property
    def after(self) -> int:
        """Number of positions after those that are evaluated."""
        return self.layers[0][2].shape[2] if self.layers and len(self.layers[0]) > 2 else 0

    def entry(self, layer: int) -> list[Tensor]:
        """What is cached of a layer, or an empty list: the layer puts all keys and values into it (see `append`)."""
        self.latest[layer] = entry = list(self.layers.get(layer, ()))
        return entry

    def grown(self) -> BlockCache:
        """The cache with the positions of the last forward call appended."""
        return BlockCache({layer: (key, value) for layer, (key, value) in self.latest.items()}, self.latest_last)

    def rows(self, rows: Tensor) -> BlockCache:
        """The cache of some of the sequences."""
        last = None if self.last is None else self.last[rows]
        return BlockCache({layer: tuple(part[rows] for part in parts) for layer, parts in self.layers.items()}, last)


class WindowCache:
    """Keys and values around a window of sequences with attention in both directions, kept from the first evaluation on.

    An approximation (Fast-dLLM, arXiv 2505.22618): of one layer they would not change with the tokens of the window, of more
    they do, through the layers below. The first evaluation of a sequence is of all its positions, and exact; all later ones
    are of the window alone.

    Args:
        start, stop: the window, positions of all sequences.

    Attributes:
        kept: what is cached of all sequences, with arbitrary values of those that are not `done`.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.kept = BlockCache()
        self.done: set[int] = set()

    def parts(self, rows: Sequence[int]) -> list[tuple[Sequence[int], BlockCache]]:
        """The sequences that have not been evaluated, with a cache that records, and those that have, with what is kept."""
        new, old = ([row for row in rows if (row in self.done) is done] for done in (False, True))
        return [(part, cache) for part, cache in ((new, BlockCache(recording=True)), (old, self.kept)) if part]

    def keep(self, hidden: Tensor, full: BlockCache, rows: Sequence[int]) -> Tensor:
        """Keeps what an evaluation of all positions of some sequences has left in its cache.

        Args:
            hidden: its output [B, L, D]; rows: the sequences [n].

        Returns:
            The hidden states [B, stop − start, D] of the window.
        """
        start, stop, index = self.start, self.stop, on_device(rows, hidden.device)
        batch, kept = hidden.shape[0], {**self.kept.layers}

        def put(value: Tensor, into: Tensor | None) -> Tensor:
            """A value [n, …] among those [B, …] of all sequences."""
            into = value.new_zeros(batch, *value.shape[1:]) if into is None else into
            return value if len(rows) == batch else into.index_copy(0, index, value)

        for layer, (key, value) in full.latest.items():
            parts = key[:, :, :start], value[:, :, :start], key[:, :, stop:], value[:, :, stop:]
            before = kept.get(layer, (None,) * len(parts))
            kept[layer] = tuple(put(part, into) for part, into in zip(parts, before, strict=True))
        last = None
        if full.latest_last is not None and start:  # the state before the window was moved to its first place
            last = put(hidden[index, start : start + 1], self.kept.last)
        self.kept = BlockCache(kept, last)
        self.done.update(rows)
        return hidden[:, start:stop]


def append(entry: list[Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Puts keys and values [B, heads, S, head_dim] between those of a layer before and after, and returns them all.

    Args:
        entry: what `BlockCache.entry` returns; it holds the result afterwards.
    """
    if entry:
        key, value = torch.cat([entry[0], key, *entry[2:3]], 2), torch.cat([entry[1], value, *entry[3:]], 2)
    entry[:] = key, value
    return key, value
