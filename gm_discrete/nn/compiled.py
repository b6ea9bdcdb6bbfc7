"""Layers compiled one by one: each kind of layer once, for any number of sequences."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

VARIANTS = 32
"""Of a kind of layer: training and inference, with and without padding, one sequence, another length, and the same with a
cache, whose first entry has strides of its own. Generation by blocks meets 18, and torch stops compiling after 8."""


class CompileOptions(TypedDict, total=False):
    """Options of `torch.compile`, with their meaning."""

    backend: str | Callable[..., Any]
    mode: str | None
    options: dict[str, Any] | None
    fullgraph: bool
    dynamic: bool | None
    disable: bool


def compile_layers(layers: Iterable[nn.Module], **options: Unpack[CompileOptions]) -> None:
    """Compiles the layers in place, as `nn.Module.compile` does: names, copies and files of the parameters stay as they are.

    `nn.Module.compile` gives all modules of a program one code, and hence one list of compiled variants, which is soon full.
    Here each kind has a code of its own, and its layers share the variants.

    Args:
        options: those of `torch.compile`.
    """
    found: dict[str, Any] = {**options}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        found["recompile_limit"] = VARIANTS
    else:  # an older torch, with one limit for all of a program
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
    kinds: dict[str, Callable[..., Tensor]] = {}
    for layer in layers:
        kind = repr(layer)  # type and sizes of all parts
        if kind not in kinds:
            kinds[kind] = torch.compile(_entry(f"{type(layer).__name__}_{len(kinds)}"), **found)
        vars(layer)["_compiled_call_impl"] = partial(_call, kinds[kind], layer)


def _call(compiled: Callable[..., Tensor], layer: nn.Module, *args: object, **kwargs: object) -> Tensor:
    if not torch.compiler.is_compiling():  # else a graph around the layers is being made
        for value in (*args, *kwargs.values()):
            _mark(value)
    return compiled(layer, *args, **kwargs)


def _mark(value: object) -> None:
    """Declares the sizes that change from batch to batch, so that the first compilation is good for all of them.

    They are the first dimension of hidden states, masks and conditions (rotary tables are a tuple), and the length of cached
    keys and values, which are a list.
    """
    if isinstance(value, Tensor):
        torch._dynamo.maybe_mark_dynamic(value, 0)
    elif isinstance(value, list):
        for part in value:
            torch._dynamo.maybe_mark_dynamic(part, [0, 2])


def _entry(name: str) -> Callable[..., Tensor]:
    """A function (layer, *args) → the layer's output, with a code of its own."""
    code = _run.__code__.replace(co_name=name, co_qualname=name)
    return cast("Callable[..., Tensor]", FunctionType(code, globals(), name))


def _run(layer: nn.Module, *args: object, **kwargs: object) -> Any:
    return layer._call_impl(*args, **kwargs)
