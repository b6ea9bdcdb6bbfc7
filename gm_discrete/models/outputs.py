"""What calling a `GMModel` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

ByField = dict[str, Tensor]


@dataclass
class GMModelOutput(ModelOutput):
    """Output of `GMModel`.

    Without labels a model with a single field gives tensors, and one with several gives dicts by field.

    Attributes:
        loss: conditional generator matching loss; `None` without labels.
        last_hidden_state: [B, positions, D]; `None` with labels.
        logits: of the posterior of the data symbols [B, L, K], or over the bins of continuous values [*x's shape, bins].
            `None` with labels, as the loss evaluates heads in chunks and only where it needs them, and for fields without
            such a head. `None` also for `inputs_embeds` without `input_ids`.
        velocity: the output of the flow's head, in the state's shape; `None` with labels, or without such a head.
        hidden_states: with `output_hidden_states`: the embedding and the states after each layer [B, positions, D], of which
            the last is `last_hidden_state`; `None` with labels.
        field_losses: with several fields and labels: the loss of each field, before its weight.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    logits: Tensor | ByField | None = None
    velocity: Tensor | ByField | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    field_losses: ByField | None = None
