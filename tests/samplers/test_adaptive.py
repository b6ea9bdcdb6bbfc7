"""Adaptive steps of discrete states: their distributions, their rule, and what they cost."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Adaptive, ExactModel, Jump, UniformPath, simulate, time_grid
from gm_discrete.samplers import SPACINGS
from tests.helpers.distributions import (
    LEAST_P,
    EnumeratedChain,
    chain,
    chi_square,
    draw,
    frequencies,
    p_value,
    rng,
    sampler_distributions,
    total_variation,
)

SAMPLES = 20_000


class Watched(EnumeratedChain):
    """Remembers the states and times of one sequence, as it is asked for them."""

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        self.seen = [*getattr(self, "seen", []), (x, float(t[0]))]
        return super().generator(x, t, t_next, **conditioning)

    def unsettled(self, x: Tensor, t: float) -> Tensor:
        """1 − π(x^i), [1, L]."""
        return 1 - self.belief(x, t).gather(2, x[..., None]).squeeze(2)

    def belief(self, x: Tensor, t: float) -> Tensor:
        return self.logits(x, torch.full((1,), t, dtype=torch.float64)).exp()


ADAPTIVE = ["masked", "uniform mixture", "prior mixture", "uniform reversal", "prior reversal"]
ADAPTIVE += ["metric kinetic", "blur kinetic", "coupled"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "uniform reversal", "prior mixture", "metric kinetic"])
def test_adaptive__default_is_as_good_as_the_best_grid_of_32_steps(name: str) -> None:
    """Of L = 3 and 3 symbols, where M = 1 has 0.06 to 0.12. Samples of the distribution itself have the noise."""
    model, number = chain(name), 16_000
    law = model.joint_marginal(1.0)
    noise = float((2 * law * (1 - law) / (math.pi * number)).sqrt().sum() / 2)
    best = min(
        total_variation(
            sampler_distributions(model, time_grid(model.path, 32, spacing).tolist(), "tau_leaping")[-1], law
        )
        for spacing in SPACINGS
    )
    x = simulate(model, draw(model, model.joint_marginal(0.0), number, 1), [0.0, 1.0], rng(2), "adaptive")
    assert total_variation(frequencies(model, x) / number, law) < math.hypot(best, 1.25 * noise)


def test_adaptive__default_takes_as_many_steps_as_one_change_a_step_for_many_tokens() -> None:
    """M = 1 from 32 free tokens on, n/32 for fewer."""
    path = UniformPath(3)
    for n, most in ((4, 4 / 32), (31, 31 / 32), (32, 1.0), (200, 1.0)):
        data = torch.zeros(1, n, dtype=torch.long)
        runs = [
            simulate(ExactModel(path, data), data, [0.2, 0.25], rng(0), s, return_info=True)
            for s in (Adaptive(), Adaptive(most))
        ]
        assert torch.equal(runs[0].x, runs[1].x)
        assert torch.equal(runs[0].network_calls, runs[1].network_calls)


@pytest.mark.parametrize("name", ["masked", "uniform reversal", "prior reversal"])
def test_adaptive__a_single_token_is_exact_whatever_its_steps(name: str) -> None:
    """L = 1, where a step is the reversed noising process itself, which may stop and go on anywhere."""
    model = chain(name, 1)
    x_0 = draw(model, model.joint_marginal(0.0), SAMPLES, 1)
    result = simulate(model, x_0, [0.0, 0.5, 1.0], rng(2), Adaptive(0.2), save_at=[1, 2], return_info=True)
    for x, t in zip(result.states, (0.5, 1.0), strict=True):
        assert p_value(model, x, model.joint_marginal(t)) > LEAST_P


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive__error_vanishes_with_max_expected_changes(name: str) -> None:
    """Of L = 2: the noise of 20 000 samples on 9 states is 0.008 on average, and what is left of the error little beside."""
    model, errors = chain(name, 2), []
    x_0, law = draw(model, model.joint_marginal(0.0), SAMPLES, 1), model.joint_marginal(1.0)
    for value in (1.0, 0.1):
        x = simulate(model, x_0, [0.0, 1.0], rng(2), Adaptive(value))
        errors.append(total_variation(frequencies(model, x) / SAMPLES, law))
    assert errors[1] < min(0.015, 0.5 * errors[0])


@pytest.mark.parametrize("most", [0.3, 2.0])
def test_adaptive__number_of_revealed_masks_is_binomial(most: float) -> None:
    """At any time, as every mask has its own clock. Steps that are drawn again when much happened reveal 0.42, not 0.5."""
    model = chain("masked", 3, kind=EnumeratedChain)
    x = simulate(model, torch.full((SAMPLES, 3), 3), [0.0, 0.5], rng(3), Adaptive(most))
    counts = torch.bincount((x != 3).sum(1), minlength=4)
    law = torch.tensor([1.0, 3, 3, 1]) / 8
    assert chi_square(counts, law) > LEAST_P


def test_adaptive__masks_are_read_only_when_they_are_revealed() -> None:
    """A network is called in a step with an event and in no other, however small the steps."""
    model = chain("masked", 3)
    grid = torch.linspace(0, 1, 50, dtype=torch.float64)
    result = simulate(model, torch.full((50, 3), 3), grid, rng(1), Adaptive(0.05), return_info=True)
    assert bool((result.network_calls <= result.jumps).all())
    assert torch.equal(result.jumps, torch.full((50,), 3))


@pytest.mark.parametrize("name", ["masked", "uniform reversal", "blur kinetic"])
def test_adaptive__steps_follow_their_rule(name: str) -> None:
    """κ ← κ + min(1, M/√(n E)) (1 − κ): n = 2 tokens are free, and E is Σ (1 − π(x^i)) of this or an earlier state, or n.

    Which of them is the method's own choice, but none is younger than the step.
    """
    model, fixed = chain(name, 3, kind=Watched), torch.tensor([[True, False, False]])
    x_0 = draw(model, model.joint_marginal(0.01), 1, 1)
    simulate(model, x_0, [0.01, 1.0], rng(4), Adaptive(0.3), fixed)
    known = [2.0]
    for (x, t), (_, until) in pairwise(model.seen):
        known.append(float(model.unsettled(x, t)[~fixed].sum()))
        parts = [min(1.0, 0.3 / math.sqrt(2 * max(unsettled, 1e-9))) for unsettled in known]
        assert any(until == pytest.approx(t + part * (1 - t)) for part in parts)
    assert len(model.seen) > 3


@pytest.mark.parametrize("option", ["max_expected_changes", "tolerance"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_adaptive__options_are_positive(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        Adaptive(**{option: value})


def test_adaptive__few_open_positions_of_a_long_sequence_are_all_surveyed() -> None:
    """L = 200 with five free tokens, all certain after the first look: the second step is the last."""
    path = UniformPath(3, rates="mixture")

    class Certain:
        def __init__(self) -> None:
            self.path, self.seen = path, set()

        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
            self.seen.add(float(t[0]))
            logits = torch.full((*x.shape, 3), -torch.inf, dtype=torch.float64)
            return path.marginal(logits.index_fill(2, torch.tensor(1), 0.0), x, t, t_next)

    for seed in range(10):
        model, fixed = Certain(), torch.ones(1, 200, dtype=torch.bool)
        fixed[0, 17:22] = False
        x = simulate(model, torch.ones(1, 200, dtype=torch.long), [0, 1], rng(seed), Adaptive(1.0), fixed)
        assert bool((x == 1).all())
        assert len(model.seen - {1.0}) == 1  # E = 0: one leap
