"""Positions of a flattened state, with what the host knows of them.

Where a GPU computes which positions jump, the host must wait for it once, to learn how many. It learns at the same time which
sequences they belong to, and keeps that with the positions, so that choosing these sequences makes nobody wait again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def positions_of(mask: Tensor) -> Tensor:
    """The indices [n] of the true entries of a mask [B, …] in the flattened state: the one thing that the host waits for."""
    counts = mask.flatten(1).sum(1).tolist()
    where = torch.nonzero_static(mask.flatten(), size=sum(counts)).squeeze(1)
    return of_sequences(where, [row for row, count in enumerate(counts) if count])


def of_sequences(where: Tensor, sequences: Sequence[int] | None) -> Tensor:
    """The positions, of which the host knows from now on that they belong to these sequences (`None`: it does not)."""
    if sequences is not None:
        vars(where)["sequences"] = sequences
    return where


def sequences_of(where: Tensor) -> Sequence[int] | None:
    """Sequences among which are those of the positions, in order; `None` if the host would have to wait for them."""
    return None if torch.compiler.is_compiling() else vars(where).get("sequences")


def on_device(indices: Sequence[int], device: torch.device) -> Tensor:
    """The indices [n] as a tensor, long; the copy is made without waiting for the device."""
    found = torch.tensor(indices, dtype=torch.long)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)
