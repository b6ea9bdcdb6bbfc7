from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gm_discrete import simulate
from gm_discrete.samplers import time_grid
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square

pytest.importorskip(
    "flow_matching.solver", reason="the peer, an extra: pip install flow_matching", exc_type=ImportError
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SAMPLES, STEPS = 20_000, 3


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/chains.py, under a name of its own."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the script's choice must not outlive the test
    spec = importlib.util.spec_from_file_location("chains_benchmark", BENCHMARKS / "chains.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chains_benchmark", module)  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_chains_benchmark__quick_run(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "new" / "chains.json", tmp_path / "figures" / "chains.png"
    script.main(["--quick", "--threads", "1", "--output", str(output), "--plot", str(plot)])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["benchmark"] == "chains"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in (*output.parent.iterdir(), *plot.parent.iterdir())] == ["chains.json", "chains.png"]
    assert list(record["results"]) == list(script.PATHS)
    for name, cases in record["results"].items():
        curves = cases["2"]
        assert ("first hitting" in curves) == (name == "masked")
        assert ("flow_matching" in curves) == ("metric" not in name)
        assert {"order confidence", "entropy bounded"} <= curves.keys() or name != "masked"
        assert "entropy bounded" not in curves or name == "masked"
        probs = script.chain(script.PATHS[name](), 2).weights
        # Of the TV of n samples from their own distribution: |normal| in every cell, whose correlations only lessen it.
        deviation = math.sqrt(float(((1 - 2 / math.pi) * probs * (1 - probs)).sum()) / script.QUICK["samples"]) / 2
        # A place that the state chooses and a draw from the exact posterior there make the distribution, whatever the
        # choice.
        for exact in {"first hitting", "uniformization", "entropy bounded"} & curves.keys():
            (point,) = curves[exact]
            assert point["tv"] <= point["noise"] + SIGMAS * deviation + (point["error_bound"] or 0)
        for points in curves.values():
            assert all(point["calls"] <= point["steps"] * (1 + 1e-9) for point in points)
        for spacing in script.SPACINGS:
            coarse, *_, fine = curves[f"tau-leaping, {spacing}"]
            assert fine["tv"] < coarse["tv"] / 2
    assert set(record["comparisons"]) == {"steps", "calls"}
    printed = capsys.readouterr().out
    assert printed.count("| adaptive 0.25 |") == len(script.PATHS)
    tables = [block.splitlines() for block in printed.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 * len(script.PATHS) + 2 * len(script.PRICES)
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tau_leaping", "euler", "trapezoidal"])
@pytest.mark.parametrize(
    "path", ["masked", "uniform, mixture rates", "uniform, reversal rates", "metric, ordered symbols, kinetic"]
)
def test_chains_benchmark__matrices_are_the_distribution_of_the_samplers(
    script: ModuleType, path: str, method: str
) -> None:
    model = script.chain(script.PATHS[path](), 2)
    times, rng = time_grid(model.path, STEPS, "quadratic"), torch.Generator().manual_seed(0)
    probs, calls = script.exact_distribution(model, getattr(script, method), times)
    run = simulate(model, model.path.prior((SAMPLES, 2), rng), times, rng, method, return_info=True)
    counts = torch.bincount(model.index(run.x), minlength=len(probs))
    assert chi_square(counts, probs) > LEAST_P
    # The test has the power to fail: the distribution of a single step is told from that of three.
    other, _ = script.exact_distribution(model, getattr(script, method), time_grid(model.path, 1))
    assert chi_square(counts, other) < LEAST_P
    seen = run.network_calls.double()
    assert abs(float(seen.mean()) - calls) <= SIGMAS * float(seen.std()) / math.sqrt(SAMPLES) + 1e-9


def test_chains_benchmark__prices_are_interpolated_within_a_curve(script: ModuleType) -> None:
    points = [script.Point(n, n, n / 2, 1 / n, error=1 / n) for n in (1, 2, 4, 8)]
    assert script.price_of(points, 1 / 3, "steps") == ("", pytest.approx(3))  # a line in the logarithms
    assert script.price_of(points, 1 / 3, "calls") == ("", pytest.approx(1.5))
    assert script.price_of(points, 2, "steps") == ("<", 1)
    assert script.price_of(points, 0.1, "steps") == (">", 8)
    assert script.error_at(points, 3, "steps") == pytest.approx(1 / 3)
    assert script.error_at(points, 9, "steps") == math.inf


def test_chains_benchmark__noise_is_the_mean_of_the_simulated_tv(script: ModuleType) -> None:
    model, rng = script.chain(script.PATHS["masked"](), 3), torch.Generator().manual_seed(0)
    draws = torch.multinomial(model.weights, 200 * 2000, replacement=True, generator=rng).view(200, 2000)
    points = [script.measured(model, model.data[rows], 0, 0, 0) for rows in draws]
    tv = torch.tensor([point.tv for point in points], dtype=torch.float64)
    # |Binomial − mean| of rare cells is a little less than the normal's; the 27 cells have few of them.
    assert float(tv.mean()) == pytest.approx(points[0].noise, rel=0.02)


def test_chains_benchmark__unknown_arguments_are_refused(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--sample", "2"])
    assert "--sample" in capsys.readouterr().err
