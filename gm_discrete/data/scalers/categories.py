"""Categories and their ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from gm_discrete.arguments import listed
from gm_discrete.data.scalers.base import Codec

Name = str | bool | int | float | None


class Categories(Codec):
    """The map between names and ids: the i-th name has the id i.

    Args:
        names: strings, booleans, numbers, and None for missing cells.

    Raises:
        ValueError: there are no names, one occurs twice, or one is something else.
    """

    type_name = "categories"

    def __init__(self, names: Sequence[Name]) -> None:
        self.names = [_name(value) for value in listed("names", names)]
        if not self.names:
            raise ValueError("names is empty; give at least one")
        wrong = [value for value in self.names if not isinstance(value, Name) or value in (math.inf, -math.inf)]
        if wrong:
            raise ValueError(f"names holds {wrong[0]!r} ({type(wrong[0]).__name__}); give strings, numbers or None")
        self._ids = {value: number for number, value in enumerate(self.names)}
        if len(self._ids) < len(self.names):
            twice = next(value for number, value in enumerate(self.names) if self._ids[value] != number)
            raise ValueError(f"names holds {twice!r} more than once")

    @classmethod
    def fit(cls, values: Iterable[Any]) -> Self:
        """The names that occur in `values`, in their natural order (numbers before strings), None last.

        Raises:
            ValueError: there are no values.
        """
        names = {_name(value) for value in values}
        if not names:
            raise ValueError("values is empty; give at least one")
        return cls(sorted(names, key=lambda name: (name is None, isinstance(name, str), 0 if name is None else name)))

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, values: Iterable[Any]) -> Tensor:
        """The ids of names, long [N]; NaN counts as None.

        Raises:
            ValueError: a value is not among the names.
        """
        names = [_name(value) for value in values]
        try:
            return torch.tensor([self._ids[name] for name in names], dtype=torch.long)
        except KeyError:
            unseen = [name for name in names if name not in self._ids]
            shown = ", ".join(map(repr, list(dict.fromkeys(unseen))[:5]))
            raise ValueError(
                f"values holds {shown} ({len(unseen)} of {len(names)}), not among the {len(self)} categories: "
                f"{_shortened(self.names)}; drop the rows, or fit the categories, and train, again on a table that has them"
            ) from None

    def __contains__(self, value: object) -> bool:
        return _name(value) in self._ids

    def decode(self, ids: Tensor | Sequence[int]) -> list[Name]:
        """The names of ids.

        Raises:
            ValueError: an id is not one of 0 to K − 1.
        """
        numbers = torch.as_tensor(ids).flatten().tolist()
        wrong = [number for number in numbers if not 0 <= number < len(self)]
        if wrong:
            raise ValueError(f"ids holds {wrong[0]}, and there are {len(self)} categories; unmask all entries first")
        return [self.names[number] for number in numbers]


def _name(value: object) -> Name:
    """The value as a plain Python object, NaN as None."""
    value = value.item() if isinstance(value, np.generic | Tensor) else value
    return None if isinstance(value, float) and math.isnan(value) else cast(Name, value)


def _shortened(names: list[Name], most: int = 12) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown}, …" if len(names) > most else shown
