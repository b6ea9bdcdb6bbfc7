"""The network of a model, and its lazy evaluation: the backbone runs on a sequence when an entry of it is first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from gm_discrete.generators.rows import chunk_rows, equal_chunks, on_device
from gm_discrete.nn.backbone import Backbone
from gm_discrete.nn.blocks import BlockCache, WindowCache
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.field import Field
from gm_discrete.nn.frames import to_global
from gm_discrete.nn.head import Logits, evaluated, is_linear, layer_sum
from gm_discrete.nn.masks import PLAIN
from gm_discrete.nn.names import module_name
from gm_discrete.nn.replay import REPLAYS, padded_size
from gm_discrete.nn.transformers_backbone import TransformersBackbone
from gm_discrete.paths import ContinuousPath, FinitePath, Path, RotationPath
from gm_discrete.paths.schedules import At, TimeLike
from gm_discrete.process import State

LogitsProcessor = LogitsProcessorList | Callable[[Tensor, Tensor], Tensor]
"""(sequences [n, L], logits [n, K]) → logits [n, K]; members of a list are also given `time` [n] and `position` [n], the
entries of the flattened state, if they take them."""


class Processors(LogitsProcessorList):
    """A list of logits processors.

    Attributes:
        given_others: they get the logits of a token given all other tokens, without the evidence of its own noisy symbol,
            for which a noisy symbol would be more likely than what the network predicts. Masked tokens carry none.
    """

    given_others: bool = False


OnRead = Callable[[Tensor, Tensor], None]
"""Observes the posteriors that a readout evaluates: called with logits [n, K], after all processors, and the sequences [n]
of the entries."""


@dataclass
class Network:
    """A view of a model's two modules, without the Hugging Face class around them.

    It owns nothing: the parameters stay those of the model, `backbone.*` and `heads.*`.

    Attributes:
        path: the probability path.
        fields: the fields of a state; groups: the names of those that share positions.
        backbone: state → hidden states [B, positions, D]; `backbone.finish` → final hidden states.
        heads: final hidden states → numbers for each entry, by `name` or `field:name`.
        whole_batches: whether every evaluation runs all sequences and as many chunks as all entries would need. Processes
            that share the weights (FSDP) must make the same calls, whatever each of them needs.
    """

    path: Path
    fields: Mapping[str, Field]
    groups: Sequence[Sequence[str]]
    backbone: Backbone | DiT | TransformersBackbone
    heads: nn.ModuleDict
    whole_batches: bool = False

    def hidden(
        self,
        x: State,
        t: Tensor | None,
        attention_mask: State | None = None,
        class_labels: Tensor | None = None,
        clean: State | None = None,
        cache: BlockCache | None = None,
        embeds: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, positions, D] after the last attention, of the states x at the times t [B] (or [B, M]).

        Continuous fields enter the backbone normalised to unit size. For the other arguments see `Backbone`.
        """
        normalized = dict(x)
        for name, field in self.fields.items():
            if (strings := field.path.strings) is not None:  # the blank before a string marks its start
                normalized[name] = torch.nn.functional.pad(x[name], (1, 0), value=strings.blank)
                mask = torch.nn.functional.pad((x[name] != strings.blank).long(), (1, 0), value=1)
                attention_mask = {**(attention_mask or {}), name: mask}
            elif t is not None and not field.path.is_discrete:
                normalized[name] = cast(ContinuousPath, field.path).normalized(x[name], self.path.times(t)[name])
        return self.backbone(normalized, t, attention_mask, class_labels, clean, cache, embeds, record)


@dataclass(eq=False)
class HiddenStates:
    """Hidden states of a batch, computed on first access for each sequence, and at most once.

    Attributes:
        network: backbone and heads.
        x: states [B, …] by field; t: times of the network, [B] or [B, M]. Neither may be written to afterwards.
        attention_mask: [B, L] by field, 0 where padded; different positive numbers are of different documents.
        class_labels: [B], −1 for none.
        clean: for block-causal attention: the sequences [B, L] whose blocks come before those of x.
        cache: of the first blocks of x, which are then not run again.
        window: around which positions are cached from the first evaluation of a sequence on; only its states are kept.
        embeds: [B, L, D], in place of the embedding of x; record: gets hidden states of all layers (see `Backbone`). With
            one of them all sequences are computed together.
        states: [B, positions, D], of the sequences that are `done` (all if `None`).
        finished: after `finish`, of all positions.
    """

    network: Network
    x: State
    t: Tensor
    attention_mask: State | None = None
    class_labels: Tensor | None = None
    clean: State | None = None
    cache: BlockCache | None = None
    window: WindowCache | None = None
    embeds: Tensor | None = None
    record: list[Tensor] | None = None
    states: Tensor | None = None
    done: set[int] | None = None
    finished: Tensor | None = None

    @cached_property
    def layout(self) -> tuple[dict[str, tuple[int, int]], int]:
        """First of the `states` and number of positions of each field, and the number of all states.

        Positions that the cache holds come before: the field's first is then negative. After a window there are none.
        """
        spans, start = {}, 0 if self.cache is None else -self.cache.length
        if self.window is not None:
            length = self.x[""].shape[1]
            return {"": (-self.window.start, length)}, self.window.stop - self.window.start
        for group in self.network.groups:
            first = self.network.fields[group[0]]
            length = first.num_positions(self.x[group[0]])
            spans |= dict.fromkeys(group, (start, length))
            start += length
        return spans, start if self.cache is None else start - self.cache.after

    def compute(self, sequence: Tensor | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """Hidden states [B, positions, D], computed at least for the sequences [n], or for all.

        Args:
            rows: numbers of these sequences on the host, perhaps with others; without it the host waits for the device.
        """
        if self.states is not None and self.done is None:
            return self.states
        states, batch, every = self.states, self.t.shape[0], sequence is None or self.network.whole_batches
        todo: Sequence[int] = ()
        if states is not None or not every or self.window is not None:
            if every:
                rows = range(batch)
            elif rows is None:
                needed = torch.zeros(batch, dtype=torch.bool, device=self.t.device).index_fill(
                    0, cast(Tensor, sequence), True
                )
                rows = [row for row, one in enumerate(needed.tolist()) if one]
            todo = [row for row in rows if row not in (self.done or ())]
            if states is None:
                weight, size = next(self.network.backbone.parameters()), self.network.backbone.config.hidden_size
                states = torch.zeros(batch, self.layout[1], size, dtype=weight.dtype, device=self.t.device)
            if not todo:  # nothing runs, and nothing is kept
                return states
            if self.window is not None:
                return self._in_window(self.window, states, todo)
            every = len(todo) == batch
        cache, active = self.cache, REPLAYS.get()
        before, after = (0, 0) if cache is None else (cache.length, cache.after)
        replays = None if active is None else active.of(self.network.backbone)
        replays = None if cache is not None and cache.recording else replays  # a replay leaves nothing in it
        x: State | None = {name: value[:, before : value.shape[1] - after] for name, value in self.x.items()}
        t, masks, labels, clean, index = self.t, self.attention_mask, self.class_labels, self.clean, None
        if not every:
            spare = 0 if replays is None else padded_size(len(todo), batch) - len(todo)
            index = on_device([*todo, *todo[:1] * spare], t.device)  # a sequence that is repeated only fills the batch
            t, labels = t[index], None if labels is None else labels[index]
            cache = cache if cache is None or cache.recording else cache.rows(index)
            x, masks, clean = (
                None if value is None else {name: part[index] for name, part in value.items()}
                for value in (x, masks, clean)
            )
        given = cast(State, x), t, masks, labels, clean, cache
        masked = masks is not None or any(field.path.strings is not None for field in self.network.fields.values())
        plain = not masked or self.network.backbone.config._attn_implementation in (None, *PLAIN)
        if replays is not None and plain and self.embeds is None and self.record is None:
            new = replays(self.network.hidden, *given)
        else:
            new = self.network.hidden(*given, self.embeds, self.record)
        if index is None:
            self.states, self.done = new, None
            return new
        states = cast(Tensor, states).to(new.dtype).index_copy(0, index[: len(todo)], new[: len(todo)])
        done = {*(self.done or ()), *todo}
        self.states, self.done, self.finished = states, None if len(done) == batch else done, None
        return states

    def _in_window(self, window: WindowCache, states: Tensor, rows: Sequence[int]) -> Tensor:
        """The states [B, stop − start, D] of a window, with those of the sequences `rows` put in."""
        for part, cache in window.parts(rows):
            inner = HiddenStates(self.network, self.x, self.t, self.attention_mask, self.class_labels, cache=cache)
            index = on_device(part, self.t.device)
            new = inner.compute(index, part)
            if cache.recording:
                new = window.keep(new, cache, part)
            states = states.to(new.dtype).index_copy(0, index, new[index])
        self.states, self.done, self.finished = states, {*(self.done or ()), *rows}, None
        return states

    def final(
        self, position: Tensor | None = None, sequence: Tensor | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Final hidden states [B, positions, D] of all positions, or [n, D] of positions in the flattened states.

        With several fields those of all positions are computed at once and kept: the heads of the fields are read at most
        positions, and at the same ones where fields are aligned.

        Args:
            position, sequence: the positions [n], and the sequences that they belong to.
            rows: the numbers of these sequences on the host (see `compute`).
        """
        states, finish = self.compute(sequence, rows), self.network.backbone.finish
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
        self.shape = self.x.shape[: self.x.dim() - self.field.path.space.entry_dims]  # of the entries
        self.prefix = f"{module_name(field)}:" if field else ""  # of the names of its heads
        self.entry = self.field.entry_size
        self.frames = hidden.network.backbone.config.frames
        self.size = self.x[0].numel() // self.entry  # entries of one state
        self.usual = self.field.length * self.field.slots  # those of a state of the training data
        listed = processor is None or isinstance(processor, LogitsProcessorList)
        self.processor = processor if listed else LogitsProcessorList([processor])
        self.unconditional = None if unconditional is None else LazyReadout(unconditional, field, t)
        self.scale, self.on_read = guidance_scale, on_read
        self._chunk: tuple[Tensor, Logits] | None = None  # in `total`: its entries, and their output of the layer

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """The output of a head in float32: rows [n, size] of the entries `where` of the flattened state (all by default),
        or, if it is one number, that of all entries in x's shape. For tokens, the logits of the posterior of z. An entry of
        rotations is a whole rotation."""
        field = self.field
        if head not in field.heads:
            raise ValueError(f"head={head!r} is unknown; this model has {', '.join(map(repr, field.heads))}")
        if field.heads[head] == 1:
            return cast(ContinuousPath, field.path).output(head, self._turned(self._raw(head)), self.x, self.t)
        where = torch.arange(self.x.numel() // self.entry, device=self.x.device) if where is None else where
        sequence, x = where // self.size, self.x.flatten() if self.entry == 1 else self.x.reshape(-1, self.entry)
        rows, x, t = self._raw(head, where), x[where], self.t[sequence]
        if not field.path.is_discrete:
            rows = cast(ContinuousPath, field.path).output(head, rows, x, t)
            in_frames = self.frames is not None and self.name == self.frames[0]
            return cast(RotationPath, field.path).turned(head, rows, x.to(rows.dtype)) if in_frames else rows
        path = cast(FinitePath, field.path)
        if getattr(self.processor, "given_others", False) and path.rates != "masked":
            rows = rows.index_fill(1, torch.tensor(field.excluded, dtype=torch.long, device=rows.device), -torch.inf)
        else:
            rows = path.add_evidence(rows, x, t, field.excluded)
        if self.processor is not None:
            more = {
                "time": t.t if isinstance(t, At) else t,
                "position": where,
            }  # for members of the list that take them
            rows = self.processor(self.x[sequence], rows, **more)  # pyright: ignore[reportArgumentType]
        if self.on_read is not None:
            self.on_read(rows, sequence)
        return rows

    def _turned(self, raw: Tensor) -> Tensor:
        """Vectors [B, L, 3] that the network predicts in the coordinates of frames, in global ones; else as they are."""
        if self.frames is None or self.name != self.frames[1]:
            return raw
        return to_global(self.hidden.x[self.frames[0]].to(raw.dtype), raw)

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the backbone for the sequences of the entries `where`, and cuts these into chunks for the head."""
        sequence, rows = where // self.size, getattr(where, "sequences", None)
        self.hidden.compute(sequence, rows)
        if self.unconditional is not None:
            self.unconditional.hidden.compute(sequence, rows)
        size, kept = max(self.field.heads.values()), torch.is_grad_enabled()
        if self.hidden.network.whole_batches:
            every = self.x.shape[0] * max(self.usual, self.size)
            chunks = equal_chunks(where, size, every, kept)
        else:
            chunks = where.split(chunk_rows(size, where.shape[0], where.device, kept))
        if rows is not None:
            for chunk in chunks:
                vars(chunk)["sequences"] = rows
        return chunks

    def total(self, head: str, function: Callable[[Tensor], Tensor], where: Tensor, row_size: int) -> Tensor | None:
        """Σ function(rows) over chunks of the entries `where`, which are in ascending order; `function` reads their logits
        from this readout. The network runs once for all, and the layer once a chunk (see `nn.head`).

        Returns:
            Float64 scalar; `None` if it is no sum over a plain linear layer, because there is guidance, entries share
            positions, or the layer is wrapped.
        """
        layer = self.hidden.network.heads[self.prefix + head]
        if self.unconditional is not None or self.field.slots > 1 or not is_linear(layer):
            return None

        def of_part(part: slice, logits: Logits) -> Tensor:
            self._chunk = where[part], logits
            return function(self._chunk[0])

        rows = chunk_rows(row_size, where.shape[0], where.device)
        try:
            return layer_sum(layer, self._final(where), of_part, rows)
        finally:
            self._chunk = None

    def _final(self, where: Tensor) -> Tensor:
        """Final hidden states [n, D] of entries with positions of their own."""
        sequence, (spans, total) = where // self.size, self.hidden.layout
        position = sequence * total + spans[self.name][0] + where % self.size
        return self.hidden.final(position, sequence, getattr(where, "sequences", None))

    def _raw(self, head: str, where: Tensor | None = None) -> Tensor:
        """The output of the layer itself, with guidance: rows [n, size] of the entries `where`, or in x's shape."""
        field, hidden, layer = self.field, self.hidden, self.hidden.network.heads[self.prefix + head]
        spans, total = hidden.layout
        start, length = spans[self.name]
        evaluate = evaluated if self.x.is_cuda else nn.Module.__call__  # only a GPU gains by padding
        if self._chunk is not None and where is not None:
            entries, logits = self._chunk
            raw = logits() if where is entries else logits()[torch.searchsorted(entries, where)]
        elif where is None:
            raw = field.join(layer(hidden.final()[:, start : start + length]), self.x.shape)
        elif field.slots == 1:
            raw = evaluate(layer, self._final(where))
        else:  # a position is evaluated once for all of its entries
            position, slot = field.place(where % self.size)
            place = where // self.size * total + start + position
            if (
                where.shape[0] == self.x.numel() // self.entry and length == total
            ):  # of every position, which needs no search
                places, inverse = torch.arange(self.x.shape[0] * total, device=place.device), place
            else:
                places, inverse = place.unique(return_inverse=True)
            rows = getattr(where, "sequences", None)
            states = hidden.final(places, places // total, rows)
            raw = evaluate(layer, states).unflatten(1, (field.slots, -1))[inverse, slot]
        raw = raw.to(self.x.device, torch.float32)  # layers may be spread over devices
        raw = raw if hidden.network.backbone.logit_map is None else hidden.network.backbone.logit_map(raw)
        return raw if self.unconditional is None else self.unconditional._raw(head, where).lerp(raw, self.scale)


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
        chunks = where.split([len(chunk) for chunk in self.readout.prepare(self._outside(where))])
        for chunk in chunks:
            vars(chunk)["sequences"] = getattr(where, "sequences", None)
        return chunks

    def _outside(self, where: Tensor) -> Tensor:
        """Entries of the window as entries of the sequences."""
        outside = where // self.size * self.length + self.start + where % self.size
        vars(outside)["sequences"] = getattr(where, "sequences", None)
        return outside
