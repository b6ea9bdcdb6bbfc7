"""Drafts: samples that `generate` revises in place, in place of a start from the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generation.given import UNOBSERVED, Given, Observed
from gm_discrete.nn.field import Field
from gm_discrete.paths import MaskedPath, Path
from gm_discrete.process import State
from gm_discrete.samplers.banned import by_length, occurrences


@dataclass(frozen=True, eq=False)
class Draft:
    """A draft z and the time t to which it is noised: the samples start from x_t ~ p_t(·|z), and the process goes on to 1.

    So at t = 0 nothing of the draft is left, and close to 1 hardly anything of it changes (SDEdit, Meng et al. 2022, arXiv
    2108.01073, for numbers). If drafts have the model distribution, the samples have it at every t.

    Attributes:
        values: whole samples, as `generate` returns them for the same arguments: token ids [B, L], prompts included; numbers
            [B, L, C] or images; for a product path a dict by field, which may leave out some. Mask tokens (NaN in numbers)
            are gaps, which start from the prior and are filled. Strings are followed by blanks or pad tokens.
        time: t in [0, 1).

    >>> import torch
    >>> from gm_discrete import Draft, GMConfig, GMModel, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    >>> draft = torch.tensor([[0, 1, 4, 3]])  # 4 is the mask token
    >>> sample = model.generate(start_from=Draft(draft, time=0.8), num_steps=10)
    >>> sample.shape, bool((sample == 4).any())
    (torch.Size([1, 4]), False)
    """

    values: Given | Mapping[str, Given]
    time: float = 0.5

    def __post_init__(self) -> None:
        number("time", self.time, least=0, below=1, cure="; at 1 the draft would not change")

    def cells(self, path: Path, fields: Mapping[str, Field], mask_token_id: int | None) -> dict[str, Observed]:
        """The values of each field in the units of the state; its gaps are not observed.

        Args:
            mask_token_id: the token of gaps in a model of tokens.

        Raises:
            ValueError: the values do not belong to the fields, or the path needs more than a draft to noise it.
        """
        values: Any = self.values
        if "" in fields:
            values = {"": values.flatten(1) if _is_token_image(values, fields[""]) else values}
            if mask_token_id is not None and isinstance(values[""], Tensor):
                values[""] = values[""].masked_fill(values[""] == mask_token_id, UNOBSERVED)
        if not isinstance(values, Mapping) or values.keys() - fields.keys():
            raise ValueError(f"start_from must be a dict by field, of {', '.join(fields)}")
        found = {name: Observed.of(value, fields[name], name, "start_from") for name, value in values.items()}
        if coupled := [path.fields[name] for name in found if path.fields[name].coupled]:
            raise ValueError(f"start_from: {coupled[0]!r} noises a draft with its source; give the source as x_0")
        return found


def noised(
    path: Path, draft: Mapping[str, Observed], time: float, start: State, fixed: State, rng: torch.Generator
) -> dict[str, Tensor]:
    """The state with x_t ~ p_t(·|z) in place of `start` where there is a draft z, and z itself at fixed entries.

    Args:
        time: t; start: the state without draft; fixed: bool, by field, of those that have fixed entries.
    """
    found = dict(start)
    for name, cells in draft.items():
        z = cells.state.to(start[name].dtype)
        t = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
        found[name] = torch.where(cells.mask, path.fields[name].sample(z, t, rng, check=False), start[name])
        if name in fixed:
            found[name] = torch.where(fixed[name], z, found[name])
    return found


def without_banned(path: Path, x: Tensor, sequences: Sequence[Sequence[int]], fixed: Tensor | None) -> Tensor:
    """The state of a masked path with masks at all tokens that are part of one of the sequences, but for the fixed ones."""
    found = occurrences(x, by_length(sequences, x.device))
    return x.masked_fill(found if fixed is None else found & ~fixed, cast(MaskedPath, path).mask_token_id)


def _is_token_image(values: object, field: Field) -> bool:
    return isinstance(values, Tensor) and values.dim() == 4 and field.path.is_discrete and bool(field.image_shape)
