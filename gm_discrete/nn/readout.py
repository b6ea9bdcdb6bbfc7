"""Lazy evaluation of a network: hidden states of a sequence are computed when an entry of it is first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from gm_discrete.generators.kernels import chunked
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.network import Network
from gm_discrete.paths import EuclideanPath, FinitePath
from gm_discrete.paths.schedules import At, TimeLike
from gm_discrete.process import State

LogitsProcessor = LogitsProcessorList | Callable[[Tensor, Tensor], Tensor]
"""(sequences [n, L], logits [n, K]) → logits [n, K]; members of a list are also given `time` [n] and `position` [n], the
entries of the flattened state, if they take them."""

OnRead = Callable[[Tensor, Tensor], None]
"""Observes the posteriors that a readout evaluates: called with logits [n, K], after all processors, and the sequences [n]
of the entries."""


class HiddenStates:
    """Hidden states of a batch, computed on first access for each sequence, and at most once.

    Args:
        network: backbone and heads.
        x: states [B, …] by field; t: times of the network, [B] or [B, M]. Neither may be written to afterwards.
        attention_mask: [B, L] by field, 0 where padded.
        class_labels: [B], −1 for none.
        clean: for block-causal attention: the sequences [B, L] whose blocks come before those of x.
        cache: of the first blocks of x, which are then not run again.
    """

    def __init__(
        self,
        network: Network,
        x: State,
        t: Tensor,
        attention_mask: State | None = None,
        class_labels: Tensor | None = None,
        clean: State | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self.network, self.x, self.t = network, x, t
        self.attention_mask, self.class_labels = attention_mask, class_labels
        self.clean, self.cache = clean, cache
        self.start = 0 if cache is None else cache.length  # positions that the cache holds, and `states` does not
        self.states: Tensor | None = None  # [B, positions, D]
        self.done: Tensor | None = None  # bool [B], the sequences whose `states` are computed; None: all of them
        self.finished: Tensor | None = None  # after `finish`, of all positions

    @cached_property
    def layout(self) -> tuple[dict[str, tuple[int, int]], int]:
        """First position and number of positions of each field, and the number of all positions."""
        spans, start = {}, 0
        for group in self.network.groups:
            length = self.network.fields[group[0]].positions(self.x[group[0]])
            spans |= dict.fromkeys(group, (start, length))
            start += length
        return spans, start

    def compute(self, sequence: Tensor | None = None) -> Tensor:
        """Hidden states [B, positions, D], computed at least for the sequences [n], or for all."""
        if self.states is not None and self.done is None:
            return self.states
        batch, device = len(self.t), self.t.device
        done = torch.zeros(batch, dtype=torch.bool, device=device) if self.done is None else self.done
        if sequence is None or self.network.whole_batches:
            needed = torch.ones_like(done)
        else:
            needed = torch.zeros_like(done).index_fill(0, sequence, True)
        if self.states is None and (sequence is None or self.network.whole_batches or bool(needed.all())):
            x = self.x if not self.start else {name: value[:, self.start :] for name, value in self.x.items()}
            self.states = self.network.hidden(x, self.t, self.attention_mask, self.class_labels, self.clean, self.cache)
            return self.states
        todo, states = (needed & ~done).nonzero().squeeze(1), self.states
        if states is None:
            weight, length = next(self.network.backbone.parameters()), self.layout[1] - self.start
            states = torch.zeros(
                batch, length, self.network.backbone.config.hidden_size, dtype=weight.dtype, device=device
            )
        if len(todo):  # else nothing runs, and nothing is kept
            x = {name: value[todo, self.start :] for name, value in self.x.items()}
            labels = None if self.class_labels is None else self.class_labels[todo]
            cache = None if self.cache is None else self.cache.rows(todo)
            masks, clean = by_row(self.attention_mask, todo), by_row(self.clean, todo)
            new = self.network.hidden(x, self.t[todo], masks, labels, clean, cache)
            self.states = states = states.to(new.dtype).index_copy(0, todo, new)
            self.done, self.finished = done | needed, None
        return states

    def final(self, position: Tensor | None = None, sequence: Tensor | None = None) -> Tensor:
        """Final hidden states [B, positions, D] of all positions, or [n, D] of positions in the flattened states.

        With several fields those of all positions are computed at once and kept: the heads of the fields are read at most
        positions, and at the same ones where fields are aligned.

        Args:
            position, sequence: the positions [n], and the sequences that they belong to.
        """
        states, finish = self.compute(sequence), self.network.backbone.finish
        if position is not None and len(self.x) == 1:
            return finish(states.flatten(0, 1)[position], self.t, self.class_labels, sequence)
        if self.finished is None:
            self.finished = finish(states, self.t, self.class_labels)
        return self.finished if position is None else self.finished.flatten(0, 1)[position]


class LazyReadout:
    """The heads of one field, evaluated where they are read (see `generators.kernels.Readout`).

    Args:
        hidden: hidden states of the whole state.
        field: the field's name.
        t: times [B] of the field's generator. They may differ from those of the network.
        processor: maps the logits of a discrete field before they are used.
        unconditional: hidden states without the class, if there is guidance.
        guidance_scale: γ of classifier-free guidance: every head's output is u + γ (c − u), c with and u without the class.
        on_read: observes the posteriors of a discrete field.
    """

    def __init__(
        self,
        hidden: HiddenStates,
        field: str,
        t: TimeLike,
        processor: LogitsProcessor | None = None,
        unconditional: HiddenStates | None = None,
        guidance_scale: float = 1.0,
        on_read: OnRead | None = None,
    ) -> None:
        self.hidden, self.name, self.x, self.t = hidden, field, hidden.x[field], t
        self.field = hidden.network.fields[field]
        self.size = self.x[0].numel()  # entries of one state
        listed = processor is None or isinstance(processor, LogitsProcessorList)
        self.processor = processor if listed else LogitsProcessorList([processor])
        self.unconditional = None if unconditional is None else LazyReadout(unconditional, field, t)
        self.scale, self.on_read = guidance_scale, on_read

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """The output of a head in float32: rows [n, size] of the entries `where` of the flattened state (all by default),
        or, if it is one number, that of all entries in x's shape. For tokens, the logits of the posterior of z."""
        field = self.field
        if head not in field.heads:
            raise ValueError(f"head={head!r} is unknown; this model has {', '.join(map(repr, field.heads))}")
        if field.heads[head] == 1:
            return cast(EuclideanPath, field.path).output(head, self._all(head), self.x, self.t)
        where = torch.arange(self.x.numel(), device=self.x.device) if where is None else where
        sequence = where // self.size
        rows, x, t = self._rows(head, where, sequence), self.x.flatten()[where], self.t[sequence]
        if not field.path.is_discrete:
            return cast(EuclideanPath, field.path).output(head, rows, x, t)
        rows = cast(FinitePath, field.path).add_evidence(rows, x, t, field.excluded)
        if self.processor is not None:
            more = {
                "time": t.t if isinstance(t, At) else t,
                "position": where,
            }  # for members of the list that take them
            rows = self.processor(self.x[sequence], rows, **more)  # pyright: ignore[reportArgumentType]
        if self.on_read is not None:
            self.on_read(rows, sequence)
        return rows

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the backbone for the sequences of the entries `where`, and cuts these into chunks for the head."""
        self.hidden.compute(where // self.size)
        if self.unconditional is not None:
            self.unconditional.hidden.compute(where // self.size)
        every = len(self.x) * max(self.field.length * self.field.slots, self.size)
        return chunked(where, max(self.field.heads.values()), every if self.hidden.network.whole_batches else None)

    def _all(self, head: str) -> Tensor:
        """The raw output of a head of one number, in x's shape."""
        start, length = self.hidden.layout[0][self.name]
        layer = self.hidden.network.head(self.name, head)
        values = self.field.join(layer(self.hidden.final()[:, start : start + length]).float(), self.x.shape)
        return values if self.unconditional is None else self.unconditional._all(head).lerp(values, self.scale)

    def _rows(self, head: str, where: Tensor, sequence: Tensor) -> Tensor:
        """The raw output of a head at the entries `where` of the sequences [n], [n, size]."""
        spans, total = self.hidden.layout
        start, length = spans[self.name]
        total, start = total - self.hidden.start, start - self.hidden.start
        layer = self.hidden.network.head(self.name, head)
        if self.field.slots == 1:
            rows = layer(self.hidden.final(sequence * total + start + where % self.size, sequence))
        else:  # a position is evaluated once for all of its entries
            position, slot = self.field.place(where % self.size)
            place = sequence * total + start + position
            if len(where) == self.x.numel() and length == total:  # of every position, which needs no search
                places, inverse = torch.arange(len(self.x) * total, device=place.device), place
            else:
                places, inverse = place.unique(return_inverse=True)
            rows = layer(self.hidden.final(places, places // total))
            rows = rows.unflatten(1, (self.field.slots, -1))[inverse, slot]
        rows = rows.float()
        return (
            rows
            if self.unconditional is None
            else self.unconditional._rows(head, where, sequence).lerp(rows, self.scale)
        )


def readouts(
    network: Network,
    x: State,
    t: Tensor,
    times: Mapping[str, TimeLike],
    processor: LogitsProcessor | None = None,
    guidance_scale: float | None = None,
    *,
    attention_mask: State | None = None,
    class_labels: Tensor | None = None,
    clean: State | None = None,
    cache: BlockCache | None = None,
    on_read: OnRead | None = None,
) -> dict[str, LazyReadout]:
    """The readout of each field. They share one evaluation of the backbone, and with guidance one more without the class.

    Args:
        t: times of the network, [B] or [B, M]; times: those of the generators, by field.
        guidance_scale: γ; `None` and 1 are no guidance.
        on_read: observes the posteriors of discrete fields.

    Raises:
        ValueError: there is guidance, but no class.
    """
    hidden, unconditional = HiddenStates(network, x, t, attention_mask, class_labels, clean, cache), None
    scale = 1.0 if guidance_scale is None else guidance_scale
    if scale != 1:
        if class_labels is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels to guide towards")
        unconditional = HiddenStates(network, x, t, attention_mask, clean=clean)
    found = {}
    for name in x:
        found[name] = LazyReadout(hidden, name, times[name], processor, unconditional, scale, on_read)
    return found


class Window:
    """A readout of the positions from `start` to `stop` of longer sequences [B, L], for states [B, stop − start]."""

    def __init__(self, readout: LazyReadout, start: int, stop: int) -> None:
        self.readout, self.start, self.size, self.length = readout, start, stop - start, readout.x.shape[1]

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """As `LazyReadout`, of entries of the window."""
        if where is None:
            where = torch.arange(len(self.readout.x) * self.size, device=self.readout.x.device)
        return self.readout(head, self._outside(where))

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """As `LazyReadout.prepare`."""
        return where.split([len(chunk) for chunk in self.readout.prepare(self._outside(where))])

    def _outside(self, where: Tensor) -> Tensor:
        """Entries of the window as entries of the sequences."""
        return where // self.size * self.length + self.start + where % self.size


def by_row(value: Mapping[str, Tensor] | None, rows: Tensor) -> dict[str, Tensor] | None:
    """The given rows of every field."""
    return None if value is None else {name: tensor[rows] for name, tensor in value.items()}
