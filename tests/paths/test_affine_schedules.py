"""α and σ of x = αz + σε: their ends, their derivatives, and the effective duration of an interval for jumps."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gm_discrete.paths.affine import AffineSchedule, CondOTSchedule, TrigonometricSchedule
from gm_discrete.paths.schedules import Schedule
from tests.helpers.euclid import SCHEDULES, BentSchedule, numbers

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)
INNER = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)

# Each with α, σ, α' and σ', written out.
DEFINITIONS = {
    "condot": (lambda t: t, lambda t: 1 - t, lambda t: 1.0, lambda t: -1.0),
    "trigonometric": (
        lambda t: math.sin(math.pi * t / 2),
        lambda t: math.cos(math.pi * t / 2),
        lambda t: math.pi / 2 * math.cos(math.pi * t / 2),
        lambda t: -math.pi / 2 * math.sin(math.pi * t / 2),
    ),
    "bent": (
        lambda t: 1.5 * t - t * t / 2,
        lambda t: 1 - t / 2 - t * t / 2,
        lambda t: 1.5 - t,
        lambda t: -0.5 - t,
    ),
}


@every_schedule
def test_affine_schedule__values_and_derivatives(schedule: AffineSchedule) -> None:
    """Of the bent schedule, which is a user's own, the derivatives come of automatic differentiation: exact to rounding."""
    methods = (schedule.alpha, schedule.sigma, schedule.alpha_derivative, schedule.sigma_derivative)
    for method, definition in zip(methods, DEFINITIONS[schedule.type_name], strict=True):
        values = method(INNER)
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, numbers(*(definition(float(t)) for t in INNER)), rtol=1e-14, atol=1e-14)


@every_schedule
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_affine_schedule__automatic_derivatives_equal_the_given_ones(schedule: AffineSchedule, mode: type) -> None:
    """Whatever the mode of differentiation: samplers run without gradients."""
    with mode():
        for name in ("alpha_derivative", "sigma_derivative"):
            automatic, given = getattr(AffineSchedule, name)(schedule, INNER), getattr(schedule, name)(INNER)
            torch.testing.assert_close(automatic, given, rtol=1e-13, atol=1e-13)


@every_schedule
def test_affine_schedule__takes_expanded_times(schedule: AffineSchedule) -> None:
    """One time for a whole batch, as `t.expand(len(x))`: a view whose entries share their memory."""
    once = numbers(0.3)
    for method in (schedule.alpha_derivative, schedule.sigma_derivative, schedule.speed):
        assert method(once.expand(4)).tolist() == [float(method(once))] * 4


@every_schedule
def test_affine_schedule__ends_and_direction(schedule: AffineSchedule) -> None:
    ends = numbers(0, 1)
    assert schedule.alpha(ends).tolist() == pytest.approx([0, 1], abs=1e-16)
    assert schedule.sigma(ends).tolist() == pytest.approx([1, 0], abs=0)  # σ(1) = 0 exactly: there all is data
    assert bool((schedule.alpha(INNER).diff() > 0).all())
    assert bool((schedule.sigma(INNER).diff() < 0).all())


@every_schedule
def test_affine_schedule__speed_is_the_faster_of_the_two(schedule: AffineSchedule) -> None:
    _, _, rise, fall = DEFINITIONS[schedule.type_name]
    expected = numbers(*(max(rise(float(t)), -fall(float(t))) for t in INNER))
    torch.testing.assert_close(schedule.speed(INNER), expected, rtol=1e-14, atol=0)


def test_affine_schedule__sigma_of_the_trigonometric_schedule_keeps_its_precision_next_to_the_end() -> None:
    """cos(πt/2) at 1 − 10⁻¹² is known to 10⁻⁴ only; the sine of what is left, to rounding (of 1 − t itself: exact)."""
    left = 1 - float(1 - numbers(1e-12))
    assert float(TrigonometricSchedule().sigma(1 - numbers(1e-12))) == pytest.approx(math.pi / 2 * left, rel=1e-15)


# ---- growth: ∫ f(s) ds / f(t), f = speed/σ³


def growth(schedule: AffineSchedule, t: float, s: float) -> float:
    """By 400 Gauss–Legendre nodes on each side of the t = 1/2 at which the faster of α and −σ changes."""
    _, sigma, rise, fall = DEFINITIONS[schedule.type_name]

    def f(time: float) -> float:
        return max(rise(time), -fall(time)) / sigma(time) ** 3

    node, weight = np.polynomial.legendre.leggauss(400)
    total, ends = 0.0, sorted({t, min(max(t, 0.5), s), s})
    for a, b in itertools.pairwise(ends):
        total += sum(w * f(a + (b - a) * (n + 1) / 2) for n, w in zip(node, weight, strict=True)) * (b - a) / 2
    return total / f(t)


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.1), (0.3, 0.5), (0.5, 0.7), (0.6, 0.61), (0.9, 0.95), (0.99, 0.995)])
def test_affine_schedule__growth_of_steps(schedule: AffineSchedule, t: float, s: float) -> None:
    """Where σ falls by no more than half, 24 nodes are exact to rounding."""
    assert float(schedule.growth(numbers(t), numbers(s))) == pytest.approx(growth(schedule, t, s), rel=1e-12)
    assert float(schedule.growth(numbers(t), numbers(s))) > s - t  # the rate grows


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.9), (0.3, 0.9), (0.5, 0.97)])
def test_affine_schedule__growth_of_long_steps(schedule: AffineSchedule, t: float, s: float) -> None:
    """σ falls to a tenth, f grows a thousandfold and has an edge at 1/2 within: one part in a thousand remains."""
    assert float(schedule.growth(numbers(t), numbers(s))) == pytest.approx(growth(schedule, t, s), rel=1e-3)


@pytest.mark.parametrize(("t", "s"), [(0.0, 0.5), (0.2, 0.8), (0.9, 0.99)])
def test_affine_schedule__growth_of_condot_is_the_quadrature(t: float, s: float) -> None:
    """(1 − t)/2 · [((1 − t)/(1 − s))² − 1]; 24 nodes leave 10⁻⁹ where 1 − t falls to a tenth."""
    schedule = CondOTSchedule()
    quadrature = AffineSchedule.growth(schedule, numbers(t), numbers(s))
    closed = (1 - t) / 2 * (((1 - t) / (1 - s)) ** 2 - 1)
    assert float(schedule.growth(numbers(t), numbers(s))) == pytest.approx(closed, rel=1e-12)
    assert float(quadrature) == pytest.approx(closed, rel=1e-9)


def test_affine_schedule__growth_of_the_trigonometric_schedule_in_closed_form() -> None:
    """∫ sin/cos³ = 1/(2 cos²) after t = 1/2 and ∫ cos/cos³ = tan before, in u = πt/2."""
    schedule = TrigonometricSchedule()
    for t, s in ((0.1, 0.4), (0.0, 0.5)):
        u, v = math.pi * t / 2, math.pi * s / 2
        expected = (math.tan(v) - math.tan(u)) * math.cos(u) ** 2 / (math.pi / 2)
        assert float(schedule.growth(numbers(t), numbers(s))) == pytest.approx(expected, rel=1e-12)
    for t, s in ((0.5, 0.7), (0.9, 0.96)):
        u, v = math.pi * t / 2, math.pi * s / 2
        expected = (math.cos(v) ** -2 - math.cos(u) ** -2) / 2 * math.cos(u) ** 3 / math.sin(u) / (math.pi / 2)
        assert float(schedule.growth(numbers(t), numbers(s))) == pytest.approx(expected, rel=1e-12)


@every_schedule
def test_affine_schedule__growth_of_ends(schedule: AffineSchedule) -> None:
    """Nothing in no time; without bound up to t = 1; additive, in units of the rate at the start."""
    t, s, r = numbers(0.55, 0.8), numbers(0.7, 0.85), numbers(0.8, 0.9)
    assert schedule.growth(t, t).tolist() == [0, 0]
    assert schedule.growth(t, torch.ones_like(t)).tolist() == [math.inf, math.inf]

    def f(time: Tensor) -> Tensor:
        return schedule.speed(time) / schedule.sigma(time) ** 3

    both = schedule.growth(t, s) + f(s) / f(t) * schedule.growth(s, r)
    torch.testing.assert_close(schedule.growth(t, r), both, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("z", "x", "t", "step"), [(0.7, 2.2, 0.5, 0.05), (0.0, 2.0, 0.3, 0.1), (-1.0, 1.4, 0.6, 0.1)])
def test_affine_schedule__growth_is_that_of_the_jump_rate_at_a_fixed_point(
    z: float, x: float, t: float, step: float
) -> None:
    """CondOT: ∫ λ(x|z) ds = δ²/2 (1/v₁² − 1/v²) + zδ (1/v₁ − 1/v) − log(v/v₁), δ = x − z, v = 1 − t, v₁ = v − step.

    λ(t) · growth is within 10 % of it; λ(t) · step, for which the rate stays what it is, misses a tenth to a half.
    """
    v, end, delta = 1 - t, 1 - t - step, x - z
    rate = ((x - t * z) * (x - z) - v * v) / v**3
    exact = delta**2 / 2 * (end**-2 - v**-2) + z * delta * (1 / end - 1 / v) - math.log(v / end)
    grown = rate * float(CondOTSchedule().growth(numbers(t), numbers(t + step)))
    assert grown == pytest.approx(exact, rel=0.1)
    assert rate * step < 0.9 * exact
    assert abs(grown - exact) < 0.5 * abs(rate * step - exact)


# ---- configs


@every_schedule
def test_affine_schedule__travels_through_json(schedule: AffineSchedule) -> None:
    copy = AffineSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert copy == schedule
    assert type(copy) is type(schedule)
    assert float(copy.sigma(numbers(0.3))) == float(schedule.sigma(numbers(0.3)))


def test_affine_schedule__arguments_of_a_users_schedule_travel_through_json() -> None:
    copy = AffineSchedule.from_dict(BentSchedule(0.25).to_dict())
    assert copy == BentSchedule(0.25)
    assert copy != BentSchedule(0.5)


@pytest.mark.parametrize("name", ["linear", "nonsense", None])
def test_affine_schedule__is_no_schedule_of_a_discrete_path(name: str | None) -> None:
    with pytest.raises(ValueError, match=f"schedule={name!r} names no AffineSchedule; choose one of .*condot"):
        AffineSchedule.from_dict({"type": name})
    with pytest.raises(ValueError, match="schedule='condot' names no Schedule"):
        Schedule.from_dict({"type": "condot"})
