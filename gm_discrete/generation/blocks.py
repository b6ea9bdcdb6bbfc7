"""Generation block by block: each block is filled from t = 0 to t = 1 before the network is evaluated on the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generators import Generator
from gm_discrete.nn.blocks import BlockCache, WindowCache
from gm_discrete.nn.readout import LogitsProcessor, Network, OnRead, Window
from gm_discrete.nn.readouts import readouts
from gm_discrete.process import State
from gm_discrete.samplers import Simulation

APPROXIMATE = ("prefix", "dual")
"""Caches for attention in both directions."""


class Blocks(Configurable):
    """Semi-autoregressive generation: blocks of `length` positions are sampled from left to right.

    For masked models that are not conditioned on the time. With attention in both directions, later positions are masked
    while a block is filled. A model with a `block_size` attends only to the block and those before it (block diffusion,
    Arriola et al. 2025, arXiv 2503.09573), and always generates in blocks of that size.

    Args:
        length: positions of a block.
        cache: `None` keeps nothing. `"exact"` keeps keys and values of finished blocks, for models with a `block_size`: it
            changes the network output by rounding alone. `"prefix"` and `"dual"` are approximations for attention in both
            directions (Fast-dLLM, arXiv 2505.22618): the first evaluation of a block is one of all positions, and keeps the
            keys and values of those before the block (`"prefix"`), and of those after it, too (`"dual"`). All further ones
            are of the other positions alone: the block and what follows it, or the block. What is kept does not change with
            the tokens that the block gets, and is made anew for the next block.

    >>> from gm_discrete import Blocks, GMConfig, GMModel, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    >>> model.generate(length=6, num_steps=4, blocks=Blocks(2), seed=0).shape
    torch.Size([1, 6])
    """

    type_name: ClassVar[str] = "blocks"
    argument: ClassVar[str] = "blocks"

    def __init__(self, length: int, cache: str | None = None) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"Blocks: length={length!r} must be an integer ≥ 1")
        if cache not in (None, "exact", *APPROXIMATE):
            raise ValueError(f"Blocks: cache={cache!r} must be 'exact', 'prefix', 'dual' or None")
        self.length, self.cache = length, cache


class BlockProcess:
    """The process of a model on the positions from `start` to `stop` of sequences whose other tokens do not move.

    Args:
        whole: [B, T], the sequences; for block-causal attention T = stop, as later positions are not attended to.
        cache: keys and values of the blocks before `start`, if they are kept.
        window: what is kept around positions that are evaluated every time, as an approximation.
    """

    def __init__(
        self,
        network: Network,
        whole: Tensor,
        start: int,
        stop: int,
        cache: BlockCache | None = None,
        window: WindowCache | None = None,
    ) -> None:
        self.network, self.whole, self.start, self.stop = network, whole, start, stop
        self.cache, self.window, self.path = cache, window, network.path

    def generator(
        self,
        x: Tensor,
        t: Tensor,
        t_next: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        logits_processor: LogitsProcessor | None = None,
        guidance_scale: float | None = None,
        on_read: OnRead | None = None,
    ) -> Generator:
        """The generator of the block at x [B, stop − start]; attention_mask [B, T] belongs to the whole sequences."""
        whole = torch.cat([self.whole[:, : self.start], x, self.whole[:, self.stop :]], 1)
        found = readouts(
            self.network, {"": whole}, t, {"": t}, logits_processor, guidance_scale, class_labels=class_labels,
            attention_mask=None if attention_mask is None else {"": attention_mask}, cache=self.cache,
            window=self.window, on_read=on_read,
        )  # fmt: skip
        return self.path.marginal(Window(found[""], self.start, self.stop), x, t, t_next)


class BlockRun:
    """Goes through the blocks of a canvas, keeps their cache, and counts.

    Args:
        causal: whether the model attends only to a block and those before it; its blocks start at multiples of their length.
        eos: tokens that end a sequence; pad: the token after its end.

    Attributes:
        calls, jumps, error: [B], summed over the blocks, as in a `Simulation`.
    """

    def __init__(
        self, network: Network, canvas: Canvas, blocks: Blocks, causal: bool, eos: list[int], pad: int
    ) -> None:
        self.network, self.canvas, self.eos, self.pad = network, canvas, eos, pad
        self.size, self.causal, self.kind = blocks.length, causal, blocks.cache
        self.cache = BlockCache() if blocks.cache == "exact" else None
        self.calls = torch.zeros(len(canvas.ids), dtype=torch.long, device=canvas.ids.device)
        self.jumps = torch.zeros_like(self.calls)
        self.error: Tensor | None = torch.zeros_like(self.calls, dtype=torch.float64)
        self.cached = torch.arange(len(canvas.ids), device=canvas.ids.device)  # the rows that the cache holds

    def to_fill(self, class_labels: Tensor | None) -> Iterator[tuple[BlockProcess, Tensor]]:
        """The blocks from left to right, each with its rows [n]: the sequences that have not ended and are not full."""
        canvas = self.canvas
        for start, stop in canvas.spans(self.size, self.causal):
            rows = (~canvas.fixed[:, start:]).any(1).nonzero().flatten()
            if not bool((~canvas.fixed[rows, start:stop]).any()):
                continue
            whole = canvas.ids[rows, : stop if self.causal else None]
            window = None
            if self.kind in APPROXIMATE:
                window = WindowCache(start, stop if self.kind == "dual" else whole.shape[1])
            cache = self._cache_until(start, rows, class_labels)
            yield BlockProcess(self.network, whole, start, stop, cache, window), rows

    def put(self, block: BlockProcess, rows: Tensor, run: Simulation[State]) -> None:
        """Writes a finished block into the canvas, and ends the sequences that have generated an `eos` token."""
        self.canvas.ids[rows, block.start : block.stop] = run.x[""]
        self.calls[rows] += run.network_calls
        self.jumps[rows] += run.jumps
        self.error = None if run.error_bound is None else self.error
        if self.error is not None and run.error_bound is not None:
            self.error[rows] += run.error_bound
        self.canvas.end_at(self.eos, rows, block.start, block.stop, self.pad)

    def stop(self, block: BlockProcess) -> None:
        """Ends with this block the sequences that still have places to fill."""
        rows = (~self.canvas.fixed[:, block.stop :]).any(1).nonzero().flatten()
        self.canvas.cut(torch.full_like(rows, block.stop), rows, self.pad)

    def _cache_until(self, start: int, rows: Tensor, class_labels: Tensor | None) -> BlockCache | None:
        """Keys and values of all blocks before `start`, of the rows; blocks that are not kept yet are encoded first."""
        if self.cache is None:
            return None
        self.cache = self.cache.rows(torch.searchsorted(self.cached, rows))
        self.cached = rows
        if self.cache.length < start:
            tokens = {"": self.canvas.ids[rows, self.cache.length : start]}
            labels = None if class_labels is None else class_labels[rows]
            self.network.hidden(tokens, None, {"": self.canvas.real[rows, :start]}, labels, cache=self.cache)
            self.cache = self.cache.grown()
            self.calls[rows] += 1
        return self.cache
