"""What `generate` is given of a state of several fields: natural values, in all or in part of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gm_discrete.data.scalers import Categories, Scaler
from gm_discrete.generators import Generator
from gm_discrete.nn.field import Field
from gm_discrete.paths import FinitePath, ProductPath

UNKNOWN = -1
"""The id of a symbol that is to be filled."""


@dataclass(frozen=True)
class Cells:
    """The known cells of one field.

    Attributes:
        natural: as they were given, float64 or long, of the state's shape; anything where they are not known.
        state: in the precision of the state.
        known: bool, of the state's shape.
    """

    natural: Tensor
    state: Tensor
    known: Tensor

    def to(self, device: torch.device) -> Cells:
        """The same on another device."""
        return Cells(self.natural.to(device), self.state.to(device), self.known.to(device))

    def behind(self, attention_mask: Tensor) -> Cells:
        """The same with all that is padded known, too."""
        padded = (attention_mask == 0).view(*attention_mask.shape, *[1] * (self.known.dim() - 2))
        return Cells(self.natural, self.state, self.known | padded)

    @property
    def whole(self) -> Tensor:
        """Which states are known in all cells, [B]."""
        return self.known.flatten(1).all(1)


def cells(value: Any, field: Field, name: str) -> Cells:
    """The known cells of a field, of natural values.

    Args:
        value: numbers (NaN where unknown); ids as a tensor (−1, or the path's mask, where unknown); or names of categories
            (`None` where unknown, unless it is one of them). Tensors or nested lists of shape [B], [B, L] or the state's
            own; or a pair of these and a mask of what is known.

    Raises:
        ValueError: they are not what the field holds.
    """
    value, mask = value if isinstance(value, tuple) and len(value) == 2 and _is_mask(value[1]) else (value, None)
    path, codec = field.path, field.codec
    if isinstance(path, FinitePath):
        ids = value if isinstance(value, Tensor) else _ids(value, codec, name)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"given[{name!r}] is {ids.dtype}; give ids or names of categories")
        natural = _shaped(ids.long(), field, name)
        known = natural != UNKNOWN
        for symbol in path.excluded:
            known = known & (natural != symbol)
        natural = torch.where(known, natural, 0)
        most = len(codec) if isinstance(codec, Categories) else path.vocab_size
        if bool(((natural < 0) | (natural >= most))[known].any()):
            raise ValueError(f"given[{name!r}] holds ids outside of 0 to {most - 1}")
        state = natural
    else:
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"given[{name!r}]: {error}; give numbers, NaN where unknown") from None
        natural = _shaped(numbers, field, name)
        known = ~natural.isnan()
        natural = torch.where(known, natural, 0.0)
        if isinstance(codec, Scaler):
            # Of cells that are not known any value will do that the scaler takes.
            filler = codec.inverse(torch.zeros((), dtype=torch.float64))
            state = codec.transform(torch.where(known, natural, filler))
        else:
            state = natural.float()
    if mask is not None:
        mask = _shaped(torch.as_tensor(mask, dtype=torch.bool), field, name)
        if mask.shape != known.shape:
            raise ValueError(f"given[{name!r}] has {list(known.shape)} values and a mask of {list(mask.shape)}")
        known = known & mask
    return Cells(natural, state, known)


def natural(state: Tensor, field: Field) -> Tensor:
    """Natural values of a finished state: numbers of a scaler in float64, ids of symbols as they are."""
    return field.codec.inverse(state) if isinstance(field.codec, Scaler) else state


def _is_mask(value: Any) -> bool:
    """Whether it can be a mask: a tensor, or nested lists of booleans."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return bool(value) and all(_is_mask(part) for part in value)
    return isinstance(value, bool | np.ndarray | Tensor)


def _ids(value: Any, codec: Any, name: str) -> Tensor:
    """Ids of nested lists of ids or names; −1 for `None` where that is no category."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        rows = [_ids(part, codec, name) for part in value]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"given[{name!r}] has rows of different lengths; fill them up with None")
        return torch.stack(rows)
    if value is None and not (isinstance(codec, Categories) and None in codec.names):
        return torch.tensor(UNKNOWN)
    if isinstance(codec, Categories):
        try:
            return codec.encode([value])[0]
        except ValueError as error:
            raise ValueError(f"given[{name!r}]: {error}") from None
    return torch.as_tensor(value)


def _shaped(value: Tensor, field: Field, name: str) -> Tensor:
    """[B], [B, L] or the state's own shape → the state's."""
    dims = 1 + len(field.state_shape(1))
    while value.dim() < dims:
        value = value.unsqueeze(-1)
    if value.dim() != dims or tuple(value.shape[1:]) != field.state_shape(value.shape[1]):
        expected = ["B", *field.state_shape(field.length)]
        raise ValueError(f"given[{name!r}] has shape {list(value.shape)}; the model takes {expected}")
    return value


class ObservedFields:
    """A model of several fields, shown what is known.

    With independent times, a field whose cells are all known is shown at its time 1, as it is: what follows is the law of
    the rest given it. Else what is known is shown as the path would have noised it by the time t, which is exact for masks
    alone, and an approximation for other paths.
    """

    def __init__(self, model: Any, given: Mapping[str, Cells], rng: torch.Generator) -> None:
        self.model, self.given, self.rng = model, given, rng
        self.path: ProductPath = model.path

    def generator(
        self, x: Mapping[str, Tensor], t: Tensor, t_next: Tensor | None = None, **conditioning: Any
    ) -> Generator:
        times, shown = self.path.times(t), dict(x)
        told = dict(times)
        for name, known in self.given.items():
            path = self.path.factors[name]
            noised = known.state.to(x[name].dtype)
            if getattr(path, "rates", "") != "masked":
                noised = path.sample(noised, times[name], self.rng)
            if self.path.independent_times:
                whole = known.whole.view(-1, *[1] * (x[name].dim() - 1))
                noised = torch.where(whole, known.state.to(noised.dtype), noised)
                told[name] = torch.where(known.whole, 1.0, times[name])
            shown[name] = torch.where(known.known, noised, x[name])
        if self.path.independent_times:
            conditioning["network_time"] = self.path.joined(told)
        return self.model.generator(shown, t, t_next, **conditioning)


class NoisedPrompt:
    """The model, shown the fixed positions as the path would have noised them by the time t.

    A network for a prior without masks takes every symbol for as noisy as the time says, and would ignore a clean prompt.
    """

    def __init__(self, model: Any, known: Tensor, fixed: Tensor, source: Tensor | None, rng: torch.Generator) -> None:
        self.model, self.known, self.fixed, self.source, self.rng = model, known, fixed, source, rng
        self.path = model.path

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Generator:
        shown = torch.where(self.fixed, self.path.sample(self.known, t, self.rng, self.source), x)
        return self.model.generator(shown, t, t_next, **conditioning)
