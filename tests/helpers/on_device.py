"""What the tests that run on a GPU and on a CPU share: how often the host waits, and the greatest tensor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import device as gpu
from tests.helpers import waits as on_cpu


def waits(device: str) -> AbstractContextManager[list[str]]:
    """Collects where the host waits for the device; on a CPU, where it would wait for a GPU."""
    if device == "cpu":
        return on_cpu.waits()
    return gpu.waits(device)


def waiting(found: list[str]) -> list[str]:
    """What `waits` found, without the copies to the device: a CPU does not tell those that wait from those that do not."""
    return [place for place in found if not place.startswith("copy")]


class Greatest(TorchDispatchMode):
    """Keeps the number of elements of the greatest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return found


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of two lists of gradients, as one vector each."""
    first, second = (torch.cat([part.flatten().double().cpu() for part in parts]) for parts in (a, b))
    return float(first @ second / (first.norm() * second.norm()))
