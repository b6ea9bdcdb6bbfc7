"""PDB files of protein chains that are frames of residues."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from gm_discrete.data.protein_geometry import atoms_of, bonded
from gm_discrete.data.proteins import AMINO_ACIDS, CODES, UNKNOWN

PDB_ATOMS = ("N", "CA", "C", "O", "CB")
LARGEST_NUMBER = 9999
"""Of a residue in a PDB file, where it has four columns."""


def write_pdb(
    file: str | os.PathLike[str],
    rotation: Tensor,
    translation: Tensor,
    residue: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    chain: str = "A",
) -> Path:
    """Writes chains as a PDB file, as one model each: N, CA, C, O and, but for glycine, CB, with ideal geometry.

    Residues are numbered from 1, and one number is left out wherever a residue is not bonded to the one before. The file
    appears whole or not at all.

    Args:
        rotation: unit quaternions [L, 4] or [B, L, 4].
        translation: [L, 3] or [B, L, 3], in nm.
        residue: [L] or [B, L], numbered as in `AMINO_ACIDS`; glycine by default.
        mask: [L] or [B, L], 0 where padded; padding is not written.
        chain: the letter of the chain.

    Raises:
        ValueError: shapes do not fit, a number is not finite or too large for the format, a quaternion does not have
            length 1, a residue is still masked or unknown to `AMINO_ACIDS`, a chain has no residue or numbers above 9999, or
            `chain` is not one letter or digit.
    """
    if not (isinstance(chain, str) and len(chain) == 1 and chain.isascii() and chain.isalnum()):
        raise ValueError(f"chain={chain!r} must be one letter or digit")
    batch = _as_batch(rotation, translation, residue, mask)
    models = [_model_lines(chain, *(part[index] for part in batch)) for index in range(len(batch[0]))]
    lines = list(models[0]) if len(models) == 1 else []
    for number, model in enumerate(models if len(models) > 1 else []):
        lines += [f"MODEL     {number + 1:>4}", *model, "ENDMDL"]
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    try:
        draft.write_text("".join(f"{line:<80}\n" for line in [*lines, "END"]), encoding="ascii", newline="\n")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _as_batch(rotation: Tensor, translation: Tensor, residue: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """The four tensors with a dimension [B], after checks of their shapes."""
    if rotation.ndim not in (2, 3) or rotation.shape[-1] != 4 or not rotation.numel():
        raise ValueError(f"rotation has the shape {tuple(rotation.shape)}; give [L, 4] or [B, L, 4], B and L ≥ 1")
    sizes = tuple(rotation.shape[:-1])
    residue = torch.full(sizes, AMINO_ACIDS.index("G")) if residue is None else residue
    mask = torch.ones(sizes, dtype=torch.bool) if mask is None else mask
    for name, value, shape in (
        ("translation", translation, (*sizes, 3)),
        ("residue", residue, sizes),
        ("mask", mask, sizes),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}; beside this rotation give {shape}")
    if residue.is_floating_point():
        raise ValueError(f"residue has dtype={residue.dtype}; give integers")
    parts = [part.detach().cpu() for part in (rotation, translation, residue, mask)]
    return parts if rotation.ndim == 3 else [part[None] for part in parts]


def _model_lines(chain: str, rotation: Tensor, translation: Tensor, residue: Tensor, mask: Tensor) -> list[str]:
    rotation, translation, residue = rotation[mask != 0], translation[mask != 0], residue[mask != 0]
    if not len(residue):
        raise ValueError("mask leaves 0 residues of a chain; give at least one")
    wrong = residue[(residue < 0) | (residue > UNKNOWN)]
    if len(wrong):
        raise ValueError(
            f"residue holds {int(wrong[0])}; give 0 to {UNKNOWN}, as in AMINO_ACIDS, and unmask all residues"
        )
    atoms = atoms_of(rotation.float(), translation.float())
    farthest = float(atoms.abs().max())
    if farthest > 999.9:  # a coordinate has eight columns, three of them after the point and one for the sign
        raise ValueError(f"translation puts an atom at {farthest:.0f} Å; a PDB file holds less than 1000 Å")
    broken = ~bonded(atoms)
    numbers = torch.arange(1, len(residue) + 1)
    numbers[1:] += broken[:-1].cumsum(0)
    if int(numbers[-1]) > LARGEST_NUMBER:
        raise ValueError(
            f"a chain has residue numbers up to {int(numbers[-1])}, by {len(residue)} residues and their breaks; "
            f"a PDB file holds {LARGEST_NUMBER}"
        )
    codes = [CODES[symbol] for symbol in residue.tolist()]
    lines: list[str] = []
    for code, number, points in zip(codes, numbers.tolist(), atoms.tolist(), strict=True):
        for name, (x, y, z) in zip(PDB_ATOMS, points, strict=True):
            if name != "CB" or code != "GLY":
                lines.append(
                    f"ATOM  {len(lines) + 1:>5}  {name:<3} {code} {chain}{number:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
                    f"  1.00  0.00          {name[0]:>2}"
                )
    return [*lines, f"TER   {len(lines) + 1:>5}      {codes[-1]} {chain}{int(numbers[-1]):>4}"]
