"""Exponential moving average of the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


class EMACallback(TrainerCallback):
    """θ̄ ← d_n θ̄ + (1 − d_n) θ after optimizer step n, with d_n = min(decay, (1 + n)/(10 + n)), in float32.

    `GMTrainer` evaluates the averaged weights, writes them into every checkpoint and reads them back on resume.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay} must lie strictly between 0 and 1")
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        if model is not None and not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in _trained(model)}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        if model is None:
            return
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, weight in _trained(model):
            self.average[name] = self.average[name].to(weight.device).lerp_(weight.detach().float(), 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model holds the averaged weights."""
        own = {name: weight.detach().clone() for name, weight in _trained(model)} if self.average else {}
        try:
            _assign(model, self.average)
            yield
        finally:
            _assign(model, own)

    def save(self, folder: str | os.PathLike[str], rank: int = 0) -> None:
        """Writes this process's averaged weights. Without sharding all processes hold the same, and one is enough."""
        save_file({name: average.contiguous().cpu() for name, average in self.average.items()}, _file(folder, rank))

    def load(self, folder: str | os.PathLike[str], rank: int = 0) -> None:
        """Reads what `save` wrote.

        Raises:
            ValueError: the folder holds none.
        """
        if not _file(folder, rank).exists():
            raise ValueError(
                f"{folder} holds no averaged weights: it was written without an EMACallback, or by other processes"
            )
        self.average = load_file(_file(folder, rank))


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            yield name, weight.to_local() if isinstance(weight, DTensor) else weight  # a sharded weight: our part of it


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, weight in _trained(model):
        if name in values:
            weight.copy_(values[name])


def _file(folder: str | os.PathLike[str], rank: int) -> Path:
    return Path(folder) / f"ema-{rank}.safetensors"
