"""Logits processors of noisy sequences: they know the position and the time at which a symbol is drawn.

`LogitsProcessorList` hands `time` [n] and `position` [n], an index into the flattened [B·L] state, to the processors that
take them. All act on the posterior π of the data symbols, before the rates: the hazard stays that of the path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from gm_discrete.samplers.banned import by_length, completing


class TemperatureSchedule(LogitsProcessor):
    """log π / τ(t) with τ linear in the time: from `start` at t = 0 to `end` at t = 1.

    Args:
        start, end: positive.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers passes on what is named here
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        temperature = self.start + (self.end - self.start) * time
        return scores / temperature[:, None].to(scores.dtype)


class AllowedSymbols(LogitsProcessor):
    """π(y) = 0 for the symbols y that a position may not hold.

    Args:
        allowed: bool [L, K] or [B, L, K].
    """

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers passes on what is named here
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        length = input_ids.shape[1]
        row, column = position // length, position % length
        allowed = self.allowed[column] if self.allowed.dim() == 2 else self.allowed[row, column]
        return scores.masked_fill(~allowed, -torch.inf)


class BannedSequences(LogitsProcessor):
    """π_i(y) = 0 where y at i would complete a sequence of symbols that may not occur, with those that stand there already.

    By itself this holds only where symbols are drawn one at a time: two that are drawn together can complete a sequence that
    neither completes alone. `generate(bad_words_ids=…)` sees to that as well.

    Args:
        sequences: of symbols, each of at least one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.words = by_length(sequences)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers passes on what is named here
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        column, banned = position % input_ids.shape[1], torch.zeros_like(scores, dtype=torch.bool)
        self.words = [words.to(scores.device) for words in self.words]
        for words in self.words:
            for place in range(words.shape[1]):
                row, word = completing(input_ids, column, words, place).nonzero(as_tuple=True)
                banned[row, words[word, place]] = True
        return scores.masked_fill(banned, -torch.inf)
