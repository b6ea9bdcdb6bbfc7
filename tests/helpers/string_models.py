"""Small networks of strings, their data, and readouts of entries one by one, in plain Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gm_discrete import EditPath, GMConfig, GMModel
from tests.helpers.networks import rng

K, BLANK, LONGEST = 8, 7, 6
LENGTHS = (0.1, 0.0, 0.3, 0.2, 0.2)
"""Weights of the lengths of sources."""
PATHS: dict[str, Any] = {
    "empty": EditPath(K),
    "uniform": EditPath(K, prior="uniform", lengths=LENGTHS),
    "blank is 2": EditPath(K, prior="uniform", lengths=LENGTHS, alignment="random", blank_token_id=2),
}


def network(name: str = "uniform", seed: int = 1, **options: Any) -> Any:
    """A network whose every parameter matters."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LONGEST}
    model = GMModel(GMConfig(path=PATHS[name], **settings | options))
    noise = rng(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=noise) + (weight.dim() == 1))
        for weight in model.heads["edits"].parameters():
            weight.mul_(0.1)  # outputs of order 1, of which rates are exponentials
    return model.eval()


def strings(name: str = "uniform", rows: int = 5, width: int = LONGEST, seed: int = 3) -> Tensor:
    """Strings of 0, 2, 4 … symbols, and of as many as there are places, in turn, followed by blanks."""
    blank = PATHS[name].blank_token_id
    x = torch.randint(K - 1, (rows, width), generator=rng(seed))
    x = x + (x >= blank)
    lengths = torch.tensor([(2 * row) % (width + 1) if row != 1 else width for row in range(rows)])
    return torch.where(torch.arange(width) < lengths[:, None], x, blank)


def times(rows: int = 5) -> Tensor:
    return (torch.arange(rows) + 0.5).double() / rows


def spread(x: Tensor, blank: int, width: int, seed: int = 5) -> Tensor:
    """The same strings in more places, with blanks at random ones between the symbols."""
    found = torch.full((len(x), width), blank)
    for row, values in enumerate(x):
        symbols = values[values != blank]
        places = torch.randperm(width, generator=rng(seed + row))[: len(symbols)].sort().values
        found[row, places] = symbols
    return found


def entries(model: Any, symbols: list[int], t: float, label: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """(edits [n], logits [K]) of every entry of one string without blanks, from the modules of the network alone.

    Edits are the raw outputs of the entry's position. Logits are those of the head of tokens, before any is excluded.
    """
    blank = model.path.strings.blank
    heads = model.heads
    found, time = [], torch.tensor([t]).double()
    labels = None if label is None else torch.tensor([label])
    states = model.backbone({"": torch.tensor([[blank, *symbols]])}, time, None, labels)
    for h in model.backbone.finish(states, time, labels)[0]:
        edits = heads["edits"](h)
        for state in (h, h + heads["gap"].weight @ h):  # the symbol at the position, the gap after it
            found.append((edits, heads["tokens"](state)))
    return found


def excluded(logits: Tensor, symbols: list[int], blank: int) -> Tensor:
    """Logits [E, K] with −∞ for what an edit never writes: the blank, and at a symbol that symbol."""
    logits = logits.clone()
    logits[:, blank] = -torch.inf
    for place, symbol in enumerate(symbols):
        logits[2 * (place + 1), symbol] = -torch.inf
    return logits
