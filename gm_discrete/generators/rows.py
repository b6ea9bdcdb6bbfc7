"""Rows [n, K] of probabilities: cut into chunks of bounded memory, mapped over, and drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gm_discrete.arguments import readable

CPU_ELEMENTS = 2**23
"""32 MiB in float32: the largest blocks that the C library reuses. It maps greater ones anew each time, which then are
zeroed page by page; with chunks that are much smaller W and ∂W are read and written too often. Measured from 2²¹ to 2²⁶."""

ELEMENTS = 2**25
"""128 MiB in float32: the least chunk of a GPU, and that of processes that must agree on the number of chunks."""

MOST_ELEMENTS = 2**29
"""The greatest chunk of a GPU, which keeps every GPU busy: 8,192 rows of 50,257 symbols."""

KEPT_ELEMENTS = 2**27
"""What is kept for backward where the free memory is not known, or not the same for all processes."""

COPIES = 24
"""Bytes of an element on a GPU in all its copies: logits in half precision and in float32, probabilities, gradients."""


def chunk_rows(row_size: int, count: int, device: torch.device, kept: bool = False, free: int | None = None) -> int:
    """Rows in a chunk of [n, row_size].

    On a GPU as many as a quarter of its free memory holds in all their copies, between a floor and a ceiling, and a power of
    two: so small changes of the free memory seldom change anything. Where all rows are kept for backward they are one chunk
    if they fit half of it, as chunks would save nothing; else `map_rows` recomputes each chunk in backward.
    On a CPU the number is a constant (see `CPU_ELEMENTS`): memory that is free there is not faster.

    Args:
        count: n, of all chunks.
        kept: whether autograd keeps what is computed from the rows.
        free: bytes; of a GPU, what the allocator holds and does not use, and what the device has left, by default.
    """
    if device.type == "cuda" and free is None:
        free = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if free < COPIES * max(2 * kept * count * row_size, 4 * MOST_ELEMENTS):  # else that is enough
            free += torch.cuda.mem_get_info(device)[0]
    if kept and count * row_size <= (KEPT_ELEMENTS if free is None else free // 2 // COPIES):
        return max(1, count)
    if free is None:
        return max(1, (CPU_ELEMENTS if device.type == "cpu" else ELEMENTS) // row_size)
    rows = max(1, min(max(ELEMENTS, free // 4 // COPIES), MOST_ELEMENTS) // row_size)
    return 1 << rows.bit_length() - 1


def is_small(elements: int) -> bool:
    """Whether one chunk holds so many elements on any device, so that cutting them would save nothing."""
    return elements <= CPU_ELEMENTS


def chunked(where: Tensor, row_size: int, kept: bool = False) -> Sequence[Tensor]:
    """The positions (or a value of each) in chunks of `chunk_rows`."""
    return where.split(chunk_rows(row_size, where.shape[0], where.device, kept))


def equal_chunks(where: Tensor, row_size: int, total: int, kept: bool) -> Sequence[Tensor]:
    """The positions in as many chunks as `total` positions need, on every device and with any free memory: processes with
    the same number of sequences have the same number of chunks."""
    size = total * row_size
    return where.tensor_split(1 if kept and size <= KEPT_ELEMENTS else -(-size // ELEMENTS))


def map_rows(function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Tensor:
    """`function` [n, …] of all chunks, concatenated. If there are several, none of their [n, K] tensors outlives its chunk:
    backward computes them again."""
    if len(chunks) == 1:
        return function(chunks[0])
    if torch.is_grad_enabled():
        parts = [checkpoint(function, chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [function(chunk) for chunk in chunks]
    return torch.cat(parts)  # type: ignore[arg-type]  # checkpoint is annotated as returning Any | None


def true_entries(masks: Sequence[Tensor]) -> list[Tensor]:
    """The indices of the true entries of each flattened mask. The host waits for the device once, for all their numbers."""
    if len(masks) == 1:
        return [masks[0].flatten().nonzero().squeeze(1)]
    counts: list[int] = torch.stack([mask.sum() for mask in masks]).tolist() if masks else []
    return [
        torch.nonzero_static(mask.flatten(), size=count).squeeze(1) for mask, count in zip(masks, counts, strict=True)
    ]


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
