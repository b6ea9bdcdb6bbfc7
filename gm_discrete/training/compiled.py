"""Training with compiled layers."""

from __future__ import annotations

from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from transformers import Trainer

from gm_discrete.models import GMModel


def prepare_compilation(trainer: Trainer, model: GMModel) -> None:
    """Compiles the model's layers under `TrainingArguments(torch_compile=True)` and `accelerate launch --dynamo_backend …`.

    Accelerate itself would compile the whole model, or with `--dynamo_use_regional_compilation` put heads and embeddings
    into wrappers of its own. That is switched off.
    """
    args, state = trainer.args, trainer.accelerator.state
    # Made anew: the state outlives a trainer, and what it holds may be that of an earlier one.
    plugin = TorchDynamoPlugin(backend=_given(args.torch_compile_backend), mode=_given(args.torch_compile_mode))
    state.dynamo_plugin = TorchDynamoPlugin(backend=_given("no"))
    if plugin.backend != DynamoBackend.NO:
        model.compile_layers(**plugin.to_kwargs())


def _given(value: str | None) -> Any:
    """The value; accelerate annotates what may be `None`, for the value of the environment, as if it might not."""
    return value
