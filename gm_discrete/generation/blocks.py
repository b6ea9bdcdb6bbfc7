"""Generation block by block: each is filled from t = 0 to t = 1 before those behind it are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.generation.canvas import Canvas
from gm_discrete.generators import Generator
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.readout import Window, readouts
from gm_discrete.samplers import Simulation

if TYPE_CHECKING:
    from gm_discrete.models.modeling import GMModel


class Block:
    """The model as a process on the positions from `start` to `stop` of sequences whose other symbols stand still.

    Args:
        whole: [B, T], the sequences; with block-causal attention T = stop, as nothing behind is seen.
        cache: of the blocks before `start`, if they are not to be read again.
    """

    def __init__(self, model: GMModel, whole: Tensor, start: int, stop: int, cache: BlockCache | None = None) -> None:
        self.model, self.whole, self.start, self.stop, self.cache = model, whole, start, stop, cache
        self.path: Any = model.path

    def around(self, x: Tensor) -> Tensor:
        """The sequences with x in place of the block."""
        return torch.cat([self.whole[:, : self.start], x, self.whole[:, self.stop :]], 1)

    def generator(
        self,
        x: Tensor,
        t: Tensor,
        t_next: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        logits_processor: Any = None,
        guidance_scale: float | None = None,
    ) -> Generator:
        """That of the block at x [B, stop − start]; attention_mask [B, T] is of the whole sequences."""
        masks = None if attention_mask is None else {"": attention_mask}
        read = readouts(
            self.model.network, {"": self.around(x)}, t, {"": t}, logits_processor, guidance_scale,
            attention_mask=masks, class_labels=class_labels, cache=self.cache,
        )  # fmt: skip
        return self.path.marginal(Window(read[""], self.start, self.stop), x, t, t_next)


class Blocks:
    """Goes through the blocks of a canvas, and counts.

    Args:
        size: positions of a block.
        eos, pad: the symbols at which a sequence ends, and the one that is put behind; no sequence ends early without.
        use_cache: whether to keep what the blocks that are done have told.

    Attributes:
        calls, jumps, error: [B], of all blocks, as of a `Simulation`.
    """

    def __init__(self, model: GMModel, canvas: Canvas, size: int, eos: list[int], pad: int, use_cache: bool) -> None:
        self.model, self.canvas, self.eos, self.pad = model, canvas, eos, pad
        self.size, self.causal = size, model.config.block_size is not None
        self.cache = BlockCache() if use_cache else None
        self.calls = torch.zeros(len(canvas.ids), dtype=torch.long, device=canvas.ids.device)
        self.jumps = torch.zeros_like(self.calls)
        self.error: Tensor | None = torch.zeros_like(self.calls, dtype=torch.float64)
        self.cached = torch.arange(len(canvas.ids), device=canvas.ids.device)  # the rows that the cache is of

    def to_fill(self, class_labels: Tensor | None) -> Iterator[tuple[Block, Tensor]]:
        """The blocks one after another, each with the rows [n] that it is of: those that have not ended and are not full."""
        canvas = self.canvas
        for start, stop in canvas.spans(self.size, self.causal):
            rows = (~canvas.fixed[:, start:]).any(1).nonzero().flatten()
            if not bool((~canvas.fixed[rows, start:stop]).any()):
                continue
            whole = canvas.ids[rows, : stop if self.causal else None]
            cache = self._cache_until(start, rows, class_labels)
            yield Block(self.model, whole, start, stop, cache), rows

    def put(self, block: Block, rows: Tensor, run: Simulation) -> None:
        """What became of a block."""
        self.canvas.ids[rows, block.start : block.stop] = run.x
        self.calls[rows] += run.network_calls
        self.jumps[rows] += run.jumps
        self.error = None if run.error_bound is None or self.error is None else self.error
        if self.error is not None and run.error_bound is not None:
            self.error[rows] += run.error_bound
        self.canvas.end_at(self.eos, rows, block.start, block.stop, self.pad)

    def stop(self, block: Block) -> None:
        """Ends with this block the sequences that something is left to fill of."""
        rows = (~self.canvas.fixed[:, block.stop :]).any(1).nonzero().flatten()
        self.canvas.cut(torch.full_like(rows, block.stop), rows, self.pad)

    def _cache_until(self, start: int, rows: Tensor, class_labels: Tensor | None) -> BlockCache | None:
        """What the blocks before `start` tell, of the rows; those that are not kept yet are read."""
        if self.cache is None:
            return None
        self.cache = self.cache.rows(torch.searchsorted(self.cached, rows))
        self.cached = rows
        if self.cache.length < start:
            symbols = self.canvas.ids[rows, self.cache.length : start]
            labels = None if class_labels is None else class_labels[rows]
            real = {"": self.canvas.real[rows, :start]}
            self.model.network.hidden({"": symbols}, None, real, labels, cache=self.cache)
            self.cache = self.cache.grown()
            self.calls[rows] += 1
        return self.cache
