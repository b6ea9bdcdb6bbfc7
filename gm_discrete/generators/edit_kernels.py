"""What an edit of a string writes: the edits that remain to known data, and the distribution that a network predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.generators.kernels import BeliefKernel, Kernel


class KnownEdits(Kernel):
    """The target: several edits may remain at one entry, as when three symbols are still missing in a gap.

        k(y) = (number of remaining columns at the entry that write y) / (number of remaining columns at the entry)

    Args:
        entry: the entry [B, C] at which the edit of each column of an aligned pair acts; it does not fall within a row.
        symbol: what it writes, [B, C]; the blank deletes.
        remains: bool [B, C], whether the edit is still to be made.
        shape: [B, E] of the entries; vocab_size: K; blank: its id.
    """

    def __init__(
        self, entry: Tensor, symbol: Tensor, remains: Tensor, shape: torch.Size, vocab_size: int, blank: int
    ) -> None:
        self.shape, self.vocab_size = shape, vocab_size
        row = torch.arange(shape[0], device=entry.device)[:, None]
        self.entry = (row * shape[1] + entry).flatten()  # of all columns, in the flattened entries, ascending
        self.symbol, self.remains = symbol.flatten(), remains.flatten()
        zeros = torch.zeros(shape.numel(), dtype=torch.float64, device=entry.device)
        self.count = zeros.index_add(0, self.entry, self.remains.double())  # remaining edits at each entry
        self.deletions = zeros.index_add(0, self.entry, (self.remains & (self.symbol == blank)).double())

    @property
    def device(self) -> torch.device:
        return self.symbol.device

    @property
    def number(self) -> Tensor:
        """How many edits remain at each entry, float64 [B, E]."""
        return self.count.view(self.shape)

    def log_probs(self, where: Tensor) -> Tensor:
        rows = torch.zeros(len(where), self.vocab_size, dtype=torch.float64, device=self.device)
        if not len(where):
            return rows
        row, here = self._rows(where)
        rows.index_put_((row, self.symbol), here.double(), accumulate=True)
        return (rows / self.count[where, None].clamp(min=1)).log()

    def relative(self, log_probs: Tensor, where: Tensor) -> Tensor:
        """Σ over the remaining edits at each of the entries [n] of log k(y) − log q(y), for rows log q [n, K].

        Divided by their number it is the relative entropy of k and q.
        """
        if where.shape[0] == 0:
            return log_probs.new_zeros(0, dtype=torch.float64)
        row, here = self._rows(where)
        symbol = torch.where(here, self.symbol, 0)  # of other columns the value is not used
        surprise = -log_probs[row, symbol].double()
        share = torch.log(self._alike() / self.count[self.entry].clamp(min=1))
        value = torch.where(here, surprise + share, 0.0)
        return torch.zeros(where.shape[0], dtype=value.dtype, device=value.device).index_add(0, row, value)

    def _rows(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """For every column its row among the entries `where`, which ascend; and whether its edit remains, and is there."""
        if where.shape[0] == 0:
            return torch.zeros_like(self.entry), torch.zeros_like(self.remains)
        row = torch.searchsorted(where, self.entry).clamp(max=where.shape[0] - 1)
        return row, self.remains & (where[row] == self.entry)

    def _alike(self) -> Tensor:
        """For every column the number of remaining edits that are the same as its own: at its entry, with its symbol."""
        key = torch.where(self.remains, self.entry * self.vocab_size + self.symbol, -1)
        ordered = key.sort().values
        first, end = torch.searchsorted(ordered, key), torch.searchsorted(ordered, key, right=True)
        return (end - first).double()


class EditKernel(BeliefKernel):
    """The prediction: a symbol is deleted with the probability of a deletion, else a symbol q(y) is written.

    Args:
        symbols: q, the distribution of what is written at each entry, of shape [B, E]. It is 0 for the blank, and at a
            symbol for that symbol itself.
        log_delete, log_write: log-probabilities [B, E] of the two; at gaps nothing is deleted.
        blank: the id of the blank.
        entries: the string's entries, long [B, E].
    """

    def __init__(self, symbols: Kernel, log_delete: Tensor, log_write: Tensor, blank: int, entries: Tensor) -> None:
        self._belief, self.shape, self.vocab_size = symbols, symbols.shape, symbols.vocab_size
        self.log_delete, self.log_write = log_delete.flatten(), log_write.flatten()
        self.blank, self.x = blank, entries.flatten()

    def log_probs(self, where: Tensor) -> Tensor:
        rows = self.belief.log_probs(where)
        rows = rows + self.log_write[where, None].to(rows.dtype)
        delete = self.log_delete[where, None].to(rows.dtype)
        return rows.scatter(1, torch.full_like(where[:, None], self.blank), delete)

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        return self.belief.prepare(where)
