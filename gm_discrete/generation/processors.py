"""Logits processors that also depend on the position and the time at which a token is drawn.

A `LogitsProcessorList` passes `time` [n] and `position` [n], an index into the flattened [B·L] state, to the processors that
take arguments of these names. All processors act on the posterior π of the data tokens, before it becomes rates: the hazard
stays that of the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from gm_discrete.samplers.banned import by_length, completing


class MostLikely(LogitsProcessor):
    """Sets π(y) = 0 for all tokens but the most likely one, the first of several."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.full_like(scores, -torch.inf).scatter(1, scores.argmax(1, keepdim=True), 0.0)


class TemperatureSchedule(LogitsProcessor):
    """Divides the logits by a temperature that changes linearly from `start` at t = 0 to `end` at t = 1.

    Args:
        start, end: ≥ 0; at 0 the most likely tokens remain.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # the list passes arguments by name
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        temperature = (self.start + (self.end - self.start) * time)[:, None].to(scores.dtype)
        if self.start and self.end:
            return scores / temperature
        return torch.where(temperature > 0, scores / temperature, MostLikely()(input_ids, scores))


class Sharpening(LogitsProcessorList):
    """Temperature, top-k and top-p, for a sampler that applies them itself: they depend on the time and the logits alone."""

    def __call__(self, scores: Tensor, time: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logits [n, K] at the times [n]."""
        nowhere = torch.zeros(0, dtype=torch.long)
        return super().__call__(nowhere, scores, time=time, position=nowhere)  # pyright: ignore[reportArgumentType, reportReturnType]


class AllowedTokens(LogitsProcessor):
    """Sets π(y) = 0 for the tokens y that a position may not hold.

    Args:
        mask: bool [L, K] or [B, L, K], true where a token is allowed. L counts the prompt and the new positions. Rows of
            positions that are not filled are not used.

    >>> import torch
    >>> from gm_discrete import AllowedTokens, GMConfig, GMModel, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    >>> mask = torch.zeros(3, 5, dtype=torch.bool)
    >>> mask[0, 2] = mask[1, 0] = mask[2, 3] = True
    >>> model.generate(length=3, num_steps=2, logits_processor=[AllowedTokens(mask)])
    tensor([[2, 0, 3]])
    """

    def __init__(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (2, 3):
            found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"AllowedTokens: mask={found} must be a bool tensor [L, K] or [B, L, K]")
        self.mask = mask

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # the list passes arguments by name
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        row, column = position // input_ids.shape[1], position % input_ids.shape[1]
        allowed = self.mask.to(scores.device)
        return scores.masked_fill(~(allowed[column] if allowed.dim() == 2 else allowed[row, column]), -torch.inf)

    def rows(self, rows: Tensor) -> AllowedTokens:
        """The processor for some of the sequences."""
        return self if self.mask.dim() == 2 else AllowedTokens(self.mask[rows.to(self.mask.device)])

    def check(self, free: Tensor, vocab_size: int, excluded: Iterable[int]) -> None:
        """Checks the mask against the positions to fill.

        Args:
            free: bool [B, L], true where a position is to be filled.
            excluded: tokens that are never generated.

        Raises:
            ValueError: the mask has another shape, or allows no token at a position that is to be filled.
        """
        shape = (*free.shape, vocab_size)
        if tuple(self.mask.shape) not in (shape, shape[1:]):
            raise ValueError(
                f"AllowedTokens: mask of shape {list(self.mask.shape)} must be [L, K] or [B, L, K] = {list(shape)}"
            )
        allowed = self.mask.to(free.device).clone()
        allowed[..., list(excluded)] = False
        if bool((none := free & ~allowed.any(-1)).any()):
            row, column = none.nonzero()[0].tolist()
            raise ValueError(f"AllowedTokens: mask allows no token at position {column} of sequence {row}; allow one")


class BannedSequences(LogitsProcessor):
    """Sets π_i(y) = 0 where the token y at position i would complete a banned sequence with the tokens around it.

    This suffices where tokens are drawn one at a time. Two that are drawn together can complete a sequence that neither
    completes alone; `generate(bad_words_ids=…)` masks such tokens again (see `samplers.banned`).

    Args:
        sequences: of token ids, each of at least one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.words = by_length(sequences)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # the list passes arguments by name
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        column, banned = position % input_ids.shape[1], torch.zeros_like(scores, dtype=torch.bool)
        self.words = [words.to(scores.device) for words in self.words]
        for words in self.words:
            for place in range(words.shape[1]):
                row, word = completing(input_ids, column, words, place).nonzero(as_tuple=True)
                banned[row, words[word, place]] = True
        return scores.masked_fill(banned, -torch.inf)
