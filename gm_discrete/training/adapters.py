"""Adapters (PEFT): making, training and loading them.

Checkpoints of their training hold the adapter alone, the config of the model, and a hash of the rest.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gm_discrete.models import GMConfig, GMModel
from gm_discrete.models.card import Card
from gm_discrete.training.checkpoints import check_same

if TYPE_CHECKING:
    from peft import PeftModel

FROZEN = "frozen_weights.json"
"""File with the hash of the weights that are not trained, and that a checkpoint of adapters does not hold."""
BASE = "base_model.json"
"""File beside a saved adapter with the config of the model that it belongs to."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOT_COMPARED = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "runtime_config",
}
"""Settings of an adapter that may change when its training is resumed."""


def add_lora(
    model: GMModel,
    rank: int = 16,
    *,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
) -> PeftModel:
    """The model with a LoRA adapter of PEFT (arXiv 2106.09685) on linear layers; all else is frozen.

    Trained besides are the parts that a language model's network has not been trained with, which are new and start at 0:
    those that condition it on the time, and the heads of strings that predict how many edits remain, and where.

    Args:
        rank: of the products that are added to the weights.
        alpha: the products are scaled by alpha / rank; by default twice the rank.
        targets: names of linear layers, or their ends, such as `"q_proj"`; by default all in the layers of the transformer.
        dropout: of the adapter's inputs.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: targets is one string, or the model is no `GMModel`.
        ValueError: the rank is not positive, a target is the name of no linear layer, or the model has an adapter.
    """
    from peft import LoraConfig, get_peft_model  # an extra

    check_plain(model)
    if isinstance(targets, str):
        raise TypeError(f"targets={targets!r} must be a list of names, such as [{targets!r}]")
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inner = {name for name, module in model.backbone.layers.named_modules() if isinstance(module, nn.Linear)}
    kinds = sorted({name.partition(".")[2] for name in inner})  # without the number of the layer
    if missing := [end for end in targets or () if not any(f".{name}".endswith(f".{end}") for name in names)]:
        raise ValueError(
            f"targets={list(targets or ())} names {', '.join(map(repr, missing))}, which no linear layer of the model is; "
            f"give names of {', '.join(kinds)}, or leave it out for all of them"
        )
    new: list[str] = []
    if isinstance(model.config.backbone, dict):
        condition: Any = getattr(model.backbone, "condition", None)
        if condition is not None and not bool(condition.weight.any()):
            new += ["backbone.time", "backbone.condition"]
        new += [f"heads.{name}" for name in model.heads if name != "tokens" and not _is_trained(model.heads[name])]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=list(targets or kinds),
        modules_to_save=new or None,
    )
    return get_peft_model(model, config)  # pyright: ignore[reportReturnType]


def _is_trained(module: nn.Module) -> bool:
    """Whether any of its parameters is not 0, where all of them start."""
    return any(bool(weight.any()) for weight in module.parameters())


def load_adapter(model: GMModel, folder: str | os.PathLike[str], *, is_trainable: bool = False) -> PeftModel:
    """The model with the adapter that `GMTrainer.save_model` or PEFT wrote to a folder. `merge_and_unload` makes one model.

    Args:
        model: the model that the adapter was trained on.
        is_trainable: whether the adapter is to be trained further.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: the model is no `GMModel`.
        ValueError: the folder holds no adapter, a damaged one, or that of another model; or the model has an adapter.
    """
    check_plain(model)
    from peft import PeftModel, get_peft_model_state_dict  # an extra

    folder = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no adapter, as it has no {name}; give the folder of one")
    try:
        json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            found = set(file.keys())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{folder} holds a damaged adapter ({error}); save it anew") from error
    if (folder / BASE).is_file():
        described = json.loads((folder / BASE).read_text(encoding="utf-8"))
        check_same(GMConfig.from_dict(described["config"]), model.config, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are missing, which are an error below
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
        except (RuntimeError, ValueError) as error:
            first = " ".join(str(error).split("\n\t")[:2])  # PyTorch names all weights of other shapes
            raise ValueError(
                f"{folder} holds an adapter that does not fit the model; load the model that it was trained on ({first})"
            ) from error
    if unlike := found ^ get_peft_model_state_dict(adapted).keys():
        raise ValueError(
            f"{folder} holds an adapter that does not fit the model; load the model that it was trained on "
            f"({min(unlike)} is in one and not in the other)"
        )
    return adapted


def check_plain(model: nn.Module) -> None:
    """
    Raises:
        TypeError: it is no `GMModel`.
        ValueError: it has an adapter.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("model has an adapter already; train that one, or merge it first with merge_and_unload")
    if not isinstance(model, GMModel):
        raise TypeError(f"model is a {type(model).__name__}, and must be a GMModel; GMModel.from_backbone makes one")


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


def describe_base(model: nn.Module, folder: str | os.PathLike[str], card: Card | None = None) -> None:
    """Adds to a saved adapter the config of its model, under another name than that of a whole model, and a model card."""
    base = base_model(model)
    if base is not model:
        content = json.dumps({"config": base.config.to_dict()}, indent=1)
        Path(folder, BASE).write_text(content + "\n", encoding="utf-8")
        card = replace(card or Card(), base=base.name_or_path or None, is_adapter=True)
        Path(folder, "README.md").write_text(base.card_text(card), encoding="utf-8")


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
