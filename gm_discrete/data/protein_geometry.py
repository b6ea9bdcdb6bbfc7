"""Backbone atoms and the frames of residues: from one to the other with ideal geometry, and dihedral angles.

The frame of a residue has its origin at CA, its first axis along C − CA, and N − CA in the half-plane of its first two axes
(Jumper et al. 2021, AlphaFold 2, supplement, algorithm 21). It is a rotation, as a unit quaternion (w, x, y, z), and a
translation in nanometres. Atoms are in ångström: 10 Å = 1 nm. Bond lengths and angles are those of Engh and Huber 2001
(International Tables for Crystallography F, 18.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gm_discrete.generators import quaternions

ANGSTROM = 10.0
"""Ångström in a nanometre."""
LONGEST_BOND = 2.5
"""Å between C and the next N, up to which residues count as bonded. The bond has 1.33 Å; C and the N after next are at
least 3.2 Å apart."""
N_CA, CA_C, C_O, CA_CB = 1.459, 1.525, 1.229, 1.530
N_CA_C, CA_C_O, N_CA_CB, C_CA_CB = (math.radians(angle) for angle in (111.0, 120.1, 110.5, 110.1))
PSI = math.radians(-40)
"""ψ of residues without a next one, which only places their O: that of an α-helix, the most frequent."""
SMALLEST_AREA = 0.1
"""Å²: the parallelogram of N − CA and C − CA has 2.1 Å²; below this, errors of 0.1 Å in atoms turn the frame by radians."""


def _ideal_atoms() -> Tensor:
    """N, CA, C and CB [4, 3] in the frame of their residue, in Å; CB as in L-amino acids."""
    x = math.cos(C_CA_CB)
    y = (math.cos(N_CA_CB) - x * math.cos(N_CA_C)) / math.sin(N_CA_C)
    beta = [CA_CB * x, CA_CB * y, -CA_CB * math.sqrt(1 - x * x - y * y)]
    nitrogen = [N_CA * math.cos(N_CA_C), N_CA * math.sin(N_CA_C), 0.0]
    return torch.tensor([nitrogen, [0.0, 0.0, 0.0], [CA_C, 0.0, 0.0], beta], dtype=torch.float64)


IDEAL_ATOMS = _ideal_atoms()


def frames_of(atoms: Tensor, name: str = "atoms") -> tuple[Tensor, Tensor]:
    """The frames of residues: (rotation [..., 4], translation [..., 3] in nm), of N, CA, C [..., 3, 3] in Å.

    Raises:
        ValueError: the shape or a coordinate is wrong, or the atoms of a residue lie on one line or point, so that they
            make no frame; the message begins with `name`.
    """
    if not isinstance(atoms, Tensor) or not atoms.is_floating_point() or atoms.shape[-2:] != (3, 3):
        found = f"{atoms.dtype} of shape {tuple(atoms.shape)}" if isinstance(atoms, Tensor) else repr(atoms)
        raise ValueError(f"{name} must be the coordinates [..., 3, 3] of N, CA and C, got {found}")
    check_finite(atoms, name, "leave such residues out")
    nitrogen, alpha, carbon = atoms.double().unbind(-2)
    first, other = carbon - alpha, nitrogen - alpha
    normal = torch.linalg.cross(first, other)
    flat = normal.norm(dim=-1) < SMALLEST_AREA
    if bool(flat.any()):
        at = flat.nonzero()[0].tolist()
        raise ValueError(
            f"{name} has N, CA and C on one line or point at {at}, {atoms[flat][0].tolist()}: they make no frame; leave "
            "this residue out"
        )
    e1 = torch.nn.functional.normalize(first, dim=-1)
    e3 = torch.nn.functional.normalize(normal, dim=-1)
    matrix = torch.stack([e1, torch.linalg.cross(e3, e1), e3], -1)
    return quaternions.from_matrix(matrix).to(atoms.dtype), (alpha / ANGSTROM).to(atoms.dtype)


def atoms_of(rotation: Tensor, translation: Tensor, mask: Tensor | None = None) -> Tensor:
    """N, CA, C, O and CB [..., L, 5, 3] in Å of the frames of a chain, with ideal bond lengths and angles.

    O lies in the plane of CA, C and the next residue's N, on the other side of C than N. Where there is no next residue,
    or it is not bonded (see `bonded`), ψ = −40° places it.

    Args:
        rotation: unit quaternions [..., L, 4].
        translation: [..., L, 3] in nm.
        mask: [..., L], 0 where padded; padding is bonded to nothing.

    Raises:
        ValueError: shapes do not fit, a number is not finite, or a quaternion does not have length 1.
    """
    check_frames(rotation, translation)
    ideal = IDEAL_ATOMS.to(rotation)
    atoms = quaternions.rotate(rotation[..., None, :], ideal) + ANGSTROM * translation[..., None, :]
    nitrogen, alpha, carbon, beta = atoms.unbind(-2)
    back = (alpha - carbon) / CA_C
    default = quaternions.rotate(rotation, ideal.new_tensor([0.0, math.cos(PSI), math.sin(PSI)]))
    bond = torch.roll(nitrogen, -1, -2) - carbon
    side = bond - (bond * back).sum(-1, keepdim=True) * back  # the part of C–N that is orthogonal to CA–C
    length = side.norm(dim=-1, keepdim=True)
    # Where N is on the axis of CA–C it gives no plane. In a chain side has 1.2 Å.
    usable = bonded(atoms, mask)[..., None] & (length > 0.1)
    side = torch.where(usable, side / torch.where(usable, length, 1.0), default)
    oxygen = carbon + C_O * (math.cos(CA_C_O) * back - math.sin(CA_C_O) * side)
    return torch.stack([nitrogen, alpha, carbon, oxygen, beta], -2)


def bonded(atoms: Tensor, mask: Tensor | None = None) -> Tensor:
    """Whether each residue is bonded to the next, bool [..., L]: C is at most 2.5 Å from the next N. False for the last.

    Args:
        atoms: [..., L, A, 3] in Å, of which the first three are N, CA and C.
        mask: [..., L], 0 where padded; padding is bonded to nothing.
    """
    near = (torch.roll(atoms[..., 0, :], -1, -2) - atoms[..., 2, :]).norm(dim=-1) <= LONGEST_BOND
    if mask is not None:
        near = near & (mask != 0) & torch.roll(mask != 0, -1, -1)
    near[..., -1:] = False
    return near


def dihedrals(atoms: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The dihedral angles φ, ψ and ω of a backbone, each [..., L] in (−π, π], NaN where there is no bond (see `bonded`).

    φ is C–N–CA–C with the C before; ψ is N–CA–C–N with the N after; ω is CA–C–N–CA with the N and CA after, so that ψ and ω
    are NaN at the last residue, φ at the first.

    Args:
        atoms: [..., L, A, 3] in Å, of which the first three are N, CA and C.
        mask: [..., L], 0 where padded.
    """
    nitrogen, alpha, carbon = atoms[..., :3, :].unbind(-2)
    after = bonded(atoms, mask)
    next_nitrogen, next_alpha = torch.roll(nitrogen, -1, -2), torch.roll(alpha, -1, -2)
    phi = dihedral(torch.roll(carbon, 1, -2), nitrogen, alpha, carbon).masked_fill(~torch.roll(after, 1, -1), torch.nan)
    psi = dihedral(nitrogen, alpha, carbon, next_nitrogen).masked_fill(~after, torch.nan)
    omega = dihedral(alpha, carbon, next_nitrogen, next_alpha).masked_fill(~after, torch.nan)
    return phi, psi, omega


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The angle [...] in (−π, π] of the planes a, b, c and b, c, d [..., 3]; seen along b → c, clockwise is positive."""
    axis = torch.nn.functional.normalize(c - b, dim=-1)
    before, after = torch.linalg.cross(axis, a - b), torch.linalg.cross(axis, d - c)
    return torch.atan2((torch.linalg.cross(before, after) * axis).sum(-1), (before * after).sum(-1))


def check_frames(rotation: Tensor, translation: Tensor) -> None:
    """
    Raises:
        ValueError: shapes are not [..., L, 4] and [..., L, 3] with L ≥ 1, a number is not finite, or a quaternion does not
            have length 1.
    """
    for name, value, size in (("rotation", rotation, 4), ("translation", translation, 3)):
        good = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
        if not good or value.shape[-1] != size or not value.shape[-2]:
            found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{name} must be floating-point numbers [..., L, {size}], L ≥ 1, got {found}")
        check_finite(value, name, "mask such residues, or fill them with the identity")
    if rotation.shape[:-1] != translation.shape[:-1]:
        raise ValueError(
            f"rotation has the shape {tuple(rotation.shape)} and translation {tuple(translation.shape)}; give both for "
            "the same residues"
        )
    quaternions.check_quaternions(rotation, "rotation")


def check_finite(value: Tensor, name: str, cure: str) -> None:
    """
    Raises:
        ValueError: a number is NaN or infinite; the message begins with `name` and ends with `cure`.
    """
    finite = value.isfinite()
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise ValueError(f"{name} holds {float(value[~finite][0])} at {at}; {cure}")
