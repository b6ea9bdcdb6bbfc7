"""Samplers on rotations: distributions of flow, jump, diffusion and superpositions with exact posteriors; order."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import SO3Path, quaternions, simulate, time_grid
from tests.helpers.distributions import LEAST_P, chi_square, rng
from tests.helpers.euclid import kolmogorov, noise_of_ks
from tests.helpers.rotations import (
    ALL,
    ASIDE,
    BOTH,
    CENTERS,
    REFERENCES,
    WEIGHTS,
    atoms_cdf,
    axis_component,
    data_density,
    equal_rotations,
    exact,
    grid,
    rotations,
    smooth_cdf,
    smooth_density,
    weighted_cdf,
)

KINDS: dict[str, dict[str, Any]] = {
    "flow": {"flow": 1.0},
    "jump": {"jump": 1.0},
    "diffusion": {"diffusion": 1.0},
    "superposed": ALL,
    "in turn": {"flow": [1.0, 0.0], "jump": [0.0, 1.0]},
}
NUMBER, STEPS = 500, 20
STEP_ERROR = 0.02
"""Kolmogorov–Smirnov distance that a grid of 20 steps may leave."""


def start(number: int, seed: int = 1) -> Tensor:
    """Evenly spread rotations, in a random order: the prior with next to no noise of its own."""
    turn = rotations(1, seed=seed)
    return quaternions.multiply(turn, grid(number))[torch.randperm(number, generator=rng(seed))][:, None]


@cache
def simulated(kind: str, smooth: bool, number: int, steps: int) -> tuple[SO3Path, dict[float, Tensor]]:
    """States at grid points near 0.4, 0.5, 0.6, 0.7 and 0.8, and at 1, by their times."""
    model = exact(SO3Path(BOTH if kind == "halves" else KINDS[kind]), smooth)
    points = time_grid(model.path, steps)
    indices = [*((points - t).abs().argmin().item() for t in (0.4, 0.5, 0.6, 0.7, 0.8)), steps]
    states = simulate(model, start(number), points, rng(2), return_info=True, save_at=indices).states
    return model.path, {float(points[index]): state[:, 0] for index, state in zip(indices, states, strict=True)}


def lateness(path: SO3Path, t: float, x: Tensor) -> Tensor:
    """By how much rotations [n, 4] of the smooth mixture lag behind the time t, on average a sample of p_{t−δ} by δ.

    The mean of ∂_t log p_t is 0 over p_t, and −δ times its variance over p_{t−δ}: no statistic tells delays with less noise.
    """

    def score(x: Tensor) -> Tensor:
        before, after = (smooth_density(path, t + step, x).log() for step in (-1e-4, 1e-4))
        return (after - before) / 2e-4

    points = grid(5000)
    return -score(x) / (smooth_density(path, t, points) * score(points).square()).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_samplers__have_the_distribution_of_a_smooth_mixture(kind: str) -> None:
    """Angles from three rotations, before the end and at it, and a coordinate of the axis."""
    path, states = simulated(kind, True, NUMBER, STEPS)
    for time in (min(states), 1.0):
        for reference in REFERENCES:
            angles = quaternions.half_angle(states[time].double(), reference)
            d, _ = kolmogorov(angles, smooth_cdf(path, time, reference))
            assert d < noise_of_ks(NUMBER) + STEP_ERROR
    expected = weighted_cdf(axis_component(grid(), ASIDE), data_density(grid()))
    assert kolmogorov(axis_component(states[1.0], ASIDE), expected)[0] < noise_of_ks(NUMBER) + STEP_ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_samplers__have_the_distribution_of_atoms(kind: str) -> None:
    """At the end every sample is one of the three, as often as its probability."""
    path, states = simulated(kind, False, NUMBER, STEPS)
    t = min(states)
    for reference in REFERENCES:
        d, _ = kolmogorov(quaternions.half_angle(states[t].double(), reference), atoms_cdf(path, t, reference))
        assert d < noise_of_ks(NUMBER) + STEP_ERROR
    distance, nearest = quaternions.half_angle(states[1.0].double()[:, None], CENTERS[:, 0]).min(1)
    assert float(distance.quantile(0.99)) < 0.02
    assert chi_square(torch.bincount(nearest, minlength=3), WEIGHTS) > LEAST_P


@pytest.mark.parametrize("kind", ["flow", "jump"])
def test_samplers__wrong_weights_have_another_distribution(kind: str) -> None:
    """What the tests above could miss."""
    path, states = simulated(kind, True, NUMBER, STEPS)
    tilted = smooth_cdf(path, 0.6, REFERENCES[0])
    assert kolmogorov(quaternions.half_angle(states[min(states)].double(), REFERENCES[0]), tilted)[0] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("flow", 0.02), ("jump", 0.03), ("halves", 0.03)])
def test_samplers__many_samples_are_within_a_few_percent(kind: str, most: float) -> None:
    """At 1, and at about 0.4 within half of that. A flow has next to no noise, as its prior has none.

    A flow that is 5 % too slow goes beyond it.
    """
    path, states = simulated(kind, True, 4000, 25)
    for time, limit in ((min(states), most / 2), (1.0, most)):
        for reference in REFERENCES:
            cdf = smooth_cdf(path, time, reference)
            assert kolmogorov(quaternions.half_angle(states[time].double(), reference), cdf)[0] < limit
    expected = weighted_cdf(axis_component(grid(), ASIDE), data_density(grid()))
    assert kolmogorov(axis_component(states[1.0], ASIDE), expected)[0] < most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jump", "halves"])
def test_samplers__are_on_time(kind: str) -> None:
    """From 0.5 to 0.8, within 0.011 on average. With four fifths of the jumps they are late by 0.02, by halves too."""
    path, states = simulated(kind, True, 4000, 25)
    late = [float(lateness(path, t, x).mean()) for t, x in states.items() if 0.45 < t < 0.85]
    assert len(late) == 4
    assert abs(sum(late) / 4) < 0.011


def test_flow__rotated_data_and_noise_rotate_the_samples() -> None:
    from gm_discrete import ExactRotationModel

    by, x_0 = rotations(1, seed=4), start(50)
    model = exact(SO3Path(), smooth=True)
    turned = ExactRotationModel(model.path, quaternions.multiply(by, model.centers), model.concentration, WEIGHTS)
    points = time_grid(model.path, 10)
    a, b = simulate(model, x_0, points), simulate(turned, quaternions.multiply(by, x_0), points)
    assert equal_rotations(quaternions.multiply(by, a), b, 1e-8)


@pytest.mark.parametrize(("sampler", "least"), [("tau_leaping", 1.5), ("heun", 3.0)])
def test_flow__error_falls_with_the_order_of_the_sampler(sampler: str, least: float) -> None:
    """Halving the steps halves the mean error of first order, and quarters that of second; from t = 0.1 to 0.8."""
    model, x_0 = exact(SO3Path()), start(40)

    def run(steps: int, name: str = sampler) -> Tensor:
        return simulate(model, x_0, torch.linspace(0.1, 0.8, steps + 1).double(), sampler=name)

    fine = run(80, "heun")
    errors = [float(quaternions.half_angle(run(steps), fine).mean()) for steps in (8, 16)]
    assert errors[0] / errors[1] > least
    assert errors[1] < 0.05


@pytest.mark.parametrize("kind", ["flow", "superposed"])
def test_adaptive__has_the_distribution(kind: str) -> None:
    model = exact(SO3Path(KINDS[kind]))
    x = simulate(model, start(400), [0.0, 1.0], rng(5), "adaptive")[:, 0]
    for reference in REFERENCES:
        cdf = smooth_cdf(model.path, 1.0, reference)
        assert kolmogorov(quaternions.half_angle(x, reference), cdf)[0] < noise_of_ks(400) + 0.03


def test_reweighted__is_a_path_with_those_weights() -> None:
    path = SO3Path(BOTH)
    again = path.reweighted({"jump": 1.0})
    assert again == SO3Path({"jump": 1.0})
    x_0 = start(40)
    a, b = (simulate(exact(p), x_0, time_grid(p, 8), rng(6)) for p in (again, SO3Path({"jump": 1.0})))  # pyright: ignore
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["flow", "superposed"])
def test_simulate__quaternions_stay_of_unit_length(kind: str) -> None:
    model = exact(SO3Path(KINDS[kind]))
    x = simulate(model, start(4).float(), time_grid(model.path, 200), rng(7))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(4, 1), rtol=0, atol=1e-6)


def test_simulate__takes_matrices_and_is_deterministic() -> None:
    model, x_0 = exact(SO3Path(BOTH)), start(20)
    points = time_grid(model.path, 8)
    a = simulate(model, x_0, points, rng(8))
    assert torch.equal(a, simulate(model, x_0, points, rng(8)))
    flow = exact(SO3Path())
    a, b = (simulate(flow, x, points, rng(8)) for x in (x_0, quaternions.to_matrix(x_0)))
    assert equal_rotations(a, b, 1e-6)


def test_simulate__fixed_rotations_stay_bit_for_bit() -> None:
    from gm_discrete import ExactRotationModel

    model = ExactRotationModel(SO3Path(ALL), rotations(3, 2), 20.0)
    x_0 = rotations(30, 2, seed=9)
    fixed = torch.zeros(30, 2, 4, dtype=torch.bool)
    fixed[:, 1] = True
    x = simulate(model, x_0, time_grid(model.path, 8), rng(9), fixed=fixed)
    assert torch.equal(x[:, 1], x_0[:, 1])
    assert not torch.equal(x[:, 0], x_0[:, 0])


def test_positions__are_conditioned_on_each_other() -> None:
    """Two positions with one component: both end at centres of the same one."""
    from gm_discrete import ExactRotationModel

    centers = rotations(3, 2, seed=10)
    model = ExactRotationModel(SO3Path(BOTH), centers)
    x = simulate(model, model.path.prior((200, 2, 4), rng(10)), time_grid(model.path, 30), rng(11))
    distance, nearest = quaternions.half_angle(x.double()[:, None], centers).min(1)
    assert float((nearest[:, 0] == nearest[:, 1]).double().mean()) > 0.97
    assert float(distance.quantile(0.95)) < 0.02
