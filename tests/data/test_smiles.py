"""The tokenizer of SMILES, and padding that is scored."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gm_discrete.data import TokenCollator, smiles_tokenizer, truncate

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


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return smiles_tokenizer(SYMBOLS)


@pytest.mark.parametrize("text", SYMBOLS)
def test_smiles_tokenizer__symbols(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, text: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    for tokens in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokens(text)["input_ids"]
        assert tokens.convert_ids_to_tokens(ids) == SYMBOLS[text].split()
        assert tokens.decode(ids) == text


def test_smiles_tokenizer__symbols_come_before_the_special_tokens() -> None:
    tokenizer = smiles_tokenizer(["[nH]", "ClC", "CBr"])
    expected = ["Br", "C", "Cl", "[nH]", "[UNK]", "[PAD]", "[EOS]", "[MASK]"]
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__) == expected
    special = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.mask_token, tokenizer.unk_token)
    assert special == ("[PAD]", "[EOS]", "[MASK]", "[UNK]")


def test_smiles_tokenizer__other_symbols_are_unknown() -> None:
    tokenizer = smiles_tokenizer(["ClC(C)C"])
    ids = tokenizer("C[Se]P", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["C", "[UNK]", "[UNK]"]
    spelt = truncate(Dataset.from_dict({"text": ["C[MASK]"]}), tokenizer, 4, add_eos=False)
    assert tokenizer.convert_ids_to_tokens(spelt[0]["input_ids"]) == ["C", "[UNK]"]  # an atom in brackets, no mask


def test_smiles_tokenizer__texts_without_symbols_are_an_error() -> None:
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="texts"):
            smiles_tokenizer(texts)
    with pytest.raises(TypeError, match="texts"):
        smiles_tokenizer("CCO")


def test_truncate__padding_can_be_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["CO", "", "CCCCC"]})
    for rows in (dataset, dataset.to_iterable_dataset()):
        found: list[Any] = list(truncate(rows, tokenizer, 4, pad_to_length=True))
        symbols = [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in found]
        expected = [["C", "O", "[EOS]", "[PAD]"], ["[EOS]"] + 3 * ["[PAD]"], ["C"] * 4]
        assert symbols == expected
        batch = TokenCollator(tokenizer.pad_token_id)(found)
        assert batch["labels"].equal(batch["input_ids"])
        assert "attention_mask" not in batch
    open_ended: list[Any] = list(truncate(dataset, tokenizer, 4))
    assert [len(row["input_ids"]) for row in open_ended] == [3, 1, 4]
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="pad_to_length=True"):
        truncate(dataset, bare, 4, pad_to_length=True)
