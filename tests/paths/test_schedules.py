"""κ, its complement, derivative and inverse, against the same formulas in 60 digits."""

import json
import math
from collections.abc import Callable

import mpmath  # a dependency of torch's sympy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gm_discrete import (
    CosineSchedule,
    EditPath,
    EuclideanMixturePath,
    ExponentialSchedule,
    LinearSchedule,
    MaskedPath,
    MetricPath,
    Path,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
)
from gm_discrete.paths.schedules import Schedule

MP = mpmath.mp.clone()
MP.dps = 60
ULP = 2.0**-52

# Each with its definition, written out.
EXACT = {
    LinearSchedule(): lambda t: t,
    PowerSchedule(0.5): lambda t: MP.sqrt(t),
    PowerSchedule(2): lambda t: t**2,
    PowerSchedule(2.7): lambda t: MP.exp(MP.mpf(2.7) * MP.log(t)),
    CosineSchedule(): lambda t: 1 - MP.cos(MP.pi * t / 2),
    SquaredSineSchedule(): lambda t: MP.sin(MP.pi * t / 2) ** 2,
    ExponentialSchedule(): lambda t: (1 - MP.exp(-t)) / (1 - MP.exp(-1)),
    ExponentialSchedule(5): lambda t: (1 - MP.exp(-5 * t)) / (1 - MP.exp(-5)),
    ExponentialSchedule(30): lambda t: (1 - MP.exp(-30 * t)) / (1 - MP.exp(-30)),
}
SCHEDULES = list(EXACT)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
inner_times = st.floats(0.01, 0.99)


def relative_error(value: torch.Tensor, exact: mpmath.mpf) -> float:
    return float(abs(MP.mpf(float(value)) / exact - 1))


@every_schedule
@pytest.mark.parametrize("t", [1e-12, 1e-6, 0.01, 0.3, 0.9, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53])
def test_schedule__every_value_has_relative_precision_next_to_both_ends(schedule: Schedule, t: float) -> None:
    """A few roundings, amplified at most by the exponent c = 30 of the steepest schedule: 64 units in the last place."""
    exact, kappa = EXACT[schedule], EXACT[schedule](MP.mpf(t))
    derivative = MP.diff(exact, MP.mpf(t), h=MP.mpf(10) ** -30)
    for value, expected in (
        (schedule.kappa(t), kappa),
        (schedule.complement(t), 1 - kappa),
        (schedule.derivative(t), derivative),
        (schedule.hazard(t), derivative / (1 - kappa)),
    ):
        assert value.dtype == torch.float64
        assert relative_error(value, expected) < 64 * ULP


@every_schedule
def test_schedule__ends_are_exact(schedule: Schedule) -> None:
    """κ(0) = 0 and κ(1) = 1, both ways: a grid that ends at κ = 1 ends at t = 1, neither before nor behind it."""
    assert float(schedule.kappa(0.0)) == 0
    assert float(schedule.complement(1.0)) == 0
    assert float(schedule.kappa(1.0)) == pytest.approx(1, abs=ULP)
    assert float(schedule.complement(0.0)) == pytest.approx(1, abs=ULP)
    assert float(schedule.inverse(0.0)) == 0
    assert float(schedule.inverse(1.0)) == 1


@every_schedule
def test_schedule__hazard_is_infinite_at_the_end(schedule: Schedule) -> None:
    assert float(schedule.hazard(1.0)) == math.inf or isinstance(schedule, SquaredSineSchedule)  # there κ' = 0 too


@every_schedule
@given(t=inner_times)
def test_schedule__derivative_is_that_of_kappa_and_of_minus_the_complement(schedule: Schedule, t: float) -> None:
    """atol: torch differentiates expm1(v) as 1 + expm1(v), which carries the rounding of 1, times at most c = 30."""
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    rise = torch.autograd.grad(schedule.kappa(time) * 1, time)[0]
    fall = torch.autograd.grad(schedule.complement(time) * 1, time)[0]
    torch.testing.assert_close(rise, schedule.derivative(t), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(-fall, schedule.derivative(t), rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@every_schedule
@given(t=inner_times)
def test_schedule__inverse_of_kappa_is_the_time(schedule: Schedule, t: float) -> None:
    """One unit in the last place of κ moves t by ulp/κ', which is what is allowed beside the rounding of t itself."""
    allowed = 8 * ULP * (1 + float(1 / schedule.derivative(t)))
    assert float(schedule.inverse(schedule.kappa(t))) == pytest.approx(t, abs=allowed)


@every_schedule
@given(kappa=st.one_of(st.floats(1e-12, 1e-3), st.floats(1e-3, 1 - 1e-3), st.floats(1 - 1e-3, 1)))
def test_schedule__kappa_of_the_inverse_is_kappa(schedule: Schedule, kappa: float) -> None:
    """One unit in the last place of t moves κ by κ' ulp(t), which is what is allowed beside the rounding of κ itself."""
    t = schedule.inverse(kappa)
    allowed = 8 * ULP * (kappa + float(schedule.derivative(t) * t))
    assert float(schedule.kappa(t)) == pytest.approx(kappa, rel=0, abs=allowed)


@every_schedule
@given(pair=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_schedule__kappa_increases_and_its_complement_completes_it(schedule: Schedule, pair: list[float]) -> None:
    t, s = pair
    assert 0 <= schedule.kappa(t) <= schedule.kappa(s) <= 1
    assert 1 + ULP >= schedule.complement(t) >= schedule.complement(s) - ULP
    assert schedule.complement(s) >= 0
    assert float(schedule.kappa(t) + schedule.complement(t)) == pytest.approx(1, abs=64 * ULP)


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.1, 0.2), (0.05, 0.95), (0.9, 0.99)])
def test_schedule__jump_probability_is_one_minus_the_survival_of_the_hazard(
    schedule: Schedule, t: float, s: float
) -> None:
    """1 − exp(−∫ h), by Gauss-Legendre of 100 nodes: its error is below 1e-13 for these analytic integrands."""
    node, weight = np.polynomial.legendre.leggauss(100)
    times = torch.from_numpy(t + (s - t) * (node + 1) / 2)
    integral = float((schedule.hazard(times) * torch.from_numpy(weight)).sum() * (s - t) / 2)
    assert float(schedule.jump_probability(t, s)) == pytest.approx(-math.expm1(-integral), rel=1e-12)


@every_schedule
@given(times=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999), st.floats(0, 0.999)).map(sorted))
def test_schedule__survival_composes(schedule: Schedule, times: list[float]) -> None:
    """1 − P(r, t) = (1 − P(r, s)) (1 − P(s, t)), to the rounding of P ≈ 1, which e^(ct) multiplies by up to c = 30."""
    r, s, t = times
    whole = 1 - schedule.jump_probability(r, t)
    parts = (1 - schedule.jump_probability(r, s)) * (1 - schedule.jump_probability(s, t))
    assert float(whole) == pytest.approx(float(parts), abs=64 * ULP)


@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.5, 1 - 1e-12, 1 - 2**-53])
def test_schedule__jump_is_certain_when_the_interval_ends_at_1_and_impossible_when_it_is_empty(
    schedule: Schedule, t: float
) -> None:
    assert float(schedule.jump_probability(t, 1.0)) == 1
    assert float(schedule.jump_probability(t, t)) == 0
    assert float(schedule.jump_probability(1.0, 1.0)) == 0


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(1 - 3e-12, 1 - 1e-12), (1 - 1e-9, 1 - 2e-12), (0.3, 1 - 1e-12)])
def test_schedule__jump_probability_next_to_1(schedule: Schedule, t: float, s: float) -> None:
    exact = EXACT[schedule]
    expected = (exact(MP.mpf(s)) - exact(MP.mpf(t))) / (1 - exact(MP.mpf(t)))
    assert relative_error(schedule.jump_probability(t, s), expected) < 128 * ULP


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.0, 1e-4), (0.0, 1e-10), (1e-10, 3e-10)])
def test_schedule__jump_probability_next_to_0(schedule: Schedule, t: float, s: float) -> None:
    """Reversal steps divide it by κ(s): the candidate of the step that starts at 0 must have probability 1, not 0."""
    exact = EXACT[schedule]
    start = exact(MP.mpf(t)) if t else MP.mpf(0)
    expected = (exact(MP.mpf(s)) - start) / (1 - start)
    assert relative_error(schedule.jump_probability(t, s), expected) < 128 * ULP


@every_schedule
def test_schedule__computes_tensors_of_any_shape_and_type_in_float64(schedule: Schedule) -> None:
    t = torch.tensor([[0.25], [0.75]], dtype=torch.float32)
    for method in (schedule.kappa, schedule.complement, schedule.derivative, schedule.inverse, schedule.hazard):
        assert method(t).shape == t.shape
        assert method(t).dtype == torch.float64
        assert float(method(t)[1]) == float(method(0.75))


@every_schedule
def test_schedule__travels_through_json(schedule: Schedule) -> None:
    copy = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert type(copy) is type(schedule)
    assert float(copy.kappa(0.3)) == float(schedule.kappa(0.3))


def test_schedule__differs_by_kind_and_argument() -> None:
    assert PowerSchedule(2) != PowerSchedule(3)
    assert LinearSchedule() != PowerSchedule(1)
    assert "n=3" in repr(PowerSchedule(3))


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        (kind, value, name)
        for kind, name in ((PowerSchedule, "n"), (ExponentialSchedule, "c"))
        for value in (0, -1, math.nan)
    ],
)
def test_schedule__names_bad_arguments(kind: type, value: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        kind(value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "quadratic"}, "schedule='quadratic' .*cosine, exponential, linear"),
        ({}, "schedule=None"),
        ({"type": "power", "m": 2}, "PowerSchedule takes no argument m"),
        ({"type": "linear", "n": 2}, "LinearSchedule takes no argument n"),
    ],
)
def test_schedule__names_bad_configs(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.from_dict(config)


def test_configurable__an_argument_that_is_not_stored_under_its_name_is_named() -> None:
    class Renamed(LinearSchedule):
        type_name = "user's renamed"

        def __init__(self, slope: float = 1.0) -> None:
            self.steepness = slope

    schedule = Renamed()
    assert "slope='?'" in repr(schedule)
    with pytest.raises(TypeError, match=r"Renamed takes the argument 'slope'.*self\.slope"):
        schedule.to_dict()


def test_configurable__an_unknown_type_says_to_import_its_module() -> None:
    with pytest.raises(ValueError, match=r"schedule='ring' names no Schedule.*import the module"):
        Schedule.from_dict({"type": "ring"})


class Geometric(LinearSchedule):
    """κ = e^(−σ̄) with σ̄ = σ_min^t σ_max^(1 − t), the geometric noise of SEDD and MDLM: κ(0) = e^(−20), κ(1) = e^(−σ_min)."""

    def __init__(self, least: float = 1e-4, most: float = 20.0) -> None:
        self.least, self.most = least, most

    def kappa(self, t: torch.Tensor | float) -> torch.Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.exp(-(self.least**t) * self.most ** (1 - t))


@pytest.mark.parametrize(
    "build",
    [
        lambda schedule: MaskedPath(4, schedule=schedule),
        lambda schedule: UniformPath(4, schedule=schedule),
        lambda schedule: MetricPath(2, embeddings=[[0.0], [1.0]], schedule=schedule),
        lambda schedule: EditPath(4, schedule=schedule),
        lambda schedule: EuclideanMixturePath(schedule=schedule),
    ],
    ids=["masked", "uniform", "metric", "edits", "euclidean"],
)
def test_path__needs_a_schedule_from_0_to_1(build: Callable[[Schedule], Path]) -> None:
    """With other ends loss and bound would lie below −log p, and samples would keep some of the noise."""
    with pytest.raises(
        ValueError, match=r"schedule=Geometric\(least=0.0001, most=20.0\) has κ\(1\) = 0.9999; .*must be 1"
    ):
        build(Geometric())
    with pytest.raises(
        ValueError, match=r"has κ\(0\) = 0.13533\d; it must be 0.* log-linear noise is LinearSchedule\(\)"
    ):
        build(Geometric(1e-9, 2.0))
    with pytest.raises(ValueError, match=r"has κ\(1\) = nan"):
        build(Geometric(math.nan))
    build(Geometric(1e-9, 20.0))  # e^-20 and 1 − 1e-9 are ends


def test_path__takes_every_schedule_of_the_library() -> None:
    extreme = [PowerSchedule(0.05), PowerSchedule(1e4), ExponentialSchedule(1e-6), ExponentialSchedule(1e6)]
    for schedule in [*SCHEDULES, *extreme]:
        assert MaskedPath(4, schedule=schedule).schedule is schedule
        with torch.device("meta"):  # as where a model is made without memory
            assert MaskedPath(4, schedule=schedule).schedule is schedule
