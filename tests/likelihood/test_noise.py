"""The noise at which the bound is estimated: its distribution, unbiased weights, the spread of draws, standard errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    ExactProductModel,
    FinitePath,
    MaskedPath,
    MetricPath,
    MixturePath,
    PowerSchedule,
    ProductPath,
    UniformPath,
    field_likelihood,
    likelihood_bound,
)
from gm_discrete.likelihood.noise import time_table
from tests.helpers.distributions import (
    GENERAL_PATHS,
    LEAST_P,
    PATHS,
    SIGMAS,
    chain,
    chi_square,
    exact_bound,
    rng,
)

UNMASKED = [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith("kinetic") else name
    for name in (*PATHS, *GENERAL_PATHS)
    if not name.startswith("mask")
]


def drawn(model: Any, number: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Data z [number, L] of a chain, and its sources if it is coupled."""
    index = torch.multinomial(model.weights, number, replacement=True, generator=rng(seed))
    return model.data[index], None if model.sources is None else model.sources[index]


# ---- the noise of one token


@pytest.mark.parametrize("name", [*PATHS, *GENERAL_PATHS])
def test_finite_path__noise_probability_and_noise_of_a_token(name: str) -> None:
    """P(x ≠ z), and x given x ≠ z, against `sample`: a χ² test in which one of 10⁴ seeds fails."""
    model, n = chain(name, 1), 4000
    z = model.data.repeat_interleave(n, 0)
    x_0 = None if model.sources is None else model.sources.repeat_interleave(n, 0)
    t = torch.full((len(z),), 0.6, dtype=torch.float64)
    chance = model.path.noise_probability(z, t, x_0)
    law = model.likelihood(model.states(), t[: len(model.states())]).T  # [z, x]
    for symbol, part in enumerate(z.split(n)):
        here = slice(symbol * n, symbol * n + n)
        others = law[symbol].scatter(0, part[0], 0.0)
        torch.testing.assert_close(chance[here], others.sum().expand(n, 1), rtol=1e-12, atol=1e-15)
        if others.sum() == 0:  # the source of a coupled path is the data symbol
            continue
        uniforms = torch.rand(n, generator=rng(symbol), dtype=torch.float64)
        x = model.path.sample_noise(part[:, 0], t[here], uniforms, None if x_0 is None else x_0[here, 0])
        assert chi_square(torch.bincount(x, minlength=model.path.vocab_size), others) > LEAST_P


def test_finite_path__noise_probability_keeps_its_precision_near_the_data() -> None:
    path, z, t = UniformPath(4), torch.zeros(1, 1).long(), torch.tensor([1 - 2**-50], dtype=torch.float64)
    for found in (path.noise_probability(z, t), FinitePath.noise_probability(path, z, t)):  # closed form, and by rows
        assert found.item() == pytest.approx(0.75 * 2**-50, rel=1e-12)


def test_finite_path__mixtures_move_by_kappa() -> None:
    path, times = UniformPath(5, CosineSchedule()), torch.linspace(0, 1, 12).double()
    for moved in (path.movement(times), FinitePath.movement(path, times)):
        torch.testing.assert_close(moved / moved.sum(), path.schedule.kappa(times).diff(), rtol=1e-9, atol=1e-12)


def test_time_table__of_paths_that_differ_increases_from_0_to_1() -> None:
    paths: Any = {"a": UniformPath(3, CosineSchedule()), "b": MetricPath(3, embeddings=[[0.0], [1.0], [9.0]], a=3.0)}
    nodes, cumulative = time_table(paths, torch.device("cpu"))
    assert (float(nodes[0]), float(nodes[-1]), float(cumulative[0]), float(cumulative[-1])) == (0, 1, 0, 1)
    assert bool((nodes.diff() > 0).all())
    assert bool((cumulative.diff() > 0).all())


# ---- draws


@pytest.mark.parametrize("name", UNMASKED)
def test_likelihood_bound__draws_are_unbiased_and_within_4_nats(name: str) -> None:
    """Chains of 4 tokens over 3 symbols with the exact posterior: the mean of 1500 sequences is within 4.5 standard errors
    of the integral, and a draw within a sequence has a standard deviation of at most 4 nats. With κ uniform it had 5 to 13,
    and more with more draws, as the variance was infinite."""
    model = chain(name, 3 if name.startswith(("special", "blur", "growing")) else 4)
    z, x_0 = drawn(model, 1500)
    bound = likelihood_bound(model, z, num_samples=8, rng=rng(1), batch_size=len(z) * 8, x_0=x_0)
    exact = float(exact_bound(model, 40) @ model.weights)
    assert abs(float(bound.nats.mean()) - exact) < SIGMAS * float(bound.nats.std()) / math.sqrt(len(z))
    assert bound.draws is not None
    assert float(bound.draws.var(1).mean()) ** 0.5 < 4


@pytest.mark.parametrize("name", ["uniform reversal", "prior reversal"])
def test_likelihood_bound__no_draw_carries_the_sum(name: str) -> None:
    """The top hundredth of the draws carried a fifth of the sum, the largest of 12,000 was above 500 nats."""
    model = chain(name, 4)
    draws = likelihood_bound(model, drawn(model, 1500)[0], num_samples=8, rng=rng(2)).draws
    assert draws is not None
    top = draws.flatten().sort(descending=True).values
    assert float(top[: len(top) // 100].sum() / top.sum()) < 0.08
    assert float(top[0]) < 200


@pytest.mark.parametrize("name", ["uniform reversal", "prior reversal", "prior mixture"])
def test_likelihood_bound__standard_error_is_honest(name: str) -> None:
    """In 300 runs of 32 sequences and 4 draws the interval of ±1.96 standard errors covers the truth in 95 % of cases, but
    for the skewness of a mean of 32; less than 90 % would be seen once in 10⁴. So of the errors over the draws."""
    model, runs, size = chain(name, 4), 300, 32
    exact = exact_bound(model, 40)
    z, _ = drawn(model, runs * size, 3)
    bound = likelihood_bound(model, z, num_samples=4, rng=rng(4), batch_size=4 * len(z))
    nats = bound.nats.view(runs, size)
    error = nats.std(1) / math.sqrt(size)  # `.stderr`, but for the factor 1/(L ln 2)
    covered = ((nats.mean(1) - exact @ model.weights).abs() < 1.96 * error).double().mean()
    assert 0.9 < float(covered) < 0.99
    index = (z * 3 ** torch.arange(3, -1, -1)).sum(1)
    within = (bound.nats - exact[index]).view(runs, size).mean(1).abs()
    error = bound.nats_stderr.square().view(runs, size).mean(1).sqrt() / math.sqrt(size)
    assert float((within < 1.96 * error).double().mean()) > 0.9


def test_likelihood_bound__paths_without_a_token_to_noise_are_not_weighted() -> None:
    """Sources that are the data, and a prior that is the data symbol: x = z at all times."""
    z = torch.tensor([[0, 0]])
    coupled = ExactModel(MixturePath(3, coupled=True), z, x_0=z)
    assert likelihood_bound(coupled, z, x_0=z, rng=rng()).nats.tolist() == pytest.approx([0.0], abs=1e-12)
    certain = ExactModel(MixturePath(3, [1.0, 0.0, 0.0]), z)
    assert likelihood_bound(certain, z, rng=rng()).nats.tolist() == pytest.approx([0.0], abs=1e-12)


def test_field_likelihood__of_discrete_fields_with_other_schedules_is_the_entropy() -> None:
    """Three fields that share neither schedule nor prior: the mean of 1500 states is within 4.5 standard errors, and a draw
    of a state, of which 8 are averaged, has a standard deviation of at most 4 nats."""
    path = ProductPath(
        a=UniformPath(3, CosineSchedule()),
        b=MixturePath(3, [0.5, 0.3, 0.2]),
        c=MaskedPath(4, schedule=PowerSchedule(2)),
    )
    symbols = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3))
    data = dict(zip("abc", symbols[:, :, None].unbind(1), strict=True))
    weights = torch.rand(len(symbols), generator=rng(1), dtype=torch.float64) ** 4
    model = ExactProductModel(path, data, weights=weights / weights.sum())
    index = torch.multinomial(weights, 1500, replacement=True, generator=rng(2))
    bound = field_likelihood(model, {name: part[index] for name, part in data.items()}, num_samples=8, rng=rng(3))
    excess = bound.nats + model.weights[index].log()
    assert abs(float(excess.mean())) < SIGMAS * float(excess.std()) / math.sqrt(1500)
    assert float(excess.std()) < 4 / math.sqrt(8)


def test_time_table__of_one_path_is_made_once() -> None:
    path, device = GENERAL_PATHS["metric kinetic"](None), torch.device("cpu")
    assert time_table({"": path}, device) is time_table({"": path}, device)
