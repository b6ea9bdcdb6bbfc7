"""Steps of a length that the state decides, and jumps that are counted out: their laws and their rules."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Jump, MaskedPath, UniformPath, simulate
from tests.helpers.chains import index_of
from tests.helpers.distributions import (
    LEAST_P,
    SIGMAS,
    EnumeratedChain,
    Lookup,
    chain,
    chi_square,
    draw,
    frequencies,
    p_value,
    rng,
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


SINGLE = [
    (name, "adaptive", {"max_expected_changes": 0.2}) for name in ("masked", "uniform reversal", "prior reversal")
]
SINGLE += [(name, "step_doubling", {}) for name in ("uniform reversal", "prior reversal")]


@pytest.mark.parametrize(("name", "method", "knob"), SINGLE)
def test_a_single_token_is_exact_whatever_its_steps(name: str, method: str, knob: dict) -> None:
    """L = 1, where a step is the reversed noising process itself, which may stop and go on anywhere."""
    model = chain(name, 1)
    x_0 = draw(model, model.joint_marginal(0.0), SAMPLES, 1)
    result = simulate(model, x_0, [0.0, 0.5, 1.0], rng(2), method, save_at=[1, 2], return_info=True, **knob)
    for x, t in zip(result.states, (0.5, 1.0), strict=True):
        assert p_value(model, x, model.joint_marginal(t)) > LEAST_P


MIXTURES = ["uniform mixture", "prior mixture", "uniform reversal", "prior reversal"]
KNOBS = [(name, "adaptive", "max_expected_changes", 1.0, 0.1) for name in ADAPTIVE]
KNOBS += [(name, "step_doubling", "tolerance", 0.5, 0.005) for name in (*MIXTURES, "metric kinetic")]


@pytest.mark.parametrize(("name", "method", "knob", "coarse", "fine"), KNOBS)
def test_the_error_vanishes_with_the_knob(name: str, method: str, knob: str, coarse: float, fine: float) -> None:
    """Of L = 2: the noise of 20 000 samples on 9 states is 0.008 on average, and what is left of the error little beside."""
    model, errors = chain(name, 2), []
    x_0, law = draw(model, model.joint_marginal(0.0), SAMPLES, 1), model.joint_marginal(1.0)
    for value in (coarse, fine):
        x = simulate(model, x_0, [0.0, 1.0], rng(2), method, **{knob: value})
        errors.append(total_variation(frequencies(model, x) / SAMPLES, law))
    assert errors[1] < min(0.015, 0.5 * errors[0])


@pytest.mark.parametrize("most", [0.3, 2.0])
def test_the_number_of_revealed_masks_is_binomial(most: float) -> None:
    """At any time, as every mask has its own clock. Steps that are drawn again when much happened reveal 0.42, not 0.5."""
    model = chain("masked", 3, kind=EnumeratedChain)
    x = simulate(model, torch.full((SAMPLES, 3), 3), [0.0, 0.5], rng(3), "adaptive", max_expected_changes=most)
    counts = torch.bincount((x != 3).sum(1), minlength=4)
    law = torch.tensor([1.0, 3, 3, 1]) / 8
    assert chi_square(counts, law) > LEAST_P


def test_masks_are_read_only_when_they_are_revealed() -> None:
    """A network is called in a step with an event and in no other, however small the steps."""
    model = chain("masked", 3)
    grid = torch.linspace(0, 1, 50, dtype=torch.float64)
    result = simulate(
        model, torch.full((50, 3), 3), grid, rng(1), "adaptive", max_expected_changes=0.05, return_info=True
    )
    assert bool((result.network_calls <= result.jumps).all())
    assert torch.equal(result.jumps, torch.full((50,), 3))


@pytest.mark.parametrize("name", ["masked", "uniform reversal", "blur kinetic"])
def test_adaptive_steps_follow_their_rule(name: str) -> None:
    """κ ← κ + min(1, M/√(n E)) (1 − κ): n = 2 tokens are free, and E is Σ (1 − π(x^i)) of this or an earlier state, or n.

    Which of them is the method's own choice, but none is younger than the step.
    """
    model, fixed = chain(name, 3, kind=Watched), torch.tensor([[True, False, False]])
    x_0 = draw(model, model.joint_marginal(0.01), 1, 1)
    simulate(model, x_0, [0.01, 1.0], rng(4), "adaptive", fixed, max_expected_changes=0.3)
    known = [2.0]
    for (x, t), (_, until) in pairwise(model.seen):
        known.append(float(model.unsettled(x, t)[~fixed].sum()))
        parts = [min(1.0, 0.3 / math.sqrt(2 * max(unsettled, 1e-9))) for unsettled in known]
        assert any(until == pytest.approx(t + part * (1 - t)) for part in parts)
    assert len(model.seen) > 3


@pytest.mark.parametrize("name", ["uniform reversal", "blur kinetic"])
def test_step_doubling_follows_its_rule(name: str) -> None:
    """Two half steps in −log(1 − κ); then the part P of 1 − κ times 0.9 √(tolerance/error), within [0.3, 3]."""
    model, tolerance, part = chain(name, 3, kind=Watched), 0.02, 0.1
    simulate(model, draw(model, model.joint_marginal(0.0), 1, 1), [0.0, 1.0], rng(4), "step_doubling")
    parts = []
    for (x, t), (middle, half) in zip(model.seen[::2], model.seen[1::2], strict=True):
        if half == 1:
            break
        assert 1 - half == pytest.approx((1 - t) * math.sqrt(1 - part))
        distance = (model.belief(x, t) - model.belief(middle, half)).abs().sum(2) / 2
        probability = 1 - math.sqrt(1 - part)
        error = float((probability * model.unsettled(x, t) * distance).sum())
        factor = 0.9 * math.sqrt(tolerance / error) if error else 3
        part = min(max(part * min(max(factor, 0.3), 3), 1e-4), 1)
        parts.append(part)
    assert len(set(parts)) > 5


def test_the_knobs_are_checked() -> None:
    x = torch.zeros(2, 3, dtype=torch.long)
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_expected_changes={value} must be positive"):
            simulate(chain("masked"), x, [0, 1], rng(1), "adaptive", max_expected_changes=value)
        with pytest.raises(ValueError, match=f"tolerance={value} must be positive"):
            simulate(chain("uniform mixture"), x, [0, 1], rng(1), "step_doubling", tolerance=value)
    with pytest.raises(ValueError, match=r'step_doubling sees no error on a masked path .* use "adaptive"'):
        simulate(chain("masked"), x, [0, 1], rng(1), "step_doubling")


# ---- stratified hazard


class Even:
    """Leaves with probability 4/5 at every event, whatever the state: the belief is even over five symbols."""

    path = UniformPath(5, rates="mixture")

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        return self.path.marginal(torch.zeros(*x.shape, 5, dtype=torch.float64), x, t, t_next)


def test_stratified_jumps_are_as_many_as_their_hazard() -> None:
    """The sum of the probabilities of leaving, rounded down or up, and on average that sum: at every time of the grid."""
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    mass = 0.8 * (times.diff() / (1 - times[:-1])).cumsum(0)  # 0.08 to 2.34
    x_0 = torch.randint(5, (SAMPLES, 1), generator=rng(1))
    for n in (4, 8, 10):
        expected = float(mass[n - 1])
        jumps = simulate(Even(), x_0, times[: n + 1], rng(2), "stratified_hazard", return_info=True).jumps.double()
        assert set(jumps.tolist()) == {math.floor(expected), math.floor(expected) + 1}
        chance = expected % 1
        assert abs(float(jumps.mean()) - expected) < SIGMAS * math.sqrt(chance * (1 - chance) / SAMPLES)


def test_stratified_positions_have_phases_of_their_own() -> None:
    """Two tokens of a sequence jump independently: the number of those that moved by mass 0.32 is binomial."""
    x_0 = torch.randint(5, (SAMPLES, 2), generator=rng(1))
    jumps = simulate(Even(), x_0, [0.0, 0.2, 0.4], rng(2), "stratified_hazard", return_info=True).jumps
    chance = 0.8 * (0.2 + 0.25)
    law = torch.tensor([(1 - chance) ** 2, 2 * chance * (1 - chance), chance**2], dtype=torch.float64)
    assert chi_square(torch.bincount(jumps, minlength=3), law) > LEAST_P


def test_stratified_masks_are_all_revealed_once() -> None:
    model = chain("masked", 3, kind=Lookup)
    result = simulate(
        model, torch.full((500, 3), 3), torch.linspace(0, 1, 9), rng(1), "stratified_hazard", return_info=True
    )
    assert torch.equal(result.jumps, torch.full((500,), 3))
    assert bool((result.x != MaskedPath(4).mask_token_id).all())
    assert int(index_of(result.x, 4).unique().numel()) > 5


def test_step_doubling_of_a_sequence_does_not_depend_on_who_waits_for_it() -> None:
    """At an interior time of the grid sequences wait for each other: the next part is that of their own last error."""
    model = chain("uniform reversal", 3, kind=Watched)

    def calls(batch: int) -> float:
        x_0 = draw(model, model.joint_marginal(0.0), batch, 5)
        result = simulate(model, x_0, [0, 0.3, 1], rng(6), "step_doubling", tolerance=1e-3, return_info=True)
        return float(result.network_calls.double().mean())

    alone = calls(1)
    assert 0.6 * alone < calls(200) < 1.7 * alone


def test_few_open_positions_of_a_long_sequence_are_all_surveyed() -> None:
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
        x = simulate(model, torch.ones(1, 200, dtype=torch.long), [0, 1], rng(seed), "adaptive", fixed)
        assert bool((x == 1).all())
        assert len(model.seen - {1.0}) == 1  # E = 0: one leap
