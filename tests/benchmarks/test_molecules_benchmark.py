from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit", reason="an extra: pip install gm_discrete[scores]")
from rdkit import Chem

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import smiles_tokenizer
from tests.helpers.moses_package import install, moses_molecules

LENGTH = 28
SCAFFOLDS = {Chem.CanonSmiles(text) for text in ("c1ccc(CC2CC2)cc1", "C1CCN(c2ccccc2)CC1")}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        patch.setattr(torch, "set_num_threads", lambda _: None)  # the script's choice must not outlive the test
        import molecules

        yield molecules


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model with its tokenizer, and a few molecules in place of MOSES."""
    folder = tmp_path_factory.mktemp("molecules")
    tokenizer = smiles_tokenizer(
        text for split in ("train", "test", "test_scaffolds") for text in moses_molecules(split)
    )
    torch.manual_seed(0)
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    GMModel(GMConfig(path=path.to_dict(), mask_token_id=tokenizer.mask_token_id, **tiny)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        install(folder / "package", patch)
        yield folder


def run(benchmark: ModuleType, folder: Path, *arguments: str) -> dict[str, Any]:
    places = ["--model", str(folder / "model"), "--output", str(folder / "scores.json")]
    benchmark.main([*places, "--quick", "--device", "cpu", "--threads", "1", *arguments])
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but the times."""
    return [{name: value for name, value in row.items() if name != "seconds per molecule"} for row in rows]


@pytest.mark.slow
def test_molecules_benchmark__a_row_per_sampler(
    benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ordered = '{"num_steps": 4, "sampler": {"type": "tau_leaping", "order": "confidence"}, "temperature": 0.5}'
    ways = f'[{{"num_steps": 2}}, {ordered}, {{"sampler": "first_hitting"}}]'
    record = run(benchmark, folder, "--references", "test,test_scaffolds", "--filters", "--ways", ways)
    real, *rows = record["samples"]
    names = ["tau_leaping, num_steps 2", "tau_leaping, order confidence, num_steps 4, temperature 0.5", "first_hitting"]
    assert [row[""] for row in rows] == [row[""] for row in record["infilling"]] == names
    assert real[""] == "test molecules"
    assert (real["valid"], real["novelty"], real["molecules"]) == (1, 1, 14)
    assert 0 < real["filters"] < 1  # one head has a nitrile and two an alcohol
    assert real["snn/test"] == pytest.approx(1)
    assert 0 < real["snn/test_scaffolds"] < 1
    calls = [row["calls"] for row in rows]
    assert 0 < calls[0] <= 2 < calls[1] <= 4 < calls[2] <= LENGTH
    filling = [row["calls"] for row in record["infilling"]]
    assert filling[2] < calls[2]  # as the scaffold is there
    for row in record["infilling"]:
        assert (row["scaffolds"], row["fills"]) == (3, 6)
        assert 0 < row["symbols kept"] < 1
        assert row["unconditional with the scaffold"] == 0
    printed = capsys.readouterr().out
    assert "| first_hitting | " in printed
    assert "| symbols kept | " in printed
    again = run(benchmark, folder, "--references", "test,test_scaffolds", "--filters", "--ways", ways)
    assert figures(again["samples"]) == figures(record["samples"])
    assert figures(again["infilling"]) == figures(record["infilling"])
    assert len(record["model"]["weights_sha256"]) == 64


@pytest.mark.slow
def test_molecules_benchmark__parts_can_be_left_out(benchmark: ModuleType, folder: Path) -> None:
    arguments = ["--infill", "0", "--ways", '[{"num_steps": 3}]', "--num-samples", "5", "--bf16"]
    record = run(benchmark, folder, *arguments)
    assert record["infilling"] == []
    assert [row["molecules"] for row in record["samples"]] == [5, 5]
    assert not any("/" in name or name == "filters" for row in record["samples"] for name in row)


def test_texts_of__a_molecule_ends_at_the_first_end(benchmark: ModuleType) -> None:
    tokenizer = smiles_tokenizer(["CO", "[nH]"])
    rows = ["C O [EOS] C [EOS]", "C C C C C", "[EOS] [PAD] [PAD] [PAD] [PAD]", "C [PAD] [EOS] [PAD] [PAD]"]
    tokens = torch.tensor([tokenizer.convert_tokens_to_ids(row.split()) for row in rows])
    assert benchmark.texts_of(tokens, tokenizer) == ["CO", "CCCCC", "", "C[PAD]"]


def test_scaffold_prompts__keep_the_scaffold(benchmark: ModuleType, folder: Path) -> None:
    model, tokenizer, args = parts(benchmark, folder, "--infill", "4")
    asked = benchmark.scaffold_prompts(model, tokenizer, args)
    assert len(asked) == 4
    for text, canvas in asked:
        assert text in moses_molecules("test_scaffolds")
        kept = tokenizer.decode(canvas[canvas != tokenizer.mask_token_id])
        assert Chem.CanonSmiles(kept) in SCAFFOLDS
        assert canvas[len(tokenizer(text)["input_ids"]) :].eq(tokenizer.mask_token_id).all()


def parts(benchmark: ModuleType, folder: Path, *arguments: str) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer

    args = benchmark.arguments(["--model", str(folder / "model"), "--quick", "--device", "cpu", *arguments])
    return GMModel.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(folder / "model"), args


def test_infill__shares(benchmark: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scaffolds: two fills are the original, two another molecule, one has no scaffold; and no valid fill."""
    model, tokenizer, args = parts(benchmark, folder, "--fills", "5")
    asked = [("Cc1ccc(CC2CC2)cc1", torch.tensor([tokenizer.mask_token_id, 0])), ("CC1CC1", torch.tensor([0, 1]))]
    fills = ["c1(C)ccc(CC2CC2)cc1", "Cc1ccc(CC2CC2)cc1", *["Clc1ccc(CC2CC2)cc1"] * 2, "CCO", *["C1CC"] * 5]
    monkeypatch.setattr(benchmark, "generate", lambda *_: (fills, {"calls": 7.0}))
    found = benchmark.infill(model, tokenizer, asked, ["CCc1ccc(CC2CC2)cc1", "CCC1CC1", "C1", "CC"], {}, args)
    shares = [found[name] for name in ("valid", "with the scaffold", "distinct", "the original")]
    assert shares == [5 / 10, 4 / 5, 3 / 5, 2 / 5]
    assert found["unconditional with the scaffold"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["symbols kept"] == pytest.approx((1 / 17 + 2 / 6) / 2)
    assert (found["scaffolds"], found["fills"], found["calls"]) == (2, 10, 7)


def test_molecules_benchmark__wrong_arguments_are_an_error(
    benchmark: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argument, value, message in (
        ("--references", "half", "'half' is none of test, test_scaffolds"),
        ("--num-samples", "0", "--num-samples 0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            run(benchmark, folder, argument, value)
        assert message in capsys.readouterr().err
    with pytest.raises((TypeError, ValueError), match="num_step"):
        run(benchmark, folder, "--ways", '[{"num_step": 4}]')
    GMModel.from_pretrained(folder / "model").save_pretrained(tmp_path)
    smiles_tokenizer(["CO"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer has mask_token_id=5"):
        benchmark.main(["--model", str(tmp_path), "--quick", "--device", "cpu"])
