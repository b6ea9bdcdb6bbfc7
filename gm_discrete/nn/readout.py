"""What a network says about a state: a promise, kept only where it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from gm_discrete.generators.kernels import chunked
from gm_discrete.nn.blocks import BlockCache

if TYPE_CHECKING:
    from gm_discrete.models.modeling import GMModel


class HiddenStates:
    """Runs the backbone when it is first asked, for the sequences asked about, and never twice for one of them.

    Args:
        model: the network.
        x: state [B, …], or of a product a dict by field; t: times [B] or [B, M]. None may be written to afterwards.
        attention_mask: [B, L] or `None`; of a product by field.
        states: what the backbone says, [B, L, D], where it is known already.
        class_labels: [B], −1 for none.
        clean: of block-causal attention: the sequences [B, L] whose blocks come before those of x.
        cache: of the first blocks of x, which are then not run again.
    """

    def __init__(
        self,
        model: GMModel,
        x: Any,
        t: Tensor,
        attention_mask: Any = None,
        states: Tensor | None = None,
        class_labels: Tensor | None = None,
        clean: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self.model, self.x, self.t = model, x, t
        self.attention_mask, self.class_labels = attention_mask, class_labels
        self.clean, self.cache = clean, cache
        self.kept = 0 if cache is None else cache.length  # positions before those of `states`
        self.states = states
        self.done: Tensor | None = None  # bool [B], which sequences `states` holds; None for all
        self.finished: Tensor | None = None

    def encode(self, sequence: Tensor) -> Tensor:
        """States [B, L, D], known at least for the given sequences."""
        if self.states is not None and self.done is None:
            return self.states
        batch = len(self.t)
        known = torch.zeros(batch, dtype=torch.bool, device=self.t.device) if self.done is None else self.done
        asked = torch.zeros_like(known).index_fill(0, sequence, True)
        todo = (asked & ~known).nonzero().squeeze(1)
        if self.states is None and (len(todo) == batch or self.model.whole_batches):
            self.states = self._run(slice(None), self.cache)
            return self.states
        length = self.model.backbone.length(self.x) - self.kept
        nothing = torch.zeros(batch, length, self.model.config.hidden_size)
        states = nothing.to(self.t.device, self.model.dtype) if self.states is None else self.states
        if len(todo):  # else nothing is asked, and nothing runs
            new = self._run(todo, None if self.cache is None else self.cache.rows(todo))
            states = states.to(new.dtype).index_copy(0, todo, new)
            self.states, self.done, self.finished = states, known | asked, None
        return states

    def _run(self, rows: Any, cache: BlockCache | None) -> Tensor:
        """What the backbone says of some of the sequences."""
        values = (self.x, self.attention_mask, self.class_labels, self.clean)
        x, mask, labels, clean = (_rows(value, rows) for value in values)
        return self.model.encode(x[:, self.kept :] if self.kept else x, self.t[rows], mask, labels, clean, cache)

    def hidden(self, states: Tensor, place: Tensor) -> Tensor:
        """Final hidden states [n, D] of the positions `place` of the flattened states.

        Of a product all are found at once, as its fields ask for most of them, and often for the same.
        """
        if not isinstance(self.x, Mapping):
            return self.model.finish(states.flatten(0, 1)[place], self.t, place // states.shape[1], self.class_labels)
        return self.everything(states).flatten(0, 1)[place]

    def everything(self, states: Tensor) -> Tensor:
        """Final hidden states [B, L, D] of all positions."""
        if not isinstance(self.x, Mapping):
            return self.model.finish(states, self.t, class_labels=self.class_labels)
        if self.finished is None:
            self.finished = self.model.finish(states, self.t, class_labels=self.class_labels)
        return self.finished


class LazyReadout:
    """What the heads of one field say (of the whole state, where it has a single one), read off a `HiddenStates`.

    Args:
        model: the network.
        x: state [B, …]; t: times [B]. Neither may be written to afterwards.
        attention_mask: [B, L] or `None`.
        processor: maps (sequences [n, L], logits [n, K]) to logits, or a `LogitsProcessorList` of such. Those of the list
            that take them are also given `time` [n] and `position` [n], the entries in the flattened state.
        states: what the backbone says, [B, L, D], where it is known already.
        class_labels: [B], −1 for none.
        guidance_scale: γ: every head's output is u + γ (c − u), c with the class and u without. γ = 1 is no guidance.
        field: its name; x and t are then those of the field, and the readings are given.
        reading, reading_without: of the whole state, with and without the class.
    """

    def __init__(
        self,
        model: GMModel,
        x: Tensor,
        t: Tensor,
        attention_mask: Tensor | None = None,
        processor: Any = None,
        states: Tensor | None = None,
        class_labels: Tensor | None = None,
        guidance_scale: float | None = None,
        *,
        field: str = "",
        reading: HiddenStates | None = None,
        reading_without: HiddenStates | None = None,
    ) -> None:
        self.model, self.x, self.t, self.name = model, x, t, field
        listed = processor is None or isinstance(processor, LogitsProcessorList)
        self.processor = processor if listed else LogitsProcessorList([processor])
        self.scale = guidance_scale
        self.field, self.layout = model.state_fields[field], model.backbone.layouts[field]
        self.reading = reading or HiddenStates(model, x, t, attention_mask, states, class_labels)
        self.without: LazyReadout | None = None
        if guidance_scale not in (None, 1.0):
            if self.reading.class_labels is None:
                raise ValueError("guidance_scale needs class_labels to guide towards")
            reading_without = reading_without or HiddenStates(model, x, t, attention_mask)
            self.without = LazyReadout(model, x, t, field=field, reading=reading_without)

    @staticmethod
    def of_fields(
        model: GMModel,
        x: Mapping[str, Tensor],
        t: Tensor,
        times: Mapping[str, Tensor],
        processor: Any = None,
        guidance_scale: float | None = None,
        **reading: Any,
    ) -> dict[str, LazyReadout]:
        """The readouts of all fields of a state, which run the backbone once together.

        Args:
            t: what the network is told; times: by field [B], those of its generator.
            reading: other arguments of `HiddenStates`.
        """
        whole = HiddenStates(model, x, t, **reading)
        guided = guidance_scale not in (None, 1.0)
        without = HiddenStates(model, x, t, reading.get("attention_mask")) if guided else None
        return {
            name: LazyReadout(
                model, state, times[name], None, processor, None, None, guidance_scale,
                field=name, reading=whole, reading_without=without,
            )
            for name, state in x.items()
        }  # fmt: skip

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """What a head says: of tokens the logits of the posterior of the data symbol at the entries `where`, [n, K]; of
        other heads of more than one number their rows [n, size], of one number all of them, in x's shape. float32."""
        path: Any = self.field.path
        if head not in path.heads:
            raise ValueError(f"head={head!r} is unknown; this model has {', '.join(map(repr, path.heads))}")
        if path.heads[head] == 1:
            return path.output(head, self._everywhere(head), self.x, self.t)
        if where is None:
            where = torch.arange(self.x.numel(), device=self.x.device)
        rows, sequence = self._rows(head, where), where // self.x[0].numel()
        x, t = self.x.flatten()[where], self.t[sequence]
        if head != "tokens":
            return path.output(head, rows, x, t)
        rows = self.model.add_evidence(rows, x, t, path)
        if self.processor is None:
            return rows
        return self.processor(self.x[sequence], rows, time=t, position=where)  # pyright: ignore[reportArgumentType]

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the backbone for the sequences of the entries `where`, and cuts these into chunks.

        Of a sharded model every process makes equal calls: the chunks are then as many as all entries would need.
        """
        size = self.x[0].numel()
        self.reading.encode(where // size)
        if self.without is not None:
            self.without.prepare(where)
        every = len(self.x) * max(self.field.length * self.layout.slots, size)
        return chunked(where, max(self.field.path.heads.values()), every if self.model.whole_batches else None)

    def _everywhere(self, head: str) -> Tensor:
        """The output of a head of one number, in x's shape."""
        states = self.reading.encode(torch.arange(len(self.x), device=self.x.device))
        start = self.model.backbone.offset(self.reading.x, self.name)
        hidden = self.reading.everything(states)[:, start : start + self.layout.positions(self.x)]
        values = self.layout.join(self._head(head)(hidden).float(), self.x.shape)
        return (
            values
            if self.without is None or self.scale is None
            else self.without._everywhere(head).lerp(values, self.scale)
        )

    def _rows(self, head: str, where: Tensor) -> Tensor:
        """The output of a head at the entries `where`, [n, size]."""
        layout, size = self.layout, self.x[0].numel()
        sequence = where // size
        position, slot = layout.place(where % size)
        states = self.reading.encode(sequence)
        length = states.shape[1]
        start = self.model.backbone.offset(self.reading.x, self.name) - self.reading.kept
        place, inverse = sequence * length + start + position, None
        whole = len(where) == self.x.numel() and layout.positions(self.x) == length
        if layout.slots > 1 and whole:  # of every position, which needs no search
            place, inverse = torch.arange(len(self.x) * length, device=place.device), place
        elif layout.slots > 1:  # a position is read once for all of its entries
            place, inverse = place.unique(return_inverse=True)
        rows = self._head(head)(self.reading.hidden(states, place))
        if inverse is not None:
            rows = rows.unflatten(1, (layout.slots, -1))[inverse, slot]
        rows = rows.float()
        return (
            rows
            if self.without is None or self.scale is None
            else self.without._rows(head, where).lerp(rows, self.scale)
        )

    def _head(self, head: str) -> Any:
        return self.model.heads[f"{self.name}:{head}" if self.name else head]


def _rows(value: Any, rows: Any) -> Any:
    """The rows of a tensor, of a dict of tensors, or of nothing."""
    if isinstance(value, Mapping):
        return {name: tensor[rows] for name, tensor in value.items()}
    return None if value is None else value[rows]
