"""Observers of a run of `generate`: a streamer, criteria that can stop it, and the recorder of its trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import StoppingCriteria, StoppingCriteriaList

from gm_discrete.generation.outputs import Trajectory
from gm_discrete.generators.strings import Tracks
from gm_discrete.process import State


class Streamer(Protocol):
    """Receives finished tokens, as transformers' `BaseStreamer`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@runtime_checkable
class DraftStreamer(Streamer, Protocol):
    """Also receives unfinished states, as transformers' `TextDiffusionStreamer`."""

    def put_draft(self, value: Tensor) -> None: ...


class Observers:
    """Passes every step on to a streamer, stopping criteria and a recorder; `simulate` calls it as its `on_step`.

    Attributes:
        recorder: `None` unless a trajectory is recorded.
        prompt_length: positions of the prompt, which is streamed first. streamed: positions streamed so far.
        stopped_at: the time at which the criteria held for all sequences, or `None`.
        shown: how states are shown to the streamer and the criteria, if not as they are.
        block: in generation by blocks: the whole sequences [B, T], the rows [n] and the positions of the current block.
    """

    def __init__(self, streamer: Streamer | None = None, criteria: Sequence[StoppingCriteria] | None = None) -> None:
        self.streamer, self.criteria = streamer, StoppingCriteriaList(criteria or [])
        self.recorder: Recorder | StringRecorder | None = None
        self.prompt_length = self.streamed = 0
        self.last: Tensor | None = None
        self.stopped_at: float | None = None
        self.block: tuple[Tensor, Tensor, slice] | None = None
        self.ended: Tensor | None = None
        self.shown: Callable[[Tensor], Tensor] | None = None

    @property
    def needs_grid(self) -> bool:
        """Whether a streamer, a criterion or the recorder needs the states at the times of the grid."""
        return bool(isinstance(self.streamer, DraftStreamer) or self.criteria or self.recorder)

    def begin(self, prompts: Tensor, prompt_length: int) -> None:
        """Streams the prompts, the first `prompt_length` positions of the sequences."""
        self.prompt_length = prompt_length
        if prompt_length:
            self.put(prompts[:, :prompt_length])

    def next_block(self, sequences: Tensor, rows: Tensor, block: slice) -> None:
        """Announces that the next steps fill these rows and positions of the sequences [B, L]; other rows have ended."""
        self.block, self.last = (sequences, rows, block), None
        self.ended = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device).index_fill(0, rows, False)
        if self.recorder is not None:
            self.recorder.next_block(rows)

    def __call__(self, state: State, t: float) -> bool:
        """Observes the state at time t of the grid; true ends the simulation. (Products have no observers.)"""
        x = state[""] if self.shown is None else self.shown(state[""])
        sequences, draft, part = x, x[:, self.prompt_length :], x
        if self.block is not None:
            whole, rows, here = self.block
            sequences = whole.clone()
            sequences[rows, here] = x
            draft, part = sequences[:, self.streamed : here.stop], sequences[:, : here.stop]
        if self.recorder is not None:
            self.recorder.keep(sequences, t)
        if t < 1:
            if isinstance(self.streamer, DraftStreamer) and (self.last is None or not torch.equal(x, self.last)):
                self.streamer.put_draft(draft.cpu())
                self.last = x
            if self.met(part, self.ended):
                self.stopped_at = t
        return self.stopped_at is not None

    def met(self, sequences: Tensor, ended: Tensor | None) -> bool:
        """Whether the criteria hold for all sequences [B, …] that have not `ended` (bool [B])."""
        if not self.criteria:
            return False
        held = torch.as_tensor(self.criteria(sequences, None)).bool()  # pyright: ignore[reportArgumentType]
        return bool((held if ended is None else held | ended.to(held.device)).all())

    def put(self, sequences: Tensor) -> None:
        """Streams the positions of the sequences [B, L] that have not been streamed yet."""
        if self.streamer is not None and sequences.shape[1] > self.streamed:
            self.streamer.put(sequences[:, self.streamed :].cpu())
        self.streamed = max(self.streamed, sequences.shape[1])

    def end(self, sequences: Tensor) -> None:
        """Streams the last positions, and closes the streamer."""
        if self.streamer is not None:
            self.put(sequences)
            self.streamer.end()


class Recorder:
    """Records every state of a run, and the entropy of the posteriors that were evaluated on the way.

    Args:
        start: the first state [B, …]; time: its time.
        fixed: bool, of its shape: observed entries and padding.
    """

    def __init__(self, start: Tensor, fixed: Tensor, time: float = 0.0) -> None:
        self.fixed = fixed.cpu()
        self.times, self.states = [time], [start.cpu().clone()]
        self.entropies: list[Tensor] = []
        self.blocks = 0  # finished blocks
        self.entropy = None if start.is_floating_point() else EntropyMeter(len(start), start.device)

    def next_block(self, rows: Tensor) -> None:
        """Announces that the next steps belong to the next block, and to these rows."""
        self.blocks = round(self.times[-1])
        if self.entropy is not None:
            self.entropy.rows = rows

    def keep(self, x: Tensor, t: float) -> None:
        """Records the whole state at the time t of the current block."""
        self.times.append(self.blocks + t)
        self.states.append(x.cpu())
        if self.entropy is not None:
            self.entropies.append(self.entropy.pop().cpu())

    def trajectory(self, end: Tensor, real: Tensor | None = None) -> Trajectory:
        """The record, each state in the shape of the samples `end` [B, …], whose padding may have been cut off.

        Positions that became padding (0 in `real` [B, L]) after the end of a sequence do not count as jumps.
        """
        size = end[0].numel()
        flat = [state.flatten(1)[:, :size] for state in self.states[:-1]]
        states = torch.stack([*flat, end.cpu().flatten(1)]).view(-1, *end.shape)
        changed = (states[1:] != states[:-1]).flatten(2)
        jumps = (changed if real is None else changed & real.cpu().bool()).sum(2)
        return Trajectory(
            torch.tensor(self.times, dtype=torch.float64),
            states,
            jumps,
            torch.stack(self.entropies) if self.entropies else None,
            self.fixed.flatten(1)[:, :size].view(end.shape),
        )


class StringRecorder:
    """Records strings, which symbol of one is which of the next, and the entropy of the distributions that were evaluated.

    Args:
        start: the first strings [B, L], as they are shown; tracks: of these strings.
        fixed: bool [B, L], symbols that stay.
        time: of the start.
    """

    def __init__(self, start: Tensor, tracks: Tracks, fixed: Tensor, time: float = 0.0) -> None:
        self.tracks, self.fixed = tracks, fixed.cpu()
        self.times, self.states, self.numbers = [time], [start.cpu().clone()], [tracks.number.cpu()]
        self.entropies: list[Tensor] = []
        self.entropy = EntropyMeter(len(start), start.device)

    def next_block(self, rows: Tensor) -> None:
        """Strings are not generated in blocks."""

    def keep(self, x: Tensor, t: float) -> None:
        """Records the strings at time t, as they are shown."""
        self.times.append(t)
        self.states.append(x.cpu())
        self.numbers.append(self.tracks.number.cpu())
        self.entropies.append(self.entropy.pop().cpu())

    def trajectory(self, pad_token_id: int) -> Trajectory:
        """The record, in as many places as the longest of its strings needs."""
        width = max(state.shape[1] for state in self.states)
        states, numbers = (
            torch.stack([F.pad(x, (0, width - x.shape[1]), value=value) for x in tensors])
            for tensors, value in ((self.states, pad_token_id), (self.numbers, -1))
        )
        end = numbers[-1]
        known = F.pad(self.fixed, (0, int(end.max()) + 1 if end.numel() else 0)).gather(1, end.clamp(min=0))
        edits = edits_between(states, numbers)
        return Trajectory(
            torch.tensor(self.times, dtype=torch.float64),
            states,
            edits.sum(2),
            torch.stack(self.entropies) if self.entropies else None,
            known & (end >= 0),
            numbers,
            edits,
        )


def edits_between(states: Tensor, numbers: Tensor) -> Tensor:
    """[N, B, 3]: how many symbols of each string were inserted, deleted and substituted between two states that follow.

    Args:
        states: [N + 1, B, L]; numbers: which symbol is which, −1 where there is none.
    """
    shape = (*numbers.shape[:2], int(numbers.max()) + 2 if numbers.numel() else 1)
    # By number; the last one is of no symbol.
    symbol = states.new_full(shape, -1).scatter(2, numbers.remainder(shape[2]), states.where(numbers >= 0, -1))
    before, after = symbol[:-1], symbol[1:]
    inserted, deleted = (before < 0) & (after >= 0), (before >= 0) & (after < 0)
    substituted = (before >= 0) & (after >= 0) & (before != after)
    return torch.stack([inserted.sum(2), deleted.sum(2), substituted.sum(2)], 2)


class EntropyMeter:
    """Averages, by sequence, the entropy of the posteriors that a readout evaluates.

    Args:
        batch: B, the number of sequences.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, batch, dtype=torch.float64, device=device)  # nats, evaluations
        self.rows = torch.arange(batch, device=device)  # the sequences of the state that is evaluated

    def __call__(self, logits: Tensor, sequence: Tensor) -> None:
        """Adds the posteriors of n entries, logits [n, K], in the sequences [n] of the state."""
        nats = torch.special.entr(logits.softmax(1)).sum(1, dtype=torch.float64)
        self.sums.index_add_(1, self.rows[sequence], torch.stack([nats, torch.ones_like(nats)]))

    def pop(self) -> Tensor:
        """[B], nats per evaluation since the last call; NaN where there was none."""
        nats, evaluations = self.sums
        mean = nats / evaluations
        self.sums.zero_()
        return mean
