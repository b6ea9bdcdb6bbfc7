"""The molecules of the MOSES benchmark as SMILES, and the part of a SMILES string that is the molecule's scaffold."""

from __future__ import annotations

import os
import re
from typing import Any

from datasets import Dataset

from gm_discrete.data.reading import read_splits
from gm_discrete.data.tokenizers import SMILES_SYMBOL
from recipes.datasets.packages import package_folder, require

BONDS = set("-=#:$/\\~.")
"""Bonds of SMILES, and the dot that separates molecules."""
MOSES_VALIDATION = 10_000
"""Molecules held out of the training split of MOSES, which has no validation split."""


def moses(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Dataset]:
    """The molecules of MOSES (arXiv 1811.12823) from the PyPI package `molsets`: one canonical SMILES per row.

    A molecule has at most 54 symbols. Splits: train (1,574,663) and validation (10,000 of the benchmark's training
    split, drawn with a fixed seed), test (176,074), and test_scaffolds (176,225), whose Bemis-Murcko scaffolds are in no
    other split.

    Raises:
        ImportError: `molsets` is not installed.
    """
    folder = package_folder("moses", "molsets==0.3.1") / "dataset" / "data"
    files = {name: [folder / f"{name}.csv.gz"] for name in ("train", "test", "test_scaffolds")}
    splits: Any = read_splits("csv", None, "an installation of molsets 0.3.1", cache_dir, data_files=files)
    rows: dict[str, Dataset] = {
        name: splits[name].select_columns("SMILES").rename_column("SMILES", "text") for name in files
    }
    # Drawn at random, because the rows are sorted by their source.
    parts = rows.pop("train").train_test_split(MOSES_VALIDATION, seed=0)
    return {"train": parts["train"], "validation": parts["test"], **rows}


def scaffold_mask(smiles: str) -> list[bool]:
    """Marks the symbols of a SMILES string that write the molecule's Bemis-Murcko scaffold.

    The scaffold is the rings, the chains between them, and the atoms that are bound to either by a double bond. Its atoms
    are those of rdkit's scaffold. A ring closure belongs to the atom before it; a bond to the scaffold if both of its
    atoms do; a pair of parentheses if the atom before it does and one inside. In `Cc1ccc(C(N)C2CC2)cc1` all symbols
    but the first C and the branch (N) are marked.

    Raises:
        ImportError: rdkit is not installed.
        ValueError: the molecule is not valid, or it writes hydrogen atoms, which rdkit merges with their neighbours.
    """
    require("rdkit", extra="scores")
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    symbols = re.findall(SMILES_SYMBOL, smiles)
    is_atom = [symbol[0] == "[" or symbol.isalpha() or symbol == "*" for symbol in symbols]
    mol = Chem.MolFromSmiles(smiles) if smiles else None
    if mol is None or mol.GetNumAtoms() != sum(is_atom):
        raise ValueError(f"smiles={smiles!r} is not a valid molecule without explicit hydrogen atoms")
    for atom in mol.GetAtoms():
        atom.SetIntProp("index", atom.GetIdx())  # which the scaffold's atoms keep
    core = {atom.GetIntProp("index") for atom in MurckoScaffold.GetScaffoldForMol(mol).GetAtoms()}

    kept = [False] * len(symbols)
    number = -1
    inside = False  # whether the atom that the next one binds to is in the scaffold
    open_branches: list[tuple[int, bool]] = []
    for place, symbol in enumerate(symbols):
        if is_atom[place]:
            number += 1
            kept[place] = number in core
            if kept[place - 1 : place] == [False] and symbols[place - 1] in BONDS:
                kept[place - 1] = inside and kept[place]
            inside = kept[place]
        elif symbol == "(":
            open_branches.append((place, inside))
        elif symbol == ")":
            start, inside = open_branches.pop()
            kept[start] = kept[place] = inside and any(kept[start:place])
        elif symbol not in BONDS:  # a ring closure, with the bond that may be written before it
            kept[place] = inside
            if symbols[place - 1] in BONDS:
                kept[place - 1] = inside
    return kept
