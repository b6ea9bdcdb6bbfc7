from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gm_discrete import ExactRotationModel, quaternions
from gm_discrete.generators.rotation_kernels import RotationBelief
from gm_discrete.paths.rotations import SO3Path

Script = Callable[[str], ModuleType]


def cells(record: dict[str, Any], table: int) -> list[str]:
    return [row[0] for row in record["tables"][table]["rows"]]


def test_rotations_benchmark__every_method_has_its_figures(script: Script, tmp_path: Path) -> None:
    rotations, file = script("rotations"), tmp_path / "rotations.json"
    rotations.main(["--quick", "--threads", "1", "--output", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert cells(record, 0) == [*rotations.METHODS, "noise"]
    assert cells(record, 1) == [*rotations.METHODS, *rotations.GEODESIC, "noise"]
    for figure in record["exact"] + record["network"]:
        assert 0 < figure["ks"] <= 1
        assert 0 < figure["tv"] <= 1
    assert len(record["exact"]) == 2 * len(rotations.METHODS)
    rotations.main(["--quick", "--calls", "2", "--threads", "1", "--length", "3", "--output", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert len(record["tables"]) == 1
    assert cells(record, 0) == [*rotations.METHODS, "noise"]


def test_reference__distances_are_those_of_noise_for_data_and_large_for_uniform_rotations(script: Script) -> None:
    rotations, rng = script("rotations"), torch.Generator().manual_seed(0)
    reference = rotations.Reference(20_000, rng)
    data, uniform = reference.model.sample(2000, rng), quaternions.uniform((2000, 1), rng)
    near, far = reference.distances(data), reference.distances(uniform)
    assert near["ks"] < 0.08  # eight statistics of Kolmogorov and Smirnov, each above 0.055 with probability 1e-5
    assert near["tv"] < 0.12  # mean 0.06, standard deviation 0.006
    assert far["ks"] > 0.3
    assert far["tv"] > 0.3
    assert reference.shares.sum() == pytest.approx(1)
    assert (reference.shares > 0).all()


def test_reference__of_several_rotations_compares_their_joint_distribution(script: Script) -> None:
    rotations, rng = script("rotations"), torch.Generator().manual_seed(0)
    reference = rotations.Reference(20_000, rng, length=2)
    data = reference.model.sample(2000, rng)
    near, apart = reference.distances(data), reference.distances(torch.stack([data[:, 0], data[:, 1].roll(1, 0)], 1))
    assert near["tv"] < 0.08  # 16 cells: mean 0.03
    assert apart["tv"] > 0.3  # each rotation by itself is right
    assert apart["ks"] < 0.08


def test_sample__takes_as_many_calls_as_asked_for(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    rotations = script("rotations")
    made: list[int] = []
    generator = ExactRotationModel.generator
    monkeypatch.setattr(ExactRotationModel, "generator", lambda *given: made.append(1) or generator(*given))
    for method in (rotations.METHODS["flow"], rotations.METHODS["flow, Heun, quadratic steps"]):
        made.clear()
        x = rotations.sample(rotations.toy(method[0]), method, 5, 4, seed=0)
        assert x.shape == (4, 1, 4)
        assert len(made) == 5


def test_picture__is_made(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "new" / "picture.png"
    script("rotations").main(["--quick", "--threads", "1", "--picture", str(file)])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_rotation_beliefs_benchmark__every_form_is_compared(script: Script, tmp_path: Path) -> None:
    beliefs, file = script("rotation_beliefs"), tmp_path / "beliefs.json"
    beliefs.main(["--quick", "--data", "toy", "--threads", "1", "--output", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert cells(record, 0) == beliefs.QUICK["forms"]
    for figure in record["results"]["toy"]["forms"].values():
        assert figure["updates"] > 0
        assert all(math.isfinite(loss) for loss in figure["losses"])


@pytest.mark.parametrize("form", ["fixed", "common", "offsets"])
def test_grid__without_a_prediction_is_nearly_uniform_and_trains(script: Script, form: str) -> None:
    beliefs = script("rotation_beliefs")
    path: SO3Path = beliefs.GridSO3Path(64, form, {"flow": 0.5, "jump": 0.5})
    rng = torch.Generator().manual_seed(0)
    x = path.prior((3, 1, 4), rng)
    raw = torch.zeros(3, 1, sum(path.heads.values()), requires_grad=True)
    belief = beliefs.GridSO3Path.mixture(path, raw.flatten(0, 1))
    assert belief.log_prob(quaternions.uniform((500, 1), rng)).abs().max() < 0.5
    kernel = path.marginal(raw, x, torch.full((3,), 0.5, dtype=torch.float64)).belief
    assert isinstance(kernel, RotationBelief)
    kernel.log_likelihood_ratio(x).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert (raw.grad[..., :64] != 0).any()


def test_windows__hold_the_rotations_between_neighbours(script: Script) -> None:
    beliefs, rng = script("rotation_beliefs"), torch.Generator().manual_seed(0)
    step = quaternions.exp(torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64))
    chain = [quaternions.uniform((), rng, dtype=torch.float64)]
    for _ in range(9):
        chain.append(quaternions.multiply(chain[-1], step))
    found = beliefs.windows([{"rotation": torch.stack(chain).numpy()}], length=4)
    assert found.shape == (2, 4, 4)  # of nine steps, one is left over
    assert quaternions.half_angle(found.double(), step).max() < 1e-6
