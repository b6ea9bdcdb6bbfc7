"""The molecules of MOSES and the scaffolds of SMILES."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit", reason="an extra: pip install gm_discrete[scores]")
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from gm_discrete.data import smiles_tokenizer
from gm_discrete.data.tokenizers import SMILES_SYMBOL
from recipes.datasets import load_text, packages, scaffold_mask
from tests.helpers.moses_package import VALIDATION, install, moses_molecules

real = pytest.mark.skipif(find_spec("moses") is None, reason="molsets is not installed")


@pytest.fixture
def moses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)


@pytest.mark.usefixtures("moses")
def test_moses__splits() -> None:
    rows: dict[str, Any] = {
        split: load_text("moses", split) for split in ("train", "validation", "test", "test_scaffolds")
    }
    assert {tuple(split.column_names) for split in rows.values()} == {("text",)}
    texts = {name: split["text"][:] for name, split in rows.items()}
    assert len(texts["validation"]) == VALIDATION
    assert sorted(texts["train"] + texts["validation"]) == sorted(moses_molecules("train"))
    assert texts["validation"] != moses_molecules("train")[-VALIDATION:]  # not the last ones, but drawn
    assert texts["test"] == moses_molecules("test")
    assert texts["test_scaffolds"] == moses_molecules("test_scaffolds")
    again: Any = load_text("moses", "validation")
    assert again["text"][:] == texts["validation"]
    streamed: Any = load_text("moses", "test", streaming=True)
    assert [row["text"] for row in streamed] == texts["test"]
    with pytest.raises(ValueError, match=r"split='half' .*source='moses'.* train, validation, test"):
        load_text("moses", "half")


def test_moses__missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps molsets==0\.3\.1"):
        load_text("moses")
    with pytest.raises(ImportError, match=r"pip install rdkit, or: pip install 'gm_discrete\[scores\]'"):
        scaffold_mask("CCO")


@pytest.mark.parametrize(
    ("smiles", "scaffold"),
    [
        ("Cc1ccc(C(N)C2CC2)cc1", "_c1ccc(C___C2CC2)cc1"),  # a branch of a linker
        ("CC(C)c1ccc(Cl)cc1", "_____c1ccc___cc1"),  # what stands before, and one symbol of two characters
        ("O=C(NC1CC1)c1ccccc1", "O=C(NC1CC1)c1ccccc1"),  # rdkit keeps double bonds to what is left
        ("N#CC1=CCCC1=O", "___C1=CCCC1=O"),
        ("CC(c1ccccc1)C", "___c1ccccc1__"),  # a branch that is all the scaffold: its parentheses are of the side chain
        ("C1=CC(CO)CC=1", "C1=CC____CC=1"),  # a bond that a ring closure writes
        ("OC1CC%11(CCC%11)C1", "_C1CC%11(CCC%11)C1"),
        ("CCCO", "____"),
    ],
)
def test_scaffold_mask__symbols(smiles: str, scaffold: str) -> None:
    symbols = re.findall(SMILES_SYMBOL, smiles)
    kept = scaffold_mask(smiles)
    assert "".join(s if k else "_" for s, k in zip(symbols, kept, strict=True)) == scaffold


@pytest.mark.parametrize("smiles", ["C1CC", "", "[H]N=C1CCCC1", "C(C)(C)(C)(C)C"])
def test_scaffold_mask__an_invalid_molecule_is_an_error(smiles: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"smiles={smiles!r} ")):
        scaffold_mask(smiles)


@pytest.mark.slow
@real
def test_moses__real_molecules() -> None:
    rows: dict[str, Any] = {
        split: load_text("moses", split) for split in ("train", "validation", "test", "test_scaffolds")
    }
    assert [len(split) for split in rows.values()] == [1_574_663, 10_000, 176_074, 176_225]
    texts = rows["validation"]["text"][:]
    tokenizer = smiles_tokenizer(texts)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    assert {"Br", "Cl", "[nH]"} <= tokenizer.get_vocab().keys()
    assert 40 < max(map(len, ids)) <= 54
    assert not {tokenizer.unk_token_id, tokenizer.mask_token_id} & {token for row in ids for token in row}


@pytest.mark.slow
@real
def test_scaffold_mask__marked_symbols_of_real_molecules_are_their_scaffold() -> None:
    rows: Any = load_text("moses", "test_scaffolds")
    compared = 0
    for text in rows[:2000:10]["text"]:
        left = "".join(s for s, k in zip(re.findall(SMILES_SYMBOL, text), scaffold_mask(text), strict=True) if k)
        core = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(Chem.MolFromSmiles(text)))
        if core.count("[nH]") == text.count("[nH]"):  # an n that loses its side chain is written [nH]
            assert Chem.CanonSmiles(left) == core
            compared += 1
    assert compared > 150
