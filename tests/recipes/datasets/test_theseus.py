"""The chains of theseus-examples, and their split by family."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from gm_discrete.data import FrameCollator
from recipes.datasets import download_theseus, load_theseus, theseus, theseus_chains
from recipes.datasets.theseus import families_of, split_by_family
from tests.helpers.proteins import hairpin, helix, pdb_text

pytest.importorskip("gemmi")
LETTERS = "ACDEFGHIKL"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one fold of 23 chains in three families, of 21, 1 and 1, and of an NMR structure of two models."""
    folder = tmp_path_factory.mktemp("package")
    examples = folder / theseus.EXAMPLES
    (examples / "fold").mkdir(parents=True)
    sequences = {f"{number:04}_A.pdb": LETTERS for number in range(21)}
    sequences |= {"1odd_A.pdb": "MNPQRSTVWY", "2odd_A.pdb": "YWVTSRQPNM"}
    for name, sequence in sequences.items():
        text = pdb_text(helix(10), sequence)
        (examples / "fold" / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    aligned = "".join(f">{name}\n{sequence[:6]}\n{sequence[6:]}\n" for name, sequence in sequences.items())
    (examples / "fold" / "fold.a2m.gz").write_bytes(gzip.compress(aligned.encode()))
    model = pdb_text(hairpin(3), "GGSGGSGG").replace("END\n", "ENDMDL\n")
    models = f"MODEL        1\n{model}MODEL        2\n{model}END\n"
    (examples / "2nmr.pdb.gz").write_bytes(gzip.compress(models.encode()))
    return folder


def test_load_theseus__families_are_in_one_split(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"theseus\.npz.*download_theseus\(\)"):
        load_theseus("train", tmp_path)
    file = download_theseus(tmp_path, unpacked)
    assert file == tmp_path / "gm_discrete" / "theseus.npz"
    train, validation, test = (load_theseus(split, tmp_path) for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [23, 1, 1]
    assert list(train["name"])[-2:] == ["2nmr:A:1", "2nmr:A:2"] or list(train["name"])[:2] == ["2nmr:A:1", "2nmr:A:2"]
    assert (validation[0]["name"], test[0]["name"]) == ("1odd_A:A:1", "2odd_A:A:1")
    assert set(map(str, train["fold"])) == {"fold", "2nmr"}
    assert set(map(str, train["family"])) == {"0000_A.pdb", "2nmr"}
    batch = FrameCollator(length=8)([train[row] for row in range(4)])
    assert batch["fields"]["rotation"].shape == (4, 8, 4)
    with pytest.raises(ValueError, match=r"split='half'.*train, validation, test"):
        load_theseus("half", tmp_path)


def test_theseus_chains__are_those_of_the_rows(unpacked: Path, tmp_path: Path) -> None:
    download_theseus(tmp_path, unpacked)
    rows, chains = load_theseus("train", tmp_path), theseus_chains("train", tmp_path)
    assert [chain.name for chain in chains] == list(rows["name"])
    for row, chain in zip(rows, chains, strict=True):
        assert np.allclose(row["translation"] * 10, chain.atoms[:, 1], atol=1e-4)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert chain.breaks.sum() == 1
        assert chain.numbers.tolist() == list(range(1, len(chain) + 1))
    with pytest.raises(ValueError, match=r"split='half'"):
        theseus_chains("half", tmp_path)


def test_download_theseus__names_a_wrong_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.*theseus-examples"):
        download_theseus(tmp_path, tmp_path / "none")
    assert list((tmp_path / "gm_discrete").iterdir()) == []


def test_families_of__pairs_above_two_fifths_are_connected() -> None:
    aligned = {
        "a": "ACDEFGHIKL",
        "b": "ACDEFWWWWW",  # half of a
        "c": "-----WWWWW",  # all of c is in b, nothing in a
        "d": "ACDEYYYYYY",  # two fifths of a and b, which is not more
        "e": "YYYY------",  # no column in common
    }
    found = families_of(list(aligned), list(aligned.values()))
    assert found == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e"}


def test_split_by_family__small_families_of_a_fold_are_held_out_in_turn() -> None:
    families = ["big"] * 80 + ["second"] * 10 + ["third"] * 5 + ["fourth"] * 3 + ["fifth", "sixth", "alone"]
    folds = ["fold"] * 100 + ["other"]
    parts = dict(zip(families, split_by_family(folds, families), strict=True))
    assert parts == {
        "big": "train", "second": "train", "third": "validation", "fourth": "test", "fifth": "validation",
        "sixth": "test", "alone": "train",
    }  # fmt: skip
