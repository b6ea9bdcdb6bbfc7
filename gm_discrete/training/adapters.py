"""Training of adapters (PEFT): their checkpoints hold the adapter alone, the config of the model, and a hash of the rest."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.models import GMModel

FROZEN = "frozen_weights.json"
"""File with the hash of the weights that are not trained, and that a checkpoint of adapters does not hold."""
NOT_COMPARED = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "runtime_config",
}
"""Settings of an adapter that may change when its training is resumed."""


def base_model(model: nn.Module) -> GMModel:
    """The `GMModel` itself, without the wrapper of PEFT if it has one."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped


def check_wrapped(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model has an adapter inside, of which Trainer saves checkpoints that it cannot load.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "model has an adapter from add_adapter, whose training could not be resumed; wrap it in its place: "
            "peft.get_peft_model(model, LoraConfig(…))"
        )


def save_base(model: nn.Module, folder: str | os.PathLike[str], frozen: int | None) -> None:
    """Adds to a checkpoint of adapters what it lacks to be recognised. Does nothing for other models.

    Args:
        frozen: the `frozen_crc32` of the model; `None` with FSDP, where frozen weights are not compared.
    """
    if base_model(model) is model:
        return
    base_model(model).config.save_pretrained(folder)
    Path(folder, FROZEN).write_text(json.dumps({"crc32": frozen}), encoding="utf-8")


def check_adapter(model: nn.Module, checkpoint: str | os.PathLike[str], frozen: int | None) -> None:
    """Warns if the frozen weights are not those that the adapter of the checkpoint was trained with.

    Those of a run with FSDP are not compared: no process has all of them.

    Args:
        frozen: the `frozen_crc32` of the model; `None` with FSDP.

    Raises:
        ValueError: the checkpoint holds another kind of adapter, or an adapter where the model has none, or none.
    """
    file, adapted = Path(checkpoint, FROZEN), base_model(model) is not model
    if file.exists() != adapted:
        raise ValueError(
            f"{checkpoint} holds an adapter, and the model has none; wrap it with peft.get_peft_model as in the first run"
            if file.exists()
            else f"{checkpoint} holds a whole model, and this one has an adapter; load the model with from_pretrained first"
        )
    if not adapted:
        return
    wrapped: Any = model
    name = wrapped.active_adapters[0]
    folder = Path(checkpoint) if name == "default" else Path(checkpoint, name)
    here = wrapped.peft_config[name]
    before, now = type(here).from_pretrained(str(folder)).to_dict(), here.to_dict()
    for setting in sorted(now.keys() - NOT_COMPARED):
        if _comparable(before.get(setting)) != _comparable(now[setting]):
            raise ValueError(
                f"{checkpoint} holds an adapter with {setting}={before.get(setting)!r}, and that of the model has "
                f"{now[setting]!r}; give the first to resume the run"
            )
    before = json.loads(file.read_text(encoding="utf-8"))["crc32"]
    if None not in (before, frozen) and before != frozen:
        warnings.warn(
            f"the frozen weights of the model are not those that the adapter in {checkpoint} was trained with",
            stacklevel=3,
        )


def _comparable(setting: object) -> object:
    return sorted(setting) if isinstance(setting, set | list | tuple) else setting


@torch.no_grad()
def frozen_crc32(model: nn.Module) -> int:
    """The hash of the weights below an adapter, that are not trained; 0 for a model without one."""
    value = 0
    if base_model(model) is model:
        return value
    for weight in model.parameters():
        if not weight.requires_grad and type(weight) in (Tensor, nn.Parameter):
            content: Any = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            value = zlib.crc32(content, value)
    return value
