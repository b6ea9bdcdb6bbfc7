"""The head over a large vocabulary: sums over its outputs that never hold all of them, and a weight with padded rows.

    S = Σ_i f_i(h_i Wᵀ + b),   g_i = ∂f_i / ∂(h_i Wᵀ + b),   ∂S/∂h_i = g_i W,   ∂S/∂W = Σ_i g_iᵀ h_i,   ∂S/∂b = Σ_i g_i

A loss is such a sum. Its gradient is known, up to the factor that backward brings, as soon as the rows are: the chunks are
walked once, each with its products of both directions, and of the logits [n, K] only one chunk ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

MULTIPLE = 128
"""Tensor cores are several times faster where the number of rows of W, the size of the vocabulary, is a multiple of this."""

PADDED_FROM = 1024
"""Padding copies W, for which the products of fewer rows than these do not make up."""

Logits = Callable[[], Tensor]
"""Computes the rows h Wᵀ + b of a chunk, anew at each call, so that they may be written into."""


class LinearSum(torch.autograd.Function):
    """Σ_i f_i(h_i Wᵀ + b), a float64 scalar, with first derivatives by h, W and b.

    Products are in the type of autocast, if it is on, and f in float32. ∂W is summed in float32. In float16 the products of
    g, which is about 1/K at most symbols and would underflow, are in float32 too.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        function: Callable[[slice, Logits], Tensor],
        rows: int,
        grad: bool,
        multiple: int | None = None,
    ) -> Tensor:
        """
        Args:
            hidden: h [n, D]; weight: W [K, D]; bias: b [K].
            function: (a chunk of i, its logits) → the values f_i. Nothing but the logits may carry gradients.
            rows: of a chunk.
            grad: whether gradients are needed, `torch.is_grad_enabled()` at the call.
            multiple: see `padded_linear`.
        """
        size, exact = weight.shape[0], torch.promote_types(weight.dtype, torch.float32)
        w, b = padded_linear(hidden.shape[0], weight, bias, multiple)
        h, half = hidden.to(w.dtype), w.dtype == torch.float16
        back = weight.float() if half else w
        grad_h, grad_w, grad_b = torch.zeros_like(h), None, None
        if grad and weight.requires_grad:
            grad_w = torch.zeros_like(back, dtype=exact)
        if grad and bias is not None and bias.requires_grad:
            grad_b = torch.zeros_like(bias, dtype=exact)
        total = h.new_zeros((), dtype=torch.float64)
        for start in range(0, h.shape[0], rows):
            part = slice(start, start + rows)
            edges, h_part = [], h[part].requires_grad_(grad)

            def logits(h: Tensor = h_part, edges: list[GradientEdge] = edges) -> Tensor:
                found = F.linear(h, w, b)
                found = found.to(exact) if found.shape[1] == size else found[:, :size].to(exact, copy=True)
                if grad:
                    edges.append(get_gradient_edge(found))
                return found

            with torch.set_grad_enabled(grad):
                value = function(part, logits).sum()
            total += value.detach()
            h_part = h_part.detach()
            for g in torch.autograd.grad(value, edges) if grad else ():  # g stops there: the products follow here
                if grad_b is not None:
                    grad_b += g.sum(0)
                # The cast to the type of products adds the columns of padding.
                g = g.to(back.dtype) if size == back.shape[0] else padded(g, back.shape[0], back.dtype, dim=1)
                with torch.autocast(h.device.type, enabled=False):
                    grad_h[part] += g @ back
                    if grad_w is not None and g.dtype == exact:
                        grad_w.addmm_(g.T, h_part.to(exact))
                    elif grad_w is not None:
                        grad_w += g.T @ h_part
                del g  # as large as the next chunk
        if grad:
            ctx.save_for_backward(grad_h, None if grad_w is None else grad_w[:size], grad_b)  # pyright: ignore[reportArgumentType]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if x is None else x * grad for x in ctx.saved_tensors), None, None, None, None, None


def padded_linear(
    rows: int, weight: Tensor, bias: Tensor | None, multiple: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Copies of weight and bias for the product with `rows` rows: in its type, that of autocast if it is on, and padded.

    Their added rows are zeros; parameters, gradients and checkpoints never have them. By default there are some in half
    precision on a GPU, where the units for products of matrices need them, if there are many rows to multiply: in inference
    weights in half precision are copied for the padding alone.
    """
    device, size = weight.device.type, weight.shape[0]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if multiple is None:
        half = dtype in (torch.bfloat16, torch.float16)
        multiple = MULTIPLE if half and device == "cuda" and rows >= PADDED_FROM else 1
    if size % multiple == 0:
        return weight.to(dtype), None if bias is None else bias.to(dtype)
    size += -size % multiple
    return padded(weight, size, dtype), None if bias is None else padded(bias, size, dtype)


def padded(x: Tensor, size: int, dtype: torch.dtype, dim: int = 0) -> Tensor:
    """x in the given type, with zeros up to `size` in one dimension, in one pass."""
    result = x.new_empty([*x.shape[:dim], size, *x.shape[dim + 1 :]], dtype=dtype)
    result.narrow(dim, 0, x.shape[dim]).copy_(x)
    result.narrow(dim, x.shape[dim], size - x.shape[dim]).zero_()
    return result


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer is h Wᵀ + b with whole weights: no adapter, quantisation, offloading, shards or hooks."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    whole = type(layer) is nn.Linear and type(layer.weight) in (Tensor, nn.Parameter)
    return whole and "forward" not in vars(layer) and not any(hooks)


def is_linear(layer: nn.Module) -> bool:
    """Whether the layer is plain, or is so while FSDP 2 runs it: with no hooks but the two of FSDP."""
    if not hasattr(layer, "unshard"):
        return is_plain(layer)
    hooks = len(layer._forward_hooks), len(layer._forward_pre_hooks)
    return isinstance(layer, nn.Linear) and "forward" not in vars(layer) and hooks == (1, 1)


def layer_sum(layer: nn.Module, hidden: Tensor, function: Callable[[slice, Logits], Tensor], rows: int) -> Tensor:
    """`LinearSum` of an `is_linear` layer, as the forward of its one call, in which FSDP gathers the weights."""

    def forward(hidden: Tensor) -> Tensor:
        given = hidden, layer.weight, layer.bias, function, rows, torch.is_grad_enabled()
        return LinearSum.apply(*given)  # pyright: ignore[reportReturnType, reportArgumentType]

    if is_plain(layer):
        return forward(hidden)
    layer.forward = forward
    try:
        return layer(hidden)
    finally:
        del layer.forward


def evaluated(layer: nn.Module, hidden: Tensor, multiple: int | None = None) -> Tensor:
    """layer(hidden), with the weight's rows padded if that is faster; with gradients it is not, but for `linear_sum`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_plain(layer):
        return layer(hidden)
    weight, bias = padded_linear(hidden.shape[:-1].numel(), layer.weight, layer.bias, multiple)  # pyright: ignore[reportArgumentType]
    return (
        layer(hidden)
        if weight.shape == layer.weight.shape
        else F.linear(hidden, weight, bias)[..., : layer.out_features]
    )
