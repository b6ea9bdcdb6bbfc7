"""Frames of residues, their atoms, and dihedral angles."""

import math

import pytest
import torch

from gm_discrete.data import atoms_of, dihedrals, frames_of
from gm_discrete.data.protein_geometry import bonded, dihedral
from gm_discrete.generators import quaternions
from tests.helpers.proteins import HELIX, STRAND, TURN, backbone, hairpin, helix


def test_frames_of__axes_are_those_of_alphafold() -> None:
    atoms = helix(5)
    rotation, translation = frames_of(atoms)
    e1, e2, e3 = quaternions.to_matrix(rotation).unbind(-1)
    nitrogen, alpha, carbon = atoms.unbind(-2)
    assert torch.allclose(translation * 10, alpha)
    assert torch.allclose((carbon - alpha), e1 * (carbon - alpha).norm(dim=-1, keepdim=True), atol=1e-12)
    assert bool((((nitrogen - alpha) * e2).sum(-1) > 1).all())
    assert torch.allclose(((nitrogen - alpha) * e3).sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert rotation.dtype == torch.float64
    assert frames_of(atoms.float())[0].dtype == torch.float32


def test_frames_of__turn_and_move_with_the_atoms() -> None:
    turn = quaternions.uniform((), torch.Generator().manual_seed(0), dtype=torch.float64)
    atoms, shift = hairpin(), torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64)
    rotation, translation = frames_of(atoms)
    moved = frames_of(quaternions.rotate(turn, atoms) + shift)
    assert float(quaternions.half_angle(moved[0], quaternions.multiply(turn, rotation)).max()) < 1e-12
    assert torch.allclose(moved[1], quaternions.rotate(turn, translation) + shift / 10)


@pytest.mark.parametrize("atoms", [helix(), hairpin()], ids=["helix", "hairpin"])
def test_atoms_of__inverts_frames_of_for_ideal_atoms(atoms: torch.Tensor) -> None:
    found = atoms_of(*frames_of(atoms))
    assert found.shape == (len(atoms), 5, 3)
    assert torch.allclose(found[:, :3], atoms, atol=1e-12)
    batch = torch.stack([atoms, atoms.flip(0)])
    assert torch.allclose(atoms_of(*frames_of(batch))[0], found)


def test_atoms_of__oxygen_and_beta_carbon_have_ideal_bonds_and_angles() -> None:
    atoms = atoms_of(*frames_of(hairpin()))
    nitrogen, alpha, carbon, oxygen, beta = atoms.unbind(-2)

    def angle(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(a - b, c - b, dim=-1)))

    ones = torch.ones(len(atoms), dtype=torch.float64)
    assert torch.allclose((oxygen - carbon).norm(dim=-1), 1.229 * ones)
    assert torch.allclose(angle(alpha, carbon, oxygen), 120.1 * ones)
    assert torch.allclose(angle(oxygen[:-1], carbon[:-1], nitrogen[1:]), 122.7 * ones[1:])
    assert torch.allclose((beta - alpha).norm(dim=-1), 1.530 * ones)
    assert torch.allclose(angle(nitrogen, alpha, beta), 110.5 * ones)
    assert torch.allclose(angle(carbon, alpha, beta), 110.1 * ones)
    # L-amino acids: seen from the hydrogen atom, CO, R and N are clockwise ("CORN").
    volume = (torch.linalg.cross(carbon - alpha, beta - alpha) * (nitrogen - alpha)).sum(-1)
    assert bool((volume > 0).all())
    planar = dihedral(alpha[1:], nitrogen[1:], carbon[:-1], oxygen[:-1])  # ω = 180° puts O beside the next CA
    assert torch.allclose(planar, torch.zeros_like(planar), atol=1e-6)


def test_atoms_of__unbonded_oxygens_are_placed_by_a_helical_psi() -> None:
    rotation, translation = frames_of(helix(4))
    apart = translation + torch.arange(4, dtype=torch.float64)[:, None]  # 10 Å between residues
    nitrogen, alpha, carbon, oxygen, _ = atoms_of(rotation, apart).unbind(-2)
    expected = torch.full((4,), 140.0, dtype=torch.float64)  # O is opposite to the next N, which is at −40°
    assert torch.allclose(torch.rad2deg(dihedral(nitrogen, alpha, carbon, oxygen)), expected)
    masked = atoms_of(rotation, translation, torch.tensor([1, 1, 0, 0]))
    whole = atoms_of(rotation, translation)
    assert torch.equal(masked[0], whole[0])
    assert not torch.allclose(masked[1, 3], whole[1, 3], atol=1e-3)


def test_dihedrals__are_those_that_a_chain_was_built_from() -> None:
    angles = [*[STRAND] * 3, *TURN, *[HELIX] * 3]
    phi, psi, omega = dihedrals(backbone(angles))
    assert torch.rad2deg(phi[1:]).tolist() == pytest.approx([phi for phi, _ in angles[1:]])
    assert torch.rad2deg(psi[:-1]).tolist() == pytest.approx([psi for _, psi in angles[:-1]])
    assert torch.rad2deg(omega[:-1]).abs().tolist() == pytest.approx([180.0] * 7)
    assert [value.isnan().nonzero().tolist() for value in (phi, psi, omega)] == [[[0]], [[7]], [[7]]]


def test_dihedrals__are_undefined_at_breaks_and_in_padding() -> None:
    atoms = helix(6)
    atoms[3:] += 20
    phi, psi, omega = dihedrals(torch.stack([atoms, atoms]), torch.tensor([[1] * 6, [1] * 5 + [0]]))
    assert phi.isnan().tolist() == [[True, False, False, True, False, False], [True, False, False, True, False, True]]
    assert psi.isnan().tolist() == [[False, False, True, False, False, True], [False, False, True, False, True, True]]
    assert torch.equal(psi.isnan(), omega.isnan())
    assert bonded(atoms).tolist() == [True, True, False, True, True, False]


def test_frames_of__refuses_what_makes_no_frame() -> None:
    atoms = helix(4)
    with pytest.raises(ValueError, match=r"atoms .*3, 3.*\(4, 3\)"):
        frames_of(atoms[:, 0])
    with pytest.raises(ValueError, match="int64"):
        frames_of(atoms.long())
    atoms[2, 2] = atoms[2, 1]
    with pytest.raises(ValueError, match=r"at \[2\]"):
        frames_of(atoms)
    atoms[2, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"nan at \[2, 2, 1\]"):
        frames_of(atoms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotation": torch.zeros(4, 4)}, r"rotation .*length 0 at \[0\]"),
        ({"rotation": torch.full((4, 4), torch.nan)}, r"rotation holds nan at \[0, 0\]"),
        ({"translation": torch.full((4, 3), torch.inf)}, r"translation holds inf"),
        ({"translation": torch.zeros(5, 3)}, r"\(4, 4\).*\(5, 3\)"),
        ({"translation": torch.zeros(4, 4)}, r"translation .*\(4, 4\)"),
        ({"rotation": torch.zeros(4)}, r"rotation .*\(4,\)"),
    ],
)
def test_atoms_of__refuses_what_is_no_frame(changes: dict[str, torch.Tensor], message: str) -> None:
    rotation, translation = frames_of(helix(4).float())
    with pytest.raises(ValueError, match=message):
        atoms_of(**{"rotation": rotation, "translation": translation, **changes})


def test_dihedrals__agree_with_biotite() -> None:
    structure = pytest.importorskip("biotite.structure")
    atoms = hairpin()
    array = structure.AtomArray(atoms.shape[0] * 3)
    array.coord = atoms.reshape(-1, 3).float().numpy()
    array.res_id = torch.arange(1, len(atoms) + 1).repeat_interleave(3).numpy()
    array.chain_id[:], array.res_name[:] = "A", "ALA"
    array.atom_name = ["N", "CA", "C"] * len(atoms)
    for ours, theirs in zip(dihedrals(atoms), structure.dihedral_backbone(array), strict=True):
        turned = torch.remainder(ours - torch.from_numpy(theirs) + math.pi, 2 * math.pi) - math.pi
        assert float(turned.nan_to_num().abs().max()) < 1e-5
        assert torch.equal(ours.isnan(), torch.from_numpy(theirs).isnan())
