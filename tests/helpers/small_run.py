"""A run small enough to be repeated often: eight symbols, the mask among them, and a transformer of one block.

Imported by the tests of this folder and by `two_processes.py`, which `forks.py` starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer
from gm_discrete.training import EMACallback, GMTrainer, MuonAdamW

TOKENIZER = character_tokenizer(alphabet="abcd")
LENGTH = 8
STABLE: dict[str, Any] = {"adam_epsilon": 1e-3, "seed": 3}
"""With so large an ε AdamW's step is no steeper than 1/ε in the gradient, and rounding stays rounding."""


def rows(count: int = 16, lengths: tuple[int, ...] = (LENGTH,), seed: int = 0) -> Dataset:
    """Random sequences of a to d, whose lengths go round in `lengths`."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [lengths[i % len(lengths)] for i in range(count)]
    return Dataset.from_dict({"input_ids": [torch.randint(4, (size,), generator=rng).tolist() for size in sizes]})


def small_model(path: Any = None, seed: int = 0, **options: Any) -> GMModel:
    """Every weight is moved away from its initial value, at which most gradients vanish."""
    path = path or MaskedPath(len(TOKENIZER), TOKENIZER.mask_token_id)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    torch.manual_seed(seed)
    model = GMModel(GMConfig(path=path, pad_token_id=TOKENIZER.pad_token_id, **sizes | options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def small_trainer(
    folder: str | os.PathLike[str],
    data: Any = None,
    model: GMModel | None = None,
    *,
    callbacks: list[TrainerCallback] | None = None,
    muon: bool = False,
    ema: float | None = None,
    time_sampler: Any = None,
    tokenizer: Any = TOKENIZER,
    eval_dataset: Any = None,
    num_eval_samples: int = 8,
    data_collator: Any = None,
    **arguments: Any,
) -> GMTrainer:
    """A `GMTrainer` on the CPU that logs every step and saves nothing, unless `arguments` say otherwise."""
    settings = {
        "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return GMTrainer(
        model or small_model(),
        TrainingArguments(output_dir=str(folder), **settings | arguments),
        time_sampler=time_sampler,
        num_eval_samples=num_eval_samples,
        train_dataset=rows() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        **({"data_collator": data_collator} if data_collator else {}),
        callbacks=[*([EMACallback(ema)] if ema else []), *(callbacks or [])],
        optimizer_cls_and_kwargs=(lambda: MuonAdamW, {"adamw_lr": 1e-2}) if muon else None,
    )


def losses(trainer: GMTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def poison(model: GMModel, call: int, value: float) -> None:
    """The loss of the given training call (1 for the first) becomes `value`."""
    calls = iter(range(1, 1000))

    def spoil(module: Any, arguments: Any, output: Any) -> Any:
        if output.loss is not None and next(calls) == call:
            output.loss = output.loss * value
        return output

    model.register_forward_hook(spoil)


class Interrupt(TrainerCallback):
    """Stops the run, as Ctrl-C would, in the step after the given one."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_pre_optimizer_step(args, state, control)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


class Recorder(TrainerCallback):
    """Records the gradients before every optimizer step and the weights after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append(weights(model))


def record_inputs(model: GMModel) -> list[dict[str, Tensor]]:
    """The list that every training call's arguments will be appended to."""
    calls: list[dict[str, Tensor]] = []

    def keep(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        if keywords.get("labels") is not None:
            calls.append(dict(keywords))

    model.register_forward_pre_hook(keep, with_kwargs=True)
    return calls


def checkpoint(folder: str | os.PathLike[str], step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"
