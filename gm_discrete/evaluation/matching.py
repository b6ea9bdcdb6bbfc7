"""The generator matching loss over a data set: what paths of numbers are judged by while they train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete.objective import clamp_time, corrupt, field_parts, field_weight, parts_of_loss
from gm_discrete.paths import ProductPath


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
    return {"loss": sum(field_weight(config.loss_weights, name) * value for name, value in values.items()), **values}


def _sums(
    model: Any, batch: Mapping[str, Any], num_samples: int, rng: torch.Generator | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By part, or by field of a product: the divergences of each example [B], summed, and its number of scored entries."""
    path, config, labels = model.path, model.config, batch["labels"]
    several = isinstance(path, ProductPath)
    scored: Any = path.loss_mask(labels)
    state = batch[path.state_name]
    names = ("class_labels", "attention_mask") if several else ("class_labels",) if config.num_classes else ()
    given = {name: batch[name] for name in names if name in batch}
    z: Any
    if several:
        z = {name: torch.where(scored[name], labels[name], state[name]) for name in state}
    else:
        z = torch.where(scored, labels, state)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(num_samples):
        x, t = corrupt(path, z, scored, rng)
        found: dict[str, tuple[Any, Any]] = {}
        if several:
            times = {name: clamp_time(path.factors[name], time) for name, time in path.times(t).items()}
            generator = model.generator(x, path.joined(times), network_time=t, **given)
            values = field_parts(path, generator, z, x, t, scored, config.divergence, config.loss_weights)
            found = {name: (value, scored[name]) for name, value in values.items()}
        else:
            parts = parts_of_loss(path, model.generator(x, t, **given), z, x, t, scored, config.divergence)
            found = {name: (value, scored) for name, value in parts.items()}
        for name, pair in found.items():
            before: Any = sums.get(name, (0.0, 0.0))
            sums[name] = tuple(old + new.flatten(1).double().sum(1) for old, new in zip(before, pair, strict=True))  # pyright: ignore
    return sums


def _on(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict of tensors, on the device."""
    return {name: part.to(device) for name, part in value.items()} if isinstance(value, Mapping) else value.to(device)
