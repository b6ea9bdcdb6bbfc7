"""The noise of a training step: a function of seed, step and micro-step alone, for any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gm_discrete.data.batches import clean_data
from gm_discrete.objective import TimeSampler, align_strings, corrupt, drop_classes
from gm_discrete.paths import Path
from gm_discrete.process import State, pack, unpack


def seeded_generator(device: torch.device, seed: int, *stream: int) -> torch.Generator:
    """A generator whose stream is a function of the seed and the integers of `stream` alone."""
    state = np.random.SeedSequence((seed, len(stream), *stream)).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state) >> 1)


def noisy_inputs(
    inputs: Mapping[str, Any],
    path: Path,
    rng: torch.Generator,
    time_sampler: TimeSampler,
    class_dropout: float,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """A batch of clean data with its states noised, their times, and a share of the class labels dropped.

    The noise is that of the global batch: all processes draw it from generators in equal states, and each takes its rows.
    """
    inputs, rank, world_size = dict(inputs), accelerator.process_index, accelerator.num_processes
    z, scored = clean_data(path, inputs)
    x_0: State | None = pack(inputs.pop("source_ids")) if "source_ids" in inputs else None
    lengths = {name: value.shape[1] for name, value in z.items()}
    if world_size > 1:
        z, scored, x_0 = _equally_long(path, (z, scored, x_0), accelerator, rng.device)
    if path.strings is not None:  # blanks tell what is padding; labels have the columns of the state
        z, scored, x_0 = align_strings(path, z, scored, None, rng, x_0, rank, world_size)
        lengths = lengths if x_0 is None else {"": z[""].shape[1]}
        inputs["labels"] = path.mask_labels(z[""], scored[""])[:, : lengths[""]]
        inputs.pop("attention_mask", None)
        if world_size > 1 and x_0 is not None:  # each process has aligned its own
            z, scored, x_0 = _equally_long(path, (z, scored, x_0), accelerator, rng.device)
    x, t = corrupt(path, z, scored, rng, time_sampler, rank, world_size, x_0)
    if "class_labels" in inputs:
        inputs["class_labels"] = drop_classes(inputs["class_labels"], class_dropout, rng, rank, world_size)
    return {
        **inputs,
        path.state_name: unpack({name: x[name][:, :length] for name, length in lengths.items()}),
        "time": t,
    }


def _equally_long(
    path: Path, states: tuple[State, State, State | None], accelerator: Accelerator, device: torch.device
) -> tuple[State, State, State | None]:
    """(z, scored, x_0) in as many positions as the longest batch of all processes, as they draw noise of one shape."""
    z, scored, x_0 = states
    counts = torch.tensor([[value.shape[1] for value in z.values()]], device=device)
    longest: Any = accelerator.gather(counts)
    most = dict(zip(z, longest.amax(0).tolist(), strict=True))
    blank = 0 if path.strings is None else path.strings.blank
    return _padded(z, most, blank), _padded(scored, most), None if x_0 is None else _padded(x_0, most, blank)


def _padded(state: State, lengths: Mapping[str, int], fill: int = 0) -> dict[str, Tensor]:
    """The values [B, length, …] of each field, filled up on the right."""
    found = {}
    for name, value in state.items():
        sizes = (*[0, 0] * (value.dim() - 2), 0, lengths[name] - value.shape[1])
        found[name] = nn.functional.pad(value, sizes, value=fill)
    return found
