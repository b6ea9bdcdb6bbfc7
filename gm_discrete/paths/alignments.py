"""Alignments: which symbol of a source string x_0 becomes which symbol of a data string z.

An aligned pair (x_0, z), long [B, C] each, writes the two strings column by column, with blanks in between. In a column

    x_0 blank, z a symbol    a symbol is inserted
    x_0 a symbol, z blank    a symbol is deleted
    two different symbols    a symbol is substituted
    two equal symbols        nothing happens
    both blank               padding; these columns come last

and without its blanks each of the two is the string that it was made of, in the same order.

All functions here take packed strings x_0 [B, M] and z [B, N], whose blanks come after the symbols, and work on all
sequences at once, on the device of the strings, without reading from a GPU. How many blanks follow a string never matters
to its columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gm_discrete.arguments import readable


def left(x_0: Tensor, z: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Aligns position by position: the n-th symbol of the source with the n-th of the data.

    Args:
        x_0, z: packed strings, long [B, M] and [B, N].
        blank: the blank's id.

    Returns:
        The aligned pair, [B, C] each, C = max(M, N).

    >>> left(torch.tensor([[0, 1]]), torch.tensor([[1, 2, 3]]), blank=4)
    (tensor([[0, 1, 4]]), tensor([[1, 2, 3]]))
    """
    check_strings(x_0, z)
    columns = max(x_0.shape[1], z.shape[1])
    return widened(x_0, columns, blank), widened(z, columns, blank)


def random(x_0: Tensor, z: Tensor, blank: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Puts the symbols of the shorter string into columns of the longer one that are drawn at random, in their order.

    Of m columns, n are drawn: each of the m! / (n! (m − n)!) placements has the same probability.

    Args:
        x_0, z: packed strings, long [B, M] and [B, N].
        blank: the blank's id.
        uniforms: float64 [B, max(M, N)] (or wider), in [0, 1). A sequence uses one for each column of its longer string.

    Returns:
        The aligned pair, [B, C] each, C = max(M, N).

    >>> uniforms = torch.tensor([[0.9, 0.2, 0.5]]).double()
    >>> random(torch.tensor([[0, 1]]), torch.tensor([[1, 2, 3]]), blank=4, uniforms=uniforms)
    (tensor([[4, 0, 1]]), tensor([[1, 2, 3]]))
    """
    check_strings(x_0, z)
    columns = max(x_0.shape[1], z.shape[1])
    if uniforms.dim() != 2 or len(uniforms) != len(x_0) or uniforms.shape[1] < columns:
        raise ValueError(
            f"uniforms has shape {tuple(uniforms.shape)}; it must have a number for each column, "
            f"[{len(x_0)}, {columns}] or wider"
        )
    m, n = (x_0 != blank).sum(1, keepdim=True), (z != blank).sum(1, keepdim=True)
    column = torch.arange(columns, device=z.device)
    among = column < torch.maximum(m, n)
    order = torch.where(among, uniforms[:, :columns], torch.inf).argsort(dim=1, stable=True)
    drawn = torch.zeros_like(among).scatter(1, order, column < torch.minimum(m, n))
    return (
        spread(x_0, torch.where(m < n, drawn, column < m), blank),
        spread(z, torch.where(m < n, column < n, drawn), blank),
    )


def optimal(x_0: Tensor, z: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Aligns with the fewest edits: D(m, n) of them, Levenshtein's distance, where for the first i and j symbols

        D(i, j) = min(D(i − 1, j − 1) + 1[x_0^i ≠ z^j], D(i − 1, j) + 1, D(i, j − 1) + 1).

    Where several alignments have as few, columns are chosen from the last to the first: a deletion where it is optimal,
    else an insertion where it is, else a column with two symbols.

    Args:
        x_0, z: packed strings, long [B, M] and [B, N].
        blank: the blank's id.

    Returns:
        The aligned pair, [B, C] each. C ≤ M + N; on a CPU it is what the batch needs.

    >>> x_0, z = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 2, 0, 3]])
    >>> optimal(x_0, z, blank=4)
    (tensor([[0, 1, 2, 4, 3]]), tensor([[4, 1, 2, 0, 3]]))
    """
    check_strings(x_0, z)
    m, n = (x_0 != blank).sum(1), (z != blank).sum(1)
    known = readable(z) and len(z) > 0
    if known:
        x_0, z = x_0[:, : int(m.max())], z[:, : int(n.max())]
    moves = _backtrace(_cells(x_0, z), m, n)  # [B, C], the last column of each pair first
    count = (moves != _STAY).sum(1, keepdim=True)
    column = torch.arange(int(count.max()) if known else moves.shape[1], device=z.device)
    moves = torch.where(column < count, moves.gather(1, (count - 1 - column).clamp(min=0)), _STAY)
    of_source, of_data = (moves == _PAIR) | (moves == _DELETE), (moves == _PAIR) | (moves == _INSERT)
    return spread(x_0, of_source, blank), spread(z, of_data, blank)


_PAIR, _DELETE, _INSERT, _STAY = range(4)
_MOVES = [_INSERT, _INSERT, _DELETE, _PAIR, _PAIR, _DELETE, _PAIR, _PAIR, _DELETE, _STAY]
"""The last column at a cell (i, j), by its code: down + 3 right, see `_cells`; 9 at (0, 0)."""


def _cells(x_0: Tensor, z: Tensor) -> Tensor:
    """Codes of all cells (i, j), at [i + j, j] of an int8 tensor [M + N + 1, N + 1, B]; elsewhere it is undefined.

    Neighbours in D differ by −1, 0 or 1, and these differences are all that is kept:

        down(i, j) = 1 + D(i, j) − D(i − 1, j)    = step + right(i − 1, j)
        right(i, j) = 1 − D(i, j) + D(i, j − 1)   = down(i, j − 1) − step
        step = D(i, j) − D(i − 1, j − 1)          = min(1[x_0^i ≠ z^j], down(i, j − 1), 2 − right(i − 1, j))

    so that the cells of a diagonal, i + j, follow from those of the diagonal before.
    """
    (batch, m), n = x_0.shape, z.shape[1]
    codes = torch.empty(m + n + 1, n + 1, batch, dtype=torch.int8, device=z.device)
    codes[: m + 1, 0] = _MOVES.index(_DELETE)
    codes.flatten(0, 1)[: (n + 1) ** 2 : n + 2] = _MOVES.index(_INSERT)  # [j, j]
    codes[0, 0] = _MOVES.index(_STAY)
    source, data = x_0.flip(1).T.int().contiguous(), z.T.int().contiguous()
    down, right = torch.full_like(codes[0], 2), torch.zeros_like(codes[0])  # where i or j is 0, D grows
    arrays: tuple[Any, ...] = (codes, source, data, down, right)
    xp: Any = torch
    if readable(z):  # NumPy starts these small operations in a fraction of the time
        xp, arrays = np, tuple(part.numpy() for part in arrays)
    into, source, data, down, right = arrays
    for diagonal in range(2, m + n + 1):
        first, last = max(1, diagonal - m), min(diagonal - 1, n)
        before, above = down[first - 1 : last], right[first : last + 1]
        differ = source[m - diagonal + first : m - diagonal + last + 1] != data[first - 1 : last]
        step = xp.minimum(xp.minimum(differ.view(xp.int8), before), 2 - above)
        down_now, right_now = step + above, before - step
        into[diagonal, first : last + 1] = down_now + 3 * right_now
        down[first : last + 1], right[first : last + 1] = down_now, right_now
    return codes


def _backtrace(codes: Tensor, m: Tensor, n: Tensor) -> Tensor:
    """The moves from the cells (m, n) [B] to (0, 0), long [B, C]."""
    diagonals, width, batch = codes.shape
    table = torch.tensor(_MOVES, device=codes.device)
    back = torch.tensor([2 * width + 1, width, width + 1, 0], device=codes.device)[table] * batch
    cell = ((m + n) * width + n) * batch + torch.arange(batch, device=codes.device)
    found = [torch.full_like(m, _MOVES.index(_STAY))]
    for column in range(diagonals - 1):
        if column % 32 == 0 and readable(codes) and bool((cell < batch).all()):
            break
        found.append(codes.take(cell).long())
        cell = cell - back.take(found[-1])
    return table[torch.stack(found[1:] or found, 1)]


def spread(strings: Tensor, where: Tensor, blank: int) -> Tensor:
    """The symbols of packed strings [B, N] in the columns where `where` [B, C] is true, in their order; else blanks."""
    index = torch.where(where, where.cumsum(1) - 1, strings.shape[1])
    return widened(strings, strings.shape[1] + 1, blank).gather(1, index)


def widened(strings: Tensor, columns: int, blank: int) -> Tensor:
    """Strings [B, N] with blanks after them, [B, columns]."""
    return torch.nn.functional.pad(strings, (0, columns - strings.shape[1]), value=blank)


def check_strings(x_0: Tensor, z: Tensor) -> None:
    """
    Raises:
        ValueError: they are no batches of equally many strings.
    """
    if x_0.dim() != 2 or z.dim() != 2 or len(x_0) != len(z):
        raise ValueError(
            f"x_0 and z must be as many strings, [B, M] and [B, N]; got shapes {tuple(x_0.shape)} and {tuple(z.shape)}"
        )
