"""The generator matching loss over a data set: what paths of numbers are judged by while they train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete.objective import corrupt, parts_of_loss


@torch.no_grad()
def evaluate_matching(
    model: Any,
    dataloader: Iterable[Mapping[str, Tensor]],
    *,
    num_samples: int = 4,
    rng: torch.Generator | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Mean divergence per scored entry, by part and in all (`"loss"`), at even times.

    Of a conditional loss only differences count: it does not go down to 0, as the data are not known from the state.

    Args:
        model: a `GMModel` of a Euclidean path.
        dataloader: batches of `input_values`, `labels` and optional `class_labels`.
        num_samples: draws per example.
        rng: source of the noise; seed it differently on every process.
        accelerator: the one that prepared `dataloader`, if one did.

    Raises:
        ValueError: `dataloader` is empty.
    """
    path, config = model.path, model.config
    sums: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    try:
        for batch in tqdm(dataloader, desc="Loss", disable=accelerator and not accelerator.is_main_process):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            scored = path.scored(batch["labels"])
            z = torch.where(scored, batch["labels"], batch[path.state_name])
            classes = {"class_labels": batch["class_labels"]} if config.num_classes and "class_labels" in batch else {}
            for _ in range(num_samples):
                x, t = corrupt(path, z, scored, rng)
                parts = parts_of_loss(path, model.generator(x, t, **classes), z, x, t, scored, config.divergence)
                totals = {name: value.sum().double() for name, value in parts.items()} | {"": scored.sum().double()}
                sums = {name: sums.get(name, torch.zeros_like(value)) + value for name, value in totals.items()}
    finally:
        model.train(training)
    if not sums:
        raise ValueError("dataloader is empty; give at least one batch")
    if accelerator:
        sums = {name: accelerator.reduce(value, "sum") for name, value in sums.items()}  # pyright: ignore
    count = sums.pop("")
    values = {name: float(value / count) for name, value in sums.items()}
    weights = config.loss_weights or {}
    return {"loss": sum(weights.get(name, 1.0) * value for name, value in values.items()), **values}
