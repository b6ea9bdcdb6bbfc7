"""Exact simulation: the distribution is p_t itself, the calls are the events, and what is cut off is reported."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Jump, MaskedPath, MetricPath, SquaredSineSchedule, Uniformization, UniformPath, simulate
from gm_discrete.generators import DominatingProcess
from tests.helpers.chains import joint_rates
from tests.helpers.distributions import (
    ALL_PATHS,
    GENERAL_PATHS,
    LEAST_P,
    SIGMAS,
    EnumeratedChain,
    Wrong,
    chain,
    draw,
    p_value,
    rng,
    step_matrix,
    total_variation,
)  # fmt: skip

SAMPLES = 10_000
MASKED = [name for name in ALL_PATHS if name.startswith("mask")]


class Watched(EnumeratedChain):
    """Remembers the intervals that it was asked for."""

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        if t_next is not None:
            self.leaps = [*getattr(self, "leaps", []), (float(t[0]), float(t_next[0]))]
        return super().generator(x, t, t_next, **conditioning)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [(name, "uniformization") for name in ALL_PATHS] + [(name, "first_hitting") for name in MASKED]
)
def test_exact_samplers__distribution_is_that_of_the_path(name: str, method: str) -> None:
    """p_t at t = 1/2 and at t = 1, of which at most 2e-3 was cut off: a fifth of the noise of 10 000 samples."""
    number = SAMPLES // 4 if name in GENERAL_PATHS else SAMPLES
    model = chain(name, 2, SquaredSineSchedule())
    x_0 = draw(model, model.joint_marginal(0.0), number, 1)
    result = simulate(model, x_0, [0.0, 0.5, 1.0], rng(2), method, save_at=[1, 2], return_info=True)
    for x, t in zip(result.states, (0.5, 1.0), strict=True):
        assert p_value(model, x, model.joint_marginal(t)) > LEAST_P
    assert result.error_bound is not None
    assert float(result.error_bound.max()) <= 2e-3
    if name in MASKED:
        assert float(result.error_bound.max()) == 0


def evolved(model: EnumeratedChain, start: Tensor, t: float, s: float, free: Callable[[Tensor], Tensor]) -> Tensor:
    """The solution at s of dp/dt = R p by Runge and Kutta's rule of order 4 in 50 steps; only moves of `free` happen."""
    states, h = model.states(), (s - t) / 50
    allowed = free(states[:, None] != states).double()  # [to, from]

    def slope(time: float, law: Tensor) -> Tensor:
        rates = joint_rates(model, time) * allowed
        return rates @ law - rates.sum(0) * law

    law = start
    for i in range(50):
        now = t + i * h
        a = slope(now, law)
        b = slope(now + h / 2, law + h / 2 * a)
        c = slope(now + h / 2, law + h / 2 * b)
        law = law + h / 6 * (a + 2 * b + 2 * c + slope(now + h, law + h * c))
    return law


@pytest.mark.parametrize("fixed", [(False, False), (True, False)])
@pytest.mark.parametrize("name", ["masked", "uniform mixture", "prior reversal"])
def test_uniformization__any_process_is_simulated_exactly(name: str, fixed: tuple[bool, bool]) -> None:
    """A belief that is no posterior, and a token that is held: the solution of its own Kolmogorov equation."""
    model = chain(name, 2, kind=Wrong)
    start = model.joint_marginal(0.3)
    x_0 = draw(model, start, SAMPLES, 3)
    held = torch.tensor(fixed).expand(SAMPLES, 2)
    x = simulate(model, x_0, [0.3, 0.8], rng(4), "uniformization", held)
    law = evolved(model, start, 0.3, 0.8, lambda moved: (moved & ~torch.tensor(fixed)).sum(2) == moved.sum(2))
    assert float(law.sum()) == pytest.approx(1)
    assert p_value(model, x, law) > LEAST_P


@pytest.mark.parametrize("method", ["first_hitting", "uniformization", "adaptive"])
def test_exact_samplers__infilling_follows_the_conditional_distribution(method: str) -> None:
    """Masks beside a fixed token: p(z | fixed). A batch of two kinds; adaptive steps are exact for the one free token."""
    model, number = chain("masked", 2), SAMPLES // 2
    x_0 = torch.tensor([[2, 3], [3, 0]]).repeat(number, 1)
    x = simulate(model, x_0, [0.01, 1.0], rng(5), method, x_0 != 3)  # at 0 this state has no posterior
    for first, place, symbol in ((0, 0, 2), (1, 1, 0)):
        law = model.joint_marginal(1.0) * (model.states()[:, place] == symbol)
        assert p_value(model, x[first::2], law) > LEAST_P


class Constant:
    """The same belief about every token at any time."""

    def __init__(self, path: Any, belief: list[float]) -> None:
        self.path, self.logits = path, torch.tensor(belief, dtype=torch.float64).log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        return self.path.marginal(self.logits.expand(*x.shape, -1), x, t, t_next)


# ---- calls


@pytest.mark.parametrize("method", ["first_hitting", "uniformization"])
def test_exact_samplers__masks_cost_one_call_each(method: str) -> None:
    """In a batch of different lengths of text to fill; masks that are fixed stay and cost nothing."""
    model, masks = Constant(MaskedPath(4), [0.5, 0.3, 0.2, 0.0]), torch.rand(50, 12, generator=rng(1)) < 0.4
    fixed = torch.rand(50, 12, generator=rng(2)) < 0.3
    x_0 = torch.where(masks, 3, 1)
    result = simulate(model, x_0, [0.0, 0.5, 1.0], rng(3), method, fixed, return_info=True)
    count = (masks & ~fixed).sum(1)
    assert len(count.unique()) > 3
    assert torch.equal(result.network_calls, count)
    assert torch.equal(result.jumps, count)
    assert torch.equal(result.x == 3, masks & fixed)


@pytest.mark.parametrize("name", ["uniform mixture", "prior mixture", "uniform reversal", "metric kinetic"])
def test_uniformization__calls_are_the_candidates_that_are_kept(name: str) -> None:
    """From t = 0.2 to 0.6 nothing is cut off. Rings are Poisson of mean L ∫ κ'/(1 − κ), or of L ∫ κ'/(κ(1 − κ)).

    Of a metric path, L ∫ β' max_z d(x, z), if that is the same for every x, as for this ring of three symbols.
    """
    model = Constant(chain(name, 1).path, [0.5, 0.3, 0.2])
    hazard, odds = math.log(0.8 / 0.4), math.log(0.6 / 0.4) - math.log(0.2 / 0.8)
    mean = 5 * (odds if model.path.rates == "reversal" else hazard)
    if name == "metric kinetic":
        model.path = MetricPath(3, [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
        mean = 5 * 2 * (0.6 / 0.4 - 0.2 / 0.8)
    x_0 = torch.randint(3, (2000, 5), generator=rng(1))
    calls = simulate(model, x_0, [0.2, 0.6], rng(2), "uniformization", return_info=True).network_calls.double()
    assert abs(float(calls.mean()) - mean) < SIGMAS * math.sqrt(mean / 2000)
    assert float(calls.var()) == pytest.approx(mean, rel=SIGMAS * math.sqrt(2 / 2000) * 1.1)


# ---- what is cut off


@pytest.mark.parametrize("name", [name for name in ALL_PATHS if name not in MASKED])
@pytest.mark.parametrize("tolerance", [0.3, 0.1])
def test_uniformization__error_bound_holds_and_is_tight(name: str, tolerance: float) -> None:
    """Exact rings carry p_a to p_b, so that the error is at most that of the leaps 0 → a and b → 1, by their exact
    distributions.

    The bound is that, times at most 100; without an infinite clock at an end nothing is cut there.
    """
    model = chain(name, 2, kind=Watched)
    x_0 = draw(model, model.joint_marginal(0.0), 4, 1)
    result = simulate(model, x_0, [0.0, 1.0], rng(2), Uniformization(tolerance), return_info=True)
    assert result.error_bound is not None
    bound, missed = float(result.error_bound.max()), 0.0
    for t, s in model.leaps:
        law = model.joint_marginal(t) @ step_matrix(model, t, s, "tau_leaping")
        missed += total_variation(law, model.joint_marginal(s))
    starts = name.endswith("reversal") or name.startswith(("blur", "growing"))
    assert [s == 1 for _, s in model.leaps] == [False] * starts + [True]
    assert missed <= bound <= tolerance
    assert bound < 100 * missed


def test_uniformization__error_bound_counts_free_tokens_only() -> None:
    model, x_0 = chain("uniform reversal", 3), torch.zeros(3, 3, dtype=torch.long)
    fixed = torch.tensor([[False] * 3, [True, True, False], [True] * 3])
    error = simulate(model, x_0, [0.1, 1.0], rng(1), "uniformization", fixed, return_info=True).error_bound
    assert error is not None
    assert error[0] > 0
    assert error[2] == 0
    assert float(error.max()) <= 5e-4


# ---- what is refused


def test_uniformization__a_dominating_process_that_is_too_slow_is_seen() -> None:
    """Half as many rings as a token may have events: too light a weight, or too slow a rate."""

    class Light(UniformPath):
        def dominating_process(self, x: Tensor) -> DominatingProcess:
            return replace(super().dominating_process(x), weight=super().dominating_process(x).weight / 2)

    class Slow(MetricPath):
        def dominating_process(self, x: Tensor) -> DominatingProcess:
            return replace(super().dominating_process(x), rate=lambda t: self.beta_derivative(t) / 2)

    for path in (Light(3), Slow(3, [[0, 1, 2], [1, 0, 1], [2, 1, 0]])):
        with pytest.raises(ValueError, match="dominating_process"):
            simulate(
                Constant(path, [0.5, 0.3, 0.2]),
                torch.zeros(20, 5, dtype=torch.long),
                [0.2, 0.8],
                rng(1),
                "uniformization",
            )


@pytest.mark.parametrize("tolerance", [0.0, 1e-17, 1.0, -1.0, math.nan])
def test_uniformization__tolerance_is_a_probability(tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"tolerance={tolerance}"):
        Uniformization(tolerance)


@pytest.mark.parametrize("name", ["uniform mixture", "uniform reversal", "metric kinetic", "coupled"])
def test_first_hitting__needs_a_masked_path(name: str) -> None:
    with pytest.raises(ValueError, match=r"first_hitting.*rates='masked'.*uniformization"):
        simulate(chain(name), torch.zeros(2, 3, dtype=torch.long), [0, 1], rng(1), "first_hitting")


def test_uniformization__error_bound_where_a_table_ends() -> None:
    """A cut beyond logit κ = 20 is brought back to it, and the bound says what that costs."""
    model = chain("blur kinetic", 2)
    x_0 = model.path.prior((3, 2), rng(1))
    result = simulate(model, x_0, [0, 1], rng(2), Uniformization(1e-9), return_info=True)
    assert bool((result.error_bound > 1e-9).all())
    assert bool((result.error_bound < 1e-7).all())
