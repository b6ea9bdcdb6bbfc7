from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("biotite", reason="an extra: pip install gm_discrete[scores]")
pytest.importorskip("tmtools", reason="an extra: pip install gm_discrete[scores]")

from benchmarks.scores.protein_structure import (
    RamachandranRegions,
    evaluate_backbone,
    radius,
    secondary_structure,
    torsion_scores,
)
from benchmarks.scores.proteins import (
    clusters,
    designability,
    diversity,
    mean_and_error,
    nearest_tm,
    spaced,
    summary,
    tm_matrix,
    tm_scores,
)
from gm_discrete.data import frames_of, write_pdb
from recipes.protein_geometry import ANGLES, BONDS, geometry, torsions

HELIX, STRAND = (-60.0, -45.0), (-120.0, 130.0)
Array = NDArray[np.float64]


def chain(angles: Array, omega: float = 180.0) -> Array:
    """A backbone [L, 3, 3] with ideal lengths and angles and these φ and ψ [L, 2]: atoms are placed one after the other."""
    lengths = [BONDS[name][0] for name in ("C-N", "N-CA", "CA-C")]  # from the atom before to N, CA and C
    bends = np.radians([ANGLES[name][0] for name in ("CA-C-N", "C-N-CA", "N-CA-C")])
    turns = np.stack([np.r_[0, angles[:-1, 1]], np.full(len(angles), omega), angles[:, 0]], 1)
    atoms = [np.array(point, float) for point in ((0.3, 1.0, 0.2), (0.0, 0.0, 0.0), (1.4, 0.0, 0.1))]
    for turn, length, angle in zip(
        np.radians(turns).ravel(), np.tile(lengths, len(angles)), np.tile(bends, len(angles)), strict=True
    ):
        a, b, c = atoms[-3:]
        axis = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, axis)
        normal /= np.linalg.norm(normal)
        parts = -np.cos(angle), np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn)
        atoms.append(c + length * (parts[0] * axis + parts[1] * np.cross(normal, axis) + parts[2] * normal))
    return np.array(atoms[3:]).reshape(-1, 3, 3)


def regular(residues: int, angles: tuple[float, float] = HELIX) -> Array:
    return chain(np.tile(angles, (residues, 1)))


def coils(number: int, residues: int = 24, seed: int = 0) -> list[Array]:
    """Chains of helical and extended residues in random order."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(2, size=(number, residues))
    return [chain(np.array([HELIX, STRAND])[kind] + rng.normal(0, 8, (residues, 2))) for kind in kinds]


def test_torsions__are_those_of_which_a_chain_is_made() -> None:
    angles = np.random.default_rng(0).uniform(-179, 179, (30, 2))
    found = torsions(chain(angles, omega=170.0))
    assert np.isnan(found[0, [0, 2]]).all()
    assert np.isnan(found[-1, 1])
    np.testing.assert_allclose(found[1:, 0], angles[1:, 0], atol=1e-6)
    np.testing.assert_allclose(found[:-1, 1], angles[:-1, 1], atol=1e-6)
    np.testing.assert_allclose(found[1:, 2], 170, atol=1e-6)


def test_torsions__end_at_breaks() -> None:
    breaks = np.arange(10) % 5 == 0
    missing = np.isnan(torsions(regular(10), breaks))
    assert missing[:, 0].nonzero()[0].tolist() == missing[:, 2].nonzero()[0].tolist() == [0, 5]
    assert missing[:, 1].nonzero()[0].tolist() == [4, 9]


def test_geometry__an_ideal_chain_deviates_in_nothing() -> None:
    scores = geometry(regular(30))
    for name, value in scores.items():
        if name.startswith(("bond/", "angle/")) or name in ("breaks", "ca_clashes", "atom_clashes"):
            assert value == pytest.approx(0, abs=1e-6), name
        elif name != "ca_ca/deviation":
            assert value == 1, name
    assert scores["ca_ca/deviation"] < 0.03


def test_geometry__lengths_and_angles_against_their_ideals() -> None:
    atoms = regular(21)
    atoms[:, 2] += 0.2 * (atoms[:, 2] - atoms[:, 1]) / BONDS["CA-C"][0]  # C is moved by 0.2 Å, away from CA
    scores = geometry(atoms)
    assert scores["bond/CA-C"] == pytest.approx(0.2)
    assert scores["bond/N-CA"] == pytest.approx(0, abs=1e-9)
    assert scores["bond/C-N"] > 0.05
    assert scores["angle/N-CA-C"] == pytest.approx(0, abs=1e-6)
    assert scores["angle/CA-C-N"] > 3
    assert scores["bonds"] <= 41 / 62  # of 62 bonds, 21 are CA–C


def test_geometry__breaks_and_clashes_are_found() -> None:
    first, second = regular(12, STRAND), regular(12, STRAND)
    apart = np.concatenate([first, second + np.array([0, 0, 30])])
    scores = geometry(apart)
    assert (scores["breaks"], scores["unbroken"], scores["clash_free"], scores["valid"]) == (1 / 24, 0, 1, 0)
    gap = np.arange(24) == 12
    assert geometry(apart, gap)["valid"] == 1
    scores = geometry(np.concatenate([first, second + np.array([0, 0, 1])]), gap)
    assert scores["unbroken"] == 1
    assert scores["clash_free"] == scores["valid"] == 0
    assert scores["ca_clashes"] >= 12 / 24
    assert scores["atom_clashes"] >= 36 / 24


def test_torsion_scores__a_mirror_image_is_left_handed() -> None:
    helix = regular(20)
    assert torsion_scores(helix)["left_handed"] == 0
    assert torsion_scores(helix * [1, 1, -1])["left_handed"] == 1
    bent = torsion_scores(chain(np.tile(HELIX, (20, 1)), omega=-165.0))
    assert (bent["trans"], bent["omega"]) == (1, pytest.approx(15))
    cis = torsion_scores(chain(np.tile(STRAND, (20, 1)), omega=5.0))
    assert cis["trans"] == 0
    assert np.isnan(cis["omega"])


def test_ramachandran_regions__have_the_shares_of_their_names() -> None:
    regions = RamachandranRegions.of(coils(300))
    unseen = np.concatenate([torsions(atoms) for atoms in coils(100, seed=1)])
    shares = regions.shares(unseen)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["favoured"] == pytest.approx(0.98, abs=0.02)  # binomial standard error of 2200 residues 0.003
    assert shares["outliers"] < 0.006
    uniform = regions.shares(np.random.default_rng(0).uniform(-180, 180, (5000, 2)))
    assert uniform["favoured"] < 0.15
    assert uniform["outliers"] > 0.7
    assert regions.distance(unseen) < 0.1
    assert regions.distance(np.tile(HELIX, (100, 1))) > 0.5
    assert regions.distance(np.tile((60.0, -120.0), (100, 1))) == pytest.approx(1, abs=1e-3)


def test_ramachandran_regions__are_periodic() -> None:
    edge = [chain(np.tile((180.0, 180.0), (20, 1)) + np.random.default_rng(i).normal(0, 5, (20, 2))) for i in range(20)]
    regions = RamachandranRegions.of(edge)
    around = regions.shares(np.array([[-180.0, 180.0], [179.9, -180.0], [-178.0, 178.0]]))
    assert around["favoured"] == 1


def test_secondary_structure__helix_strand_and_a_gap() -> None:
    assert secondary_structure(regular(30))["helix"] >= 28 / 30  # all but the ends
    assert secondary_structure(regular(30, STRAND))["strand"] >= 27 / 30
    assert secondary_structure(regular(30) * [1, 1, -1])["helix"] >= 27 / 30  # of either hand
    assert secondary_structure(regular(4)) == {"helix": 0, "strand": 0, "coil": 1}
    pieces = np.arange(32) % 4 == 0  # too short for a helix each
    assert secondary_structure(regular(32), pieces)["helix"] == 0


def test_radius__of_two_points_and_of_a_compact_chain() -> None:
    atoms = np.zeros((2, 3, 3))
    atoms[1, :, 0] = 3.8
    assert radius(atoms) == {"radius": pytest.approx(1.9), "radius_ratio": pytest.approx(1.9 / (2.2 * 2**0.38))}


def test_tm_scores__of_itself_moved_and_of_a_part() -> None:
    first, other = coils(2, 40)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert tm_scores(first, first) == (pytest.approx(1), pytest.approx(1))
    assert tm_scores(first @ turn + [3, -2, 50], first) == (pytest.approx(1), pytest.approx(1))
    assert tm_scores(first[:20], first) == (pytest.approx(1), pytest.approx(0.5))
    assert max(tm_scores(first, other)) < 0.9
    matrix = tm_matrix([first[:20], first, other])
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(0.75)
    assert matrix.diagonal().tolist() == [1, 1, 1]


def test_clusters__are_joined_by_the_mean_of_their_pairs() -> None:
    matrix = np.array([[1, 0.9, 0.6], [0.9, 1, 0.35], [0.6, 0.35, 1]])  # single linkage would join all
    found = clusters(matrix)
    assert found[0] == found[1] != found[2]
    assert len(set(clusters(matrix, 0.47))) == 1
    assert clusters(np.ones((1, 1))).tolist() == [1]


def test_diversity__of_copies_and_of_two_folds() -> None:
    helix, strand = regular(24), regular(24, STRAND)
    same = diversity([helix, helix, helix])
    assert same == {
        "tm/pairs": pytest.approx(1), "tm/diversity": pytest.approx(0), "tm/pairs se": pytest.approx(0, abs=1e-9),
        "tm/diversity se": pytest.approx(0, abs=1e-9), "clusters": 1, "diversity": 1 / 3,
    }  # fmt: skip
    two = diversity([helix, strand, helix, strand])
    assert (two["clusters"], two["diversity"]) == (2, 0.5)
    assert diversity([helix, strand, helix, strand], limit=2)["clusters"] == 1  # the first and the third


def test_diversity__standard_error_is_that_of_the_jackknife() -> None:
    samples = coils(5, 16)
    matrix = tm_matrix(samples)
    means = [np.mean([matrix[i, j] for i, j in combinations(range(5), 2) if out not in (i, j)]) for out in range(5)]
    found = diversity(samples)
    assert found["tm/pairs"] == pytest.approx(np.mean([matrix[i, j] for i, j in combinations(range(5), 2)]))
    assert found["tm/pairs se"] == pytest.approx(np.sqrt(4 / 5 * np.sum(np.subtract(means, np.mean(means)) ** 2)))


def test_nearest_tm__is_one_for_a_part_of_the_reference() -> None:
    reference = coils(4, 30)
    found = nearest_tm([reference[2][5:25], regular(30)], reference)
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.9
    assert nearest_tm([reference[2]], reference, limit=2)[0] == pytest.approx(1)  # the first and the third


def test_designability__reads_what_a_command_prints(tmp_path: Path) -> None:
    frames = [frames_of(torch.from_numpy(regular(size))) for size in (8, 12)]
    files = [write_pdb(tmp_path / f"{len(part[0])} residues.pdb", *part) for part in frames]
    program = tmp_path / "fold it.py"
    text = "import sys\nprint(sum(line.startswith('ATOM') for line in open(sys.argv[1])) / 32)\n"
    program.write_text(text, encoding="utf-8")
    assert designability(files, f"'{sys.executable}' '{program}' {{pdb}}").tolist() == [1, 1.5]


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("print('done')", ValueError, r"'done'"),
        ("print(-1)", ValueError, r"'-1'"),
        ("print('nan')", ValueError, r"'nan'"),
        ("import sys; sys.exit('no weights')", RuntimeError, r"exit code 1: no weights"),
        ("import time; time.sleep(60)", RuntimeError, r"timeout=0\.2"),
    ],
)
def test_designability__what_goes_wrong_is_said(program: str, kind: type[Exception], message: str) -> None:
    timeout = 0.2 if "sleep" in program else 60
    with pytest.raises(kind, match=message):
        designability([Path("a.pdb")], f'{sys.executable} -c "{program}" {{pdb}}', timeout)


def test_designability__a_wrong_command_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"command='fold'.*\{pdb\}"):
        designability([Path("a.pdb")], "fold")
    with pytest.raises(RuntimeError, match="'no-such-program-here'"):
        designability([Path("a.pdb")], "no-such-program-here {pdb}")


def test_summary__means_errors_and_what_is_optional() -> None:
    reference = coils(4)
    samples = [regular(24), regular(24, STRAND), *reference[:2]]
    rows = [evaluate_backbone(atoms) for atoms in samples]
    plain = summary(samples)
    assert not {"tm/nearest", "scrmsd", "favoured", "torsion_distance"} & plain.keys()
    values = [row["helix"] for row in rows]
    assert plain["helix"] == pytest.approx(np.mean(values))
    assert plain["helix se"] == pytest.approx(np.std(values, ddof=1) / 2)
    assert plain["samples"] == 4
    regions = RamachandranRegions.of(reference)
    full = summary(samples, reference, regions=regions, scrmsd=[0.5, 1.0, 3.0, 4.0])
    assert (full["designable"], full["scrmsd"]) == (0.5, 2.125)
    assert full["favoured"] > 0.5
    assert 0 < full["torsion_distance"] < 0.6
    assert full["tm/nearest"] == pytest.approx(1 - (2 - nearest_tm(samples[:2], reference).sum()) / 4)
    assert full["tm/nearest se"] > 0
    assert plain.keys() < full.keys()


def test_mean_and_error__leave_out_what_is_not_defined() -> None:
    nan = float("nan")
    found = mean_and_error([{"a": 1.0, "b": nan}, {"a": 3.0, "b": 5.0}])
    assert (found["a"], found["a se"], found["b"]) == (2, 1, 5)
    assert np.isnan(found["b se"])


def test_protein_scores__wrong_arguments_are_an_error() -> None:
    helix = regular(8)
    hole = helix.copy()
    hole[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"atoms.*\(8, 2, 3\)"):
        geometry(helix[:, :2])
    with pytest.raises(ValueError, match=r"residue 3.*nan"):
        geometry(hole)
    with pytest.raises(ValueError, match=r"breaks.*\(7,\).*8 residues"):
        geometry(helix, np.zeros(7))
    with pytest.raises(ValueError, match=r"a and b have 8 and 3 residues"):
        tm_scores(helix, helix[:3])
    with pytest.raises(ValueError, match=r"samples has 1 backbones"):
        summary([helix])
    with pytest.raises(ValueError, match=r"scrmsd has 1 values for 2"):
        summary([helix, helix], scrmsd=[1.0])
    with pytest.raises(ValueError, match=r"limit=1"):
        diversity([helix, helix], limit=1)
    with pytest.raises(ValueError, match=r"limit=0"):
        spaced([1, 2], 0)
    with pytest.raises(ValueError, match=r"reference is empty"):
        nearest_tm([helix], [])
    with pytest.raises(ValueError, match=r"chains has 1 chains"):
        RamachandranRegions.of([helix[:2]])
