"""Scores of generated molecules as defined by MOSES (arXiv 1811.12823, section 5, and `moses/metrics` of molsets 0.3.1).

Where paper and code differ these follow the code, which made the published figures. The Fréchet ChemNet distance is not
here: it needs the weights of ChemNet.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recipes.datasets.packages import package_folder, require

RADIUS, BITS = 2, 1024
"""Radius and number of bits of the Morgan fingerprints of MOSES."""
ELEMENTS = {"C", "N", "S", "O", "F", "Cl", "Br", "H"}
"""Elements that pass the filters of MOSES."""
ROWS = 4096
"""Molecules compared at a time."""


def molecule(smiles: str) -> Any:
    """Parses a SMILES; None for a string that is empty, cannot be parsed or breaks the rules of valence."""
    require("rdkit", extra="scores")
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # which would print a line for every invalid string
        return Chem.MolFromSmiles(smiles) if smiles else None


def canonical(smiles: Iterable[str]) -> list[str | None]:
    """The canonical SMILES of each string, None for an invalid one."""
    require("rdkit", extra="scores")
    from rdkit import Chem

    found = map(molecule, smiles)
    return [None if mol is None else Chem.MolToSmiles(mol) for mol in found]


def validity(molecules: Sequence[str | None]) -> float:
    """#valid / #generated, for the output of `canonical`."""
    return sum(found is not None for found in molecules) / len(molecules)


def uniqueness(molecules: Sequence[str], k: int) -> float | None:
    """#distinct / k of the first k canonical SMILES; None if there are fewer than k."""
    return len(set(molecules[:k])) / k if len(molecules) >= k else None


def novelty(molecules: Iterable[str], training: Collection[str]) -> float:
    """#(G \\ T) / #G for the set G of generated and the training set T of canonical SMILES."""
    distinct = set(molecules)
    return len(distinct.difference(training)) / len(distinct)


def fingerprints(molecules: Sequence[str]) -> NDArray[np.uint8]:
    """Morgan fingerprints [N, 1024] of radius 2, as zeros and ones."""
    require("rdkit", extra="scores")
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    rows = [generator.GetFingerprintAsNumPy(molecule(smiles)) for smiles in molecules]
    return np.stack(rows) if rows else np.empty((0, BITS), np.uint8)


def internal_diversity(bits: NDArray[np.uint8], power: int = 1) -> float:
    """IntDiv_p(G) = 1 − 1/|G| Σ_a (1/|G| Σ_b T(a, b)^p)^(1/p), T the Tanimoto similarity of fingerprints.

    The pairs (a, a) count. For p = 2 the paper takes the root of the mean over all pairs, its code one root for each a.
    """
    total = sum(
        float((part**power).mean(0).pow(1 / power).sum())
        for part in (_tanimoto(bits, bits[start : start + ROWS]) for start in range(0, len(bits), ROWS))
    )
    return 1 - total / len(bits)


def nearest_similarity(reference: NDArray[np.uint8], bits: NDArray[np.uint8]) -> float:
    """SNN(G, R) = 1/|G| Σ_a max_{b ∈ R} T(a, b)."""
    total = 0.0
    for start in range(0, len(bits), ROWS):
        best = torch.zeros(len(bits[start : start + ROWS]))
        for left in range(0, len(reference), ROWS):
            similar = _tanimoto(reference[left : left + ROWS], bits[start : start + ROWS])
            best = torch.maximum(best, similar.max(0).values)
        total += float(best.double().sum())
    return total / len(bits)


def fragments(molecules: Iterable[str]) -> Counter[str]:
    """How often each BRICS fragment occurs."""
    require("rdkit", extra="scores")
    from rdkit import Chem

    counts: Counter[str] = Counter()
    for smiles in molecules:
        counts.update(Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(molecule(smiles))).split("."))
    return counts


def scaffolds(molecules: Iterable[str]) -> Counter[str]:
    """How often each Bemis-Murcko scaffold of two rings or more occurs."""
    require("rdkit", extra="scores")
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    found = (MurckoScaffold.GetScaffoldForMol(molecule(smiles)) for smiles in molecules)
    return Counter(Chem.MolToSmiles(core) for core in found if core.GetRingInfo().NumRings() >= 2)


def cosine(reference: Mapping[str, int], counts: Mapping[str, int]) -> float | None:
    """⟨r, g⟩ / (‖r‖ ‖g‖) of two tables of counts: Frag and Scaf of MOSES. None if one of them is empty."""
    norms = math.sqrt(sum(n**2 for n in reference.values()) * sum(n**2 for n in counts.values()))
    return sum(n * reference.get(name, 0) for name, n in counts.items()) / norms if norms else None


def alerts() -> list[Any]:
    """Reads the patterns of the medicinal-chemistry and PAINS filters from the PyPI package `molsets`.

    Raises:
        ImportError: it is not installed.
    """
    require("rdkit", extra="scores")
    from rdkit import Chem

    folder = package_folder("moses", "molsets==0.3.1") / "metrics"
    with (
        (folder / "mcf.csv").open(encoding="utf-8") as mcf,
        (folder / "wehi_pains.csv").open(encoding="utf-8") as pains,
    ):
        patterns = [row["smarts"] for row in csv.DictReader(mcf)] + [row[0] for row in csv.reader(pains)]
    return [Chem.MolFromSmarts(pattern) for pattern in patterns]


def passes_filters(smiles: str, patterns: Sequence[Any]) -> bool:
    """No ring of eight atoms or more, no charge, no element but `ELEMENTS`, and no match of the patterns of `alerts`."""
    require("rdkit", extra="scores")
    from rdkit import Chem

    mol = molecule(smiles)
    if any(len(ring) >= 8 for ring in mol.GetRingInfo().AtomRings()):
        return False
    if any(atom.GetFormalCharge() != 0 or atom.GetSymbol() not in ELEMENTS for atom in mol.GetAtoms()):
        return False
    whole = Chem.AddHs(mol)  # some patterns name hydrogen atoms
    return not any(whole.HasSubstructMatch(pattern) for pattern in patterns)


@dataclass(frozen=True)
class MoleculeStatistics:
    """Statistics by which sets of molecules are compared: fingerprints [N, 1024], counts of fragments and of scaffolds."""

    bits: NDArray[np.uint8]
    fragments: Counter[str]
    scaffolds: Counter[str]

    @classmethod
    def of(cls, molecules: Sequence[str]) -> MoleculeStatistics:
        """Computes the statistics of valid SMILES."""
        return cls(fingerprints(molecules), fragments(molecules), scaffolds(molecules))


def evaluate_molecules(
    smiles: Sequence[str],
    training: Collection[str],
    references: Mapping[str, MoleculeStatistics] | None = None,
    patterns: Sequence[Any] | None = None,
) -> dict[str, float | None]:
    """Computes all scores of generated strings, under the names used by MOSES.

    valid; for the valid ones unique@1k and unique@10k (None if there are fewer), novelty, intdiv, intdiv2; filters if
    there are `patterns`; snn, frag and scaf for each reference. All but uniqueness and novelty count duplicates.

    Args:
        smiles: generated strings, valid or not.
        training: canonical SMILES, best as a set.
        references: statistics of test sets by their names.
        patterns: those of `alerts`; None skips the filters.

    Raises:
        ImportError: rdkit is not installed.
        ValueError: there is no string.
    """
    if not smiles:
        raise ValueError("smiles is empty; give at least one string")
    found = canonical(smiles)
    valid = [text for text in found if text is not None]
    scores: dict[str, float | None] = {"valid": validity(found)}
    scores |= {f"unique@{k // 1000}k": uniqueness(valid, k) for k in (1000, 10_000)}
    names = ["novelty", "intdiv", "intdiv2"] + ["filters"] * (patterns is not None)
    names += [f"{score}/{name}" for name in references or {} for score in ("snn", "frag", "scaf")]
    if not valid:
        return scores | dict.fromkeys(names)
    bits = fingerprints(valid)
    scores["novelty"] = novelty(valid, training)
    scores["intdiv"], scores["intdiv2"] = internal_diversity(bits), internal_diversity(bits, 2)
    if patterns is not None:
        passed = [passes_filters(text, patterns) for text in tqdm(valid, desc="Filters", leave=False)]
        scores["filters"] = sum(passed) / len(valid)
    if references:
        counts = {"frag": fragments(valid), "scaf": scaffolds(valid)}
        for name, reference in references.items():
            scores[f"snn/{name}"] = nearest_similarity(reference.bits, bits)
            scores[f"frag/{name}"] = cosine(reference.fragments, counts["frag"])
            scores[f"scaf/{name}"] = cosine(reference.scaffolds, counts["scaf"])
    return scores


def _tanimoto(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> torch.Tensor:
    """|a ∧ b| / |a ∨ b| for every pair, [N, M]; 1 for two molecules without a bit."""
    a, b = torch.from_numpy(left).float(), torch.from_numpy(right).float()
    both = a @ b.T
    either = a.sum(1, keepdim=True) + b.sum(1) - both
    return torch.where(either == 0, 1.0, both / either)
