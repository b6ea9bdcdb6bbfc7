"""A run on images of a few pixels, small enough to be repeated often: bright or dark on the left, by class.

Imported by `test_image_training.py` and by `two_equal_processes.py`, which `forks.py` starts.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from datasets import Dataset

from gm_discrete import Bins, EuclideanMixturePath, GaussianPath, GMConfig, GMModel, MaskedPath, UniformPath
from gm_discrete.data import ImageCollator
from gm_discrete.training import GMTrainer
from tests.helpers.small_run import small_trainer

LEVELS = 4
PATHS = {
    "flow": GaussianPath({"flow": 1.0}),
    "flow and jump": GaussianPath({"flow": 0.5, "jump": 0.5}, bins=Bins(-1, 1, 8)),
    "mixture": EuclideanMixturePath({"jump": 0.5, "flow": 0.5}, bins=Bins(-1, 1, 8)),
    "masked": MaskedPath(LEVELS + 1),
    "uniform": UniformPath(LEVELS),
}


def pictures(count: int = 16, seed: int = 0, classes: bool = True) -> Dataset:
    """Grey images [1, 4, 4] of two classes: the left half, or the right half, is bright."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 4, 4), generator=rng)
    for row in range(count):
        half = images[row, :, :, 2:] if row % 2 else images[row, :, :, :2]
        half += 150
    columns: dict[str, Any] = {"pixel_values": images.tolist()}
    return Dataset.from_dict(columns | ({"class_labels": [row % 2 for row in range(count)]} if classes else {}))


def picture_model(name: str = "flow and jump", seed: int = 0, **options: Any) -> GMModel:
    """Every weight is moved away from its initial value, at which most gradients vanish."""
    settings: dict[str, Any] = {
        "image_shape": [1, 4, 4], "patch_size": 2, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_classes": 2, "class_dropout": 0.25,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = GMModel(GMConfig(path=PATHS[name], **settings | options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def picture_trainer(
    folder: str | os.PathLike[str], name: str = "flow and jump", model: GMModel | None = None, **arguments: Any
) -> GMTrainer:
    model = model or picture_model(name)
    collate = ImageCollator(levels=LEVELS if model.config.vocab_size else None)
    arguments = {"data": pictures(), "tokenizer": None, "data_collator": collate} | arguments
    return small_trainer(folder, arguments.pop("data"), model, **arguments)
