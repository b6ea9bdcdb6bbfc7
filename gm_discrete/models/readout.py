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
        x: state [B, L]; t: times [B]. Neither may be written to afterwards.
        attention_mask: [B, L] or `None`.
        processor: maps (sequences [n, L], logits [n, K]) to logits, e.g. a `LogitsProcessorList`.
        states: what the backbone says, [B, L, D], where it is known already.
    """

    def __init__(
        self,
        model: GMModel,
        x: Tensor,
        t: Tensor,
        attention_mask: Tensor | None = None,
        processor: Any = None,
        states: Tensor | None = None,
    ) -> None:
        self.model, self.x, self.t = model, x, t
        self.attention_mask, self.processor = attention_mask, processor
        self.states = states
        self.done: Tensor | None = None  # bool [B], which sequences `states` holds; None for all

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """Logits of the posterior of the data symbol at the positions `where`, [n, K], float32."""
        if head != "tokens":
            raise ValueError(f"head={head!r} is unknown; this model has 'tokens'")
        if where is None:
            where = torch.arange(self.x.numel(), device=self.x.device)
        sequence = where // self.x.shape[1]
        states = self._encode(sequence).flatten(0, 1)[where]
        hidden = self.model.finish(states, self.t, sequence)
        rows = self.model.read_tokens(hidden, self.x.flatten()[where], self.t[sequence])
        return rows if self.processor is None else self.processor(self.x[sequence], rows)

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the backbone for the sequences of the positions `where`, and cuts these into chunks.

        Of a sharded model every process makes equal calls: the chunks are then as many as all positions would need.
        """
        self._encode(where // self.x.shape[1])
        config = self.model.config
        every = len(self.x) * max(config.max_position_embeddings, self.x.shape[1])
        return chunked(where, config.vocab_size, every if self.model.whole_batches else None)

    def _encode(self, sequence: Tensor) -> Tensor:
        """States [B, L, D], known at least for the given sequences."""
        if self.states is not None and self.done is None:
            return self.states
        known = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device) if self.done is None else self.done
        asked = torch.zeros_like(known).index_fill(0, sequence, True)
        todo = (asked & ~known).nonzero().squeeze(1)
        if self.states is None and (len(todo) == len(self.x) or self.model.whole_batches):
            self.states = self.model.encode(self.x, self.t, self.attention_mask)
            return self.states
        width = self.model.config.hidden_size
        nothing = torch.zeros(*self.x.shape, width, dtype=self.model.dtype, device=self.x.device)
        states = nothing if self.states is None else self.states
        if len(todo):  # else nothing is asked, and nothing runs
            mask = None if self.attention_mask is None else self.attention_mask[todo]
            new = self.model.encode(self.x[todo], self.t[todo], mask)
            states = states.to(new.dtype).index_copy(0, todo, new)
            self.states, self.done = states, known | asked
        return states
