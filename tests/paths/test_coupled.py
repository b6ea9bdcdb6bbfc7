"""Coupled mixture paths p_t(x|z, x_0) = (1 − κ) 1[x = x_0] + κ 1[x = z]: distributions, bounds on −log p(z|x_0),
refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    GMConfig,
    GMModel,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    UniformPath,
    bregman,
    conditional_loss,
    likelihood_bound,
    simulate,
)
from gm_discrete.objective import corrupt
from gm_discrete.paths import Path
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square, kappa_nodes


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PATH = MixturePath(3, schedule=CosineSchedule(), coupled=True)
PAIRS = torch.tensor(
    [[0, 0, 1, 2], [0, 1, 2, 2], [2, 1, 0, 0], [1, 1, 0, 2], [2, 2, 2, 1]]
)  # x_0 (2 tokens), z (2 tokens)
LAW = torch.tensor([0.3, 0.1, 0.25, 0.05, 0.3], dtype=torch.float64)


def chain(path: MixturePath = PATH) -> ExactModel:
    return ExactModel(path, PAIRS[:, 2:], LAW, x_0=PAIRS[:, :2])


# ---- distributions


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_coupled_path__samples_are_the_source_or_the_data(t: float) -> None:
    """Jointly over two tokens; where both agree, the token never differs."""
    z, x_0 = torch.tensor([2, 0, 1]), torch.tensor([1, 1, 1])
    x = PATH.sample(z.expand(20_000, 3), times(t, 20_000), rng(), x_0.expand(20_000, 3))
    kappa = float(PATH.schedule.kappa(t))
    assert bool((x[:, 2] == 1).all())
    assert bool(((x == z) | (x == x_0)).all())
    arrived = (x[:, :2] == z[:2]).long()
    law = torch.tensor([(1 - kappa) ** 2, (1 - kappa) * kappa, kappa * (1 - kappa), kappa**2], dtype=torch.float64)
    assert chi_square(torch.bincount(arrived @ torch.tensor([2, 1]), minlength=4), law) > LEAST_P


def test_coupled_path__conditional_step_carries_the_distribution_of_a_pair() -> None:
    """p_t(·|z, x_0) → p_s(·|z, x_0) exactly, and its rate solves the Kolmogorov equation, for every pair of symbols."""
    t, s = 0.3, 0.7
    kappa, kappa_next = (float(PATH.schedule.kappa(v)) for v in (t, s))
    eye = torch.eye(3, dtype=torch.float64)
    x = torch.arange(3)[:, None]
    for z in range(3):
        data = torch.full_like(x, z)
        step, rate = PATH.conditional(data, x, times(t, 3), times(s, 3)), PATH.conditional(data, x, times(t, 3))
        moved = step.probability[..., None] * step.kernel.probs()
        matrix = (moved + (1 - step.probability[..., None]) * eye[x])[:, 0]
        for source in range(3):
            p, q = ((1 - k) * eye[source] + k * eye[z] for k in (kappa, kappa_next))
            torch.testing.assert_close(p @ matrix, q, rtol=0, atol=1e-15)
            slope = float(PATH.schedule.derivative(t)) * (eye[z] - eye[source])
            torch.testing.assert_close(p @ rate.rates(x)[:, 0], slope, rtol=0, atol=1e-14)


def test_coupled_path__moves_symbols_outside_the_prior_too() -> None:
    """A source may hold any symbol; only without a source is a symbol outside the prior sure to be data."""
    x, t = torch.tensor([[2, 0]]), times(0.3, 1)
    logits = torch.zeros(1, 2, 3)
    for coupled in (True, False):
        path = MixturePath(3, [0.5, 0.5, 0.0], rates="mixture", coupled=coupled)
        jump = path.marginal(logits, x, t, times(0.6, 1))
        assert (jump.intensity > 0).tolist() == [[coupled, True]]
        assert (jump.probability > 0).tolist() == [[coupled, True]]
        assert (path.dominating_process(x).weight > 0).tolist() == [[coupled, True]]


@pytest.mark.parametrize("method", ["tau_leaping", "euler", "uniformization"])
def test_coupled_path__turns_sources_into_data(method: str) -> None:
    """x_0 from the pairs, simulated with their exact posterior: x_t has the distribution Σ P(z, x_0) p_t(x|z, x_0)
    halfway and at the end. The grid's error at 128 steps is below 0.004 in total variation, of which 5000 draws see
    nothing."""
    model = chain()
    n = 5_000
    source = model.x_0[torch.multinomial(LAW, n, replacement=True, generator=rng(1))]
    grid = torch.linspace(0, 1, 3 if method == "uniformization" else 129).double()
    half = len(grid) // 2
    info = simulate(model, source, grid, rng(2), method, save_at=[half], return_info=True)
    for x, t in ((info.states[0], float(grid[half])), (info.x, 1.0)):
        assert chi_square(torch.bincount(model.index(x), minlength=9), model.marginal(t)) > LEAST_P


# ---- the bound on −log p(z|x_0)


def rates_matrix(model: ExactModel, t: float) -> Tensor:
    """The generator of sequences, [to, from]; 0 from states that no pair reaches."""
    states = model.states()
    rates = model.generator(states, times(t, len(states))).rates(states).nan_to_num(0.0)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for position in range(states.shape[1]):
        for symbol in range(model.path.vocab_size):
            other = states.clone()
            other[:, position] = symbol
            matrix[model.index(other), torch.arange(len(states))] += rates[:, position, symbol]
    return matrix


def transition(model: ExactModel, steps: int = 400) -> Tensor:
    """P(x_1 | x_0) of the model's Markov process, [to, from]: Runge-Kutta in s = −log(1 − κ) up to s = 14, and one jump
    of what is left, which 1 − κ = 8e-7 makes unlikely."""
    schedule = model.path.schedule
    matrix, h = torch.eye(len(model.states()), dtype=torch.float64), 14 / steps

    def slope(s: float, m: Tensor) -> Tensor:
        t = float(schedule.inverse(-math.expm1(-s)))
        return rates_matrix(model, t) / float(schedule.hazard(t)) @ m

    for i in range(steps):
        s = i * h + 1e-12
        a = slope(s, matrix)
        b = slope(s + h / 2, matrix + h / 2 * a)
        c = slope(s + h / 2, matrix + h / 2 * b)
        d = slope(s + h, matrix + h * c)
        matrix = matrix + h / 6 * (a + 2 * b + 2 * c + d)
    return matrix


def exact_bound(model: ExactModel, nodes: int = 60) -> Tensor:
    """∫ E_{x ~ p_t(·|z, x_0)} D dt for every pair, [Z], summed over all x."""
    states, total = model.states(), torch.zeros(len(model.data), dtype=torch.float64)
    for kappa, weight in kappa_nodes(nodes):
        t = float(model.path.schedule.inverse(kappa))
        time = times(t, len(states))
        predicted = model.generator(states, time)
        for pair, (z, x_0) in enumerate(zip(model.data, model.x_0, strict=True)):
            p = ((1 - kappa) * (states == x_0) + kappa * (states == z)).prod(1)
            loss = bregman.divergence(model.path.conditional(z.expand_as(states), states, time), predicted, states)
            loss = torch.where(p > 0, p * loss.sum(1), 0.0).sum()
            total[pair] += weight * loss / model.path.schedule.derivative(t)
    return total


@pytest.mark.slow
def test_coupled_path__bound_lies_above_the_likelihood_given_the_source() -> None:
    """Of every pair, where the process's own P(x_1 = z | x_0) is the solution of its Kolmogorov equation; and the draws
    average to the integral."""
    model = chain(MixturePath(3, coupled=True))
    reached = transition(model)
    start, end = model.index(model.x_0), model.index(model.data)
    nats = -reached[end, start].log()
    bound = exact_bound(model)
    assert bool((bound >= nats - 1e-6).all())
    assert float((bound - nats).max()) > 0.01  # jumps always land on z, so that histories know more than states
    x_1 = torch.zeros(9, dtype=torch.float64).index_add(0, end, LAW)
    x_0 = torch.zeros(9, dtype=torch.float64).index_add(0, start, LAW)
    torch.testing.assert_close(reached @ x_0, x_1, rtol=0, atol=1e-5)  # 8e-7 per token is not yet there

    z, source = (v.repeat_interleave(400, 0) for v in (model.data, model.x_0))
    estimate = likelihood_bound(model, z, num_samples=2, rng=rng(3), x_0=source)
    draws = estimate.nats.view(5, 400)
    errors = (draws.mean(1) - bound).abs()
    assert bool((errors < SIGMAS * draws.std(1) / math.sqrt(400) + 1e-12).all())
    assert estimate.kind == "mixture"


def test_coupled_path__bound_is_0_for_data_that_the_source_determines() -> None:
    """z = x_0 + 2 with sources from {0, 1}: x tells z, every rate is right, and the bound is 0."""
    path = MixturePath(4, schedule=PowerSchedule(2), coupled=True)
    x_0 = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 1]])
    model = ExactModel(path, x_0 + 2, x_0=x_0)
    bound = likelihood_bound(model, x_0 + 2, num_samples=16, rng=rng(), x_0=x_0)
    assert float(bound.nats.abs().max()) < 1e-10
    assert float(conditional_loss(model, x_0 + 2, rng=rng(), x_0=x_0)) == pytest.approx(0, abs=1e-10)
    x = simulate(model, x_0, [0.0, 0.2, 0.7, 1.0], rng())
    assert torch.equal(x, x_0 + 2)


# ---- training


def network() -> GMModel:
    config = GMConfig(path=MixturePath(6, coupled=True), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    return GMModel(config)


@pytest.mark.parametrize("divergence", [None, "cross_entropy"])
def test_coupled_path__loss_of_a_network_has_a_gradient(divergence: str | None) -> None:
    model = network()
    assert model.path.coupled
    assert model.config.divergence == "generalized_kl"
    z, x_0 = torch.randint(3, (8, 5), generator=rng()) + 3, torch.randint(3, (8, 5), generator=rng(1))
    loss = conditional_loss(model, z, rng=rng(2), divergence=divergence, x_0=x_0)
    loss.backward()
    gradient = model.heads.tokens.weight.grad
    assert math.isfinite(loss.item())
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0
    assert math.isfinite(likelihood_bound(model, z, rng=rng(), x_0=x_0).bits_per_token)


def test_coupled_path__corrupted_tokens_come_from_their_own_source() -> None:
    """Rows of a rank too, and entries that are not scored stay."""
    z, x_0 = torch.full((4, 50), 5), torch.arange(4)[:, None].expand(4, 50)
    scored = torch.ones_like(z, dtype=torch.bool)
    scored[:, :10] = False
    path = MixturePath(6, coupled=True)
    for rank in (0, 1):
        state, _ = corrupt(path, {"": z}, {"": scored}, rng(), rank=rank, world_size=2, x_0={"": x_0})
        x = state[""]
        assert bool(((x == z) | (x == x_0)).all())
        assert bool((x[:, :10] == 5).all())
        assert bool((x != z).any(1).any())


def test_coupled_path__travels_through_a_config() -> None:
    path = MixturePath(3, [0.2, 0.3, 0.5], coupled=True)
    assert path.rates == "mixture"
    copy = Path.from_dict(path.to_dict())
    assert copy == path
    assert copy.coupled
    assert copy != MixturePath(3, [0.2, 0.3, 0.5], rates="mixture")
    assert "coupled=True" in repr(path)
    old = {k: v for k, v in MixturePath(3, [0.2, 0.3, 0.5]).to_dict().items() if k != "coupled"}
    assert not Path.from_dict(old).coupled  # configs from before


def test_coupled_path__evidence_weighs_a_symbol_by_the_frequency_of_the_sources() -> None:
    """log(1 + κ / ((1 − κ) P(x_0 = x))): what a token says about its z if the source is drawn by the prior."""
    path, prior = MixturePath(3, [0.2, 0.3, 0.5], coupled=True), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = torch.log1p(0.4 / (0.6 * prior))
    torch.testing.assert_close(path.evidence(torch.arange(3)[None], times(0.4, 1))[0], expected, rtol=1e-14, atol=0)


# ---- refusals

Z, HALF = torch.zeros(2, 3, dtype=torch.long), times(0.5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixturePath(3, coupled=True, rates="reversal"), 'a coupled path has rates="mixture"'),
        (lambda: MixturePath(3), "prior.*coupled=True"),
        (lambda: PATH.prior((2, 3)), "coupled=True.*x_0"),
        (lambda: PATH.sample(Z, HALF), r"x_0.* \(2, 3\)"),
        (lambda: PATH.sample(Z, HALF, x_0=Z[:, :2]), r"of z's shape \(2, 3\); got shape \(2, 2\)"),
        (lambda: PATH.sample(Z, HALF, x_0=Z + 3), "x_0 holds ids from 3 to 3"),
        (lambda: PATH.sample(Z, HALF, x_0=Z.float()), "x_0 must be a long tensor"),
        (lambda: MaskedPath(3).sample(Z, HALF, x_0=Z), r"x_0 is given.*coupled=True"),
        (lambda: UniformPath(3).sample(Z, HALF, x_0=Z), r"x_0 is given.*coupled=True"),
        (lambda: conditional_loss(chain(), Z), "a coupled path needs x_0"),
        (lambda: likelihood_bound(chain(), Z), "a coupled path needs x_0"),
        (lambda: conditional_loss(ExactModel(UniformPath(3), Z), Z, x_0=Z), "the path is not coupled"),
        (lambda: likelihood_bound(ExactModel(MaskedPath(3), Z), Z, x_0=Z), "the path is not coupled"),
    ],
)
def test_coupled_path__names_what_it_does_not_support(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
