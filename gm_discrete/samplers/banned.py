"""Sequences of symbols that may not occur, whatever is drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gm_discrete.paths.base import Path
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import Chain, Sampler
from gm_discrete.samplers.decoding import place, reveal_until
from gm_discrete.samplers.exact import candidates_one_by_one


def by_length(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> list[Tensor]:
    """The sequences of each length that occurs, long [number, length]."""
    lengths = sorted({len(sequence) for sequence in sequences})
    return [
        torch.tensor([list(sequence) for sequence in sequences if len(sequence) == length], device=device)
        for length in lengths
    ]


def completing(x: Tensor, position: Tensor, sequences: Tensor, place: int) -> Tensor:
    """Whether the symbol number `place` of each sequence [W, m], put at the positions [n] of states x [n, L], completes
    it: [n, W]."""
    offsets = torch.arange(sequences.shape[1], device=x.device)
    index = position[:, None] - place + offsets  # [n, m]
    inside = ((index >= 0) & (index < x.shape[1])).all(1)
    stands = x.gather(1, index.clamp(0, x.shape[1] - 1))[:, None] == sequences  # [n, W, m]
    return inside[:, None] & (stands | (offsets == place)).all(2)


def occurrences(x: Tensor, sequences: Sequence[Tensor]) -> Tensor:
    """The positions that are part of one of the sequences, which come by length: bool [B, L]."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for words in sequences:
        size = words.shape[1]
        if size <= x.shape[1]:
            starts = (x.unfold(1, size, 1)[:, :, None] == words).all(3).any(2)
            for place in range(size):
                found[:, place : place + starts.shape[1]] |= starts
    return found


class Avoiding(Sampler):
    """A sampler of masked paths after whose steps none of the sequences occurs, if none occurred before.

    Positions whose new symbols make up one together are masked again; those still masked at t = 1 are then revealed one at
    a time, where the logits processor that goes with this rules out symbols that would complete a sequence. It is made for
    one state, and has no JSON form.

    Args:
        sampler: takes the steps.
        sequences: lists of ids that may not occur.
        before, after: symbols [B, …] on both sides of the state that stay as they are.
    """

    def __init__(
        self,
        sampler: Sampler,
        sequences: Sequence[Sequence[int]],
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> None:
        self.sampler, self.sequences, self.before, self.after = sampler, sequences, before, after
        self._by_length: list[Tensor] | None = None

    @property
    def keeps_distribution(self) -> bool:
        return self.sampler.keeps_distribution

    def check(self, path: Path) -> None:
        """
        Raises:
            ValueError: the path has no masks, or the sampler cannot simulate it.
        """
        self.sampler.check(path)
        if path.rates != "masked":
            raise ValueError(
                f"{path!r} cannot avoid sequences: its symbols change together until the end; use MaskedPath"
            )

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        path: Any = chain.path
        y, now, then = self.sampler.step(chain, x, t, t_next)[""], t[""], t_next[""]
        while bool((back := self._part_of_one(y) & (y != x[""])).any()):
            y = torch.where(back, x[""], y)
        masked = (y == path.mask_token_id) & chain.free[""]
        if "" in chain.arriving and bool(masked.any()):
            share = 1 - masked.sum(1) / chain.free[""].sum(1).clamp(min=1)
            start = torch.maximum(path.schedule.inverse(share.double()), now)
            if self.sampler.sharpens:
                y, _ = reveal_until(chain, y, start, then, "random", lambda drawn: place(drawn.score) == 0)
            else:
                y = candidates_one_by_one(chain, y, start, then)
        return {"": y}

    def _part_of_one(self, y: Tensor) -> Tensor:
        if self._by_length is None:
            self._by_length = by_length(self.sequences, y.device)
        parts = [part for part in (self.before, y, self.after) if part is not None]
        start = 0 if self.before is None else self.before.shape[1]
        return occurrences(torch.cat(parts, 1), self._by_length)[:, start : start + y.shape[1]]
