"""Scores of molecules against hand-computed values, rdkit's own similarities, and the code that MOSES publishes."""

from __future__ import annotations

import ast
import math
from collections import Counter
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="an extra: pip install gm_discrete[scores]")
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem, MACCSkeys
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy.spatial.distance import cosine as cos_distance

from benchmarks.scores import molecules
from benchmarks.scores.molecules import MoleculeStatistics, evaluate_molecules
from recipes.datasets import load_text, packages

WRONG = ["", "C1CC", "CC(C)(C)(C)C", "[PAD]", "c1cccc1", "C("]
RIGHT = ["OCC", "CCO", "c1ccccc1", "CC(=O)Nc1ccc(O)cc1", "O=C(NCc1ccccc1)C1CC1"]
A, B, NONE = [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]
BITS = np.array([A, B, NONE], dtype=np.uint8)


def test_canonical__an_invalid_string_is_none() -> None:
    assert molecules.canonical([*WRONG, *RIGHT[:2]]) == [None] * len(WRONG) + ["CCO", "CCO"]
    assert molecules.validity(["CCO", None, None, "C"]) == 0.5


def test_uniqueness__counts_the_first_k() -> None:
    assert molecules.uniqueness(["C", "C", "CC", "CCC"], 2) == 0.5
    assert molecules.uniqueness(["C", "C", "CC", "CCC"], 4) == 0.75
    assert molecules.uniqueness(["C", "CC"], 3) is None


def test_novelty__counts_each_molecule_once() -> None:
    assert molecules.novelty(["C", "C", "C", "CC", "CCC"], {"CC", "O"}) == pytest.approx(2 / 3)


@pytest.mark.parametrize("rows", [2, 4096])
def test_similarities__by_hand(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """T(a, b) = 1/3, T(a, 0) = T(b, 0) = 0, and what has no bit is like itself."""
    monkeypatch.setattr(molecules, "ROWS", rows)
    assert molecules.internal_diversity(BITS) == pytest.approx(1 - (3 + 2 / 3) / 9, abs=1e-6)  # float32 similarities
    roots = 2 * math.sqrt((1 + 1 / 9) / 3) + math.sqrt(1 / 3)
    assert molecules.internal_diversity(BITS, 2) == pytest.approx(1 - roots / 3, abs=1e-6)
    assert molecules.nearest_similarity(BITS[:1], BITS) == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-6)
    assert molecules.nearest_similarity(BITS, BITS[:1]) == pytest.approx(1)


def test_fingerprints__are_those_of_rdkit() -> None:
    bits = molecules.fingerprints(RIGHT)
    vectors = [AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(text), 2, nBits=1024) for text in RIGHT]
    assert bits.shape == (len(RIGHT), 1024)
    assert [set(row.nonzero()[0]) for row in bits] == [set(vector.GetOnBits()) for vector in vectors]
    pairs = [DataStructs.TanimotoSimilarity(a, b) for a in vectors for b in vectors]
    assert molecules.internal_diversity(bits) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-6)


def test_fragments_and_scaffolds__are_counted() -> None:
    amide = "O=C(NCc1ccccc1)C1CC1"
    assert molecules.fragments([amide, amide])["[16*]c1ccccc1"] == 2
    found = molecules.scaffolds([amide, "CCC(NCc1ccccc1)C1CC1", "CC(NCc1ccccc1)C1CC1", "c1ccccc1", "CCO"])
    assert found == {amide: 1, "c1ccc(CNCC2CC2)cc1": 2}
    assert molecules.cosine({"a": 3, "b": 4}, {"b": 2, "c": 1}) == pytest.approx(8 / (5 * math.sqrt(5)))
    assert molecules.cosine({}, {"a": 1}) is molecules.cosine({"a": 1}, {}) is None


@pytest.mark.parametrize(
    ("smiles", "passes"),
    [
        ("CCOCC", True), ("C1CCCCCCC1", False), ("C1CCCCCC1", True), ("C[NH3+]", False), ("C[Si](C)(C)C", False),
        ("CCC#N", False), ("CCO", False), ("CBr", True),
    ],
)  # fmt: skip
def test_passes_filters__known_molecules(smiles: str, passes: bool) -> None:
    patterns = [Chem.MolFromSmarts(pattern) for pattern in ("C#N", "[#8]-[#1]")]  # a hydrogen atom of its own
    assert molecules.passes_filters(smiles, patterns) == passes


def test_evaluate_molecules__all_scores() -> None:
    texts = [*WRONG[:2], "OCC", "CCO", "C", "CCCC"]
    references = {"test": MoleculeStatistics.of(["CCO", "O=C(NCc1ccccc1)C1CC1"])}
    scores = evaluate_molecules(texts, {"C"}, references, [Chem.MolFromSmarts("[OX2H]")])
    assert scores["valid"] == pytest.approx(4 / 6)
    assert scores["novelty"] == pytest.approx(2 / 3)
    assert scores["filters"] == 0.5
    assert scores["unique@1k"] is scores["unique@10k"] is None
    bits = molecules.fingerprints(["CCO", "CCO", "C", "CCCC"])
    assert scores["intdiv"] == molecules.internal_diversity(bits)
    assert scores["snn/test"] == molecules.nearest_similarity(references["test"].bits, bits)
    assert scores["frag/test"] == molecules.cosine(references["test"].fragments, Counter(CCO=2, C=1, CCCC=1))
    assert scores["frag/test"] > 0
    assert scores["scaf/test"] is None  # as none of them has two rings
    many = evaluate_molecules(["C", "CC"] * 500, {"C"})
    assert (many["valid"], many["unique@1k"], many["unique@10k"]) == (1, 0.002, None)
    assert "filters" not in many


def test_evaluate_molecules__without_a_valid_molecule() -> None:
    scores = evaluate_molecules(WRONG, {"C"}, {"test": MoleculeStatistics.of(["C"])}, [])
    assert scores.pop("valid") == 0
    assert len(scores) == 9
    assert set(scores.values()) == {None}
    with pytest.raises(ValueError, match="smiles is empty"):
        evaluate_molecules([], {"C"})


def test_molecule_scores__missing_rdkit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for call in (
        partial(evaluate_molecules, ["C"], {"C"}),
        partial(molecules.fingerprints, []),
        molecules.alerts,
        partial(molecules.scaffolds, []),
        partial(molecules.fragments, []),
    ):
        with pytest.raises(ImportError, match=r"pip install rdkit, or: pip install 'gm_discrete\[scores\]'"):
            call()


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The functions of moses/metrics, without the imports of the package, of which some are no longer to be had."""
    if find_spec("moses") is None:
        pytest.skip("molsets is not installed")
    folder = packages.package_folder("moses")
    names: dict[str, Any] = {
        "np": np, "torch": torch, "Chem": Chem, "AllChem": AllChem, "MACCSkeys": MACCSkeys, "Counter": Counter,
        "MurckoScaffold": MurckoScaffold, "partial": partial, "cos_distance": cos_distance,
        "Morgan": AllChem.GetMorganFingerprintAsBitVect, "mapper": lambda n: lambda f, xs: [f(x) for x in xs],
        "pd": SimpleNamespace(Series=()), "scipy": SimpleNamespace(sparse=SimpleNamespace(issparse=lambda x: False)),
        "_filters": molecules.alerts(),
    }  # fmt: skip
    for file in ("utils.py", "metrics/utils.py", "metrics/metrics.py"):
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        exec(compile(tree, file, "exec"), names)
    return names


def test_molecule_scores__equal_those_of_the_published_code(published: dict[str, Any]) -> None:
    rows: dict[str, Any] = {split: load_text("moses", split) for split in ("train", "test", "test_scaffolds")}
    training, reference = (rows[split][:100]["text"] for split in ("train", "test"))
    texts = [
        *WRONG,
        *RIGHT,
        *training[:20],
        *reference[::9],
        "C1CCCCCCC1",
        "C[NH3+]",
        "C=CC#N",
        *rows["test_scaffolds"][:40]["text"],
    ]
    scores = evaluate_molecules(texts, set(training), {"test": MoleculeStatistics.of(reference)}, molecules.alerts())
    valid = published["remove_invalid"](texts)
    generated, tests = (published["mapper"](1)(published["get_mol"], part) for part in (valid, reference))
    bits = [published["fingerprints"](part, fp_type="morgan") for part in (tests, generated)]
    fragments, scaffolds = (
        [published[f"compute_{kind}"](part) for part in (tests, generated)] for kind in ("fragments", "scaffolds")
    )
    expected = {
        "valid": published["fraction_valid"](texts),
        "novelty": published["novelty"](generated, training),
        "intdiv": published["internal_diversity"](generated),
        "intdiv2": published["internal_diversity"](generated, p=2),
        "filters": published["fraction_passes_filters"](generated),
        "snn/test": published["average_agg_tanimoto"](*bits),
        "frag/test": published["cos_similarity"](*fragments),
        "scaf/test": published["cos_similarity"](*scaffolds),
    }
    assert 0.5 < expected["filters"] < 1
    assert 0 < expected["scaf/test"] < 1
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)  # float32 similarities
    for k in (10, 40):
        assert molecules.uniqueness(valid, k) == published["fraction_unique"](valid, k)
