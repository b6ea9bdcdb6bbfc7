"""The generator matching loss over a data set: what paths of numbers are judged by while they train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete.objective import (
    UniformTimeSampler,
    by_field,
    corrupt,
    field_divergences,
    generator_times,
    total_loss,
)
from gm_discrete.process import factors, pack, unpack


@torch.no_grad()
def evaluate_matching(
    model: Any,
    dataloader: Iterable[Mapping[str, Tensor]],
    *,
    num_samples: int = 4,
    rng: torch.Generator | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Mean divergence per scored entry, by part, of a product by field, and in all (`"loss"`), at even times.

    Of a conditional loss only differences count: it does not go down to 0, as the data are not known from the state.

    Args:
        model: a `GMModel` of a Euclidean path or of a product.
        dataloader: batches of `input_values` or `fields`, `labels`, optional `class_labels`, and of a product an optional
            `attention_mask`.
        num_samples: draws per example.
        rng: source of the noise; seed it differently on every process.
        accelerator: the one that prepared `dataloader`, if one did.

    Raises:
        ValueError: `dataloader` is empty.
    """
    config = model.config
    sums: dict[str, tuple[float, float]] = {}
    training = model.training
    model.eval()
    try:
        for batch in tqdm(dataloader, desc="Loss", disable=accelerator and not accelerator.is_main_process):
            batch = {name: _on(value, model.device) for name, value in batch.items()}
            for name, pair in _sums(model, batch, num_samples, rng).items():
                if accelerator:  # without the examples that fill up the last batch
                    pair = accelerator.gather_for_metrics(pair)
                before = sums.get(name, (0.0, 0.0))
                sums[name] = before[0] + float(pair[0].sum()), before[1] + float(pair[1].sum())
    finally:
        model.train(training)
    if not sums:
        raise ValueError("dataloader is empty; give at least one batch")
    values = {name: total / count if count else 0.0 for name, (total, count) in sums.items()}
    total = total_loss({name: torch.tensor(value) for name, value in values.items()}, config.loss_weights)
    return {"loss": float(total), **values}


def _sums(
    model: Any, batch: Mapping[str, Any], num_samples: int, rng: torch.Generator | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By part, or by field of a product: the divergences of each example [B], summed, and its number of scored entries."""
    path, config = model.path, model.config
    labels, state = pack(batch["labels"]), pack(batch[path.state_name])
    scored = {name: field.loss_mask(labels[name]) for name, field in path.fields.items()}
    z = {name: torch.where(scored[name], labels[name], state[name]) for name in state}
    given = {name: batch[name] for name in ("class_labels", "attention_mask") if name in batch}
    weights, kinds = by_field(path, config.loss_weights), by_field(path, config.divergence)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(num_samples):
        x, t = corrupt(path, z, scored, rng, UniformTimeSampler())
        now = generator_times(path, t)
        generator = model.generator(unpack(x), path.joined(now), network_time=t, **given)
        found: dict[str, tuple[Any, Any]] = {}
        for name, parts in field_divergences(path, factors(generator), z, x, t, scored, kinds).items():
            if not name:
                found |= {part: (values, scored[name]) for part, values in parts.items()}
                continue
            inner = weights.get(name)
            inner = inner if isinstance(inner, Mapping) else {}
            total = torch.stack([inner.get(part, 1.0) * values for part, values in parts.items()]).sum(0)
            found[name] = (total, scored[name])
        for name, pair in found.items():
            before: Any = sums.get(name, (0.0, 0.0))
            sums[name] = tuple(old + new.flatten(1).double().sum(1) for old, new in zip(before, pair, strict=True))  # pyright: ignore
    return sums


def _on(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict of tensors, on the device."""
    return {name: part.to(device) for name, part in value.items()} if isinstance(value, Mapping) else value.to(device)
