from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from recipes.datasets import load_table

pytest.importorskip("sklearn")


def stones(rows: int = 300) -> pd.DataFrame:
    """A table with the columns that the benchmark asks for, where y is 2x and the cut is known from the depth."""
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 9, rows).round(2)
    depth = rng.normal(61, 2, rows).round(1)
    return pd.DataFrame(
        {
            "carat": rng.uniform(0.2, 3, rows).round(2),
            "cut": np.where(depth > 61, "Good", "Ideal"),
            "depth": depth,
            "price": (rng.uniform(300, 9000, rows)).astype(int),
            "x": x,
            "y": (2 * x).round(2),
        }
    )


def split(table: pd.DataFrame, source: str, part: str) -> Dataset:
    """The first eight tenths, the next and the last."""
    ends = {"train": (0, 8), "validation": (8, 9), "test": (9, 10)}[part]
    start, stop = (len(table) * end // 10 for end in ends)
    return Dataset.from_pandas(table[start:stop], preserve_index=False)


def noise(train: pd.DataFrame, seed: int, args: argparse.Namespace) -> Callable[[int], pd.DataFrame]:
    """Every column alone, in another order, with more decimals and a greater range than the real ones."""
    rng = np.random.default_rng(seed)

    def sample(number: int) -> pd.DataFrame:
        table = pd.DataFrame({name: rng.choice(train[name], number) for name in reversed(train.columns)})
        return table.assign(carat=rng.normal(1, 9, number))

    return sample


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/tables.py on 300 rows, with noise for a method."""
    module = script("tables")
    monkeypatch.setattr(module, "load_table", partial(split, stones()))
    monkeypatch.setitem(module.METHODS, "noise", noise)
    return module


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return value is None or math.isfinite(value)


def lines_of_table(benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    capsys.readouterr()
    benchmark.main(["--table", "--folder", str(folder)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_tables_benchmark__writes_tables_scores_and_times(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "load_table", partial(split, stones(1500)))
    benchmark.main(["--methods", "train,noise", "--seeds", "0,1", "--folder", str(tmp_path)])
    names = {f"method-{name}-{seed}" for name in ("train", "noise") for seed in (0, 1)}
    assert {file.stem for file in tmp_path.iterdir()} == names
    for name in names:
        found = record(tmp_path, name)
        assert found["rows"] == {"train": 1200, "validation": 150, "test": 150}
        assert all(found[part][clock] >= 0 for part in ("fit", "sampling") for clock in ("seconds", "cpu_seconds"))
        assert finite(found["figures"])
        assert len(pd.read_parquet(tmp_path / f"{name}.parquet")) == 1200
    assert "versions" in found["environment"]
    real, noisy = (record(tmp_path, f"method-{name}-0")["figures"] for name in ("train", "noise"))
    assert real["closest_records"]["copies"] == 1
    assert noisy["closest_records"]["copies"] == 0
    assert real["cut"]["accuracy"] > 0.9 > noisy["cut"]["accuracy"]
    assert real["pair_trends"] > noisy["pair_trends"]
    assert noisy["detection"]["boosting"] > 0.8

    title, _, *rows = lines_of_table(benchmark, tmp_path, capsys)
    cells = {row[0]: dict(zip(title, row, strict=True)) for row in rows[:2]}
    assert list(cells) == ["train", "noise"]
    assert cells["noise"]["seeds"] == "2"
    areas = [record(tmp_path, f"method-noise-{seed}")["figures"]["detection"]["boosting"] for seed in (0, 1)]
    assert cells["noise"]["AUC, boosting"] == f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f}"


@pytest.mark.slow
def test_tables_benchmark__scores_tables_of_the_folder(benchmark: ModuleType, tmp_path: Path) -> None:
    run = partial(benchmark.main, ["--methods", "noise", "--folder", str(tmp_path)])
    run()
    before = record(tmp_path, "method-noise-0")
    benchmark.METHODS["noise"] = None  # would fail if it were called
    run()
    assert record(tmp_path, "method-noise-0") == before
    lost = {name: value for name, value in before.items() if name != "figures"}
    (tmp_path / "method-noise-0.json").write_text(json.dumps(lost), encoding="utf-8")
    run()
    assert record(tmp_path, "method-noise-0") == before
    pd.read_parquet(tmp_path / "method-noise-0.parquet").assign(cut="Ideal").to_parquet(
        tmp_path / "method-noise-0.parquet"
    )
    run()
    assert record(tmp_path, "method-noise-0") == before
    benchmark.main(["--methods", "noise", "--folder", str(tmp_path), "--again"])
    after = record(tmp_path, "method-noise-0")
    assert after["figures"]["columns"]["cut"] < before["figures"]["columns"]["cut"]
    assert after["fit"] == before["fit"]


def test_conform__rounds_and_clips_numbers(benchmark: ModuleType) -> None:
    train = stones()
    table = noise(train, 0, argparse.Namespace())(500)
    found = benchmark.conform(table, train)
    assert list(found.columns) == list(train.columns)
    for name, decimals in {"carat": 2, "depth": 1, "price": 0, "x": 2}.items():
        assert np.array_equal(found[name], found[name].round(decimals))
        assert train[name].min() <= found[name].min() <= found[name].max() <= train[name].max()
    assert found["cut"].tolist() == table["cut"].tolist()
    inside = table["carat"].between(train["carat"].min(), train["carat"].max())
    assert abs(found["carat"] - table["carat"])[inside].max() <= 0.005 + 1e-9
    pd.testing.assert_frame_equal(benchmark.conform(train, train), train.astype({"price": float}), check_dtype=False)


def test_splits__fewer_rows_are_the_first_ones(benchmark: ModuleType) -> None:
    parts = benchmark.splits(argparse.Namespace(rows=None))
    assert {name: len(table) for name, table in parts.items()} == {"train": 240, "validation": 30, "test": 30}
    fewer = benchmark.splits(argparse.Namespace(rows=50))
    assert {split: len(table) for split, table in fewer.items()} == {"train": 40, "validation": 5, "test": 5}
    assert fewer["train"].equals(parts["train"][:40])


@pytest.mark.slow
def test_imputers__use_other_columns(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "load_table", partial(split, stones(1500)))
    names = ["mean", "neighbours", "boosting"]
    benchmark.main(["--imputers", ",".join(names), "--hidden", "0.2", "--imputed", "120", "--folder", str(tmp_path)])
    figures = {name: record(tmp_path, f"imputer-{name}-0")["figures"] for name in names}
    assert all(map(finite, figures.values()))
    assert 0.7 < figures["mean"]["columns"]["y"] < 1.3  # of 1 deviation; about 24 cells
    assert figures["neighbours"]["columns"]["y"] < 0.7
    assert figures["boosting"]["columns"]["y"] < 0.1  # y = 2x, and one cell of a row is hidden
    assert figures["boosting"]["columns"]["cut"] > 0.95 > figures["mean"]["columns"]["cut"]
    assert [record(tmp_path, f"imputer-{name}-0")["draws"] for name in names] == [1, 10, 1]
    _, _, *rows = lines_of_table(benchmark, tmp_path, capsys)
    assert [row[0] for row in rows] == names


@pytest.mark.parametrize("name", ["mean", "neighbours", "boosting"])
def test_imputers__keep_observed_cells(benchmark: ModuleType, name: str) -> None:
    table = stones(400)
    train, truth = table[:350].reset_index(drop=True), table[350:].reset_index(drop=True)
    hidden = benchmark.metrics.hide_cells(truth, 0.5)
    filled = benchmark.IMPUTERS[name](argparse.Namespace())(train, truth.mask(hidden), 0)
    for draw in filled if isinstance(filled, list) else [filled]:
        assert list(draw.columns) == list(truth.columns)
        assert not draw.isna().any(axis=None)
        for column in truth.columns:
            seen = ~hidden[column]
            assert draw.loc[seen, column].tolist() == truth.loc[seen, column].tolist()


@pytest.mark.slow
def test_tables_benchmark__draws_the_figure(benchmark: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    benchmark.main(["--methods", "train,noise", "--folder", str(tmp_path)])
    file = tmp_path / "figures" / "tables.png"
    benchmark.main(["--methods", "train,noise", "--folder", str(tmp_path), "--figure", str(file)])
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000


def test_tables_benchmark__unknown_names_are_an_error(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in "methods", "imputers":
        with pytest.raises(SystemExit):
            benchmark.main([f"--{option}", "mean,train,guess"])
        assert "guess" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copula", "tvae", "ctgan"])
def test_peers__generate_tables(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package = pytest.importorskip("sdv" if name == "copula" else "ctgan")
    if name != "copula":
        monkeypatch.setattr(package, name.upper(), partial(getattr(package, name.upper()), epochs=1))
    train = stones()
    table = benchmark.METHODS[name](train, 0, argparse.Namespace())(50)
    assert len(table) == 50
    assert set(table.columns) == set(train.columns)
    assert set(benchmark.conform(table, train)["cut"]) <= {"Good", "Ideal"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine ships the diamonds")
def test_ours__runs_the_recipe(benchmark: ModuleType, tmp_path: Path) -> None:
    """Two steps of the real recipe on the real table; its model makes rows, and fills the hidden cells."""
    arguments = ["--rows", "300", "--steps", "2", "--num_steps", "2", "--imputed", "20", "--folder", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "load_table", load_table)
        patch.setitem(
            benchmark.VARIANTS, "independent times", {"independent_times": True, "hidden_size": 16, "num_samples": 5}
        )
        benchmark.main(["--methods", "independent times", "--imputers", "independent times", *arguments])
    assert record(tmp_path, "method-independent times-0")["fit"]["cpu_seconds"] > 1
    table = pd.read_parquet(tmp_path / "method-independent times-0.parquet")
    assert len(table) == 240
    assert set(table["cut"]) <= {"Fair", "Good", "Very Good", "Premium", "Ideal"}
    found = record(tmp_path, "imputer-independent times-0")
    assert found["draws"] == 10
    assert finite(found["figures"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine ships the diamonds")
def test_tables_benchmark__the_diamonds(script: Callable[[str], ModuleType]) -> None:
    module = script("tables")
    rows = module.splits(argparse.Namespace(rows=None))["test"]
    assert module.metrics.column_kinds(rows)[1] == ["cut", "color", "clarity"]
    sizes = {split: len(table) for split, table in module.splits(argparse.Namespace(rows=None)).items()}
    assert sizes == {"train": 43_152, "validation": 5_394, "test": 5_394}
