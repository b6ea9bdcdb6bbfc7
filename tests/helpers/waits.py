"""Counts on a CPU how often a program would wait for a GPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gm_discrete import arguments

READ = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
"""Operations whose result is on the host."""
SIZED = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "bincount", "nonzero_numpy",
}  # fmt: skip
"""Operations whose shape depends on values."""
HOST = ("tolist", "numpy", "__array__", "cpu")
"""Methods of a tensor that fetch all its values; on a CPU they call no operation."""


class _Mode(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in READ | SIZED or _by_mask(name, args) or _repeats(name, args, kwargs or {}):
            self.found.append(f"{name} at {_caller()}")
        elif name == "lift_fresh":  # torch.tensor(numbers): from there to a device is a copy that waits
            self.found.append(f"copy at {_caller()}")
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Indexing by a mask; writing one number to where it is true is a `masked_fill`."""
    if not name.startswith(("index", "_index_put_impl")) or len(args) < 2 or not isinstance(args[1], list | tuple):
        return False
    masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and not ("put" in name and len(args[1]) == 1 and args[2].numel() == 1)


def _repeats(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return name == "repeat_interleave" and kwargs.get("output_size") is None and isinstance(args[-1], Tensor)


def _caller() -> str:
    """The innermost line outside of torch."""
    frames = traceback.extract_stack()[:-2]
    frame = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__][-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextmanager
def waits(readable: bool = False) -> Iterator[list[str]]:
    """Collects what would wait for a GPU within this context: "nonzero at bregman.py:170" for a value or a size that the
    host needs, "copy at times.py:120" for numbers that go from the host to the device by a tensor of theirs.

    Args:
        readable: whether the library may read values as on a CPU; by default it does what it does on a GPU.
    """
    found: list[str] = []

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(f"{name} at {_caller()}")
            return method(self, *args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in HOST:
            stack.enter_context(patch.object(Tensor, name, counted(name, getattr(Tensor, name))))
        stack.enter_context(patch.object(arguments, "READABLE", {"cpu"} if readable else set()))
        stack.enter_context(_Mode(found))
        yield found
