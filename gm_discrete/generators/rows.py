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

    Blocks of √K symbols are summed in the precision of `probs`. The cumulative sum runs in float64 over the blocks, and
    then inside the one that was hit, in its own scale. So every symbol keeps its probability to a rounding of itself,
    however rare it is, although nothing of the size [n, K] is made.
    """
    size = probs.shape[1]
    block = max(1, int(size**0.5))
    whole = size // block * block
    sums = probs[:, :whole].unflatten(1, (-1, block)).sum(2)
    if whole < size:
        sums = torch.cat([sums, probs[:, whole:].sum(1, keepdim=True)], 1)
    coarse = torch.nn.functional.pad(sums.cumsum(1, dtype=torch.float64), (1, 0))
    total = coarse[:, -1:]
    require((total > 0).all(), FloatingPointError, _NO_MASS)
    # A product that is rounded up to the total would point beyond the last symbol.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    hit = torch.searchsorted(coarse, target, right=True) - 1  # [n, 1]
    symbols = hit * block + torch.arange(block, device=probs.device)  # [n, block]
    inner = probs.gather(1, symbols.clamp(max=size - 1))
    inner = inner if whole == size else inner.masked_fill(symbols >= size, 0.0)
    fine = inner.cumsum(1, dtype=torch.float64)
    share = (target - coarse.gather(1, hit)) / sums.gather(1, hit)  # of the block's sum, which has been rounded
    inside = torch.searchsorted(fine, share * fine[:, -1:], right=True)
    last = (fine[:, -1:] > fine).sum(1, keepdim=True)  # last symbol of the block that has mass, against rounding
    return (hit * block + torch.minimum(inside, last)).squeeze(1)


_NO_MASS = (
    "the landing distribution of a jump is NaN or has no mass: check the model's weights and the logits processors"
)


def on_device(indices: Sequence[int], device: torch.device) -> Tensor:
    """The indices [n] as a long tensor. On a GPU the copy is made without waiting for what runs there."""
    found = torch.tensor(indices, dtype=torch.long)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


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
