from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.scores.images import train_classifier
from gm_discrete import GMModel, bregman

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {
    "images": 8, "calls": "4,8", "steps": 2, "hidden_size": 32, "layers": 1, "patch_size": 4, "bins": 4, "device": "cpu",
}  # fmt: skip
SCORES = ("frechet", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/superposition.py with 8×8 noise of two classes for digits, and a classifier of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(torch, "set_num_threads", lambda _: None)
        patch.setattr(bregman, "DIVERGENCES", dict(bregman.DIVERGENCES))  # the script adds one
        spec = importlib.util.spec_from_file_location("superposition_benchmark", BENCHMARKS / "superposition.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patch.setattr(module, "load_images", noise)
        patch.setattr(module, "train_classifier", partial(train_classifier, num_steps=5))
        yield module


def noise(_: str, split: str) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(160, (24, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return [{"pixel_values": image + 90 * (i % 2), "class_labels": i % 2} for i, image in enumerate(pixels)]


def run(benchmark: ModuleType, folder: Path, *arguments: str) -> None:
    sizes = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
    benchmark.main([*sizes, "--folder", str(folder), *arguments])


@pytest.fixture(scope="module")
def folder(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flow, jump and both, of two seeds, and a flow of another divergence."""
    folder = tmp_path_factory.mktemp("superposition")
    run(benchmark, folder, "--runs", "flow,jump,joint", "--seeds", "0,1")
    run(benchmark, folder, "--runs", "quartic")
    return folder


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"mnist-{name}.json").read_text(encoding="utf-8"))


def samplers(found: dict[str, Any]) -> set[str]:
    return {figure["sampler"] for figure in found["figures"]}


def test_superposition_benchmark__every_run_leaves_figures_and_a_model(folder: Path) -> None:
    expected = {
        "flow": {"flow, Euler", "flow, second order"},
        "jump": {"jump, Euler", "separate, Euler", "separate, mixed"},
        "joint": {"joint, Euler", "joint, mixed", "joint, flow alone", "joint, jump alone"},
    }
    names = {f"{run}-{seed}" for run in expected for seed in (0, 1)} | {"quartic-0"}
    assert {file.stem for file in folder.glob("*.json")} == {f"mnist-{name}" for name in names}
    for name in names:
        run, seed = name.split("-")
        found = record(folder, name)
        assert (found["run"], found["seed"], found["steps"]) == (run, int(seed), 2)
        assert samplers(found) == expected.get(run, {"quartic, Euler", "quartic, second order"})
        for sampler in samplers(found):
            calls = {4, 8} if "alone" not in sampler else {8}  # one of two generators is looked at in the end only
            assert {figure["calls"] for figure in found["figures"] if figure["sampler"] == sampler} == calls
        assert all(math.isfinite(figure[score]) for figure in [*found["figures"], found["floor"]] for score in SCORES)
        GMModel.from_pretrained(folder / f"mnist-{name}")
    generators = {run: GMModel.from_pretrained(folder / f"mnist-{run}-0").path.generators for run in expected}
    assert {run: set(weights) for run, weights in generators.items()} == {
        "flow": {"flow"}, "jump": {"jump"}, "joint": {"flow", "jump"},
    }  # fmt: skip
    assert GMModel.from_pretrained(folder / "mnist-quartic-0").config.divergence == {"flow": "quartic"}


def lines_of_table(benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    benchmark.main(["--table", "--folder", str(folder)])
    return capsys.readouterr().out.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_superposition_benchmark__the_table_gives_mean_and_standard_deviation_over_seeds(
    benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of_table(benchmark, folder, capsys)
    title, _, *rows = (cells(line) for line in lines if line.startswith("|"))
    table = {row[0]: dict(zip(title, row, strict=False)) for row in rows}
    assert set(table) == set().union(*(samplers(record(folder, f"{name}-0")) for name in ("flow", "jump", "joint"))) | {
        "quartic, Euler", "quartic, second order",
    }  # fmt: skip
    found = [figure for seed in (0, 1) for figure in record(folder, f"joint-{seed}")["figures"]]
    mixed = [figure for figure in found if figure["sampler"] == "joint, mixed"]
    row = table["joint, mixed"]
    assert row["seeds"] == "2"
    for calls in (4, 8):
        values = [figure["frechet"] for figure in mixed if figure["calls"] == calls]
        assert row[f"{calls} calls"] == f"{mean(values):.1f} ± {stdev(values):.1f}"
    recall = [figure["recall"] for figure in mixed if figure["calls"] == 8]
    assert row["recall"] == f"{mean(recall):.2f} ± {stdev(recall):.2f}"
    quartic = next(
        f for f in record(folder, "quartic-0")["figures"] if (f["sampler"], f["calls"]) == ("quartic, Euler", 8)
    )
    assert table["quartic, Euler"]["seeds"] == "1"
    assert table["quartic, Euler"]["8 calls"] == f"{quartic['frechet']:.1f}"  # nothing to deviate from
    floor = record(folder, "flow-0")["floor"]
    assert f"mnist: 2 steps; held-out images have distance {floor['frechet']:.2f}" in lines[0]


def test_superposition_benchmark__every_row_of_the_table_has_a_cell_for_every_column(
    benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in lines_of_table(benchmark, folder, capsys) if line.startswith("|")]
    assert {len(cells(line)) for line in lines} == {1 + 1 + 2 + 3}  # sampler, seeds, calls and scores


def test_superposition_benchmark__runs_in_the_folder_are_not_repeated(
    benchmark: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("flow-1", "joint-0"):
        (tmp_path / f"mnist-{name}.json").unlink()
    shutil.rmtree(tmp_path / "mnist-flow-1")  # the model of joint-0 stays, and is sampled again
    trained = []
    train = benchmark.trained
    monkeypatch.setattr(benchmark, "trained", lambda *given: trained.append(given[:2]) or train(*given))
    run(benchmark, tmp_path, "--runs", "flow,joint", "--seeds", "0,1")
    assert trained == [("flow", 1)]
    assert record(tmp_path, "flow-0") == record(folder, "flow-0")
    for name in ("flow-1", "joint-0"):
        assert record(tmp_path, name)["figures"] == record(folder, name)["figures"]


def test_superposition_benchmark__unknown_runs_are_named(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(benchmark, tmp_path, "--runs", "flow,leap")
    assert "--runs leap: no such run" in capsys.readouterr().err


def test_superposition_benchmark__separate_networks_need_the_flow_of_their_seed(
    benchmark: ModuleType, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "mnist-flow-1", tmp_path / "mnist-flow-1")
    run(benchmark, tmp_path, "--runs", "jump", "--seeds", "0,1", "--calls", "4")
    assert samplers(record(tmp_path, "jump-0")) == {"jump, Euler"}
    assert samplers(record(tmp_path, "jump-1")) == {"jump, Euler", "separate, Euler", "separate, mixed"}
