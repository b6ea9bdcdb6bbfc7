"""Who looks on while `generate` works: a streamer, criteria that may stop it, and a recorder of its trajectory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from gm_discrete.generation.outputs import Trajectory


class Observers:
    """Tells a streamer, the stopping criteria and a recorder about every step; called as `simulate` calls `on_step`.

    Attributes:
        recorder: `None` unless a trajectory is asked for.
        shown: positions of the prompt, which is streamed first; streamed: those that were streamed so far.
        stopped_at: the time at which the criteria held; `None` as long as they do not.
    """

    def __init__(self, streamer: Any, criteria: StoppingCriteriaList | None) -> None:
        self.streamer, self.criteria = streamer, criteria
        self.put_draft = getattr(streamer, "put_draft", None)
        self.recorder: Recorder | None = None
        self.shown = self.streamed = 0
        self.last: Tensor | None = None
        self.stopped_at: float | None = None
        self.block: tuple[Tensor, Tensor, slice] | None = None
        self.ended: Tensor | None = None

    @property
    def of_grid(self) -> bool:
        """Whether anybody asks for the times between 0 and 1."""
        return bool(self.put_draft or self.criteria or self.recorder)

    def begin(self, known: Tensor, shown: int) -> None:
        """Streams the prompts, the first `shown` positions of the sequences."""
        self.shown = shown
        if shown:
            self.put(known[:, :shown])

    def look_at(self, sequences: Tensor, rows: Tensor, block: slice) -> None:
        """Whatever comes next is of these rows and positions of the sequences [B, L]; the other rows have ended."""
        self.block, self.last = (sequences, rows, block), None
        self.ended = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device).index_fill(0, rows, False)
        if self.recorder is not None:
            self.recorder.next_block(rows)

    def __call__(self, x: Tensor, t: float) -> bool:
        sequences, shown = x, x[:, self.shown :]
        if self.block is not None:
            whole, rows, here = self.block
            sequences = whole.clone()
            sequences[rows, here] = x
            shown = sequences[:, self.streamed : here.stop]
        if self.recorder is not None:
            self.recorder.keep(sequences, t)
        if self.put_draft is not None and t < 1 and (self.last is None or not torch.equal(x, self.last)):
            self.put_draft(shown.cpu())
            self.last = x
        if t < 1 and self.met(sequences if self.block is None else sequences[:, : self.block[2].stop], self.ended):
            self.stopped_at = t
        return self.stopped_at is not None

    def met(self, sequences: Tensor, ended: Tensor | None) -> bool:
        """Whether the criteria hold for all sequences [B, …] that have not ended, bool [B]."""
        if not self.criteria:
            return False
        held = torch.as_tensor(self.criteria(sequences, None)).bool()  # pyright: ignore
        return bool((held if ended is None else held | ended.to(held.device)).all())

    def behind(self, processors: LogitsProcessorList | None) -> LogitsProcessorList | None:
        """The processors, and behind them those of a recorder."""
        return processors if self.recorder is None else self.recorder.behind(processors)

    def put(self, sequences: Tensor) -> None:
        """Streams what is new of the sequences [B, L] as far as they are done."""
        if self.streamer is not None and sequences.shape[1] > self.streamed:
            self.streamer.put(sequences[:, self.streamed :].cpu())
        self.streamed = max(self.streamed, sequences.shape[1])

    def end(self, sequences: Tensor) -> None:
        """Streams the last of it."""
        if self.streamer is not None:
            self.put(sequences)
            self.streamer.end()


class Recorder:
    """Keeps every state of a run, and what the network was unsure of on the way.

    Args:
        start: the state x_0 [B, …]; fixed: bool, of its shape: what was given.
    """

    def __init__(self, start: Tensor, fixed: Tensor) -> None:
        self.fixed = fixed.cpu()
        self.times, self.states = [0.0], [start.cpu().clone()]
        self.entropy: list[Tensor] = []
        self.blocks = 0  # of generation by blocks, those that are done
        self.readings = None if start.is_floating_point() else Entropies(len(start), start.device)

    def behind(self, processors: LogitsProcessorList | None) -> LogitsProcessorList | None:
        """The processors with one more behind them, which sees what is sampled from; of numbers there are none."""
        return processors if self.readings is None else LogitsProcessorList([*(processors or []), self.readings])

    def next_block(self, rows: Tensor) -> None:
        """What comes next is of the next block, and of these rows."""
        self.blocks = round(self.times[-1])
        if self.readings is not None:
            self.readings.rows = rows

    def keep(self, x: Tensor, t: float) -> None:
        """The whole state at the time t of the block."""
        self.times.append(self.blocks + t)
        self.states.append(x.cpu())
        if self.readings is not None:
            self.entropy.append(self.readings.mean().cpu())

    def trajectory(self, end: Tensor, real: Tensor | None = None) -> Trajectory:
        """What was kept, each state in the shape of the sequences that came of it [B, …], of which padding may be cut.

        What turns into padding (0 in `real` [B, L]) behind the end of a sequence is no jump.
        """
        size = end[0].numel()
        flat = [state.flatten(1)[:, :size] for state in self.states[:-1]]
        states = torch.stack([*flat, end.cpu().flatten(1)]).view(-1, *end.shape)
        changed = (states[1:] != states[:-1]).flatten(2)
        jumps = (changed if real is None else changed & real.cpu().bool()).sum(2)
        entropy = torch.stack(self.entropy) if self.entropy else None
        return Trajectory(
            torch.tensor(self.times, dtype=torch.float64),
            states,
            jumps,
            entropy,
            self.fixed.flatten(1)[:, :size].view(end.shape),
        )


class Entropies(LogitsProcessor):
    """Changes nothing, and adds up by sequence the entropies of the laws that are read.

    Args:
        batch: B, the number of sequences.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, batch, dtype=torch.float64, device=device)  # of nats, of readings
        self.rows = torch.arange(batch, device=device)  # the sequences that are read

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # transformers passes on what is named here
        self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor
    ) -> Tensor:
        nats = torch.special.entr(scores.softmax(1)).sum(1, dtype=torch.float64)
        self.sums.index_add_(1, self.rows[position // input_ids.shape[1]], torch.stack([nats, torch.ones_like(nats)]))
        return scores

    def mean(self) -> Tensor:
        """[B], nats per reading since the last call; NaN where nothing was read."""
        nats, readings = self.sums
        mean = nats / readings
        self.sums.zero_()
        return mean
