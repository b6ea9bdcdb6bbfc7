"""Replays of a backbone: a call is recorded as a CUDA graph when its shapes return, and repeated from then on.

In sampling, the launches of a small call's kernels take longer than the kernels. A graph launches all of them at once, on
the same memory every time. So inputs are copied into buffers before, and the output out of one after each replay, and the
number of sequences is one of a few (`padded_size`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers.utils import logging

from gm_discrete.nn.blocks import BlockCache

logger = logging.get_logger(__name__)

Function = Callable[..., Tensor]
Recorder = Callable[[Function, Sequence[Tensor], Any], Callable[[], Tensor]]
"""(function of tensors, the tensors, what recordings share) → a function that repeats the call on the values that the
tensors then have. It returns the same memory every time."""

MOST_GRAPHS = 64
"""Graphs that are kept of a backbone, each with its inputs and its output; the one that was not used for longest goes."""

WARM_UPS = 2
"""Calls before the recording, in which libraries allocate what they need."""


@dataclass
class Pool:
    """Memory of graphs that never run at the same time, and the stream on which all of them are recorded: torch gives the
    memory that one leaves free, and the workspaces of libraries, only to others on the same stream."""

    handle: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())
    stream: torch.cuda.Stream | None = None


_RECORDING = Lock()
"""Torch records one graph of a process at a time."""


def cuda_graph(function: Function, inputs: Sequence[Tensor], pool: Pool) -> Callable[[], Tensor]:
    """Records the kernels of one call, with a `Pool`."""
    device = inputs[0].device
    current = torch.cuda.current_stream(device)
    # It returns to the current stream if the recording fails, too.
    with _RECORDING, torch.cuda.device(device), torch.cuda.stream(current):
        pool.stream = stream = pool.stream or torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*inputs)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool.handle, stream=stream, capture_error_mode="thread_local"):
            output = function(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


RECORDERS: dict[str, tuple[Recorder, Callable[[], object]]] = {"cuda": (cuda_graph, Pool)}
"""By type of device: how a call is recorded, and what makes the memory that its recordings share."""


class Replays:
    """The recorded calls of one backbone. A call runs as it is when its shapes are new, and is recorded when they return."""

    def __init__(self, record: Recorder, new_pool: Callable[[], object]) -> None:
        self.record, self.new_pool = record, new_pool
        self.calls: OrderedDict[Hashable, tuple[list[Tensor], Callable[[], Tensor]]] = OrderedDict()
        self.seen: set[Hashable] = set()
        self.network: Hashable = None
        self.pool: object = None
        self.failed = False
        self.lock = Lock()  # buffers serve one call at a time
        self.latest: Any = None  # event at the end of the latest replay, for which the next one waits on its stream
        self.backbone: Callable[[], nn.Module | None] = lambda: None

    def keep_for(self, backbone: nn.Module) -> None:
        """Drops all recordings if the backbone is no longer what they were made of."""
        with self.lock:
            self.backbone = ref(backbone)
            if (found := identity(backbone)) != self.network:
                self.calls.clear()
                self.seen.clear()
                self.network, self.pool, self.failed = found, self.new_pool(), False

    def of(self, backbone: nn.Module) -> Replays | None:
        """These, if they are of that backbone, and no gradients are wanted."""
        return None if self.backbone() is not backbone or torch.is_grad_enabled() else self

    def __call__(self, hidden: Function, *arguments: object) -> Tensor:
        """`hidden(*arguments)`, in memory of its own.

        Args:
            arguments: tensors, mappings of tensors, a `BlockCache`, or `None`.
        """
        inputs = flat(arguments)
        device = next(iter(inputs.values())).device
        cast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        shapes = tuple((name, value.shape, value.dtype, value.device) for name, value in inputs.items())
        key = shapes, cast, torch.get_float32_matmul_precision()
        with self.lock:
            if not self.failed and key not in self.calls and key in self.seen:
                self._record(key, hidden, inputs, len(arguments), device.type, *cast)
            self.seen.add(key)
            if (found := self.calls.get(key)) is not None:
                self.calls.move_to_end(key)
                buffers, replay = found
                stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
                if stream is not None and self.latest is not None:
                    stream.wait_event(self.latest)
                torch._foreach_copy_(buffers, list(inputs.values()))  # pyright: ignore[reportPrivateImportUsage]
                output = replay().clone()
                self.latest = None if stream is None else stream.record_event()
                return output
        return hidden(*arguments)

    def _record(
        self,
        key: Hashable,
        hidden: Function,
        inputs: Mapping[tuple, Tensor],
        number: int,
        device: str,
        cast: bool,
        dtype: torch.dtype,
    ) -> None:
        def call(*tensors: Tensor) -> Tensor:
            # Weights that autocast has cast before would be those of this moment for ever. Without autocast its state stays
            # what it was in the plain call, for which layers are compiled.
            with torch.autocast(device, dtype, cache_enabled=False) if cast else nullcontext():
                return hidden(*nested(dict(zip(inputs, tensors, strict=True)), number))

        try:
            with torch.inference_mode(False), torch.no_grad():  # buffers outlive the context of this call
                buffers = [torch.empty_like(value, memory_format=torch.contiguous_format) for value in inputs.values()]
                torch._foreach_copy_(buffers, list(inputs.values()))  # pyright: ignore[reportPrivateImportUsage]
                self.calls[key] = buffers, self.record(call, buffers, self.pool)
        except Exception as error:  # of any type: a network that cannot be recorded runs as it is
            self.failed = True
            reason = error.__context__ or error  # ending a recording fails after what went wrong in it
            logger.warning(f"compile=True: the network is not replayed as a graph, as recording it failed: {reason}")
        if len(self.calls) > MOST_GRAPHS:
            self.calls.popitem(last=False)


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Within this context a model's layers are compiled, for good, and `HiddenStates` replays calls of its backbone.

    Calls are replayed where the device can, and where no gradients are wanted. Recordings are kept with the backbone.
    """
    backbone = model.network.backbone
    if all(module._compiled_call_impl is None for module in backbone.modules()):
        model.compile_layers()
    if (recorder := RECORDERS.get(model.device.type)) is None:
        yield
        return
    replays = _KEPT.setdefault(backbone, Replays(*recorder))
    replays.keep_for(backbone)
    token = REPLAYS.set(replays)
    try:
        yield
    finally:
        REPLAYS.reset(token)


_KEPT: WeakKeyDictionary[nn.Module, Replays] = WeakKeyDictionary()
REPLAYS: ContextVar[Replays | None] = ContextVar("replays", default=None)
"""What repeats calls now; `None` outside of `compiled`."""


def padded_size(count: int, batch: int) -> int:
    """The number of sequences with which `count` of a batch are evaluated: a power of two, or the whole batch."""
    return min(1 << (count - 1).bit_length(), batch)


def identity(backbone: nn.Module) -> Hashable:
    """What recordings of a backbone depend on beside its inputs: where its weights lie, and the switches of its modules.

    Among these are the adapters of PEFT that are active. Values of weights may change: a replay reads them anew.
    """
    tensors = [*backbone.parameters(), *backbone.buffers()]
    switches = "active_adapters", "disable_adapters", "merged_adapters", "scaling"
    return (
        tuple((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors),
        tuple(
            (id(module), module.training, *(str(getattr(module, name, None)) for name in switches))
            for module in backbone.modules()
        ),
        getattr(getattr(backbone, "config", None), "_attn_implementation", None),
    )


def flat(arguments: Sequence[object]) -> dict[tuple, Tensor]:
    """The tensors in the arguments, by place, key and, of a cache, layer."""
    found: dict[tuple, Tensor] = {}
    for place, value in enumerate(arguments):
        if isinstance(value, BlockCache):
            for layer, parts in value.layers.items():
                found |= {(place, layer, number): part for number, part in enumerate(parts)}
            if value.last is not None:
                found[place, "last", 0] = value.last
        elif isinstance(value, Mapping):
            found |= {(place, key): part for key, part in value.items()}
        elif isinstance(value, Tensor):
            found[place,] = value
    return found


def nested(tensors: Mapping[tuple, Tensor], number: int) -> list[Any]:
    """The inverse of `flat`, for so many arguments."""
    found: list[Any] = [None] * number
    for (place, *keys), value in tensors.items():
        if len(keys) == 2:
            found[place] = found[place] or BlockCache()
            layers, layer = found[place].layers, keys[0]
            if layer == "last":
                found[place].last = value
            else:
                layers[layer] = (*layers.get(layer, ()), value)  # parts come in their order
        elif keys:
            found[place] = {**(found[place] or {}), keys[0]: value}
        else:
            found[place] = value
    return found
