"""The distribution of every sampler, at an intermediate and at the final time.

The distribution of a fixed-grid sampler with an exact posterior is a product of matrices, which `distributions.step_matrix`
writes from the definitions. Samples are held against that distribution, on grids coarse enough to tell the samplers
apart; the distribution itself is held against the data, to which it must converge with order 1.
"""

import math

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    FinitePath,
    LinearSchedule,
    MaskedPath,
    PowerSchedule,
    SquaredSineSchedule,
    Trapezoidal,
    UniformPath,
    simulate,
)
from tests.helpers.chains import index_of
from tests.helpers.distributions import (
    ALL_PATHS,
    GENERAL_PATHS,
    LEAST_P,
    PATHS,
    SIGMAS,
    EnumeratedChain,
    Lookup,
    chain,
    chi_square,
    draw,
    frequencies,
    p_value,
    rng,
    sampler_distributions,
    step_matrix,
    total_variation,
)

SAMPLES = 50_000
FIRST_ORDER = [(name, method) for name in PATHS for method in ("tau_leaping", "euler")]
GENERAL = [(name, method) for name in GENERAL_PATHS for method in ("tau_leaping", "euler")]
TRAPEZOIDAL = [(name, "trapezoidal") for name in ALL_PATHS]


def length(name: str, method: str = "") -> int:
    return 2 if name.startswith("special") or name in GENERAL_PATHS or method == "trapezoidal" else 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), FIRST_ORDER + GENERAL + TRAPEZOIDAL)
@pytest.mark.parametrize("steps", [1, 4])
def test_samplers__samples_follow_the_exact_distribution(name: str, method: str, steps: int) -> None:
    """At t = 1/2 and at t = 1, with a schedule for which Euler and the exact interval probability differ.

    Euler starts at t = 0.02, from p_0.02: at 0 the reversal rate is infinite.
    """
    model = chain(name, length(name, method), SquaredSineSchedule(), Lookup)
    first = 0.02 if method == "euler" else 0.0
    times = [first, *torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64)[1:].tolist()]
    start = model.joint_marginal(first)
    laws = sampler_distributions(model, times, method, start)
    x_0 = draw(model, start, SAMPLES // 2 if name in GENERAL_PATHS else SAMPLES, 1)
    result = simulate(model, x_0, times, rng(2), method, save_at=[steps, -1], return_info=True)
    for x, law in zip(result.states, (laws[steps], laws[-1]), strict=True):
        assert p_value(model, x, law) > LEAST_P
    assert torch.equal(result.x, result.states[-1])


@pytest.mark.parametrize("theta", [0.3, 0.7])
@pytest.mark.parametrize("name", ["masked", "prior reversal", "metric kinetic"])
def test_trapezoidal__step_of_any_theta(name: str, theta: float) -> None:
    model, times = chain(name, 2, SquaredSineSchedule(), Lookup), [0.3, 0.8]
    start = model.joint_marginal(0.3)
    x = simulate(model, draw(model, start, SAMPLES, 3), times, rng(4), Trapezoidal(theta))
    assert p_value(model, x, start @ step_matrix(model, *times, "trapezoidal", theta)) > LEAST_P


FOLLOWED = [(name, "tau_leaping") for name in ("metric kinetic", "blur kinetic", "growing kinetic", "coupled")]


def distances(model: EnumeratedChain, steps: int, method: str) -> list[float]:
    """Total variation of the sampler's distribution from p_t at t = 1/2 and t = 1."""
    laws = sampler_distributions(model, torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist(), method)
    return [total_variation(law, model.joint_marginal(t)) for law, t in ((laws[steps // 2], 0.5), (laws[-1], 1.0))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), FIRST_ORDER + FOLLOWED)
@pytest.mark.parametrize("schedule", [LinearSchedule(), SquaredSineSchedule()], ids=repr)
def test_samplers__distribution_converges_with_order_1(name: str, method: str, schedule) -> None:
    """Twice the steps, half the distance to p_t: no sampling, and the ratio is within 20 % of 2 from 64 steps on."""
    model = chain(name, length(name), schedule)
    for coarse, fine in zip(distances(model, 64, method), distances(model, 128, method), strict=True):
        assert fine < 0.01
        assert coarse / fine == pytest.approx(2, rel=0.2)


def near_even(path: FinitePath) -> EnumeratedChain:
    """A distribution so close to even that 2 π_inner ≥ π_t wherever a token has not moved."""
    model = EnumeratedChain(path, 3, 3)
    model.weights = 1 + 0.1 * torch.rand(27, generator=rng(1), dtype=torch.float64)
    model.weights /= model.weights.sum()
    return model


def test_trapezoidal__converges_with_order_2_on_masks_where_nothing_is_clipped() -> None:
    """At t = 1/2, twice the steps, a quarter of the distance, within 10 %."""
    coarse, fine = (distances(near_even(MaskedPath(4)), steps, "trapezoidal")[0] for steps in (16, 32))
    assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("rates", ["mixture", "reversal"])
def test_trapezoidal__steps_pay_for_their_second_evaluation(rates: str) -> None:
    """On uniform paths the belief of a token that moved is always clipped, for order 1; the error is still less than half
    of that of twice as many leaps."""
    model = near_even(UniformPath(3, rates=rates))
    assert distances(model, 8, "trapezoidal")[0] < 0.5 * distances(model, 16, "tau_leaping")[0]


@pytest.mark.parametrize("name", ALL_PATHS)
def test_tau_leaping__single_tokens_are_exact_however_few_the_steps(name: str) -> None:
    """L = 1: nothing moves together, so that p_t is met in two steps, for every time at which one stops."""
    model = chain(name, 1, kind=Lookup)
    x_0 = draw(model, model.joint_marginal(0.0), SAMPLES // 2, 3)
    for end in (0.5, 1.0):
        x = simulate(model, x_0, [0.0, 0.4, end], rng(4))
        assert p_value(model, x, model.joint_marginal(end)) > LEAST_P


@pytest.mark.parametrize(("name", "method"), FIRST_ORDER)
def test_samplers__steps_between_inner_times(name: str, method: str) -> None:
    """From p_0.3, on an uneven grid, to 0.8."""
    model = chain(name, 2, kind=Lookup)
    times = [0.3, 0.35, 0.5, 0.8]
    start = model.joint_marginal(0.3)
    x = simulate(model, draw(model, start, SAMPLES // 2, 5), times, rng(6), method)
    assert p_value(model, x, sampler_distributions(model, times, method, start)[-1]) > LEAST_P


@pytest.mark.parametrize("method", ["tau_leaping", "euler"])
def test_samplers__infilling_follows_the_conditional_distribution(method: str) -> None:
    """Masks between fixed tokens: the distribution of the sampler that starts there, which converges to p(z | fixed
    tokens)."""
    model = chain("masked", kind=Lookup)
    x_0 = torch.tensor([[2, 3, 3]])
    start = torch.zeros(len(model.states()), dtype=torch.float64).index_fill(0, index_of(x_0, 4), 1.0)
    times = torch.linspace(0.01, 1, 5, dtype=torch.float64).tolist()  # at 0 this state has no exact posterior
    law = sampler_distributions(model, times, method, start)[-1]
    fixed = torch.tensor([[True, False, False]]).expand(SAMPLES // 2, 3)
    x = simulate(model, x_0.expand(SAMPLES // 2, 3), times, rng(7), method, fixed)
    assert p_value(model, x, law) > LEAST_P
    fine = sampler_distributions(model, torch.linspace(0.01, 1, 201, dtype=torch.float64).tolist(), method, start)[-1]
    conditional = model.joint_marginal(1.0) * (model.states()[:, 0] == 2)
    assert float((fine - conditional / conditional.sum()).abs().sum()) < 0.01


@pytest.mark.parametrize("name", ["masked", "uniform mixture", "uniform reversal"])
def test_euler__converges_although_the_rate_is_infinite_at_0(name: str) -> None:
    """κ = √t has κ'(0) = ∞, integrable: the first step must not make every token jump at once.

    At 64 steps the total variation from the data is 0.012 or less; 20 000 samples on 27 states add 0.015 of noise.
    """
    model = chain(name, schedule=PowerSchedule(0.5), kind=Lookup)
    x_0 = model.path.prior((20_000, 3), rng(8))
    x = simulate(model, x_0, torch.linspace(0, 1, 65, dtype=torch.float64), rng(9), "euler")
    assert total_variation(frequencies(model, x) / 20_000, model.joint_marginal(1.0)) < 0.04


class Zipf:
    """Every token has the same posterior, p(k) ∝ 1/k over 50 257 symbols."""

    def __init__(self) -> None:
        self.path = MaskedPath(50_258)
        self.logits = torch.full((50_258,), -torch.inf)
        self.logits[:-1] = -torch.arange(1, 50_258, dtype=torch.float64).log().float()

    def readout(self, head: str, where: Tensor) -> Tensor:
        return self.logits.expand(len(where), -1).clone()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None):
        return self.path.marginal(self.readout, x, t, t_next)


@pytest.mark.slow
def test_tau_leaping__rare_symbols_of_a_large_vocabulary_are_not_lost() -> None:
    """Float32 noise must not swallow them: K = 50 257, 1/1024 unmasked a step.

    Drawn by one Gumbel-max over "stay or unmask to k", float32 uniforms lower the entropy of landed symbols from 7.57 to
    5.63 nats and the unmasking rate to 0.69 of itself. E[−log p(landed)] is the entropy exactly if the distribution is p.
    """
    model = Zipf()
    surprisal = -model.logits[:-1].double().log_softmax(0)
    entropy = float((surprisal.neg().exp() * surprisal).sum())
    assert entropy == pytest.approx(7.57, abs=0.005)
    shape, steps = (512, 1024), 8
    times = torch.arange(steps + 1, dtype=torch.float64) / 1024
    x = simulate(model, torch.full(shape, 50_257), times, rng(10)).flatten()
    landed = x[x != 50_257]
    mean, chance = steps / 1024 * len(x), steps / 1024
    assert abs(len(landed) - mean) < SIGMAS * math.sqrt(mean * (1 - chance))
    seen = surprisal[landed]
    noise = float((surprisal.neg().exp() * (surprisal - entropy) ** 2).sum().sqrt()) / math.sqrt(len(landed))
    assert noise < 0.06
    assert abs(float(seen.mean()) - entropy) < SIGMAS * noise
    bands = torch.bucketize(torch.arange(50_257), torch.tensor([1, 10, 100, 1000, 10_000]), right=True)
    law = torch.zeros(6, dtype=torch.float64).index_add(0, bands, surprisal.neg().exp())
    assert chi_square(torch.bincount(bands[landed], minlength=6), law) > LEAST_P
