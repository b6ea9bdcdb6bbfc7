"""What a call does to a device: kernels launched, waits, floating-point operations, and its replay as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

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
    """Yields a list that has, at the end, a place in the code for each time that the host waited for the GPU."""
    found: list[str] = []
    if not device.startswith("cuda"):
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            found.append(f"{warning.filename}:{warning.lineno}")
