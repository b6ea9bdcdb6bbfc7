"""A few molecules and filters laid out as the package `molsets` has its million: what the tests find in its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from rdkit import Chem

from recipes.datasets import molecules

HEADS = ("C", "CC", "CCC", "CO", "N#C", "CN(C)", "O=C(O)")
CORES = {
    "train": ("c1ccccc1", "c1ccncc1", "C1CCCC1", "c1ccc(C(=O)NC2CC2)cc1"),
    "test": ("c1ccc(F)cc1", "c1ccc(Cl)cc1"),
    "test_scaffolds": ("c1ccc(CC2CC2)cc1", "C1CCN(c2ccc(Br)cc2)CC1"),
}
VALIDATION = 6


def moses_molecules(split: str) -> list[str]:
    """Canonical SMILES of the stand-in's split, validation within train."""
    return [Chem.CanonSmiles(head + core) for head in HEADS for core in CORES[split]]


def install(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Lets Python find the stand-in first, and holds six molecules of it out for validation."""
    root = folder / "moses"
    (root / "dataset" / "data").mkdir(parents=True)
    (root / "metrics").mkdir()
    (root / "__init__.py").touch()
    for split in CORES:
        lines = "".join(f"{smiles}\n" for smiles in ["SMILES", *moses_molecules(split)])
        (root / "dataset" / "data" / f"{split}.csv.gz").write_bytes(gzip.compress(lines.encode()))
    (root / "metrics" / "mcf.csv").write_text("names,smarts\nMCF1,C#N\n", encoding="utf-8")
    (root / "metrics" / "wehi_pains.csv").write_text('"[OX2H]","<regId=alcohol(1)>"\n', encoding="utf-8")
    patch.syspath_prepend(folder)
    patch.setattr(molecules, "MOSES_VALIDATION", VALIDATION)
    patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
