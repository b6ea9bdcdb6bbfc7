from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from gm_discrete import GMModel
from gm_discrete.paths import EuclideanMixturePath


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda _: None)  # the script's choice must not outlive the test
        yield importlib.import_module("recipes.toy")


@pytest.mark.slow
def test_toy__a_quick_run_writes_metrics_and_models(toy: ModuleType, tmp_path: Path) -> None:
    chosen = {"flow": "cosh", "diffusion": "itakura_saito"}
    arguments = ["--quick", "--workers", "1", "--ablation", "--divergence", json.dumps(chosen)]
    toy.main([*arguments, "--output_dir", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.json", "models", "processes.png"}
    with Image.open(tmp_path / "processes.png") as picture:
        assert picture.format == "PNG"
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    processes = metrics["processes"]
    assert list(processes) == [*toy.PROCESSES, *toy.ABLATIONS]
    for title, found in processes.items():
        values: list[float] = list(found.values())
        assert all(math.isfinite(value) and value >= 0 for value in values), title
        (end,) = (value for name, value in found.items() if name.endswith("end"))
        assert 0 < end < 1
    steps = {title: found["steps"] for title, found in processes.items()}
    assert steps["mixture path: diffusion"] == 4 * steps["mixture path: flow"] == 16
    apart = processes["CondOT: ½ flow + ½ jump, trained apart"]
    assert apart["network calls"] == 2 * processes["CondOT: ½ flow + ½ jump, one network"]["network calls"] == 8
    for name in toy.NETWORKS:
        model = GMModel.from_pretrained(tmp_path / "models" / name)
        kinds: dict[str, str] = model.config.divergence  # type: ignore[assignment]
        assert all(kinds[part] == kind for part, kind in chosen.items() if part in kinds)
        assert kinds.get("jump", "generalized_kl") == "generalized_kl"


def test_toy__data(toy: ModuleType) -> None:
    rng = torch.Generator().manual_seed(0)
    z = toy.checkerboard(10_000, rng)
    assert z.shape == (10_000, 1, 2)
    assert float(z.abs().max()) <= 2
    squares = (z.floor().long() + 2).flatten(1)
    counts = torch.bincount(4 * squares[:, 0] + squares[:, 1], minlength=16)
    black = torch.tensor([(i // 4 + i % 4) % 2 == 0 for i in range(16)])
    assert int(counts[~black].sum()) == 0
    # Eight cells of probability 1/8: σ = 33, seven of them are exceeded once in 10¹¹.
    assert int((counts[black] - 1250).abs().max()) < 7 * 33
    path = toy.mixture_path({"flow": 1.0}, 8)
    # An exact sample exceeds the distance √(ln(2·10⁴)/2n) with probability 10⁻⁴.
    assert toy.kolmogorov(toy.two_modes(10_000, rng), path, 1.0) < math.sqrt(math.log(2e4) / 2e4)


@pytest.mark.parametrize("kind", ["mixture_path", "condot"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_toy__marginals_are_those_of_the_paths(toy: ModuleType, kind: str, t: float) -> None:
    path: Any = getattr(toy, kind)({"flow": 1.0}, 8)
    rng, n = torch.Generator().manual_seed(1), 10_000
    x = path.sample(toy.two_modes(n, rng), torch.full((n,), t, dtype=torch.float64), rng)
    assert toy.kolmogorov(x, path, t) < math.sqrt(math.log(2e4) / 2 / n)
    assert toy.kolmogorov(x, path, 1.0) > 0.03  # far from the marginal at another time
    edges = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    density, function = toy.marginal_at(path, t, edges)
    torch.testing.assert_close(density.cumsum(0) * (edges[1] - edges[0]) + function[0], function, atol=3e-3, rtol=0)


def test_euclidean_mixture_path__samplers_stay_in_the_interval(toy: ModuleType) -> None:
    """A network moves a little beyond the ends, and the path does not accept such a state."""
    path = EuclideanMixturePath({"flow": 1.0}, -1, 1)

    class Outwards:
        def __init__(self) -> None:
            self.path = path

        def generator(self, x: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor | None = None) -> Any:
            path.check(x, t, "x")
            return path.generator(x.sign() * 0.5, None, None, None, x, t, t_next)

    rng = torch.Generator().manual_seed(0)
    for method in ("euler", "heun", "dopri5", "adaptive"):
        x = toy.simulate(Outwards(), path.prior((200, 1), rng), torch.linspace(0, 1, 9), rng, method)
        assert float(x.abs().max()) <= 1 + 2e-6
