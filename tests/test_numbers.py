"""Extreme numbers: right, in log space where that is needed, or refused by name."""

import math
from typing import Any

import pytest
import torch

from gm_discrete import (
    Bins,
    ExactModel,
    ExponentialSchedule,
    GaussianPath,
    GMConfig,
    GMModel,
    Likelihood,
    LogitNormalTimeSampler,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    UniformPath,
    any_order_likelihood,
    flow_likelihood,
    likelihood_bound,
)
from gm_discrete.data.scalers import QuantileScaler, StandardScaler
from gm_discrete.objective import bregman
from gm_discrete.paths.schedules import Schedule
from tests.helpers.distributions import rng

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
Z = torch.tensor([[0, 1, 2], [2, 1, 0]])


def spoilt(model: GMModel) -> GMModel:
    with torch.no_grad():
        next(iter(model.backbone.parameters())).fill_(torch.nan)
        for head in model.heads.parameters():
            head.fill_(1.0)
    return model


@pytest.mark.parametrize("path", [MaskedPath(4), UniformPath(4), UniformPath(4, rates="mixture")], ids=repr)
def test_likelihood_bound__of_nan_weights_is_an_error(path: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"nats=.*weights hold NaN, or overflow in float16"):
        likelihood_bound(spoilt(GMModel(GMConfig(path=path, **SMALL))), Z)


def test_other_likelihoods__of_nan_weights_are_an_error() -> None:
    with pytest.raises(FloatingPointError, match="nats="):
        any_order_likelihood(spoilt(GMModel(GMConfig(path=MaskedPath(4), **SMALL))), Z)
    model = spoilt(GMModel(GMConfig(path=GaussianPath(), max_position_embeddings=3, **SMALL)))
    with pytest.raises(FloatingPointError, match="velocity is not finite"):
        flow_likelihood(model, torch.zeros(2, 3, 1), num_steps=2)


def test_likelihood__perplexity_of_a_diverged_model_is_infinite() -> None:
    tokens = torch.tensor([1, 1])
    assert Likelihood(torch.tensor([800.0, 900.0]), tokens).perplexity == math.inf
    assert Likelihood(torch.tensor([math.inf, 1.0]), tokens).perplexity == math.inf
    assert Likelihood(torch.tensor([700.0, 700.0]), tokens).perplexity == pytest.approx(math.exp(700), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_path__divergence_with_a_tiny_prior_is_that_of_its_definition(dtype: torch.dtype) -> None:
    """Σ_{y≠x} R log(R/R̂) − R + R̂ from the dense rates, for a symbol of prior mass 1e-20."""
    path = MixturePath(3, prior=[1e-20, 0.5, 0.5])
    z, x = torch.tensor([[0, 0, 1, 2, 1]]), torch.tensor([[1, 2, 1, 1, 0]])
    t = torch.tensor([0.6], dtype=torch.float64)
    logits = torch.randn(1, 5, 3, generator=rng(1), dtype=torch.float64).to(dtype)
    target, predicted = path.conditional(z, x, t), path.marginal(logits, x, t)
    a, b = (g.rates(x).double().scatter(2, x[..., None], 1.0) for g in (target, predicted))
    expected = (torch.xlogy(a, a) - a * b.log() - a + b).sum(2)
    found = bregman.divergence(target, predicted, x)
    torch.testing.assert_close(found, expected, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-6)


def test_mixture_path__bound_with_a_tiny_prior_is_finite_and_right() -> None:
    model = ExactModel(MixturePath(3, prior=[1e-20, 0.5, 0.5]), torch.tensor([[0, 1], [1, 2], [0, 2]]))
    bound = likelihood_bound(model, model.data, num_samples=400, rng=rng(), batch_size=1200)
    assert bool(((bound.nats - math.log(3)).abs() < 6 * bound.nats_stderr).all())


@pytest.mark.parametrize("c", [1e-6, 1.0, 745.0, 1e5])
def test_exponential_schedule__is_right_however_steep(c: float) -> None:
    schedule = ExponentialSchedule(c)
    kappa = torch.tensor([1e-9, 0.3, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    t = schedule.inverse(kappa)
    torch.testing.assert_close(schedule.kappa(t), kappa, rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.complement(t), 1 - kappa, rtol=1e-6, atol=0)
    ratio = schedule.derivative(t) / schedule.complement(t)
    torch.testing.assert_close(schedule.hazard(t), ratio, rtol=1e-9, atol=0)
    ends = torch.tensor([0.0, 0.5, 0.999, 1.0], dtype=torch.float64)
    assert bool(schedule.hazard(ends[:-1]).isfinite().all())
    chance = schedule.jump_probability(ends[:-1], ends[1:])
    assert bool(((chance >= 0) & (chance <= 1)).all())


@pytest.mark.parametrize("schedule", [ExponentialSchedule(745.0), PowerSchedule(0.05), PowerSchedule(1e4)], ids=repr)
@pytest.mark.parametrize("rates", ["reversal", "mixture"])
def test_likelihood_bound__does_not_depend_on_an_extreme_schedule(schedule: Schedule, rates: str) -> None:
    """The bound integrates over κ: with the same noise it is that of the linear schedule."""
    found = [
        likelihood_bound(ExactModel(UniformPath(3, s, rates=rates), Z[:, :2]), Z[:, :2], num_samples=64, rng=rng()).nats
        for s in (schedule, None)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormalTimeSampler(math.nan, 1), "mean=nan"),
        (lambda: LogitNormalTimeSampler(0, math.nan), "std=nan"),
        (lambda: LogitNormalTimeSampler(1e3, 1), "mean=1000"),
        (lambda: ExponentialSchedule(1e300), r"c=1e\+300"),
        (lambda: ExponentialSchedule(1e-300), "c=1e-300"),
        (lambda: PowerSchedule(1e-3), "n=0.001"),
        (lambda: StandardScaler(0, 1e-300), "std=1e-300"),
        (lambda: StandardScaler(math.inf, 1), "mean=inf"),
        (lambda: QuantileScaler([0.0, 1e-320, 1.0]), "quantiles"),
        (lambda: StandardScaler(0, 1e-30).transform(torch.tensor([1e30])), r"values holds 1\.\d+e\+30"),
        (lambda: Bins(1e8, 1e8 + 1), "float32"),
        (lambda: GaussianPath(data_std=1e-300), "data_std=1e-300"),
        (lambda: MaskedPath(5.5), "vocab_size=5.5"),  # pyright: ignore[reportArgumentType]
        (lambda: MaskedPath(True), "vocab_size=True"),
        (lambda: MaskedPath(10**12), "vocab_size=1000000000000"),
    ],
)
def test_constructors__refuse_numbers_that_nothing_can_be_right_for(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
