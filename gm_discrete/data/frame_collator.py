"""Batches of protein chains, as frames of their residues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gm_discrete.arguments import size
from gm_discrete.data.protein_geometry import check_frames
from gm_discrete.data.proteins import UNKNOWN
from gm_discrete.generators import quaternions

IGNORED = -100
"""The label of a residue that is not scored."""


@dataclass(frozen=True)
class FrameCollator:
    """Batches chains, padded on the right: fields `rotation`, `translation` and `residue`. It draws no noise of the path.

    Takes rows of `chain_example`, {"rotation": [l, 4], "translation": [l, 3], "residue": [l]}; other columns are left out.
    Returns `fields`: rotations float32 [B, L, 4], the identity where padded; translations [B, L, 3] in nm, 0 where padded;
    residues long [B, L], X where padded. `labels`: the same, but NaN and −100 where padded, and −100 at residues X, which
    are thus an input but not predicted. And, if there is padding, `attention_mask`, long [B, L], 0 where padded, for
    every field.

    Each chain is cut, moved so that the mean of its translations is 0, and turned about it: q → r q, x → r x r̄ with one
    rotation r for the chain, uniformly distributed. Cuts and rotations come from torch's global random state, which a
    DataLoader seeds in its workers.

    Args:
        length: longer chains are cut to this many successive residues.
        rotate: turn chains at random.
        centre: move chains.
        random_crop: the cut begins anywhere; otherwise at the first residue.

    Raises:
        ValueError: `length` is not positive; (when called) an example lacks a column, its columns have wrong shapes or
            lengths, or hold values that are not finite, no unit quaternion, or no residue.
    """

    length: int | None = None
    rotate: bool = True
    centre: bool = True
    random_crop: bool = True

    def __post_init__(self) -> None:
        if self.length is not None:
            size("length", self.length)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        if not examples:
            raise ValueError("examples is empty; give at least one row of chain_example")
        chains = [self._moved(self._cut(_columns(example))) for example in examples]
        longest = max(len(chain["residue"]) for chain in chains)
        identity = torch.tensor([1.0, 0.0, 0.0, 0.0])
        mask = torch.zeros(len(chains), longest, dtype=torch.long)
        fields = {
            "rotation": identity.expand(*mask.shape, 4).clone(),
            "translation": torch.zeros(*mask.shape, 3),
            "residue": torch.full_like(mask, UNKNOWN),
        }
        for row, chain in enumerate(chains):
            mask[row, : len(chain["residue"])] = 1
            for name, values in chain.items():
                fields[name][row, : len(values)] = values
        padding = (mask == 0)[..., None]
        labels = {name: fields[name].masked_fill(padding, torch.nan) for name in ("rotation", "translation")}
        labels["residue"] = fields["residue"].masked_fill(fields["residue"] == UNKNOWN, IGNORED)
        batch = {"fields": fields, "labels": labels}
        if not bool(mask.all()):  # attention without a mask is faster
            batch["attention_mask"] = dict.fromkeys(fields, mask)
        return batch

    def _cut(self, chain: dict[str, Tensor]) -> dict[str, Tensor]:
        spare = len(chain["residue"]) - (self.length or len(chain["residue"]))
        if spare <= 0:
            return chain
        start = int(torch.randint(spare + 1, ())) if self.random_crop else 0
        return {name: values[start : start + (self.length or 0)] for name, values in chain.items()}

    def _moved(self, chain: dict[str, Tensor]) -> dict[str, Tensor]:
        rotation, translation = chain["rotation"], chain["translation"]
        if self.centre:
            translation = translation - translation.mean(0)
        if self.rotate:
            turn = quaternions.uniform((1,))
            rotation = quaternions.normalized(quaternions.multiply(turn, rotation))
            translation = quaternions.rotate(turn, translation)
        return {"rotation": rotation, "translation": translation, "residue": chain["residue"]}


def _columns(example: Mapping[str, Any]) -> dict[str, Tensor]:
    absent = [name for name in ("rotation", "translation", "residue") if name not in example]
    if absent:
        raise ValueError(f"example has the columns {sorted(example)}, and no {absent[0]!r}; give rows of chain_example")
    rotation = torch.as_tensor(example["rotation"], dtype=torch.float32)
    translation = torch.as_tensor(example["translation"], dtype=torch.float32)
    residue = torch.as_tensor(example["residue"], dtype=torch.long)
    check_frames(rotation, translation)
    if rotation.ndim != 2 or residue.shape != rotation.shape[:1]:
        shapes = {"rotation": tuple(rotation.shape), "residue": tuple(residue.shape)}
        raise ValueError(f"example has columns of the shapes {shapes}; give [l, 4] and [l], l ≥ 1")
    wrong = residue[(residue < 0) | (residue > UNKNOWN)]
    if len(wrong):
        raise ValueError(f"residue holds {int(wrong[0])}; give 0 to {UNKNOWN}, as in AMINO_ACIDS")
    return {"rotation": rotation, "translation": translation, "residue": residue}
