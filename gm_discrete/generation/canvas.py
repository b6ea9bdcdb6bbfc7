"""What `generate` fills: prompts, their gaps and what is to follow them, in one tensor of symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Canvas:
    """Symbols and what is known of them, each [B, L].

    Attributes:
        ids: long; anything where a symbol is to be filled.
        fixed: bool, symbols that stay.
        real: long, 0 where a sequence is padded.
        new: bool, what was added behind the prompts, or the whole sequence where there is none.
    """

    ids: Tensor
    fixed: Tensor
    real: Tensor
    new: Tensor

    @staticmethod
    def empty(shape: tuple[int, ...], device: torch.device) -> Canvas:
        """Sequences of which nothing is known."""
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        return Canvas(ids, torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids), torch.ones_like(ids).bool())

    @staticmethod
    def of_prompts(
        path: Any,
        ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int,
        mask_token_id: int | None,
        pad_token_id: int | None,
        aligned: bool,
    ) -> Canvas:
        """Prompts, with `max_new_tokens` places to fill right behind each; every mask inside is one, too.

        Args:
            ids: [B, L]; attention_mask: [B, L], 0 where padded.
            aligned: whether padding on the left moves behind, too, so that all prompts start at the first position.

        Raises:
            TypeError, ValueError: the prompts are no symbols of the path, or their mask is not of their shape.
        """
        if not isinstance(ids, Tensor):
            raise TypeError(f"input_ids is a {type(ids).__name__}; give a tensor [B, L], as a tokenizer returns it")
        real = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.device).long()
        if real.shape != ids.shape:
            raise ValueError(f"attention_mask has shape {tuple(real.shape)}; input_ids has {tuple(ids.shape)}")
        path.check(ids.cpu(), torch.zeros(len(ids)), "input_ids")
        gaps = torch.zeros_like(real) if mask_token_id is None else (ids == mask_token_id).long()
        ones = torch.ones(len(ids), max_new_tokens, dtype=torch.long, device=ids.device)
        behind = (real == 0) if aligned else real.flip(1).cumsum(1).flip(1) == 0
        order = torch.cat([behind.long(), 0 * ones], 1).argsort(dim=1, stable=True)
        pairs = (ids, 0 * ones), (real, ones), (gaps, ones), (0 * real, ones)
        ids, real, gaps, new = (torch.cat(pair, 1).gather(1, order) for pair in pairs)
        if aligned:  # what is padding in every row is none
            kept = slice(int(real.sum(1).max())) if real.numel() else slice(None)
            ids, real, gaps, new = ids[:, kept], real[:, kept], gaps[:, kept], new[:, kept]
        ids = ids if pad_token_id is None else torch.where(real == 0, pad_token_id, ids)
        return Canvas(ids, (gaps == 0) | (real == 0), real, new.bool())

    @property
    def shown(self) -> int:
        """Number of positions that are fixed in every row, with free ones alone behind; 0 if there is no such number."""
        given = int(self.fixed.all(0).long().cumprod(0).sum())
        return 0 if bool(self.fixed[:, given:].any()) else given

    def spans(self, size: int, from_the_start: bool) -> list[tuple[int, int]]:
        """(start, stop) of the blocks that hold a place to fill, from the first position on or from the first such place."""
        free = (~self.fixed).any(0).nonzero().flatten()
        if not len(free):
            return []
        first, length = int(free[0]), self.ids.shape[1]
        begin = first // size * size if from_the_start else first
        return [(start, min(start + size, length)) for start in range(begin, length, size)]

    def end_at(self, symbols: list[int], rows: Tensor, start: int, stop: int, pad: int) -> None:
        """Cuts the rows behind the first of the symbols that was put into new positions of the block."""
        if not symbols:
            return
        ends = torch.isin(self.ids[rows, start:stop], torch.tensor(symbols, device=self.ids.device))
        ends &= self.new[rows, start:stop]
        self.cut(torch.where(ends.any(1), start + ends.long().argmax(1) + 1, self.ids.shape[1]), rows, pad)

    def cut(self, length: Tensor, rows: Tensor, pad: int) -> None:
        """Ends the rows [n] after so many positions [n] each."""
        cut = torch.zeros_like(self.fixed)
        cut[rows] = torch.arange(self.ids.shape[1], device=self.ids.device) >= length[:, None]
        cut &= self.real.bool()
        self.ids, self.real = self.ids.masked_fill(cut, pad), self.real.masked_fill(cut, 0)
        self.fixed = self.fixed | cut
