"""Who looks on while `generate` works: a streamer, and criteria that may stop it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList


class Watch:
    """Tells a streamer and the stopping criteria about every step.

    Attributes:
        wanted: whether anybody wants to know.
        shown: positions of the prompt, which is streamed first.
        stopped_at: the time at which the criteria held; `None` as long as they do not.
    """

    def __init__(self, streamer: Any, criteria: StoppingCriteriaList | None) -> None:
        self.streamer, self.criteria = streamer, criteria
        self.put_draft = getattr(streamer, "put_draft", None)
        self.wanted = bool(self.put_draft or criteria)
        self.shown = 0
        self.last: Tensor | None = None
        self.stopped_at: float | None = None
        self.block: tuple[Tensor, Tensor, slice] | None = None

    def begin(self, known: Tensor, shown: int) -> None:
        """Streams the prompts, the first `shown` positions of the sequences."""
        self.shown = shown
        if self.streamer is not None and shown:
            self.streamer.put(known[:, :shown].cpu())

    def look_at(self, sequences: Tensor, rows: Tensor, block: slice) -> None:
        """Whatever comes next is of these rows and positions of the sequences [B, L]."""
        self.block, self.last = (sequences, rows, block), None

    def __call__(self, x: Tensor, t: float) -> bool:
        sequences, draft = x, x[:, self.shown :]
        if self.block is not None:
            whole, rows, here = self.block
            sequences = whole.clone()
            sequences[rows, here] = x
            draft, sequences = sequences[:, max(here.start, self.shown) : here.stop], sequences[:, : here.stop]
        if self.put_draft is not None and t < 1 and (self.last is None or not torch.equal(x, self.last)):
            self.put_draft(draft.cpu())
            self.last = x
        if self.criteria and t < 1 and bool(torch.as_tensor(self.criteria(sequences, None)).all()):  # pyright: ignore
            self.stopped_at = t
        return self.stopped_at is not None

    def put(self, sequences: Tensor) -> None:
        """Streams what is done, [B, L]."""
        if self.streamer is not None:
            self.streamer.put(sequences.cpu())

    def end(self, sequences: Tensor | None) -> None:
        """Streams the last of it."""
        if self.streamer is not None:
            if sequences is not None:
                self.streamer.put(sequences.cpu())
            self.streamer.end()
