"""What is told of a run while it lasts: drafts for a streamer, states for stopping criteria, and its trajectory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from gm_discrete.models.outputs import Trajectory


class Watch:
    """Tells a streamer, the stopping criteria and a recorder about every step; called as `simulate` calls `on_step`.

    Args:
        shown: positions of a prompt that all sequences share, of which drafts are free.
    """

    def __init__(
        self, streamer: Any, criteria: StoppingCriteriaList | None, shown: int, recorder: Recorder | None = None
    ) -> None:
        self.put_draft = getattr(streamer, "put_draft", None)
        self.criteria, self.shown, self.recorder = criteria, shown, recorder
        self.last: Tensor | None = None
        self.stopped_at: float | None = None

    @property
    def of_grid(self) -> bool:
        """Whether anybody asks for the times between 0 and 1."""
        return bool(self.put_draft or self.criteria or self.recorder)

    def __call__(self, x: Tensor, t: float) -> bool:
        if self.recorder is not None:
            self.recorder.keep(x, t)
        if self.put_draft is not None and t < 1 and (self.last is None or not torch.equal(x, self.last)):
            self.put_draft(x[:, self.shown :].cpu())
            self.last = x
        if self.criteria and t < 1 and bool(torch.as_tensor(self.criteria(x, None)).all()):  # pyright: ignore
            self.stopped_at = t
        return self.stopped_at is not None


class Recorder:
    """Keeps every state of a run, and what the network was unsure of on the way.

    Args:
        start: the state x_0 [B, …]; fixed: bool, of its shape: what was given.
    """

    def __init__(self, start: Tensor, fixed: Tensor) -> None:
        self.fixed = fixed.cpu()
        self.times, self.states = [0.0], [start.cpu()]
        self.entropy: list[Tensor] = []
        self.readings = None if start.is_floating_point() else Entropies(len(start), start.device)

    def behind(self, processors: LogitsProcessorList | None) -> LogitsProcessorList | None:
        """The processors with one more behind them, which sees what is sampled from; of numbers there are none."""
        return processors if self.readings is None else LogitsProcessorList([*(processors or []), self.readings])

    def keep(self, x: Tensor, t: float) -> None:
        self.times.append(t)
        self.states.append(x.cpu())
        if self.readings is not None:
            self.entropy.append(self.readings.mean().cpu())

    def trajectory(self, shape: torch.Size) -> Trajectory:
        """What was kept, each state in the given shape [B, …]."""
        states = torch.stack(self.states).view(-1, *shape)
        jumps = (states[1:] != states[:-1]).flatten(2).sum(2)
        entropy = torch.stack(self.entropy) if self.entropy else None
        return Trajectory(torch.tensor(self.times, dtype=torch.float64), states, jumps, entropy, self.fixed.view(shape))


class Entropies(LogitsProcessor):
    """Changes nothing, and adds up by sequence the entropies of the laws that are read.

    Args:
        batch: B, the number of sequences.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, batch, dtype=torch.float64, device=device)  # of nats, of readings

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers passes on what is named here
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        nats = torch.special.entr(scores.softmax(1)).sum(1, dtype=torch.float64)
        self.sums.index_add_(1, position // input_ids.shape[1], torch.stack([nats, torch.ones_like(nats)]))
        return scores

    def mean(self) -> Tensor:
        """[B], nats per reading since the last call; NaN where nothing was read."""
        nats, readings = self.sums
        mean = nats / readings
        self.sums.zero_()
        return mean
