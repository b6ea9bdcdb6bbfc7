"""Observed values of one field: read from what the user gives, in natural units, and converted to the model's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from gm_discrete.data.scalers import Categories, Codec, Scaler
from gm_discrete.generators.spaces import whole
from gm_discrete.nn.field import Field
from gm_discrete.paths import ContinuousPath, FinitePath

UNOBSERVED = -1
"""The token id that marks an entry to fill."""

Values: TypeAlias = "Tensor | np.ndarray | Sequence[Values] | str | float | None"
"""Natural values of a field: numbers, token ids or names of categories, in a tensor or in nested lists."""
Given: TypeAlias = "Values | tuple[Values, Values]"
"""Natural values, or a pair of values and a mask of the observed ones."""


@dataclass(frozen=True)
class Observed:
    """The observed entries of one field, each tensor of the state's shape.

    Attributes:
        natural: the values as they were given, float64 or long; arbitrary where nothing is observed.
        state: the same in the units and the precision of the state.
        mask: bool, true where a value is observed.
    """

    natural: Tensor
    state: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Observed:
        """The same on another device."""
        return Observed(self.natural.to(device), self.state.to(device), self.mask.to(device))

    def rows(self, row: Tensor) -> Observed:
        """Those of some of the sequences."""
        return Observed(self.natural[row], self.state[row], self.mask[row])

    @staticmethod
    def of(given: Given, field: Field, name: str, argument: str = "given") -> Observed:
        """Converts natural values.

        Args:
            given: numbers (NaN where unobserved); token ids (−1 or the path's mask token where unobserved); or names of
                categories (`None` where unobserved, unless `None` is a category). Tensors or nested lists of shape [B],
                [B, L] or the state's own; or a pair of such values and a mask of the same shape, true where observed.
            name, argument: of the field and the argument, for errors.

        Raises:
            ValueError: the values do not belong to the field.
        """
        label = f"{argument}[{name!r}]" if name else argument
        values, mask = given if isinstance(given, tuple) and len(given) == 2 and _is_mask(given[1]) else (given, None)
        natural, known = (_tokens if field.path.is_discrete else _numbers)(values, field, label)
        state = natural
        if isinstance(field.codec, Scaler):
            # A scaler may refuse placeholders: unobserved entries get a value from its own range.
            placeholder = field.codec.inverse(torch.zeros((), dtype=torch.float64))
            state = field.codec.transform(torch.where(known, natural, placeholder))
        elif natural.is_floating_point():
            state = natural.float()
        if mask is not None:
            known = known & _mask(mask, known, field, label)
        # A rotation is observed as a whole.
        return Observed(natural, state, whole(known, known.shape, field.path.space))


def _mask(values: Values, known: Tensor, field: Field, label: str) -> Tensor:
    """A mask of the state's shape, of one of that shape, or of [B, L] for all numbers of a position."""
    mask = torch.as_tensor(values, dtype=torch.bool)
    if mask.dim() == 4 and field.entry_size > 1:  # of rotation matrices
        mask = mask.flatten(2).all(-1)
    if mask.dim() == 2 and known.dim() == 3:
        mask = mask[..., None].expand(*mask.shape, known.shape[2])
    mask = _shaped(mask, field, f"the mask of {label}")
    if mask.shape != known.shape:
        raise ValueError(f"{label} has {list(known.shape)} values and a mask of {list(mask.shape)}")
    return mask


def _tokens(values: Values, field: Field, label: str) -> tuple[Tensor, Tensor]:
    """Token ids and whether they are observed."""
    ids = values if isinstance(values, Tensor) else _ids(values, field.codec, label)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{label} is {ids.dtype}; give ids or names of categories")
    natural = _shaped(ids.long(), field, label)
    known = natural != UNOBSERVED
    for token in field.path.excluded:
        known = known & (natural != token)
    natural = torch.where(known, natural, 0)
    most = len(field.codec) if isinstance(field.codec, Categories) else cast(FinitePath, field.path).vocab_size
    if bool(((natural < 0) | (natural >= most))[known].any()):
        raise ValueError(f"{label} holds ids outside of 0 to {most - 1}")
    return natural, known


def _numbers(values: Values, field: Field, label: str) -> tuple[Tensor, Tensor]:
    """Numbers in float64 and whether they are observed."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {error}; give numbers, NaN where unobserved") from None
    path = cast(ContinuousPath, field.path)
    natural = _shaped(path.as_state(numbers, label), field, label)
    known = ~natural.isnan()
    return torch.where(known, natural, torch.tensor(path.placeholder, dtype=torch.float64)), known


def _is_mask(value: object) -> bool:
    """Whether it can be a mask: a tensor, or nested lists of booleans."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return bool(value) and all(_is_mask(part) for part in value)
    return isinstance(value, bool | np.ndarray | Tensor)


def _ids(value: Values, codec: Codec | None, label: str) -> Tensor:
    """Ids of nested lists of ids or names; −1 for `None` where that is no category."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        rows = [_ids(part, codec, label) for part in value]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{label} has rows of different lengths; fill them up with None")
        return torch.stack(rows)
    if value is None and not (isinstance(codec, Categories) and None in codec.names):
        return torch.tensor(UNOBSERVED)
    if isinstance(codec, Categories):
        try:
            return codec.encode([value])[0]
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    if not isinstance(value, int | np.integer | np.ndarray | Tensor):
        raise ValueError(f"{label} holds {value!r}; give ids, as a tokenizer returns them")
    return torch.as_tensor(value)


def _shaped(value: Tensor, field: Field, label: str) -> Tensor:
    """[B], [B, L] or the state's own shape → the state's shape."""
    dims = 1 + len(field.state_shape(1))
    while value.dim() < dims:
        value = value.unsqueeze(-1)
    if value.dim() != dims or tuple(value.shape[1:]) != field.state_shape(value.shape[1]):
        expected = ["B", *field.state_shape(field.length)]
        raise ValueError(f"{label} has shape {list(value.shape)}; the model takes {expected}")
    return value
