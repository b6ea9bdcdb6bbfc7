"""Distributions of samplers of several fields, at an intermediate and at the final time.

Two fields of symbols on one path are a chain of two tokens, whose distribution under a coarse grid
`distributions.step_matrix` writes from the definitions: a field that moved by the new state of the other would have
another one. A symbol and a number are held against their joint distribution in closed form.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Adaptive,
    Bins,
    ExactProductModel,
    GaussianPath,
    MaskedPath,
    ProductPath,
    SquaredSineSchedule,
    UniformPath,
    simulate,
)
from gm_discrete.samplers import samplers_for
from tests.helpers.distributions import (
    LEAST_P,
    EnumeratedChain,
    chain,
    chi_square,
    draw,
    p_value,
    sampler_distributions,
)
from tests.helpers.euclid import kolmogorov, noise_of_ks, numbers, rng
from tests.helpers.symbol_and_number import Mixed

SAMPLES = 50_000


# ---- two fields of symbols are two tokens


def split(x: Tensor) -> dict[str, Tensor]:
    return {"a": x[:, :1], "b": x[:, 1:]}


def joined(x: dict[str, Tensor]) -> Tensor:
    return torch.cat([x["a"], x["b"]], 1)


def two_fields(model: EnumeratedChain, independent: bool = False) -> ExactProductModel:
    """The chain of two tokens as a product of two fields."""
    path = ProductPath(a=model.path, b=model.path, independent_times=independent)
    return ExactProductModel(path, split(model.data), weights=model.weights)


NAMES = ["masked", "uniform reversal", "uniform mixture", "prior mixture"]
COARSE = [(name, method) for name in NAMES for method in ("tau_leaping", "euler", "heun")]


@pytest.mark.parametrize(("name", "method"), COARSE)
@pytest.mark.parametrize("steps", [1, 4])
def test_samplers__two_fields_have_the_distribution_of_two_tokens(name: str, method: str, steps: int) -> None:
    """At t = 1/2 and at t = 1. Heun's steps of symbols are leaps, and Euler starts at 0.02, where rates are finite."""
    model = chain(name, 2, SquaredSineSchedule())
    first = 0.02 if method == "euler" else 0.0
    times = [first, *torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64)[1:].tolist()]
    start = model.joint_marginal(first)
    laws = sampler_distributions(model, times, "tau_leaping" if method == "heun" else method, start)
    x_0 = split(draw(model, start, SAMPLES, 1))
    result = simulate(two_fields(model), x_0, times, rng(2), method, save_at=[steps, -1], return_info=True)
    for x, law in zip(result.states, (laws[steps], laws[-1]), strict=True):
        assert p_value(model, joined(x), law) > LEAST_P
    assert result.times.tolist() == times


@pytest.mark.parametrize("name", NAMES)
def test_tau_leaping__fields_that_move_in_turn_have_another_distribution(name: str) -> None:
    """What the test above would see: the second field moved by the new state of the first has another distribution of
    one step."""
    model, times = chain(name, 2, SquaredSineSchedule()), [0.3, 0.8]
    start = model.joint_marginal(0.3)
    law = sampler_distributions(model, times, "tau_leaping", start)[-1]
    x, fields = split(draw(model, start, SAMPLES, 1)), two_fields(model)
    held = {name: torch.ones_like(state, dtype=torch.bool) for name, state in x.items()}
    for name in x:  # one after the other
        x = simulate(fields, x, times, rng(2), fixed={other: held[other] for other in x if other != name})
    assert p_value(model, joined(x), law) < LEAST_P


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "uniform reversal", "uniform mixture"])
def test_adaptive__two_fields_have_the_distribution_of_the_data(name: str) -> None:
    """Of M = 0.1 the distribution is within 0.004, as 300 000 samples show, of M = 0.02 within 0.001; 8 000 have 0.009 of
    noise."""
    model = chain(name, 2)
    x_0 = split(draw(model, model.joint_marginal(0.0), 8_000, 1))
    x = simulate(two_fields(model), x_0, [0.0, 0.5, 1.0], rng(2), Adaptive(max_expected_changes=0.05), save_at=[1, 2],
                 return_info=True).states  # fmt: skip
    for state, t in zip(x, (0.5, 1.0), strict=True):
        assert p_value(model, joined(state), model.joint_marginal(t)) > LEAST_P


def test_simulate__order_of_fields_does_not_matter() -> None:
    """That of the path decides about the columns of times, that of the state about nothing but the draws."""
    model = chain("uniform mixture", 2)
    times = [0.0, 0.5, 1.0]
    x_0 = split(draw(model, model.joint_marginal(0.0), SAMPLES, 3))
    x = simulate(two_fields(model, True), {"b": x_0["b"], "a": x_0["a"]}, times, rng(4))
    assert p_value(model, joined(x), sampler_distributions(model, times, "tau_leaping")[-1]) > LEAST_P


# ---- a symbol and a number


MIXED: dict[str, tuple[Any, dict[str, float]]] = {
    "mask × flow": (MaskedPath(4), {"flow": 1.0}),
    "mask × jump": (MaskedPath(4), {"jump": 1.0}),
    "uniform × superposition": (UniformPath(3), {"flow": 0.4, "diffusion": 0.3, "jump": 0.3}),
}
STEPS, NUMBER = 100, 20_000
BIAS = {"tau_leaping": 0.018, "heun": 0.018, "adaptive": 0.018}
"""KS distance within a class that the steps leave by themselves, at worst, measured with 200 000 samples (which show 0.004
of noise): of 100 leaps 0.010 with a flow and 0.017 with jumps at t = 1, of Heun's 0.008 and 0.017, of the 33 to 53 adaptive
steps of M = 0.05 0.016. At 20 leaps it is 0.046. The frequencies of symbols are within 0.003; noise is 0.003 here."""
CASES = [
    (name, method) for name in MIXED for method in BIAS if (name, method == "tau_leaping") != ("mask × jump", False)
]
"""A superposition has jumps as well, and masks have a flow beside them."""


def mixed(name: str, independent: bool = False) -> Mixed:
    kind, weights = MIXED[name]
    return Mixed(kind, GaussianPath(weights, bins=Bins(-4, 4)), independent)


def distances(law: Mixed, x: dict[str, Tensor], t: float) -> list[tuple[float, int]]:
    """(KS distance, how many) of the numbers of each symbol that occurs."""
    parts = [(k, x["size"][x["kind"] == k]) for k in range(law.vocab)]
    return [(kolmogorov(part, law.sizes_given(k, t))[0], len(part)) for k, part in parts if len(part)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_samplers__a_symbol_and_a_number_have_their_joint_distribution(name: str, method: str) -> None:
    law = mixed(name)
    adaptive = method == "adaptive"
    grid = [0.0, 0.5, 1.0] if adaptive else torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    sampler = Adaptive(max_expected_changes=0.05) if adaptive else method
    result = simulate(law.model, law.start(NUMBER), grid, rng(2), sampler, save_at=[len(grid) // 2, -1],
                      return_info=True)  # fmt: skip
    for x, t in zip(result.states, (0.5, 1.0), strict=True):
        assert law.p_value(x, t) > LEAST_P
        for distance, count in distances(law, x, t):
            assert distance < noise_of_ks(count) + BIAS[method]
    shuffled = {**x, "size": x["size"][torch.randperm(NUMBER, generator=rng(5))]}
    assert max(distances(law, shuffled, 1.0))[0] > 0.2


# ---- times of their own


def curve(first: str, steps: int) -> dict[str, Tensor]:
    """One field after the other."""
    up, still = torch.linspace(0, 1, steps + 1, dtype=torch.float64), torch.ones(steps, dtype=torch.float64)
    early, late = torch.cat([up, still]), torch.cat([0 * still, up])
    return {name: early if name == first else late for name in ("kind", "size")}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tau_leaping", "euler", "heun"])
@pytest.mark.parametrize("first", ["kind", "size"])
@pytest.mark.parametrize("name", ["mask × flow", "uniform × superposition"])
def test_samplers__one_field_after_the_other_has_the_same_distribution(name: str, first: str, method: str) -> None:
    """In between, the first is data and the second noise that did not move, not by a bit.

    A second field that did not depend on the first would be off by more than 0.2, as the test above shows."""
    law, steps, number = mixed(name, True), 50, 10_000
    x_0 = law.start(number)
    result = simulate(law.model, x_0, curve(first, steps), rng(2), method, save_at=[steps, -1], return_info=True)
    middle, end = result.states
    second = "size" if first == "kind" else "kind"
    assert torch.equal(middle[second], x_0[second])
    assert torch.equal(end[first], middle[first])
    assert not torch.equal(end[second], middle[second])
    if first == "kind":  # without the number, a single symbol is exact whatever the steps
        assert law.p_value(middle, 1.0) > LEAST_P
    else:
        every = lambda y: sum(law.classes(1.0)[k] * law.sizes_given(k, 1.0)(y) for k in range(3))  # noqa: E731
        assert kolmogorov(middle["size"], every)[0] < noise_of_ks(number) + BIAS["heun"]
    assert law.p_value(end, 1.0) > LEAST_P
    for distance, count in distances(law, end, 1.0):
        assert distance < noise_of_ks(count) + BIAS["tau_leaping"]


def test_heun__a_bent_curve_has_the_distribution_of_its_two_times() -> None:
    """t = s², s of the other: at s = 1/2 the joint distribution at (1/4, 1/2), and at the end that of the data."""
    law = mixed("mask × flow", True)
    s = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    result = simulate(law.model, law.start(NUMBER), {"kind": s**2, "size": s}, rng(2), "heun", save_at=[STEPS // 2, -1],
                      return_info=True)  # fmt: skip
    assert torch.equal(result.times, torch.stack([s**2, s], 1))
    for x, t, time in zip(result.states, (0.25, 1.0), (0.5, 1.0), strict=True):
        assert law.p_value(x, t) > LEAST_P
        for k in range(law.vocab):
            if len(part := x["size"][x["kind"] == k]):
                assert kolmogorov(part, law.sizes_given(k, t, time))[0] < noise_of_ks(len(part)) + BIAS["heun"]


def test_samplers__imputation_follows_the_conditional_distribution() -> None:
    """A field that is fixed, at its own time 1 throughout: the other has its distribution given it."""
    law, n = mixed("mask × flow", True), 10_000
    one, s = torch.ones(STEPS + 1, dtype=torch.float64), torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    start = law.start(n)
    for k in range(3):
        start["kind"] = torch.full((n, 1), k)
        x = simulate(law.model, start, {"kind": one, "size": s}, rng(3), "heun")
        assert kolmogorov(x["size"], law.sizes_given(k, 1.0))[0] < noise_of_ks(n) + BIAS["heun"]
    start = {"kind": law.kind.prior((n, 1)), "size": numbers(0.55).expand(n, 1)}
    x = simulate(law.model, start, {"kind": s, "size": one}, rng(4))
    kind, size = torch.arange(3), numbers(0.55).expand(3)
    given = law.density(kind, size, 1 - 1e-9)  # ∝ P(symbol | number)
    counts = torch.bincount(x["kind"].flatten(), minlength=3)
    assert chi_square(counts, given / given.sum()) > LEAST_P


def test_samplers__every_one_of_products_is_held_against_a_distribution() -> None:
    assert set(samplers_for(ProductPath(a=MaskedPath(3)))) == {method for _, method in COARSE} | set(BIAS)
