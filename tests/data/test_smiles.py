"""SMILES as tokens, the molecules of MOSES, lengths that are learned, and which symbols write a scaffold."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

pytest.importorskip("rdkit", reason="an extra: pip install gm_discrete[molecules]")
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from gm_discrete.data import TokenCollator, load_text, packaged, scaffold_tokens, smiles_tokenizer, truncate
from gm_discrete.data.molecules import SYMBOL
from tests.helpers.moses_package import VALIDATION, install, moses_molecules

SYMBOLS = {
    "CC(=O)[O-]": "C C ( = O ) [O-]",
    "N[C@@H](C)C(=O)O": "N [C@@H] ( C ) C ( = O ) O",
    "ClCBr": "Cl C Br",
    "BrC(Cl)(F)I": "Br C ( Cl ) ( F ) I",
    "F/C=C\\F": "F / C = C \\ F",
    "c1cc[nH]c1": "c 1 c c [nH] c 1",
    "C%12CC%12": "C %12 C C %12",
    "C%(123)CC%(123)": "C %(123) C C %(123)",
    "[13CH4].[Na+]": "[13CH4] . [Na+]",
    "N#Cc1ccc(-c2ncc[se]2)s1": "N # C c 1 c c c ( - c 2 n c c [se] 2 ) s 1",
}
real = pytest.mark.skipif(find_spec("moses") is None, reason="molsets is not installed")


@pytest.fixture
def moses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return smiles_tokenizer(SYMBOLS)


@pytest.mark.parametrize("text", SYMBOLS)
def test_symbols_of_smiles(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, text: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    for tokens in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokens(text)["input_ids"]
        assert tokens.convert_ids_to_tokens(ids) == SYMBOLS[text].split()
        assert tokens.decode(ids) == text


def test_symbols_stand_before_the_special_tokens() -> None:
    tokenizer = smiles_tokenizer(["[nH]", "ClC", "CBr"])
    expected = ["Br", "C", "Cl", "[nH]", "[UNK]", "[PAD]", "[EOS]", "[MASK]"]
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__) == expected
    special = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.mask_token, tokenizer.unk_token)
    assert special == ("[PAD]", "[EOS]", "[MASK]", "[UNK]")


def test_other_symbols_are_unknown() -> None:
    tokenizer = smiles_tokenizer(["ClC(C)C"])
    ids = tokenizer("C[Se]P", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["C", "[UNK]", "[UNK]"]
    spelt = truncate(Dataset.from_dict({"text": ["C[MASK]"]}), tokenizer, 4, add_eos=False)
    assert tokenizer.convert_ids_to_tokens(spelt[0]["input_ids"]) == ["C", "[UNK]"]  # an atom in brackets, no mask


def test_texts_without_symbols_are_refused() -> None:
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="hold no symbol"):
            smiles_tokenizer(texts)
    with pytest.raises(TypeError, match="texts is one string"):
        smiles_tokenizer("CCO")


def test_padding_can_be_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["CO", "", "CCCCC"]})
    for rows in (dataset, dataset.to_iterable_dataset()):
        found: list[Any] = list(truncate(rows, tokenizer, 4, pad_to_length=True))
        symbols = [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in found]
        expected = [["C", "O", "[EOS]", "[PAD]"], ["[EOS]"] + 3 * ["[PAD]"], ["C"] * 4]
        assert symbols == expected
        batch = TokenCollator(tokenizer.pad_token_id)(found)
        assert batch["labels"].equal(batch["input_ids"])
        assert batch["attention_mask"].all()
    open_ended: list[Any] = list(truncate(dataset, tokenizer, 4))
    assert [len(row["input_ids"]) for row in open_ended] == [3, 1, 4]
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="pad_to_length=True needs a padding token"):
        truncate(dataset, bare, 4, pad_to_length=True)


@pytest.mark.usefixtures("moses")
def test_splits_of_moses() -> None:
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
    with pytest.raises(ValueError, match="split='half' is not in source='moses'; it has train, validation, test"):
        load_text("moses", "half")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps molsets==0\.3\.1"):
        load_text("moses")
    with pytest.raises(ImportError, match=r"pip install rdkit, or: pip install 'gm_discrete\[molecules\]'"):
        scaffold_tokens("CCO")


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
def test_symbols_of_a_scaffold(smiles: str, scaffold: str) -> None:
    symbols = re.findall(SYMBOL, smiles)
    kept = scaffold_tokens(smiles)
    assert "".join(s if k else "_" for s, k in zip(symbols, kept, strict=True)) == scaffold


@pytest.mark.parametrize("smiles", ["C1CC", "", "[H]N=C1CCCC1", "C(C)(C)(C)(C)C"])
def test_scaffolds_of_what_is_no_molecule_are_refused(smiles: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"smiles={smiles!r} is not a valid molecule")):
        scaffold_tokens(smiles)


@real
def test_real_molecules() -> None:
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


@real
def test_a_real_molecule_without_its_other_symbols_is_its_scaffold() -> None:
    rows: Any = load_text("moses", "test_scaffolds")
    compared = 0
    for text in rows[:2000:10]["text"]:
        left = "".join(s for s, k in zip(re.findall(SYMBOL, text), scaffold_tokens(text), strict=True) if k)
        core = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(Chem.MolFromSmiles(text)))
        if core.count("[nH]") == text.count("[nH]"):  # an n that loses its side chain is written [nH]
            assert Chem.CanonSmiles(left) == core
            compared += 1
    assert compared > 150
