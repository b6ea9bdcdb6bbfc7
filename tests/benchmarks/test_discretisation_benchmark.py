from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gm_discrete import CondOTSchedule, simulate

pytest.importorskip("torchdiffeq", reason="the peer of the ODE solvers, of the extra benchmarks")
Script = Callable[[str], ModuleType]


@pytest.mark.slow
def test_discretisation_benchmark__quick_run(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, output, plot = script("discretisation"), tmp_path / "new" / "errors.json", tmp_path / "errors.png"
    module.main(["--quick", "--schedules", "condot", "--threads", "1", "--output", str(output), "--plot", str(plot)])
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["benchmark"] == "discretisation"
    assert plot.read_bytes().startswith(b"\x89PNG")
    titles = [f"{data}, condot" for data in module.DATA]
    assert list(record["results"]) == titles
    samples = module.QUICK["samples"]
    for title, kinds in record["results"].items():
        assert list(kinds) == list(module.KINDS)
        assert 0.5 < record["noise"][title] * math.sqrt(samples) < 1.5  # 0.87 on the line, more of four projections
        for kind, curves in kinds.items():
            assert ("dopri5" in curves) == (kind == "flow")
            assert ("heun" in curves) == (kind != "jump")
            for name, points in curves.items():
                assert all(0 < point["end"] < 1 and 0 < point["middle"] < 1 for point in points), (title, kind, name)
                if name.startswith("one call"):
                    assert [point["calls"] for point in points] == module.QUICK["budgets"]
            coarse, fine = curves["adaptive"]
            assert coarse["calls"] < fine["calls"]
    printed = capsys.readouterr().out
    blocks = [block.splitlines() for block in printed.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2 * len(titles)
    assert all(len({line.count("|") for line in block}) == 1 for block in blocks)


@pytest.mark.slow
def test_discretisation_benchmark__peers(script: Script, tmp_path: Path) -> None:
    pytest.importorskip(
        "flow_matching.solver", reason="the peer, an extra: pip install flow_matching", exc_type=ImportError
    )
    module, output = script("discretisation"), tmp_path / "peers.json"
    module.main(["--quick", "--peers", "--threads", "1", "--output", str(output)])
    record = json.loads(output.read_text(encoding="utf-8"))
    quality, seconds = record["quality"], record["seconds per step"]["2"]
    # One method, one velocity, one grid: one result, whoever does the steps.
    for method in ("euler", "heun"):
        found = [figures["4"] for name, figures in quality.items() if name.startswith(method)]
        assert len(found) == 3
        assert max(found) - min(found) < 2 / module.QUICK["samples"]
    assert set(seconds) == {*quality, "network alone, one call"}
    assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize("data", ["line", "plane"])
def test_discretisation_benchmark__distribution_is_that_of_the_path(script: Script, data: str) -> None:
    module, t, n = script("discretisation"), 0.6, 4000
    mixture, rng = module.MixtureOnPath(data, CondOTSchedule()), torch.Generator().manual_seed(0)
    model = mixture.model(module.KINDS["flow"])
    x = model.path.sample(model.sample(n, rng), torch.full((n,), t, dtype=torch.float64), rng)
    # Exceeded once in 10⁴ times by each of at most four projections: √(ln(2·10⁴)/2n).
    bound = math.sqrt(math.log(8e4) / 2 / n)
    assert mixture.distance(x, t) < bound < mixture.distance(x, 0.9)
    x_0 = model.path.prior((n, 1, x.shape[2]), rng).double()
    assert mixture.distance(simulate(model, x_0, torch.linspace(0, t, 101).double(), rng), t) < bound


def test_discretisation_benchmark__the_best_fixed_grid_is_found_between_its_budgets(script: Script) -> None:
    module = script("discretisation")
    curves = {
        "heun": [module.Point(n, n, 0, 0, 1 / n) for n in (4, 16)],
        "one call, linear": [module.Point(n, n, 0, 0, 2 / n) for n in (4, 64)],
        "adaptive": [module.Point(0.1, 8, 0, 0, 1e-3)],
    }
    error, name = module.best_fixed(curves, 8, 1e-6)
    assert (error, name) == (pytest.approx(1 / 8), "heun")
    assert module.best_fixed(curves, 32, 1e-6) == (pytest.approx(1 / 16), "one call, linear")
    assert module.best_fixed(curves, 128, 1e-6) == (math.inf, "")
