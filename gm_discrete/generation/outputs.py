"""What `generate` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

Samples = Tensor | Mapping[str, Tensor]
"""Token ids [B, L], vectors [B, L, C] or images [B, C, H, W]; for a product path a dict of these by field."""


@dataclass(frozen=True)
class Trajectory:
    """The states of a run of N steps, on the CPU.

    Attributes:
        times: [N + 1] float64, from 0 to 1. In generation by blocks, block b contributes the times b + t.
        states: [N + 1, …], the state at each of these times, in the shape of the samples.
        jumps: [N, B], entries that differ between the two ends of a step. In a continuous state that flows, all of them do.
        entropy: [N, B] float64, in nats: mean entropy of the posteriors evaluated in the step, after temperature, top-k and
            top-p (before them for decoding orders); NaN where none was evaluated. `None` for continuous states.
        fixed: bool, in the shape of the samples: observed entries and padding.
        numbers: for strings [N + 1, B, L]: which symbol is which. A symbol has one number from its insertion to its
            deletion, also when it is substituted; −1 where there is no symbol. Else `None`.
        edits: for strings [N, B, 3]: how many symbols a step inserted, deleted and substituted, from one of its ends to the
            other. Else `None`.

    Strings are in as many places as the longest of all needs, padded as the samples are; `fixed` is of the final ones, and
    `jumps` counts all edits.
    """

    times: Tensor
    states: Tensor
    jumps: Tensor
    entropy: Tensor | None
    fixed: Tensor
    numbers: Tensor | None = None
    edits: Tensor | None = None


@dataclass
class GMGenerateOutput(ModelOutput):
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences: the samples, as `generate` returns them without `return_dict_in_generate`.
        network_calls: [B], network evaluations that each sample needed.
        jumps: [B], changes of an entry by jumps.
        error_bound: [B], for exact samplers a bound on the total variation that truncation costs; `None` for the others.
        attention_mask: [B, L], 0 where a sequence or string is padded, else the number of the document; for a product path
            by field; `None` for continuous states.
        trajectory: the states on the way, with `output_trajectory=True`.
    """

    sequences: Samples | None = None
    network_calls: Tensor | None = None
    jumps: Tensor | None = None
    error_bound: Tensor | None = None
    attention_mask: Samples | None = None
    trajectory: Trajectory | None = None
