"""What a network says about a state: a promise, kept only where it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.kernels import chunked

if TYPE_CHECKING:
    from gm_discrete.models.modeling import GMModel


class LazyReadout:
    """Runs the backbone when a head is first asked, for the sequences asked about, and never twice for one of them.

    Args:
        model: the network.
        x: state [B, …]; t: times [B]. Neither may be written to afterwards.
        attention_mask: [B, L] or `None`.
        processor: maps (sequences [n, L], logits [n, K]) to logits, e.g. a `LogitsProcessorList`.
        states: what the backbone says, [B, L, D], where it is known already.
        class_labels: [B], −1 for none.
        guidance_scale: γ: every head's output is u + γ (c − u), c with the class and u without. γ = 1 is no guidance.
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
    ) -> None:
        self.model, self.x, self.t = model, x, t
        self.attention_mask, self.processor = attention_mask, processor
        self.class_labels, self.scale = class_labels, guidance_scale
        self.states = states
        self.done: Tensor | None = None  # bool [B], which sequences `states` holds; None for all
        self.without: LazyReadout | None = None
        if guidance_scale not in (None, 1.0):
            if class_labels is None:
                raise ValueError("guidance_scale needs class_labels to guide towards")
            self.without = LazyReadout(model, x, t, attention_mask)

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """What a head says: of tokens the logits of the posterior of the data symbol at the entries `where`, [n, K]; of
        other heads of more than one number their rows [n, size], of one number all of them, in x's shape. float32."""
        heads = self.model.path.heads
        if head not in heads:
            raise ValueError(f"head={head!r} is unknown; this model has {', '.join(map(repr, heads))}")
        if heads[head] == 1:
            return self.model.path.output(head, self._everywhere(head), self.x, self.t)  # pyright: ignore
        if where is None:
            where = torch.arange(self.x.numel(), device=self.x.device)
        rows, sequence = self._rows(head, where), where // self.x[0].numel()
        x, t = self.x.flatten()[where], self.t[sequence]
        if head != "tokens":
            return self.model.path.output(head, rows, x, t)  # pyright: ignore
        rows = self.model.add_evidence(rows, x, t)
        return rows if self.processor is None else self.processor(self.x[sequence], rows)

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the backbone for the sequences of the entries `where`, and cuts these into chunks.

        Of a sharded model every process makes equal calls: the chunks are then as many as all entries would need.
        """
        size = self.x[0].numel()
        self._encode(where // size)
        if self.without is not None:
            self.without.prepare(where)
        heads, slots = self.model.path.heads, self.model.backbone.layout.slots
        every = len(self.x) * max(self.model.config.max_position_embeddings * slots, size)
        return chunked(where, max(heads.values()), every if self.model.whole_batches else None)

    def _everywhere(self, head: str) -> Tensor:
        """The output of a head of one number, in x's shape."""
        every = torch.arange(len(self.x), device=self.x.device)
        hidden = self.model.finish(self._encode(every), self.t, class_labels=self.class_labels)
        values = self.model.backbone.layout.join(self.model.heads[head](hidden).float(), self.x.shape)
        return (
            values
            if self.without is None or self.scale is None
            else self.without._everywhere(head).lerp(values, self.scale)
        )

    def _rows(self, head: str, where: Tensor) -> Tensor:
        """The output of a head at the entries `where`, [n, size]."""
        layout, size = self.model.backbone.layout, self.x[0].numel()
        sequence = where // size
        position, slot = layout.place(where % size)
        states = self._encode(sequence)
        place, inverse = sequence * states.shape[1] + position, None
        if layout.slots > 1 and len(where) == self.x.numel():  # of every position, which needs no search
            place, inverse = torch.arange(len(self.x) * states.shape[1], device=place.device), place
        elif layout.slots > 1:  # a position is read once for all of its entries
            place, inverse = place.unique(return_inverse=True)
        of_place = place // states.shape[1]
        hidden = self.model.finish(states.flatten(0, 1)[place], self.t, of_place, self.class_labels)
        rows = self.model.heads[head](hidden)
        if inverse is not None:
            rows = rows.unflatten(1, (layout.slots, -1))[inverse, slot]
        rows = rows.float()
        return (
            rows
            if self.without is None or self.scale is None
            else self.without._rows(head, where).lerp(rows, self.scale)
        )

    def _encode(self, sequence: Tensor) -> Tensor:
        """States [B, L, D], known at least for the given sequences."""
        if self.states is not None and self.done is None:
            return self.states
        known = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device) if self.done is None else self.done
        asked = torch.zeros_like(known).index_fill(0, sequence, True)
        todo = (asked & ~known).nonzero().squeeze(1)
        if self.states is None and (len(todo) == len(self.x) or self.model.whole_batches):
            self.states = self.model.encode(self.x, self.t, self.attention_mask, self.class_labels)
            return self.states
        width, length = self.model.config.hidden_size, self.model.backbone.layout.positions(self.x)
        nothing = torch.zeros(len(self.x), length, width, dtype=self.model.dtype, device=self.x.device)
        states = nothing if self.states is None else self.states
        if len(todo):  # else nothing is asked, and nothing runs
            mask = None if self.attention_mask is None else self.attention_mask[todo]
            labels = None if self.class_labels is None else self.class_labels[todo]
            new = self.model.encode(self.x[todo], self.t[todo], mask, labels)
            states = states.to(new.dtype).index_copy(0, todo, new)
            self.states, self.done = states, known | asked
        return states
