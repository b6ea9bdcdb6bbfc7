from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = "the of and to in a is that it as was for on are with his they be at one have this from or had by hot but some"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """recipes/text.py, imported as Python would run it: with its folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield importlib.import_module("text")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty little texts, one per row."""
    words, file = WORDS.split(), tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [" ".join(words[(7 * row + row * place) % len(words)] for place in range(40)) for row in range(80)]
    file.write_text("".join(json.dumps({"text": f"ROMEO: {text}.\n"}) + "\n" for text in texts))
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
