from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit", reason="an extra: pip install gm_discrete[scores]")
from rdkit import Chem

from gm_discrete import EditPath, GMConfig, GMModel, MaskedPath
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
    path = EditPath(len(tokenizer), blank_token_id=tokenizer.pad_token_id)
    special = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    GMModel(GMConfig(path=path.to_dict(), **special, **tiny)).save_pretrained(folder / "edits")
    tokenizer.save_pretrained(folder / "edits")
    with pytest.MonkeyPatch.context() as patch:
        install(folder / "package", patch)
        yield folder


def run(benchmark: ModuleType, folder: Path, *arguments: str) -> dict[str, Any]:
    places = ["--model", str(folder / "model"), "--output", str(folder / "scores.json")]
    benchmark.main([*places, "--quick", "--device", "cpu", "--threads", "1", *arguments])
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but the times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


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
    (model,) = record["models"].values()
    assert len(model["weights_sha256"]) == 64


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
    canvases = [tokenizer.convert_tokens_to_ids(row.split()) for row in rows]
    canvas = SimpleNamespace(tokenizer=tokenizer, blank=None)
    assert benchmark.texts_of(canvases, canvas) == ["CO", "CCCCC", "", "C[PAD]"]
    strings = SimpleNamespace(tokenizer=tokenizer, blank=tokenizer.pad_token_id)
    assert benchmark.texts_of(canvases[:2], strings) == ["CO[EOS]C[EOS]", "CCCCC"]


def test_scaffold_prompts__keep_the_scaffold(benchmark: ModuleType, folder: Path) -> None:
    source, args = parts(benchmark, folder, "--infill", "4", "--wrong-lengths")
    asked = benchmark.scaffold_prompts(source, args)
    assert {kind: len(prompts) for kind, prompts in asked.items()} == {"true": 4, "wrong": 4}
    for (text, prompt), (same, other) in zip(asked["true"], asked["wrong"], strict=True):
        assert text == same
        assert text in moses_molecules("test_scaffolds")
        kept = source.tokenizer.decode([symbol for symbol in prompt if symbol != source.hole])
        assert Chem.CanonSmiles(kept) in SCAFFOLDS
        assert set(prompt[len(source.tokenizer(text)["input_ids"]) :]) == {source.hole}
        assert kept == source.tokenizer.decode([symbol for symbol in other if symbol != source.hole])
        assert len(prompt) == len(other) == LENGTH


def test_prompt_of__holes_by_what_is_known_of_lengths(benchmark: ModuleType, folder: Path) -> None:
    """a **b***c, with stars that are removed: runs of two and three, and an open end."""
    source, _ = parts(benchmark, folder)
    ids, hole = [1, 0, 0, 2, 0, 0, 0, 3], source.hole
    kept, rng = [symbol > 0 for symbol in ids], benchmark.random.Random(0)
    assert benchmark.prompt_of(source, ids, kept, "unknown", rng) == [1, hole, 2, hole, 3, hole]
    assert benchmark.prompt_of(source, ids[:-1], kept[:-1], "unknown", rng) == [1, hole, 2, hole]
    full = [1, hole, hole, 2, hole, hole, hole, 3]
    assert benchmark.prompt_of(source, ids, kept, "true", rng) == full + [hole] * (LENGTH - 8)
    sizes = set()
    for _ in range(60):
        prompt = benchmark.prompt_of(source, ids, kept, "wrong", rng)
        second, third = prompt.index(2), prompt.index(3)
        sizes.add((second - 1, third - second - 1))
        assert prompt.count(hole) == LENGTH - 3
    assert sizes == {(first, second) for first in (1, 3, 4) for second in (1, 2, 4, 5)}


def parts(benchmark: ModuleType, folder: Path, *arguments: str) -> tuple[Any, Any]:
    args = benchmark.arguments(["--model", str(folder / "model"), "--quick", "--device", "cpu", *arguments])
    return benchmark.Source.of(str(folder / "model"), args.length, "cpu"), args


def test_length_scores__distance_and_chance(benchmark: ModuleType) -> None:
    expected = benchmark.frequencies(["C", "C", "CC", "CCl"])  # Cl is one symbol
    assert expected.tolist() == [0, 0.5, 0.5]
    found = benchmark.length_scores(["C", "CO", "CO", "COCO"], expected)
    assert found["mean length"] == 9 / 4
    assert found["length distance"] == pytest.approx((0.25 + 0 + 0.25) / 2)
    rng = torch.Generator().manual_seed(0)
    draws = torch.rand(20_000, 4, generator=rng).lt(0.5).double().mean(1)
    chance = (draws - 0.5).abs().mean()  # of a binomial; the formula takes it for a normal, hence the tolerance
    assert found["by chance"] == pytest.approx(float(chance), rel=0.1)


@pytest.mark.slow
def test_molecules_benchmark__edits_beside_masked(benchmark: ModuleType, folder: Path) -> None:
    masked, edits = str(folder / "model"), str(folder / "edits")
    ways = {masked: [{"num_steps": 3}], edits: [{"num_steps": 4}, {"num_steps": 4, "start_time": 0.5}]}
    record = run(benchmark, folder, "--model", masked, edits, "--ways", json.dumps(ways), "--wrong-lengths")
    names = ["model: tau_leaping, num_steps 3", "edits: tau_leaping, num_steps 4"]
    names.append(f"{names[1]}, start_time 0.5")
    assert [row[""] for row in record["samples"]] == ["test molecules", *names[:2]]
    filled = [(row[""], row["lengths"]) for row in record["infilling"]]
    assert filled == [(names[0], "true"), (names[0], "wrong"), (names[1], "unknown"), (names[2], "unknown")]
    for row in record["samples"]:
        assert 0 <= row["length distance"] <= 1
        assert 0 <= row["mean length"] <= LENGTH
    assert 0 < record["samples"][2]["calls"] <= 4
    assert record["infilling"][3]["calls"] <= 2  # half of the steps
    assert record["samples"][2]["changes per call"] > 0


def test_infill__shares(benchmark: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scaffolds: two fills are the original, two another molecule, one has no scaffold; and no valid fill."""
    source, args = parts(benchmark, folder, "--fills", "5")
    asked = [("Cc1ccc(CC2CC2)cc1", [source.hole, 0]), ("CC1CC1", [0, 1])]
    fills = ["c1(C)ccc(CC2CC2)cc1", "Cc1ccc(CC2CC2)cc1", *["Clc1ccc(CC2CC2)cc1"] * 2, "CCO", *["C1CC"] * 5]
    rows = [source.tokenizer(text)["input_ids"] for text in fills]
    monkeypatch.setattr(benchmark, "generate", lambda *_: (rows, {"calls": 7.0}))
    found = benchmark.infill(source, asked, ["CCc1ccc(CC2CC2)cc1", "CCC1CC1", "C1", "CC"], {}, args)
    shares = [found[name] for name in ("valid", "with the scaffold", "distinct", "the original")]
    assert shares == [5 / 10, 4 / 5, 3 / 5, 2 / 5]
    assert found["unconditional with the scaffold"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["symbols kept"] == pytest.approx((1 / 17 + 2 / 6) / 2)
    assert found["symbols removed"] == (16 + 4) / 2
    sizes = [19 - 1, 17 - 1, 17 - 1, 17 - 1, 3 - 1, *[4 - 2] * 5]
    assert found["symbols added"] == pytest.approx(sum(sizes) / 10)
    assert found["nothing added"] == 0
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
