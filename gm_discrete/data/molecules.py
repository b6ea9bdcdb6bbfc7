"""Molecules as text: SMILES strings of the MOSES benchmark and a tokenizer of their symbols."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from datasets import DatasetDict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gm_discrete.data.packaged import package_folder, require
from gm_discrete.data.reading import read_splits
from gm_discrete.data.tokenizers import UNKNOWN, strings, with_special_tokens

SYMBOL = r"\[[^\[\]]*\]|Br|Cl|%\d\d|%\(\d+\)|[\s\S]"
"""One symbol of SMILES (OpenSMILES 1.0, section 3): an atom in brackets, Br, Cl, a ring closure of two or more digits, or
a single character, which is every other atom, bond, branch, dot and ring closure."""
BONDS = set("-=#:$/\\~.")
"""Bonds of SMILES, and the dot that stands for none."""
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
    return DatasetDict({"train": parts["train"], "validation": parts["test"], **splits})


def require_rdkit() -> None:
    """Checks that rdkit is there.

    Raises:
        ImportError: it is not; the message names the command that installs it.
    """
    require("rdkit", extra="molecules")


def scaffold_tokens(smiles: str) -> list[bool]:
    """Which symbols of a molecule write its Bemis-Murcko scaffold: rings, what links them, and their double bonds outside.

    Atoms are those of rdkit's scaffold. A ring closure belongs to the atom before it; a bond to the scaffold if both of its
    atoms do; a pair of parentheses if the atom before it does and one inside. `Cc1ccc(C(N)C2CC2)cc1`: all but the first C
    and the branch (N).

    Raises:
        ImportError: rdkit is not installed.
        ValueError: the molecule is not valid, or it writes hydrogen atoms, which rdkit joins with others.
    """
    require_rdkit()
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    symbols = re.findall(SYMBOL, smiles)
    atoms = [symbol[0] == "[" or symbol.isalpha() or symbol == "*" for symbol in symbols]
    mol = Chem.MolFromSmiles(smiles) if smiles else None
    if mol is None or mol.GetNumAtoms() != sum(atoms):
        raise ValueError(f"smiles={smiles!r} is not a valid molecule without explicit hydrogen atoms")
    for atom in mol.GetAtoms():
        atom.SetIntProp("place", atom.GetIdx())  # which the scaffold's atoms keep
    core = {atom.GetIntProp("place") for atom in MurckoScaffold.GetScaffoldForMol(mol).GetAtoms()}

    kept, number, here = (
        [False] * len(symbols),
        -1,
        False,
    )  # here: is the atom that the next one binds to of the scaffold?
    open_branches: list[tuple[int, bool]] = []
    for place, symbol in enumerate(symbols):
        if atoms[place]:
            number += 1
            kept[place] = number in core
            if kept[place - 1 : place] == [False] and symbols[place - 1] in BONDS:
                kept[place - 1] = here and kept[place]
            here = kept[place]
        elif symbol == "(":
            open_branches.append((place, here))
        elif symbol == ")":
            start, here = open_branches.pop()
            kept[start] = kept[place] = here and any(kept[start:place])
        elif symbol not in BONDS:  # a ring closure, with the bond that may be written before it
            kept[place] = here
            if symbols[place - 1] in BONDS:
                kept[place - 1] = here
    return kept
