"""The device of these tests: a GPU where there is one, else the CPU, on which those run that mean something there."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def gpu(device: str) -> str:
    """The GPU, for what means nothing on a CPU."""
    if device == "cpu":
        pytest.skip("compares a GPU with the CPU")
    return device
