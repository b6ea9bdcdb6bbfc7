"""The matching loss over a data set, by which models with continuous fields are evaluated during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete.data.batches import clean_data
from gm_discrete.generators.spaces import entries
from gm_discrete.likelihood import evaluation_mode
from gm_discrete.models import GMModel
from gm_discrete.objective import (
    UniformTimeSampler,
    align_strings,
    corrupt,
    field_divergences,
    generator_times,
    total_loss,
)
from gm_discrete.process import factors, unpack


@torch.no_grad()
def evaluate_matching(
    model: GMModel,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 4,
    rng: torch.Generator | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Mean divergence per scored entry at uniform times: `"loss"`, their weighted sum, and one value for each field of a
    product or each part (such as `"flow"`) of a single field.

    Only differences of a conditional loss are meaningful: its minimum is not 0, as x does not determine z.

    Args:
        model: the model, possibly gathered from shards.
        dataloader: batches of `input_values`, `input_ids` or `fields`, with `labels`, and optionally `class_labels` and
            `attention_mask`. Class labels are passed to models with classes.
        num_samples: draws per example.
        rng: source of the noise; seed it differently on every process.
        accelerator: the one that prepared `dataloader`, if any; every process then returns the means of all.

    Raises:
        ValueError: `dataloader` is empty, or nothing of it is scored.
    """
    sums: dict[str, tuple[float, float]] = {}
    with evaluation_mode(model):
        for batch in tqdm(dataloader, desc="Loss", disable=accelerator and not accelerator.is_main_process):
            batch = {name: _on(value, model.device) for name, value in batch.items()}
            for name, pair in _example_sums(model, batch, num_samples, rng).items():
                if accelerator:  # without the duplicates that fill up the last batch
                    pair = accelerator.gather_for_metrics(pair)
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = total + float(pair[0].sum()), count + float(pair[1].sum())
    if not sums:
        raise ValueError("dataloader is empty; give at least one batch")
    if not any(count for _, count in sums.values()):
        raise ValueError("dataloader has nothing to score: no label of its batches is scored")
    values = {name: total / count if count else 0.0 for name, (total, count) in sums.items()}
    losses = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return {"loss": float(total_loss(losses, model.config.loss_weights)), **values}


def _example_sums(
    model: GMModel, batch: Mapping[str, Any], num_samples: int, rng: torch.Generator | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each field (of a single field each part) the sums of its divergences and of its scored entries, [B] each."""
    path, config = model.path, model.config
    z, scored = clean_data(path, batch)
    names = ("attention_mask", "class_labels") if config.num_classes else ("attention_mask",)
    conditioning, counted = {name: batch[name] for name in names if name in batch}, scored
    if path.strings is not None:  # blanks tell what is padding, in other columns than those of the mask
        conditioning.pop("attention_mask", None)
        counted = {"": scored[""] & (z[""] != path.strings.blank)}
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for _ in range(num_samples):
        data, chosen, x_0 = (z, scored, None) if path.strings is None else align_strings(path, z, scored, None, rng)
        x, t = corrupt(path, data, chosen, rng, UniformTimeSampler(), x_0=x_0)
        now = path.joined(generator_times(path, t))
        predicted = factors(model.generator(unpack(x), now, network_time=t, **conditioning))
        for name, parts in field_divergences(path, predicted, data, x, t, chosen, config.divergence).items():
            weights = config.loss_weights.get(name) if name and config.loss_weights else None
            for part, values in parts.items():
                weight = weights.get(part, 1.0) if isinstance(weights, Mapping) else 1.0
                key = name or part  # the parts of a single field are weighed in the total
                total = weight * values.flatten(1).double().sum(1)
                totals[key] = totals[key] + total if key in totals else total
                counts[key] = num_samples * entries(counted[name], path.fields[name].space).flatten(1).double().sum(1)
    return {key: (totals[key], counts[key]) for key in totals}


def _on(value: Tensor | Mapping[str, Tensor], device: torch.device) -> Tensor | dict[str, Tensor]:
    """A tensor, or a dict of tensors, on the device."""
    return {name: part.to(device) for name, part in value.items()} if isinstance(value, Mapping) else value.to(device)
