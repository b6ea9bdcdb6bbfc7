"""Sequences of symbols that may not occur, whatever is drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.exact import first_hitting


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


def avoiding(
    step: Step, sequences: Sequence[Sequence[int]], before: Tensor | None = None, behind: Tensor | None = None
) -> Step:
    """The step of a masked path after which none of the sequences stands in a state in which none stood before.

    Positions whose new symbols make up one together are masked again; what is still masked at t = 1 is then revealed one
    position at a time, where the logits processor that goes with this can see what it would complete.

    Args:
        before, behind: symbols [B, …] on both sides of the state that stay as they are.
    """

    kept: list[Tensor] = []

    def part_of_one(y: Tensor) -> Tensor:
        words = kept or by_length(sequences, y.device)
        kept[:] = words
        parts = [part for part in (before, y, behind) if part is not None]
        start = 0 if before is None else before.shape[1]
        return occurrences(torch.cat(parts, 1), words)[:, start : start + y.shape[1]]

    def stepped(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        y = step(chain, x, t, t_next)
        while bool((back := part_of_one(y) & (y != x)).any()):
            y = torch.where(back, x, y)
        masked = (y == chain.path.mask_token_id) & chain.free
        if bool((t_next >= 1).any()) and bool(masked.any()):
            error = chain.error
            share = 1 - masked.sum(1) / chain.free.sum(1).clamp(min=1)
            y = first_hitting(chain, y, torch.maximum(chain.path.schedule.inverse(share.double()), t), t_next)
            chain.error = error  # that of the step: what it drew together is no less off for this
        return y

    return stepped
