"""A distribution over strings of two symbols, for edit processes that are small enough to enumerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gm_discrete import EditPath, ExactEditModel

BLANK = 2
DATA = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 2], [1, 1, 1, 2], [0, 2, 2, 2], [1, 0, 2, 2], [2, 2, 2, 2], [1, 0, 0, 1]])
"""Strings of 0 to 4 symbols: equal neighbours, which several columns insert, and a string that is part of another."""
WEIGHTS = torch.tensor([0.25, 0.15, 0.15, 0.1, 0.1, 0.05, 0.2], dtype=torch.float64)
LENGTHS = (0.2, 0.3, 0.3, 0.2)
"""Of the uniform prior."""
PATHS = {
    "empty": {},
    "optimal": {"prior": "uniform", "lengths": LENGTHS},
    "left": {"prior": "uniform", "lengths": LENGTHS, "alignment": "left"},
    "random": {"prior": "uniform", "lengths": LENGTHS, "alignment": "random"},
}
LONGEST = 4


def exact(name: str, **options: Any) -> ExactEditModel:
    """The exact edit process of `DATA` with the path of that name."""
    return ExactEditModel(EditPath(3, **PATHS[name], **options), DATA, WEIGHTS)


def frequencies(model: ExactEditModel, x: Tensor) -> Tensor:
    """The share of every state of the model among the strings x [n, L]; strings that are none of its states do not count."""
    width = model.states().shape[1]
    x = model.path.strings.packed(x)
    inside = (x[:, width:] == BLANK).all(1)
    x = torch.nn.functional.pad(x, (0, max(0, width - x.shape[1])), value=BLANK)[:, :width]
    known = {tuple(state): i for i, state in enumerate(model.states().tolist())}
    strings, counts = x[inside].unique(dim=0, return_counts=True)
    found = torch.zeros(len(known), dtype=torch.float64)
    for string, count in zip(strings.tolist(), counts.tolist(), strict=True):
        if tuple(string) in known:
            found[known[tuple(string)]] = count
    return found / len(x)
