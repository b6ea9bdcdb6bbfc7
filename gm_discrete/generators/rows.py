"""Rows [n, K] of probabilities: cut into chunks of bounded memory, mapped over, and drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gm_discrete.arguments import readable

ROW_ELEMENTS = 2**25
"""Rows are processed in chunks of at most this many elements (128 MiB in float32)."""

KEPT_CHUNKS = 4
"""Up to this many chunks are kept for backward; if there are more, they are recomputed there."""


def chunked(where: Tensor, row_size: int, total: int | None = None) -> Sequence[Tensor]:
    """The positions (or a value of each) in chunks of few enough rows; with `total` in as many chunks as that number of
    positions would need."""
    if total is None:
        return where.split(max(1, ROW_ELEMENTS // row_size))
    return where.tensor_split(-(-total * row_size // ROW_ELEMENTS))


def map_rows(function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Tensor:
    """`function` [n, …] of all chunks, concatenated; with many chunks, none of their [n, K] tensors outlives its chunk."""
    if len(chunks) == 1:
        return function(chunks[0])
    if torch.is_grad_enabled() and len(chunks) > KEPT_CHUNKS:
        parts = [checkpoint(function, chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [function(chunk) for chunk in chunks]
    return torch.cat(parts)  # type: ignore[arg-type]  # checkpoint is annotated as returning Any | None


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Symbols [n] distributed as `probs` [n, K], from one float64 uniform [n] each.

    The cumulative sum runs in float64 over sums of blocks, then inside the one block that was hit, so that every symbol
    keeps its probability to float64 of the total although no [n, K] float64 tensor exists.
    """
    size = probs.shape[1]
    block = max(1, int(size**0.5))
    whole = size // block * block
    blocks = [probs[:, :whole].unflatten(1, (-1, block)).sum(2, dtype=torch.float64)]
    blocks.append(probs[:, whole:].sum(1, keepdim=True, dtype=torch.float64))
    coarse = torch.cat(blocks, 1).cumsum(1)
    total = coarse[:, -1]
    require((total > 0).all(), FloatingPointError, _NO_MASS)
    # A product that is rounded up to the total would point beyond the last symbol.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    hit = torch.searchsorted(coarse, target[:, None], right=True)  # [n, 1]
    before = torch.nn.functional.pad(coarse, (1, 0)).gather(1, hit).squeeze(1)
    symbols = hit * block + torch.arange(block, device=probs.device)  # [n, block]
    fine = torch.where(symbols < size, probs.gather(1, symbols.clamp(max=size - 1)), 0.0).double().cumsum(1)
    inside = torch.searchsorted(fine, (target - before)[:, None], right=True)
    last = (fine[:, -1:] > fine).sum(1, keepdim=True)  # last symbol of the block that has mass, against rounding
    return (hit * block + torch.minimum(inside, last)).squeeze(1)


_NO_MASS = (
    "the landing distribution of a jump is NaN or has no mass: check the model's weights and the logits processors"
)


def categorical_from_prior(prior: Tensor, uniform: Tensor) -> Tensor:
    """Symbols distributed as `prior` [K], one for each float64 uniform, of the uniforms' shape."""
    cumulative = prior.double().cumsum(0)
    total = cumulative[-1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)


NOT_FINITE = (
    "the {} is not finite: the output of the model is not, as its weights hold NaN, or overflow in float16; look at the "
    "weights, or use bfloat16 or float32"
)
"""Of numbers that follow from a network's output."""


def require(condition: Tensor, error: type[Exception], message: str) -> None:
    """Raises the error unless the condition holds; on a GPU asynchronously, because waiting would stall the device."""
    if not readable(condition):
        torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(condition):
        raise error(message)
