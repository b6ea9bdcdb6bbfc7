"""Molecules as text: SMILES strings of the MOSES benchmark and a tokenizer of their symbols."""

from __future__ import annotations

import os
from collections.abc import Iterable

from datasets import DatasetDict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gm_discrete.data.packaged import package_folder
from gm_discrete.data.reading import read_splits
from gm_discrete.data.tokenizers import UNKNOWN, strings, with_special_tokens

SYMBOL = r"\[[^\[\]]*\]|Br|Cl|%\d\d|%\(\d+\)|[\s\S]"
"""One symbol of SMILES (OpenSMILES 1.0, section 3): an atom in brackets, Br, Cl, a ring closure of two or more digits, or
a single character, which is every other atom, bond, branch, dot and ring closure."""
MOSES_VALIDATION = 10_000
"""Molecules held out of the training split of MOSES, which has no validation split."""


def smiles_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One id per symbol of SMILES, those of `texts` in alphabetical order: `CC(=O)[O-]` is C, C, (, =, O, ), [O-].

    Then come `[UNK]`, for every other symbol, `[PAD]`, `[EOS]` and `[MASK]`.

    Raises:
        ValueError: there is no symbol.
    """
    split = pre_tokenizers.Split(Regex(SYMBOL), "isolated")
    symbols = sorted({symbol for text in strings(texts) for symbol, _ in split.pre_tokenize_str(text)})
    if not symbols:
        raise ValueError("texts hold no symbol; pass the SMILES to be tokenised")
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return with_special_tokens(tokenizer, unk_token=UNKNOWN)


def moses(cache_dir: str | os.PathLike[str] | None = None) -> DatasetDict:
    """The molecules of MOSES (arXiv 1811.12823), one canonical SMILES per row, of at most 54 symbols.

    Splits: train (1,574,663) and validation (10,000 of the benchmark's training split, by a fixed seed), test (176,074),
    and test_scaffolds (176,225), whose Bemis-Murcko scaffolds are in none of the others.

    Raises:
        ImportError: the package `molsets`, which holds them, is not installed.
    """
    folder = package_folder("moses", "molsets==0.3.1") / "dataset" / "data"
    files = {name: str(folder / f"{name}.csv.gz") for name in ("train", "test", "test_scaffolds")}
    splits = read_splits("csv", None, "a molsets of version 0.3.1", "source", cache_dir, data_files=files)
    splits = splits.select_columns("SMILES").rename_column("SMILES", "text")
    # At random, since the rows come sorted by their source.
    parts = splits.pop("train").train_test_split(MOSES_VALIDATION, seed=0)
    return DatasetDict(train=parts["train"], validation=parts["test"], **splits)
