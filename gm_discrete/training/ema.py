"""Exponential moving average of the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import (
    Tensor,
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage]
    nn,
)
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState


class EMACallback(TrainerCallback):
    """θ̄ ← d_n θ̄ + (1 − d_n) θ after optimizer step n, with d_n = min(decay, (1 + n)/(10 + n)), in float32.

    `GMTrainer` evaluates at the averaged weights, saves them in every checkpoint and loads them on resume.

    >>> ema, model = EMACallback(decay=0.9), nn.Linear(1, 1, bias=False)  # GMTrainer(…, callbacks=[ema]) calls the rest
    >>> _ = nn.init.zeros_(model.weight)
    >>> ema.on_train_begin(None, TrainerState(), None, model=model)
    >>> _ = nn.init.ones_(model.weight)
    >>> ema.on_step_end(None, TrainerState(global_step=1), None, model=model)  # d_1 = 2/11
    >>> with ema.applied(model):
    ...     round(model.weight.item(), 3)
    0.818

    Args:
        decay: in (0, 1).

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay} must lie strictly between 0 and 1")
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, model: nn.Module | None = None, **_: object
    ) -> None:
        if model is not None and not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in _trained(model)}

    @torch.no_grad()
    def on_step_end(
        self, args: object, state: TrainerState, control: object, model: nn.Module | None = None, **_: object
    ) -> None:
        if model is None:
            return
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        weights = dict(_trained(model))
        for name, weight in weights.items():
            if self.average[name].device != weight.device:  # loaded from a checkpoint
                self.average[name] = self.average[name].to(weight.device)
        averages = [self.average[name] for name in weights]
        if averages:
            _foreach_lerp_(averages, _float([*weights.values()]), 1 - decay)  # a few kernels for all weights

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged weights."""
        own = {name: weight.detach().clone() for name, weight in _trained(model)} if self.average else {}
        try:
            _assign(model, self.average)
            yield
        finally:
            _assign(model, own)

    def save(self, folder: str | os.PathLike[str], rank: int = 0) -> None:
        """Saves the averaged weights of this process. Without sharding they are the same on all processes."""
        save_file({name: average.contiguous().cpu() for name, average in self.average.items()}, _file(folder, rank))

    def load(self, folder: str | os.PathLike[str], rank: int = 0) -> None:
        """Loads averaged weights.

        Raises:
            ValueError: the folder has none.
        """
        if not _file(folder, rank).exists():
            raise ValueError(
                f"{folder} has no {_file(folder, rank).name}: it was saved without an EMACallback, or by another number of "
                "processes"
            )
        self.average = load_file(_file(folder, rank))


def _float(weights: list[Tensor]) -> list[Tensor]:
    """The weights in float32."""
    if all(weight.dtype == torch.float32 for weight in weights):
        return weights
    copies = [torch.empty_like(weight, dtype=torch.float32) for weight in weights]
    _foreach_copy_(copies, weights)
    return copies


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            yield name, weight.to_local() if isinstance(weight, DTensor) else weight  # of a sharded one: its part here


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, weight in _trained(model):
        if name in values:
            weight.copy_(values[name])


def _file(folder: str | os.PathLike[str], rank: int) -> Path:
    return Path(folder) / f"ema-{rank}.safetensors"
