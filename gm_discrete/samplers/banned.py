"""Sequences of symbols that may not occur, whatever is drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.exact import first_hitting


def completing(x: Tensor, position: Tensor, sequence: Sequence[int], place: int) -> Tensor:
    """Whether the symbol number `place` of a sequence, put at the positions [n] of states x [n, L], completes it, [n]."""
    offsets = torch.arange(len(sequence), device=x.device)
    index = position[:, None] - place + offsets  # [n, length of the sequence]
    inside = (index >= 0) & (index < x.shape[1])
    stands = x.gather(1, index.clamp(0, x.shape[1] - 1)) == torch.tensor(sequence, device=x.device)
    return (inside & (stands | (offsets == place))).all(1)


def occurrences(x: Tensor, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The positions that are part of one of the sequences, bool [B, L]."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for sequence in sequences:
        size = len(sequence)
        if size <= x.shape[1]:
            starts = (x.unfold(1, size, 1) == torch.tensor(sequence, device=x.device)).all(2)
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

    def part_of_one(y: Tensor) -> Tensor:
        parts = [part for part in (before, y, behind) if part is not None]
        start = 0 if before is None else before.shape[1]
        return occurrences(torch.cat(parts, 1), sequences)[:, start : start + y.shape[1]]

    def stepped(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        y = step(chain, x, t, t_next)
        while bool((back := part_of_one(y) & (y != x)).any()):
            y = torch.where(back, x, y)
        masked = (y == chain.path.mask_token_id) & chain.free
        if bool((t_next >= 1).any()) and bool(masked.any()):
            share = 1 - masked.sum(1) / chain.free.sum(1).clamp(min=1)
            y = first_hitting(chain, y, torch.maximum(chain.path.schedule.inverse(share.double()), t), t_next)
        return y

    return stepped
