"""Generation of strings: the symbols that stay, the gaps between them that are open, and where the process starts.

A prompt is a row of fixed symbols with holes, each of which stands for a text of any length, also none:

    ids      c  a  ▢  ▢  d  ▢      a run of markers ▢ is one hole
    fixed    c  a        d         never deleted or substituted
    gaps    0  1  2        3       gap p comes before the fixed symbol p: 2 and 3 are open, 0 and 1 are closed
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.generation.draft import Draft
from gm_discrete.paths import EditPath


@dataclass(frozen=True)
class StringStart:
    """The strings that a call of `generate` starts from. Without a prompt nothing is fixed, and the only gap is open.

    Attributes:
        pieces: the fixed symbols, packed strings [B, L].
        open: bool [B, L + 1], the gaps between them that are open; no gap after the last symbol's.
        max_length: [B], symbols that each string has at most.
        pad_token_id: what follows the symbols of a sample.
        draft: packed strings [B, D] that are noised to the time of the start; `None` for a start from the prior.
        kept: bool [B, D], the symbols of the draft that are the fixed ones.
    """

    pieces: Tensor
    open: Tensor
    max_length: Tensor
    pad_token_id: int
    draft: Tensor | None = None
    kept: Tensor | None = None

    @classmethod
    def of(
        cls,
        path: EditPath,
        batch: int,
        prompts: tuple[Tensor, Tensor] | None,
        draft: Tensor | None,
        max_length: int,
        max_new_tokens: int,
        pad_token_id: int,
        device: torch.device,
    ) -> StringStart:
        """The start that the arguments of `generate` describe.

        Args:
            batch: B.
            prompts: (pieces, open) as `read_prompts` returns them; draft: packed strings [B, D].
            max_length: symbols of every string at most; max_new_tokens: symbols after a prompt at most, in its place if > 0.

        Raises:
            ValueError: a string is longer than the limit, or a prompt does not occur in its draft.
        """
        if prompts is None:
            nothing = torch.full((batch, 0), path.blank_token_id, device=device)
            prompts = nothing, torch.ones(batch, 1, dtype=torch.bool, device=device)
        pieces, gaps = (part.to(device) for part in prompts)
        number = path.strings.lengths(pieces)
        limit = torch.full_like(number, max_length)
        if max_new_tokens:
            limit, gaps = number + max_new_tokens, gaps.scatter(1, number[:, None], True)
        checks = [("the prompt", number, limit)]
        if draft is not None:
            checks.append(("the draft", path.strings.lengths(draft), limit))
        for what, lengths, most in checks:
            if bool((lengths > most).any()):
                row = int((lengths > most).long().argmax())
                raise ValueError(
                    f"{what} of row {row} has {int(lengths[row])} symbols, more than max_length={int(most[row])}: give a "
                    "greater max_length, which counts the whole string"
                )
        kept = None
        if draft is not None:
            kept = torch.tensor(
                [
                    occurrence(*strings, path.blank_token_id, row)
                    for row, strings in enumerate(zip(pieces.tolist(), gaps.tolist(), draft.tolist(), strict=True))
                ],
                dtype=torch.bool, device=device,
            ).view(draft.shape)  # fmt: skip
        return cls(pieces, gaps, limit, pad_token_id, draft, kept)

    def rows(self, row: Tensor) -> StringStart:
        """Those of some of the sequences."""
        draft = None if self.draft is None else self.draft[row]
        kept = None if self.kept is None else self.kept[row]
        pieces, gaps, limit = self.pieces[row], self.open[row], self.max_length[row]
        return replace(self, pieces=pieces, open=gaps, max_length=limit, draft=draft, kept=kept)

    @property
    def batch_size(self) -> int:
        return len(self.pieces)

    def prompt_length(self, blank: int) -> int:
        """Number of symbols before the hole if all prompts have equally many, and one hole, at their end; else 0."""
        number = (self.pieces != blank).sum(1)
        first = int(number[0]) if len(number) else 0
        alike = (number == first) & (self.open.sum(1) == 1) & self.open.gather(1, number[:, None]).squeeze(1)
        return first if bool(alike.all()) else 0

    def begin(self, path: EditPath, time: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x, fixed, free): packed strings at the time t, bool [B, L], which of their symbols stay, and bool
        [B, 2 (L + 1)], which entries an edit may change.

        Without a draft there is as much noise as the prior's string is longer than the fixed symbols, each of its symbols in
        an open gap that is drawn evenly. With one, the noise is that of p_t(·|draft), but for the fixed symbols and closed
        gaps. What does not fit into `max_length` is left out, at random.
        """
        x, fixed = self._noise(path, rng) if self.draft is None else self._noised(path, time, rng)
        blank, strings = path.blank_token_id, path.strings
        # The gap after each column, and after the start, is that after the last fixed symbol up to there.
        gap = self.open.gather(1, F.pad(fixed.long().cumsum(1), (1, 0)))
        noise = (x != blank) & ~fixed
        lot = torch.rand(x.shape, generator=rng, device=rng.device, dtype=torch.float64).to(x.device)
        rank = lot.masked_fill(~(noise & gap[:, 1:]), 2.0).argsort(1).argsort(1)
        fits = gap[:, 1:] & (rank < (self.max_length - fixed.sum(1))[:, None])
        x = torch.where(fixed | fits, x, blank)
        places, width = strings.places(x), int(strings.lengths(x).max()) if x.numel() else 0
        after, symbol, stays = (strings.moved(mask, places, False)[:, :width] for mask in (gap[:, 1:], ~fixed, fixed))
        free = torch.stack([F.pad(symbol, (1, 0)), torch.cat([gap[:, :1], after], 1)], 2).flatten(1)
        return strings.packed(x)[:, :width], stays, free

    def _noise(self, path: EditPath, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Columns [B, C] of the fixed symbols, with noise of the prior in open gaps; and which are fixed."""
        pieces, blank = self.pieces, path.blank_token_id
        fixed = pieces != blank
        if path.inserts_only:
            return pieces, fixed
        most = int(self.max_length.max())
        noise = path.prior((len(pieces), most), rng, pieces.device)
        noise = torch.where(torch.arange(most, device=noise.device) < fixed.sum(1, keepdim=True), blank, noise)
        number = self.open.sum(1, keepdim=True)
        uniform = torch.rand(noise.shape, generator=rng, device=rng.device, dtype=torch.float64).to(noise.device)
        hole = torch.minimum((uniform * number).long(), number - 1)
        gap = torch.searchsorted(self.open.long().cumsum(1), hole + 1)
        symbol = torch.arange(pieces.shape[1], device=noise.device).expand_as(pieces)
        order = torch.cat([2 * symbol + 1, 2 * gap], 1).argsort(dim=1, stable=True)
        return torch.cat([pieces, noise], 1).gather(1, order), F.pad(fixed, (0, most)).gather(1, order)

    def _noised(self, path: EditPath, time: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Columns [B, C] of x_t ~ p_t(·|draft) in which fixed symbols are not noised; and which are fixed."""
        assert self.draft is not None
        assert self.kept is not None
        x_0, z = path.align(self.draft, rng)
        t = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        place = path.strings.places(z)  # the width where there is no symbol
        kept = F.pad(self.kept, (0, z.shape[1] + 1 - self.kept.shape[1]))
        fixed = kept.gather(1, place)
        return torch.where(fixed, z, path.sample(z, t, rng, x_0, check=False)), fixed

    def shown(self, path: EditPath, x: Tensor) -> Tensor:
        """Packed strings, in as many places as the longest needs, with `pad_token_id` in place of blanks."""
        x = path.strings.trimmed(x)
        return torch.where(x == path.blank_token_id, self.pad_token_id, x)


def read_prompts(
    path: EditPath, ids: Tensor, attention_mask: Tensor | None, mask_token_id: int | None
) -> tuple[Tensor, Tensor]:
    """(pieces, open): the fixed symbols of prompts [B, L], packed, and the gaps between them that are open, [B, L + 1].

    Args:
        attention_mask: [B, L], 0 where padded.
        mask_token_id: what marks a hole; by default blanks do, except where padded.

    Raises:
        TypeError, ValueError: the prompts are no strings of the path, or their mask does not have their shape.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"input_ids is a {type(ids).__name__}; give a tensor [B, L], as a tokenizer returns it")
    path.check(ids, torch.zeros(len(ids), device=ids.device), "input_ids")
    ids, real = _without_padding(path, ids, attention_mask, "input_ids")
    blank = path.blank_token_id
    marker = real & (ids == (blank if mask_token_id is None else mask_token_id))
    fixed = ~marker & (ids != blank)
    # A marker is in the gap after the fixed symbols before it; a place more takes what is no marker.
    gap = torch.where(marker, fixed.long().cumsum(1), ids.shape[1] + 1)
    gaps = torch.zeros(len(ids), ids.shape[1] + 2, dtype=torch.bool, device=ids.device).scatter(1, gap, True)[:, :-1]
    end = torch.arange(gaps.shape[1], device=ids.device) == fixed.sum(1, keepdim=True)
    gaps = gaps | (end & ~marker.any(1, keepdim=True))
    return path.strings.packed(torch.where(fixed, ids, blank)), gaps


def read_draft(
    path: EditPath, draft: Draft, attention_mask: Tensor | None, mask_token_id: int | None, pad_token_id: int
) -> Tensor:
    """The packed strings [B, D] of a draft: mask tokens, padding, and pad tokens at the end are no symbols.

    Raises:
        TypeError, ValueError: they are no strings of the path.
    """
    z = draft.values
    if not isinstance(z, Tensor):
        raise TypeError(f"start_from is a {type(z).__name__}; give a Draft of strings in a tensor [B, L]")
    path.check(z, torch.zeros(len(z), device=z.device), "start_from")
    blank = path.blank_token_id
    z, _ = _without_padding(path, z, attention_mask, "start_from")
    empty = (z == pad_token_id) | (z == blank)
    empty = empty.long().flip(1).cumprod(1).flip(1).bool() | (z == (blank if mask_token_id is None else mask_token_id))
    return path.strings.trimmed(path.strings.packed(z.masked_fill(empty, blank)))


def _without_padding(path: EditPath, ids: Tensor, attention_mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """(ids with blanks at padding, bool [B, L] the places that are no padding)."""
    if attention_mask is None:
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != ids.shape:
        found = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else repr(attention_mask)
        raise ValueError(f"attention_mask must be a tensor of the shape of {name}, {tuple(ids.shape)}; got {found}")
    mask = attention_mask.to(ids.device)
    return path.strings.without_padding(ids, mask), mask != 0


def occurrence(pieces: list[int], gaps: list[bool], draft: list[int], blank: int, row: int = 0) -> list[bool]:
    """Which symbols of a draft are the fixed ones: each piece in one part, all in their order, as far left as possible.

    Args:
        pieces: fixed symbols; gaps: which of the gaps between them are open. A piece ends where a gap is open.
        row: for the message.

    Raises:
        ValueError: they do not occur.
    """
    symbols, text = [s for s in pieces if s != blank], [s for s in draft if s != blank]
    edges = [0, *(p for p in range(1, len(symbols)) if gaps[p]), len(symbols)]
    found, at = [False] * len(draft), 0
    for start, stop in pairwise(edges):
        piece = symbols[start:stop]
        first, last = at, len(text) - len(piece)
        if start == 0 and not gaps[0]:
            last = min(last, 0)
        if stop == len(symbols) and not gaps[stop]:
            first = max(first, last)
        at = next((i for i in range(first, last + 1) if text[i : i + len(piece)] == piece), -1)
        if at < 0:
            raise ValueError(
                f"start_from: the prompt is no subsequence of the draft in row {row}: its piece {piece} is missing, or not "
                "in its place; give drafts that hold the fixed symbols of input_ids"
            )
        found[at : at + len(piece)] = [True] * len(piece)
        at += len(piece)
    return found
