"""What `generate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass(frozen=True)
class Trajectory:
    """A run of N steps, on the CPU.

    Attributes:
        times: [N + 1] float64, from 0 to 1; in the b-th block of a generation by blocks b + t.
        states: [N + 1, …], the states at these times, each of the shape of the sequences: long symbols, or numbers.
        jumps: [N, B], entries that a step has changed, seen from its two ends. Of numbers that flow these are all of them.
        entropy: [N, B] float64, in nats: mean entropy of the posteriors that were read in the step, after temperature,
            top-k and top-p; NaN where none was. `None` of numbers.
        fixed: bool, of the shape of the sequences: what was given, and padding.
    """

    times: Tensor
    states: Tensor
    jumps: Tensor
    entropy: Tensor | None
    fixed: Tensor


@dataclass
class GMGenerateOutput(ModelOutput):
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences: [B, L], or what else `generate` returns.
        network_calls: [B], evaluations of the network that each sequence needed.
        jumps: [B], changes of a symbol.
        error_bound: [B], what an exact sampler cut off, in total variation; `None` for the others.
        attention_mask: [B, L], 0 where the sequence is padded.
        trajectory: how the sequences came about, with `output_trajectory=True`.
    """

    sequences: Any = None
    network_calls: Tensor | None = None
    jumps: Tensor | None = None
    error_bound: Tensor | None = None
    attention_mask: Any = None
    trajectory: Trajectory | None = None
