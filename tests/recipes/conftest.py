from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
from PIL import Image

WORDS = "the of and to in a is that it as was for on are with his they be at one have this from or had by hot but some"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """recipes/text.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield importlib.import_module("recipes.text")


@pytest.fixture(scope="session")
def image_recipe(recipe: ModuleType) -> ModuleType:
    """recipes/images.py."""
    return importlib.import_module("recipes.images")


@pytest.fixture(scope="session")
def mixed_recipe(recipe: ModuleType) -> ModuleType:
    """recipes/mixed.py."""
    return importlib.import_module("recipes.mixed")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty little texts, one per row."""
    words, file = WORDS.split(), tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [" ".join(words[(7 * row + row * place) % len(words)] for place in range(40)) for row in range(80)]
    file.write_text("".join(json.dumps({"text": f"ROMEO: {text}.\n"}) + "\n" for text in texts), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> list[str]:
    """Arguments that make any config a run of two steps on `corpus`."""
    sizes = {
        "data": corpus, "length": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_steps": 2, "warmup_steps": 1, "eval_steps": 2, "save_steps": 2, "logging_steps": 1,
        "per_device_train_batch_size": 2, "max_eval_sequences": 4, "num_eval_samples": 2, "num_steps": 4,
        "sample_length": 16, "dataloader_num_workers": 0, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def tiny_images() -> list[str]:
    """Arguments that make any config of images a run of two steps."""
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_steps": 2, "warmup_steps": 1,
        "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2, "max_eval_images": 4, "num_eval_samples": 1, "num_steps": 3, "num_images": 4,
        "dataloader_num_workers": 0, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty coloured PNGs of 32 × 32 pixels in folders by class, like those of hub data sets."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        file = folder / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture(scope="session")
def packaged_images(image_recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """fashion_mnist and emoji32 of a few images, in the files that their downloads write."""
    folder, rng = tmp_path_factory.mktemp("packages"), np.random.default_rng(1)
    (folder / "gm_discrete").mkdir()
    fashion = {
        f"{part}_{name}": values
        for part, count in (("train", 48), ("test", 8))
        for name, values in (
            ("images", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels", (np.arange(count) % 10).astype(np.uint8)),
        )
    }
    np.savez_compressed(folder / "gm_discrete/fashion_mnist.npz", **fashion)
    np.savez_compressed(
        folder / "gm_discrete/emoji32.npz",
        images=rng.integers(0, 256, (80, 3, 32, 32), dtype=np.uint8),
        labels=np.arange(80) % 9, names=np.array([f"category {i}" for i in range(9)]), kinds=np.arange(80) // 2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("recipes.datasets.packages"), "HF_CACHE_HOME", str(folder))
        yield folder
