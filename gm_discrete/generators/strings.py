"""Strings: sequences of symbols of any length, as tensors, and the places at which an edit can act.

In a tensor [B, L] a string is followed by blanks. An *entry* is where an edit can act: a symbol, or the gap after it.

    string                a   b          entry   0       1    2   3    4   5
    network position  0   1   2                  start   gap  a   gap  b   gap

Entry 2p is the symbol at network position p, where position 0 is the start of the string, and entry 2p + 1 the gap after it.
So a string in a tensor of L places has E = 2 (L + 1) entries, and an edit is a jump of one entry: from a gap to y (y is
inserted there), from a symbol to y (it is substituted), from a symbol to the blank (it is deleted).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.arguments import readable


@dataclass(frozen=True)
class Strings:
    """Strings of any length in tensors [B, L], with blanks in the places that hold no symbol.

    Attributes:
        blank: the id of the blank.

    >>> strings = Strings(blank=9)
    >>> x = strings.packed(torch.tensor([[9, 5, 9, 7]]))
    >>> x, strings.lengths(x)
    (tensor([[5, 7, 9, 9]]), tensor([2]))
    >>> entries = strings.gapped(x[:, :2])
    >>> entries
    tensor([[9, 9, 5, 9, 7, 9]])
    >>> entries[0, 3], entries[0, 4] = 6, 9  # insert 6 after the first symbol, delete the second
    >>> strings.packed(entries)
    tensor([[5, 6, 9, 9, 9, 9]])
    """

    blank: int

    def lengths(self, x: Tensor) -> Tensor:
        """Number of symbols of each string, [B]."""
        return (x != self.blank).sum(1)

    def without_padding(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Strings with blanks where an attention mask [B, L] is 0; they need no mask then.

        Raises:
            ValueError: the mask numbers several documents.
        """
        if attention_mask is None:
            return x
        if readable(attention_mask) and attention_mask.numel() and int(attention_mask.max()) > 1:
            raise ValueError(
                f"attention_mask numbers documents up to {int(attention_mask.max())}; a string is one document: give 1, and "
                "0 where it is padded"
            )
        return torch.where(attention_mask.bool(), x, self.blank)

    def places(self, x: Tensor) -> Tensor:
        """The place of every symbol in the string, [B, L]; L at blanks."""
        symbol = x != self.blank
        return torch.where(symbol, symbol.cumsum(1) - 1, x.shape[1])

    def entries_of(self, x: Tensor) -> Tensor:
        """The entry of every column of strings with blanks in between, [B, L]: a symbol's own, and at a blank the gap after
        the last symbol before it."""
        symbol = x != self.blank
        number = symbol.cumsum(1)
        return torch.where(symbol, 2 * number, 2 * number + 1)

    def packed(self, x: Tensor) -> Tensor:
        """The same strings with all blanks after the symbols."""
        return self.moved(x, self.places(x), self.blank)

    def moved(self, values: Tensor, places: Tensor, empty: int | bool) -> Tensor:
        """Values [B, L] of symbols, each at its place (see `places`), and `empty` where there is no symbol."""
        found = torch.full_like(F.pad(values, (0, 1)), empty)
        return found.scatter(1, places, values)[:, :-1]

    def gapped(self, x: Tensor) -> Tensor:
        """The entries [B, 2 (L + 1)] of strings [B, L] without blanks between symbols; gaps and the start hold the blank."""
        symbols = F.pad(x, (1, 0), value=self.blank)
        return torch.stack([symbols, torch.full_like(symbols, self.blank)], 2).flatten(1)

    def trimmed(self, x: Tensor) -> Tensor:
        """The strings in as many places as the longest one needs. The host waits for the device."""
        return x[:, : int(self.lengths(x).max()) if x.numel() else 0]


class Tracks:
    """Which symbol is which: every symbol has a number, which it keeps until it is deleted, also when it is substituted.

    Args:
        x: packed strings [B, L], whose symbols are numbered by their places.

    Attributes:
        number: [B, L], those of the present strings; −1 where there is no symbol. count: [B], the next number of each.

    >>> strings = Strings(blank=9)
    >>> tracks = Tracks(torch.tensor([[5, 7]]), strings)
    >>> tracks.move(torch.tensor([[9, 9, 5, 6, 9, 9]]), width=2)  # 6 is inserted after 5, and 7 is deleted
    >>> tracks.number
    tensor([[0, 2]])
    """

    def __init__(self, x: Tensor, strings: Strings) -> None:
        self.strings, self.count = strings, strings.lengths(x)
        place = torch.arange(x.shape[1], device=x.device).expand_as(x)
        self.number = torch.where(x != strings.blank, place, -1)

    def move(self, entries: Tensor, width: int) -> None:
        """Follows a step, after which entries [B, 2 (L + 1)] of the present strings hold these symbols.

        Args:
            width: places of the strings after it.
        """
        inserted = entries[:, 1::2] != self.strings.blank
        born = self.count[:, None] + inserted.cumsum(1) - 1
        numbers = torch.stack([F.pad(self.number, (1, 0)), born], 2).flatten(1)
        self.number = self.strings.moved(numbers, self.strings.places(entries), -1)[:, :width]
        self.count = self.count + inserted.sum(1)
