"""Two models as one process: the distribution of the path, the generator that the path itself would superpose, and
errors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from gm_discrete import (
    Bins,
    EuclideanMixturePath,
    ExactGaussianModel,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    TrigonometricSchedule,
    simulate,
    superpose,
    time_grid,
)
from gm_discrete.generators import terms
from tests.helpers.distributions import LEAST_P
from tests.helpers.euclid import SCHEDULES, Mixture, kolmogorov, rng, times

DATA = Mixture([-1.0, 0.6], [0.3, 0.2], [0.4, 0.6])
N = 5000


def exact(generators: dict[str, Any], **options: Any) -> ExactGaussianModel:
    path = GaussianPath(generators, **options)
    return ExactGaussianModel(path, DATA.means[:, None], DATA.stds, DATA.law)


def actions(generator: Any, x: torch.Tensor) -> torch.Tensor:
    """L f(x) of two functions, [2, B]."""
    return torch.stack([generator.action(f, x) for f in (lambda y: y.sin().sum(1), lambda y: (y / (1 + y * y)).sum(1))])


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)])
@pytest.mark.parametrize("pair", [("flow", "jump"), ("diffusion", "jump"), ("flow", "diffusion")])
def test_superpose__generator_is_the_superposition_of_the_path(
    pair: tuple[str, str], weights: tuple[float, float]
) -> None:
    """Velocities, squared scales, rates and what they do to functions: of two models apart, and of one path with both."""
    first, second = ({name: 1.0} for name in pair)
    model = superpose(exact(first), exact(second), weights)
    whole = exact(dict(zip(pair, weights, strict=True)))
    x = torch.randn(6, 1, generator=rng(1), dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    generator, expected = model.generator(x, t), whole.generator(x, t)
    torch.testing.assert_close(actions(generator, x), actions(expected, x), rtol=1e-9, atol=1e-9)
    found = [(float(torch.as_tensor(w)[0]), type(part).__name__) for w, part in terms(generator)]
    shares = {name: sum(w for w, kind in found if kind == name) for name in ("Flow", "Diffusion", "Jump")}
    own = dict(zip(pair, weights, strict=True))
    assert shares == {kind: pytest.approx(own.get(kind.lower(), 0.0)) for kind in shares}


def test_superpose__steps_are_those_of_the_path() -> None:
    """With the noise of one generator: what `over` and an interval make of it is drawn alike, adaptive steps included."""
    model = superpose(exact({"flow": 1.0}), exact({"jump": 1.0}), (0.3, 0.7))
    whole = exact({"flow": 0.3, "jump": 0.7})
    assert model.path.spacing == "linear"  # as of one path with both
    assert superpose(exact({"jump": 1.0}), exact({"flow": 1.0})).path.spacing == "linear"
    assert superpose(exact({"jump": 1.0}), exact({"jump": 1.0})).path.spacing == "geometric"
    x_0 = torch.randn(300, 1, generator=rng(2), dtype=torch.float64)
    for method, grid in (
        ("tau_leaping", time_grid(model.path, 20)),
        ("heun", time_grid(model.path, 20)),
        ("adaptive", [0, 1]),
    ):
        ours, theirs = (simulate(each, x_0, grid, rng(3), method, return_info=True) for each in (model, whole))
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(ours.jumps, theirs.jumps)
        assert int(ours.jumps.sum()) > 100


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda schedule: schedule.type_name)
def test_superpose__flow_and_jump_have_the_distribution_of_the_path(schedule: Any) -> None:
    """Kolmogorov–Smirnov at an intermediate and the final time, 5,000 numbers. The jump alone errs by the length of its
    steps: of 100 steps the error is far below the noise of the sample."""
    model = superpose(exact({"flow": 1.0}, schedule=schedule), exact({"jump": 1.0}, schedule=schedule), (0.4, 0.6))
    grid = torch.cat([time_grid(model.path, 100), times(0.6, 1)]).unique()
    middle = int((grid == 0.6).nonzero())
    x_0 = torch.randn(N, 1, generator=rng(4), dtype=torch.float64)
    run = simulate(model, x_0, grid, rng(5), save_at=[middle], return_info=True)
    assert kolmogorov(run.states[0], DATA.cdf(schedule, 0.6))[1] > LEAST_P
    assert kolmogorov(run.x, DATA.cdf(schedule, 1.0))[1] > LEAST_P
    assert kolmogorov(run.x, DATA.cdf(schedule, 0.8))[1] < LEAST_P  # the test tells neighbouring distributions apart
    assert float((run.jumps > 0).double().mean()) > 0.3


def test_superpose__two_networks_are_one_process() -> None:
    """With classes, conditioning and generators passed to both."""
    networks = []
    for seed, weights in enumerate(({"flow": 1.0}, {"jump": 1.0})):
        torch.manual_seed(seed)
        path = GaussianPath(weights, num_channels=2, bins=Bins(-1, 1, 8))
        model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_classes=3))
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
        networks.append(model.eval())
    both = superpose(*networks)
    x_0 = torch.randn(2, 4, 2, generator=rng(6))
    labels = torch.tensor([0, 2])
    run = simulate(both, x_0, time_grid(both.path, 10), rng(7), return_info=True, class_labels=labels)
    assert bool(run.x.isfinite().all())
    assert int(run.jumps.sum()) > 0
    other = simulate(both, x_0, time_grid(both.path, 10), rng(7), class_labels=labels.flip(0))
    assert not torch.equal(other, run.x)
    t = times(0.5, 2)
    generator = both.generator(x_0, t, class_labels=labels)
    expected = networks[0].generator(x_0, t, class_labels=labels).parts["flow"].velocity
    assert torch.equal(generator.parts["0"].parts["flow"].velocity, expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.5, 1.5), (1.0,), (0.2, 0.3, 0.5)])
def test_superpose__weights_that_are_no_mixture_are_named(weights: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"weights={list(weights)}")):
        superpose(exact({"flow": 1.0}), exact({"jump": 1.0}), weights)


class Follower:
    """A model as far as `superpose` looks at it."""

    def __init__(self, path: Any) -> None:
        self.path = path


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (GaussianPath(), GaussianPath(schedule=TrigonometricSchedule())),
        (GaussianPath(), GaussianPath(num_channels=3)),
        (GaussianPath(), EuclideanMixturePath()),
        (EuclideanMixturePath(), EuclideanMixturePath(low=-2.0)),
    ],
)
def test_superpose__different_paths_are_named(first: Any, second: Any) -> None:
    with pytest.raises(ValueError, match=second.type_name):
        superpose(Follower(first), Follower(second))


def test_superpose__predictions_and_bins_may_differ() -> None:
    """How a network states its part, and which part it is, has nothing to do with the path."""
    first = GaussianPath({"flow": 1.0}, prediction="data", data_std=0.5)
    second = GaussianPath({"jump": 1.0}, bins=Bins(-2, 2, 16), noise=0.3)
    assert superpose(Follower(first), Follower(second)).path is first


@pytest.mark.parametrize("path", [MaskedPath(5), None])
def test_superpose__discrete_paths_are_named(path: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        superpose(exact({"flow": 1.0}), Follower(path))


def test_exact_gaussian_model__mean_velocity_at_0() -> None:
    """The stand-in of these tests: the mean of the data given nothing is that of the mixture."""
    generator = exact({"flow": 1.0}).generator(torch.zeros(1, 1, dtype=torch.float64), times(0.0, 1))
    velocity: Any = next(part for _, part in terms(generator))
    torch.testing.assert_close(velocity.velocity.flatten(), (DATA.law * DATA.means).sum()[None])
