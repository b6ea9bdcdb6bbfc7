"""Training with weights that FSDP 2 shards over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from gm_discrete.models import GMModel


def prepare_sharding(trainer: Trainer, model: GMModel) -> None:
    """Sets up model and accelerator for sharded weights.

    Raises:
        ValueError: an option does not work with them.
    """
    model.whole_batches = True
    # Only layers are gathered by themselves: embeddings, which a network of transformers may name too, are called alone.
    layers = {type(layer).__name__ for layer in model.backbone.layers}
    model._no_split_modules = layers & set(model._no_split_modules or ())
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    for name, wrong, cure in (
        ("fsdp_version", plugin.fsdp_version != 2, "launch with --fsdp_version 2"),
        ("eval_on_start", trainer.args.eval_on_start, "leave out eval_on_start"),
        (
            "optimizer_cls_and_kwargs",
            trainer.optimizer_cls_and_kwargs is not None,
            "train with an optimizer of TrainingArguments",
        ),
    ):
        if wrong:
            raise ValueError(f"{name} does not work with weights sharded by FSDP; {cure}")
    if plugin.mixed_precision_policy is not None:  # times and the loss keep their precision
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None
        )


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within this context the submodules of a model sharded by FSDP 2 may be called one by one."""
    if isinstance(model, FSDPModule):
        model.unshard()  # parameters outside all blocks, which otherwise only the forward of the whole model gathers
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
