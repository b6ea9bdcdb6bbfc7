"""`Path.at`: the values of a schedule at given times are computed once, and may be passed in place of the times."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CondOTSchedule,
    CosineSchedule,
    EuclideanMixturePath,
    GaussianPath,
    MaskedPath,
    MetricPath,
    MixturePath,
    ProductPath,
    TrigonometricSchedule,
    UniformPath,
)
from gm_discrete.generators.landings import Bins
from gm_discrete.paths import Path
from gm_discrete.paths.affine import AffineAt
from gm_discrete.paths.schedules import ScheduleAt
from tests.generators.test_transport import blurred

ALL = {"flow": 0.5, "diffusion": 0.2, "jump": 0.3}
PATHS: dict[str, Any] = {
    "masked": MaskedPath(4, schedule=CosineSchedule()),
    "reversal": UniformPath(4, schedule=CosineSchedule()),
    "mixture": MixturePath(4, [0.1, 0.2, 0.3, 0.4], rates="mixture"),
    "metric": MetricPath(4, embeddings=[[0.0], [1.0], [2.0], [4.0]]),
    "own": blurred(CosineSchedule()),
    "belief": GaussianPath(ALL, schedule=TrigonometricSchedule(), bins=Bins(-4, 4, 8)),
    "velocity": GaussianPath({"flow": 0.5, "jump": 0.5}, prediction="velocity", bins=Bins(-4, 4, 8)),
    "numbers": EuclideanMixturePath({"flow": 0.4, "diffusion": 0.3, "jump": 0.3}, schedule=CosineSchedule()),
}
every_path = pytest.mark.parametrize("name", PATHS)
T, S = torch.tensor([0.2, 0.6], dtype=torch.float64), torch.tensor([0.3, 0.9], dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(path: Path, seed: int = 0) -> Tensor:
    if path.is_discrete:
        return torch.randint(3, (2, 3), generator=rng(seed))
    return torch.rand(2, 3, 1, generator=rng(seed), dtype=torch.float64) - 0.5


def readout(path: Path, x: Tensor) -> Any:
    def answer(head: str, where: Tensor | None = None) -> Tensor:
        size = path.heads[head]
        if size == 1:
            return torch.rand(x.shape, generator=rng(1), dtype=torch.float64)
        rows = torch.rand(x.numel(), size, generator=rng(1), dtype=torch.float64)
        return rows if where is None else rows[where]

    return answer


def values(generator: Any) -> list[Tensor]:
    """Every tensor of a generator, and the probabilities of its kernels."""
    found = []
    for field in dataclasses.fields(generator):
        value = getattr(generator, field.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                found += [part] if isinstance(part, Tensor) else values(part)
    return found


def uses(path: Path, t: Any, s: Any) -> dict[str, list[Tensor]]:
    """Everything that a path computes at times t, and in the steps [t, s]."""
    x, z = state(path, 1), state(path, 2)
    network = readout(path, x)
    found = {
        "conditional": values(path.conditional(z, x, t)),
        "conditional step": values(path.conditional(z, x, t, s)),
        "marginal": values(path.marginal(network, x, t)),
        "marginal step": values(path.marginal(network, x, t, s)),
        "units": list(path.units(t).values()),
    }
    if not path.is_discrete:
        euclidean: Any = path
        found["normalized"] = [euclidean.normalized(x, t)]
        found["output"] = [euclidean.output(head, network(head), x, t) for head in path.heads if path.heads[head] == 1]
    return found


@every_path
def test_at__stands_for_its_times_in_every_method(name: str) -> None:
    path = PATHS[name]
    expected, found = uses(path, T, S), uses(path, path.at(T), path.at(S))
    for use, tensors in expected.items():
        assert tensors or use == "output"
        for a, b in zip(tensors, found[use], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@every_path
def test_at__of_itself_is_itself(name: str) -> None:
    now = PATHS[name].at(T)
    assert PATHS[name].at(now) is now
    assert now.t is T


@every_path
def test_at__rows_have_the_values_of_their_times(name: str) -> None:
    path, index = PATHS[name], torch.tensor([1, 1, 0])
    now, fresh = path.at(T), path.at(T[index])
    names = ("alpha", "sigma", "alpha_slope", "sigma_slope", "speed", "ratio", "rise", "fall")
    if isinstance(now, ScheduleAt):
        names = ("kappa", "complement", "derivative", "hazard")
    rows = now[index]
    for value in names:
        assert torch.equal(getattr(rows, value), getattr(fresh, value))
    assert torch.equal(now.t, T)


def test_at__rows_add_the_evidence_of_their_times() -> None:
    rows, x, row = torch.rand(3, 4, generator=rng()), torch.tensor([0, 3, 2]), torch.tensor([1, 0, 1])
    for name in ("reversal", "metric", "own"):
        path = PATHS[name]
        expected = path.add_evidence(rows.clone(), x, T[row])
        assert torch.equal(path.add_evidence(rows.clone(), x, path.at(T)[row]), expected)
    belief = PATHS["belief"]
    numbers, raw = torch.rand(3, generator=rng()), torch.rand(3, 8, generator=rng())
    assert torch.equal(
        belief.output("belief", raw, numbers, T[row]), belief.output("belief", raw, numbers, belief.at(T)[row])
    )


def test_affine_at__is_shaped_once_for_a_kind_of_state() -> None:
    now = GaussianPath().at(T)
    x = torch.zeros(2, 3, 1)
    here = now.shaped(x)
    assert here is now.shaped(x + 1)
    assert here is not now.shaped(x.double())
    assert here.alpha.shape == (2, 1, 1)
    assert here.alpha.dtype == torch.float32
    assert torch.equal(now[torch.tensor([1])].shaped(x[:1]).alpha, here.alpha[1:])


class CountedAffine(TrigonometricSchedule):
    calls: Counter

    def __getattribute__(self, name: str) -> Any:
        if name in ("alpha", "sigma", "alpha_derivative", "sigma_derivative"):
            CountedAffine.calls[name] += 1
        return super().__getattribute__(name)


class CountedSchedule(CosineSchedule):
    calls = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("kappa", "derivative", "hazard"):
            CountedSchedule.calls[name] += 1
        return super().__getattribute__(name)


def test_affine_at__computes_each_value_once_in_a_training_step() -> None:
    """Network input, outputs, prediction, target and units of one loss."""
    CountedAffine.calls = Counter()
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, schedule=CountedAffine(), bins=Bins(-4, 4, 8))
    x, z = state(path, 1), state(path, 2)
    now = path.at(T)
    path.normalized(x, now)
    logits = path.output("belief", torch.zeros(6, 8), x.flatten(), now[torch.arange(6) // 3]).view(2, 3, 1, 8)
    path.marginal(logits, x, now, check=False)
    path.conditional(z, x, now, check=False)
    path.units(now)
    assert dict(CountedAffine.calls) == dict.fromkeys(("alpha", "sigma", "alpha_derivative", "sigma_derivative"), 1)


def test_schedule_at__computes_kappa_once_in_a_training_step() -> None:
    path = UniformPath(4, schedule=CountedSchedule())  # which reads the ends
    CountedSchedule.calls = Counter()
    x, z = state(path, 1), state(path, 2)
    now = path.at(T)
    path.add_evidence(torch.zeros(6, 4), x.flatten(), now[torch.arange(6) // 3])
    path.marginal(torch.zeros(2, 3, 4), x, now, check=False)
    path.conditional(z, x, now, check=False)
    path.units(now)
    assert CountedSchedule.calls["kappa"] == 1
    assert CountedSchedule.calls["hazard"] == 1
    assert CountedSchedule.calls["derivative"] <= 2  # the hazard is κ'/(1 − κ), and the unit κ'


def test_product_path__at_is_by_field() -> None:
    path = ProductPath(a=MaskedPath(4), b=GaussianPath(), independent_times=True)
    t = torch.tensor([[0.2, 0.7], [0.4, 0.1]], dtype=torch.float64)
    now = path.at(t)
    assert isinstance(now["a"], ScheduleAt)
    assert isinstance(now["b"], AffineAt)
    assert now["b"].t.tolist() == [0.7, 0.1]
    assert all(path.at(now)[name] is now[name] for name in now)
    x = {"a": torch.tensor([[3], [3]]), "b": torch.zeros(2, 1, 1, dtype=torch.float64)}
    z = {"a": torch.tensor([[1], [2]]), "b": torch.ones(2, 1, 1, dtype=torch.float64)}
    for found, expected in (
        (path.conditional(z, x, now), path.conditional(z, x, t)),
        (path.conditional(z, x, now, path.at(t + 0.1)), path.conditional(z, x, t, t + 0.1)),
    ):
        for name in x:
            for a, b in zip(values(found.factors[name]), values(expected.factors[name]), strict=True):
                assert torch.equal(a, b)
    assert path.units(now).keys() == path.units(t).keys()
    path.check(x, now, "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reversal", "belief", "numbers"])
def test_path__is_compiled_without_a_graph_break(name: str) -> None:
    """Checks that read values are left out of a compiled graph, and `At` needs no Python that it cannot hold."""
    path = PATHS[name]
    x, z = state(path, 1), state(path, 2)

    def target(z: Tensor, x: Tensor, t: Tensor) -> list[Tensor]:
        now = path.at(t)
        return [*values(path.conditional(z, x, now)), *path.units(now).values()]

    compiled = torch.compile(target, backend="eager", fullgraph=True)
    for a, b in zip(compiled(z, x, T), target(z, x, T), strict=True):
        torch.testing.assert_close(a, b)


@every_path
def test_path__check_false_computes_the_same_without_looking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PATHS[name]
    x, z = state(path, 1), state(path, 2)
    network = readout(path, x)
    expected = [path.conditional(z, x, T, S), path.marginal(network, x, T, S)]
    sampled = path.sample(z, T, rng())

    def refuse(*_: Any) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr(type(path), "check", refuse)
    found = [path.conditional(z, x, T, S, check=False), path.marginal(network, x, T, S, check=False)]
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(u, v) for u, v in zip(values(a), values(b), strict=True))
    assert torch.equal(path.sample(z, T, rng(), check=False), sampled)
    for call in (lambda: path.conditional(z, x, T), lambda: path.marginal(network, x, T), lambda: path.sample(z, T)):
        with pytest.raises(AssertionError, match="checked"):
            call()


def test_path__members_that_every_path_has() -> None:
    """What layers above read of a path without asking for its class."""
    for path in (*PATHS.values(), ProductPath(a=MaskedPath(4), b=GaussianPath())):
        assert path.rates in ("masked", "reversal", "mixture", "kinetic", "")
        assert (path.stop > 0) == (path.state_name == "input_values")
        assert path.coupled is path.independent_times is False
        assert path.spacing in ("linear", "quadratic", "geometric")
        assert 0.9 < path.latest <= 1
        assert isinstance(path.tables(), dict)
    assert PATHS["masked"].excluded == (3,)
    assert PATHS["velocity"].excluded == ()
    assert MixturePath(3, coupled=True).coupled is True
    assert ProductPath(a=MaskedPath(4), independent_times=True).independent_times is True
    assert isinstance(GaussianPath().schedule, CondOTSchedule)
