"""What a call does to a device: kernels that it launches, waits, floating-point operations, and its replay as a CUDA graph.

On a CPU nothing is launched and nothing waits; there `waits` lists the operations that would wait on a GPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, by a part of the name of the device (data sheets, SXM)."""


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations a second of a device; `None` where its name is not in `PEAKS`."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def training_flops(
    layers: int, hidden_size: int, intermediate_size: int, vocab_size: int, length: int, tokens: int, scored: int
) -> int:
    """Floating-point operations of forward and backward of a transformer with SwiGLU, of matrices and attention.

    6 for each weight of a layer and token, 12·L·D for the attention of a layer and token, and the head at the scored
    positions only.
    """
    matrices = layers * (4 * hidden_size**2 + 3 * hidden_size * intermediate_size)
    attention = layers * 12 * length * hidden_size
    return tokens * (6 * matrices + attention) + 6 * scored * hidden_size * vocab_size


def operations(function: Callable[[], object], device: str) -> dict[str, int | None]:
    """Launched kernels (none on a CPU), copies and matrix products of one call."""
    on_gpu = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        function()
        if on_gpu:
            torch.cuda.synchronize()
    calls = {event.key: event.count for event in profiler.key_averages()}

    def count(*prefixes: str) -> int:
        return sum(number for name, number in calls.items() if name.startswith(prefixes))

    return {
        "launches": count("cudaLaunchKernel", "cuLaunchKernel") if on_gpu else None,
        "copies": calls.get("aten::copy_", 0),
        "products": sum(calls.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm", "baddbmm")),
    }


def replayed(function: Callable[[], object], device: str) -> Callable[[], object]:
    """The call as a CUDA graph, to be replayed on the tensors that it has now; on a CPU the call itself."""
    if not device.startswith("cuda"):
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@contextmanager
def waits(device: str) -> Iterator[list[str]]:
    """Yields a list that has, at the end, one entry for each time that the host waited for the device: where it was."""
    found: list[str] = []
    if device.startswith("cuda"):
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        found += [f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)]
    else:
        with _Functions(found), _Operations(found):
            yield found


class _Operations(TorchDispatchMode):
    """Records the operations whose result, or its shape, the host reads."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "bincount",
             "unique_dim", "equal")  # fmt: skip
    INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in self.INDEXED and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        sized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in self.READS or by_mask or sized:
            _record(self.found, name)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Records what moves values between the memories, which on a CPU are one: to lists, and from lists."""

    OUT = (Tensor.tolist, Tensor.numpy, Tensor.cpu)
    IN = (torch.tensor, torch.as_tensor)

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        from_host = func in self.IN and kwargs.get("device") is not None and not isinstance(args[0], Tensor)
        if func in self.OUT or from_host:
            _record(self.found, func.__name__)
        return func(*args, **kwargs)


def _record(found: list[str], name: str) -> None:
    """Appends the operation, and the innermost line outside torch and this file that called it.

    `generators.rows.require` does not count: on a GPU it leaves the check to the device.
    """
    frame = sys._getframe(1)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    if frame.f_code.co_name != "require":
        found.append(f"{name} at {frame.f_code.co_filename}:{frame.f_lineno}")
