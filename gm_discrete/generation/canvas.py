"""Prompts as one tensor of tokens: what is observed in it, what is padding, and what is to be filled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gm_discrete.paths import Path


@dataclass
class Canvas:
    """Token sequences with places to fill, each tensor [B, L].

    Attributes:
        ids: long; arbitrary where a token is to be filled.
        fixed: bool, positions that keep their token: observed ones and padding.
        real: long, 0 where a sequence is padded; different positive numbers are of different documents.
        new: bool, positions after the prompt; the whole sequence if there is no prompt.
    """

    ids: Tensor
    fixed: Tensor
    real: Tensor
    new: Tensor

    @staticmethod
    def empty(shape: tuple[int, ...], device: torch.device) -> Canvas:
        """Sequences with every position to fill."""
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        return Canvas(ids, torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids), torch.ones_like(ids).bool())

    @staticmethod
    def of_prompts(
        path: Path,
        ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int,
        mask_token_id: int | None,
        pad_token_id: int | None,
        align_left: bool,
    ) -> Canvas:
        """Prompts with `max_new_tokens` places to fill directly after each; mask tokens inside are places to fill, too.

        Args:
            ids: [B, L]; attention_mask: [B, L], 0 where padded. New tokens belong to the document of the prompt's last one.
            align_left: whether padding on the left moves to the right, so that every prompt starts at position 0.

        Raises:
            TypeError, ValueError: the prompts are not token ids of the path, or their mask does not have their shape.
        """
        if not isinstance(ids, Tensor):
            raise TypeError(f"input_ids is a {type(ids).__name__}; give a tensor [B, L], as a tokenizer returns it")
        if not isinstance(attention_mask, Tensor | None):
            raise ValueError(f"attention_mask must be a tensor [B, L], got {attention_mask!r}")
        real = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.device).long()
        if real.shape != ids.shape:
            raise ValueError(f"attention_mask has shape {tuple(real.shape)}; input_ids has {tuple(ids.shape)}")
        path.check(ids.cpu(), torch.zeros(len(ids)), "input_ids")
        gaps = torch.zeros_like(real) if mask_token_id is None else (ids == mask_token_id).long()
        ones = torch.ones(len(ids), max_new_tokens, dtype=torch.long, device=ids.device)
        padding_after = (real == 0) if align_left else real.flip(1).cumsum(1).flip(1) == 0
        # A stable sort by "padding that belongs after the new positions" inserts these directly after each prompt.
        order = torch.cat([padding_after.long(), 0 * ones], 1).argsort(dim=1, stable=True)
        numbers = torch.nn.functional.pad(real, (1, 0), value=1)  # 1 for prompts without tokens
        last = ((numbers != 0) * torch.arange(numbers.shape[1], device=ids.device)).amax(1, keepdim=True)
        pairs = (ids, 0 * ones), (real, ones * numbers.gather(1, last)), (gaps, ones), (0 * real, ones)
        ids, real, gaps, new = (torch.cat(pair, 1).gather(1, order) for pair in pairs)
        if align_left:  # columns that are padding in every row are dropped
            kept = slice(int(real.bool().sum(1).max())) if real.numel() else slice(None)
            ids, real, gaps, new = ids[:, kept], real[:, kept], gaps[:, kept], new[:, kept]
        ids = ids if pad_token_id is None else torch.where(real == 0, pad_token_id, ids)
        return Canvas(ids, (gaps == 0) | (real == 0), real, new.bool())

    @property
    def prompt_length(self) -> int:
        """Number of leading positions that are fixed in every row if none is fixed after them, else 0."""
        length = int(self.fixed.all(0).long().cumprod(0).sum())
        return 0 if bool(self.fixed[:, length:].any()) else length

    def spans(self, size: int, aligned: bool) -> list[tuple[int, int]]:
        """(start, stop) of the blocks of `size` positions from the first one that has a place to fill.

        Args:
            aligned: whether blocks start at multiples of `size`; else the first starts at the first place to fill.
        """
        free = (~self.fixed).any(0).nonzero().flatten()
        if not len(free):
            return []
        first, length = int(free[0]), self.ids.shape[1]
        begin = first // size * size if aligned else first
        return [(start, min(start + size, length)) for start in range(begin, length, size)]

    def end_at(self, tokens: list[int], rows: Tensor, start: int, stop: int, pad: int) -> None:
        """Cuts the rows [n] after the first of `tokens` in new positions of the block from `start` to `stop`."""
        if not tokens:
            return
        ends = torch.isin(self.ids[rows, start:stop], torch.tensor(tokens, device=self.ids.device))
        ends &= self.new[rows, start:stop]
        self.cut(torch.where(ends.any(1), start + ends.long().argmax(1) + 1, self.ids.shape[1]), rows, pad)

    def cut(self, length: Tensor, rows: Tensor, pad: int) -> None:
        """Ends each of the rows [n] after its length [n]; what follows becomes padding."""
        cut = torch.zeros_like(self.fixed)
        cut[rows] = torch.arange(self.ids.shape[1], device=self.ids.device) >= length[:, None]
        cut &= self.real.bool()
        self.ids, self.real = self.ids.masked_fill(cut, pad), self.real.masked_fill(cut, 0)
        self.fixed = self.fixed | cut
