"""What `GMModel` and its `generate` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class GMModelOutput(ModelOutput):
    """Output of `GMModel`.

    Attributes:
        loss: conditional generator matching loss, where labels were given.
        logits: of the posterior of the data symbols, [B, L, K], or of the bins of numbers, [*x's shape, bins]; `None` with
            labels, as the loss reads them in chunks and only where it needs them, and where no head states a posterior.
        velocity: of a Euclidean path whose flow has a head: what that states, in the state's shape; `None` with labels.
        last_hidden_state: [B, positions, D]; `None` with labels.
        field_losses: of a product with labels: the loss of each field, before its weight. logits and velocity are then by
            field as well.
    """

    loss: Tensor | None = None
    logits: Any = None
    velocity: Any = None
    last_hidden_state: Tensor | None = None
    field_losses: dict[str, Tensor] | None = None


@dataclass
class GMGenerateOutput(ModelOutput):
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences: [B, L], or what else `generate` returns.
        network_calls: [B], evaluations of the network that each sequence needed.
        jumps: [B], changes of a symbol.
        error_bound: [B], what an exact sampler cut off, in total variation; `None` for the others.
        attention_mask: [B, L], 0 where the sequence is padded.
    """

    sequences: Any = None
    network_calls: Tensor | None = None
    jumps: Tensor | None = None
    error_bound: Tensor | None = None
    attention_mask: Any = None
