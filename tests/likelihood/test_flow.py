"""`flow_likelihood`: exact for Gaussian data, unbiased with random signs, and in bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    EuclideanMixturePath,
    ExactGaussianModel,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    flow_likelihood,
    likelihood_bound,
)
from tests.helpers.euclid import SCHEDULES, Mixture, numbers, rng

SIGMAS = 4.5
"""Standard errors that a mean is off by with probability 7e-6."""
CENTRES = torch.tensor([[-1.0, -0.8], [0.9, 1.1], [0.1, 0.2]], dtype=torch.float64)
STDS, LAW = numbers(0.5, 0.4, 0.6), numbers(0.3, 0.5, 0.2)
every_schedule = pytest.mark.parametrize(
    "schedule",
    [pytest.param(one, marks=pytest.mark.slow) if one.type_name == "bent" else one for one in SCHEDULES],
    ids=lambda schedule: schedule.type_name,
)


def single(mean: float = 0.4, std: float = 0.7, **options: Any) -> ExactGaussianModel:
    return ExactGaussianModel(GaussianPath(**options), torch.full((1, 1), mean), std)


def correlated(**options: Any) -> ExactGaussianModel:
    """Two numbers that are not independent: three components along a diagonal."""
    return ExactGaussianModel(GaussianPath(num_channels=2, **options), CENTRES[:, None], STDS, LAW)


def log_density(z: Tensor, centres: Tensor, stds: Tensor, law: Tensor) -> Tensor:
    """log Σ_k w_k N(z; m_k, s_k² I), [B], for z [B, d]."""
    square = ((z[:, None] - centres) ** 2).sum(2) / (2 * stds**2)
    return (law.log() - square - z.shape[1] * (stds.log() + math.log(2 * math.pi) / 2)).logsumexp(1)


@every_schedule
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_flow_likelihood__of_normal_data(schedule: Any, trace: str) -> None:
    """The data are blurred by σ(1 − ε) ≤ 0.008 of a deviation of 0.7: a relative 1e-4 of the variance. Of one number the
    signs cancel, and both traces are exact."""
    z = torch.linspace(-1.5, 2.5, 9, dtype=torch.float64)[:, None, None]
    found = flow_likelihood(single(schedule=schedule), z, num_steps=200, trace=trace, rng=rng(1))
    expected = log_density(z[:, :, 0], numbers(0.4)[:, None], numbers(0.7), numbers(1.0))
    assert found.nats.dtype == torch.float64
    assert found.num_tokens.tolist() == [1] * 9
    assert found.kind == "flow"
    torch.testing.assert_close(found.entries, found.nats[:, None])
    torch.testing.assert_close(found.nats, -expected, rtol=0, atol=5e-3)


def test_flow_likelihood__x_0_keeps_quantiles() -> None:
    """The flow preserves the order of points: x_0 = (z − m)/s."""
    z = torch.linspace(-1.5, 2.5, 9, dtype=torch.float64)[:, None, None]
    found = flow_likelihood(single(), z, num_steps=200, trace="exact")
    torch.testing.assert_close(found.x_0, (z - 0.4) / 0.7, rtol=0, atol=5e-3)


@pytest.mark.slow
@every_schedule
def test_flow_likelihood__of_a_correlated_mixture(schedule: Any) -> None:
    model = correlated(schedule=schedule)
    z = model.sample(40, rng(2))
    found = flow_likelihood(model, z, num_steps=300, trace="exact")
    expected = log_density(z[:, 0], CENTRES, STDS, LAW)
    torch.testing.assert_close(found.nats, -expected, rtol=0, atol=2e-2)
    # Correlation matters: the product of the margins is another distribution.
    margins = sum(log_density(z[:, 0, i : i + 1], CENTRES[:, i : i + 1], STDS, LAW) for i in range(2))
    assert float((found.nats + margins).abs().mean()) > 0.2


def test_flow_likelihood__density_integrates_to_one() -> None:
    """By the midpoint rule over 8 standard deviations of a distribution with two modes."""
    data = Mixture([-0.8, 0.9], [0.35, 0.5], [0.4, 0.6])
    model = ExactGaussianModel(GaussianPath(), data.means[:, None], data.stds, data.law)
    edges = torch.linspace(-4, 5, 361, dtype=torch.float64)
    z = ((edges[1:] + edges[:-1]) / 2)[:, None, None]
    found = flow_likelihood(model, z, num_steps=150, trace="exact")
    assert float((-found.nats).exp().sum() * (edges[1] - edges[0])) == pytest.approx(1, abs=3e-3)


@pytest.mark.slow
def test_flow_likelihood__steps_are_of_second_order() -> None:
    """Halving the step divides the error of Heun's method by about 4 (rounding aside); here by 2.5 at least."""
    model, z = correlated(), correlated().sample(20, rng(3))
    exact = flow_likelihood(model, z, num_steps=800, trace="exact").nats
    errors = [
        float((flow_likelihood(model, z, num_steps=n, trace="exact").nats - exact).abs().mean()) for n in (50, 100, 200)
    ]
    assert errors[1] < errors[0] / 2.5
    assert errors[2] < errors[1] / 2.5


def test_flow_likelihood__hutchinson_is_unbiased() -> None:
    """4,000 copies of each of three points: their mean is that of the exact trace within 4.5 standard errors, which are
    4 % of a nat at most, and the estimates do vary."""
    model = correlated()
    points = torch.tensor([[-1.0, -0.8], [0.3, 0.2], [0.9, 1.4]], dtype=torch.float64)[:, None]
    exact = flow_likelihood(model, points, num_steps=30, trace="exact").nats
    copies = points.repeat_interleave(4000, 0)
    found = flow_likelihood(model, copies, num_steps=30, rng=rng(4)).nats.view(3, 4000)
    stderr = found.std(1) / math.sqrt(4000)
    assert bool((stderr < 0.04).all())
    assert bool((stderr > 1e-5).all())
    assert bool(((found.mean(1) - exact).abs() < SIGMAS * stderr).all())


def test_flow_likelihood__is_reproducible() -> None:
    model, z = correlated(), correlated().sample(5, rng(5))
    first, again, other = (flow_likelihood(model, z, num_steps=5, rng=rng(seed)).nats for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "generators", [{"flow": 0.3, "jump": 0.7}, {"jump": 1.0}, {"flow": 0.5, "diffusion": 0.5}], ids=str
)
def test_flow_likelihood__leaves_out_other_parts_of_a_superposition(generators: Any) -> None:
    z = correlated().sample(5, rng(6))
    alone = flow_likelihood(correlated(), z, num_steps=20, trace="exact").nats
    mixed = flow_likelihood(correlated(generators=generators), z, num_steps=20, trace="exact").nats
    torch.testing.assert_close(mixed, alone, rtol=1e-10, atol=1e-10)


def test_flow_likelihood__bits_per_dim_of_a_narrow_bin() -> None:
    """−log₂ of the mass of a bin of 0.01 around the mean."""
    z = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    found = flow_likelihood(single(), z, num_steps=200, trace="exact")
    mass = math.erf(0.005 / 0.7 / math.sqrt(2))  # of a bin of 0.01 around the mean
    assert float(found.bits_per_dim(0.01)) == pytest.approx(-math.log2(mass), abs=0.01)


# ---- networks


def network(**options: Any) -> GMModel:
    torch.manual_seed(1)
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, num_channels=1)
    config = GMConfig(
        path=path, image_shape=[1, 4, 4], patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_frequencies=0, **options,
    )  # fmt: skip
    model = GMModel(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.slow
def test_flow_likelihood__of_an_untrained_network_is_normal() -> None:
    """All heads are 0, and the preconditioned velocity that of N(m, s²): its likelihood is known."""
    path = GaussianPath(data_mean=0.2, data_std=0.5)
    model = GMModel(
        GMConfig(path=path, image_shape=[1, 4, 4], hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    z = 0.2 + 0.5 * torch.randn(3, 1, 4, 4, generator=rng(7))
    found = flow_likelihood(model, z, num_steps=100, rng=rng(8))
    expected = log_density(z.flatten(1).double(), numbers(*[0.2] * 16)[None], numbers(0.5), numbers(1.0))
    torch.testing.assert_close(found.nats, -expected, rtol=0, atol=2e-2)
    assert found.num_tokens.tolist() == [16] * 3
    assert found.x_0 is not None
    assert found.x_0.shape == z.shape


def test_flow_likelihood__evaluates_networks_in_evaluation_mode_by_class_and_without_gradients() -> None:
    model = network(num_classes=2, hidden_dropout=0.5)
    z = torch.randn(2, 1, 4, 4, generator=rng(9))
    labels = torch.tensor([0, 1])
    found = flow_likelihood(model.train(), z, num_steps=3, rng=rng(1), class_labels=labels)
    assert model.training
    again = flow_likelihood(model.eval(), z, num_steps=3, rng=rng(1), class_labels=labels)
    assert not model.training
    assert torch.equal(found.nats, again.nats)
    assert not found.nats.requires_grad
    assert found.x_0 is not None
    assert not found.x_0.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(flow_likelihood(model, z, num_steps=3, rng=rng(1), class_labels=1 - labels).nats, found.nats)
    with torch.no_grad():
        assert torch.equal(flow_likelihood(model, z, num_steps=3, rng=rng(1), class_labels=labels).nats, found.nats)


def test_flow_likelihood__exact_trace_of_a_network_is_that_of_its_jacobian() -> None:
    """One step back from t = 1 − ε to 0: minus the mean of the traces at both ends, by autograd's own Jacobian."""
    model = network().double()
    z = torch.randn(2, 1, 4, 4, generator=rng(9)).double()
    found = flow_likelihood(model, z, num_steps=1, trace="exact")
    stop = model.path.stop  # type: ignore[union-attr]
    x, traces = (1 - stop) * z, []

    def velocity(state: Tensor, time: float) -> Tensor:
        t = torch.full((len(state),), time, dtype=torch.float64)
        return model.generator(state, t).parts["flow"].velocity  # type: ignore[union-attr]

    earlier = x - (1 - stop) * velocity(x, 1 - stop).detach()
    for state, time in ((x, 1 - stop), (earlier, 0.0)):
        rows = [
            torch.autograd.functional.jacobian(lambda y, time=time: velocity(y, time), state[i : i + 1]).view(16, 16)
            for i in range(2)
        ]
        traces.append(torch.stack([row.trace() for row in rows]))
    start = x - (1 - stop) / 2 * (velocity(x, 1 - stop) + velocity(earlier, 0.0)).detach()
    prior = -(start.flatten(1) ** 2).sum(1) / 2 - 8 * math.log(2 * math.pi)
    expected = prior - (1 - stop) / 2 * (traces[0] + traces[1]) + 16 * math.log(1 - stop)
    torch.testing.assert_close(found.nats, -expected, rtol=1e-6, atol=1e-6)


# ---- errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trace": "approximate"}, "trace='approximate'"),
        ({"num_steps": 0}, "num_steps=0"),
    ],
)
def test_flow_likelihood__bad_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        flow_likelihood(single(), torch.zeros(2, 1, 1), **options)


def test_flow_likelihood__bad_data_are_named() -> None:
    with pytest.raises(ValueError, match=r"z .*floating-point"):
        flow_likelihood(single(), torch.zeros(2, 1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"z .*not finite"):
        flow_likelihood(single(), torch.full((2, 1, 1), math.nan))


@pytest.mark.parametrize("path", [MaskedPath(5), EuclideanMixturePath({"flow": 1.0})], ids=["masked", "mixture"])
def test_flow_likelihood__other_paths_are_named(path: Any) -> None:
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(TypeError, match="needs a GaussianPath or an SO3Path, not"):
        flow_likelihood(model, torch.zeros(2, 3, 1))


def test_likelihood_bound__of_a_continuous_path_names_flow_likelihood() -> None:
    with pytest.raises(TypeError, match=r"GaussianPath.*flow_likelihood"):
        likelihood_bound(single(), torch.zeros(2, 3, dtype=torch.long))


def test_flow_likelihood__of_an_object_without_a_path_names_its_type() -> None:
    model: Any = object()
    with pytest.raises(TypeError, match=r"object .*\.path"):
        flow_likelihood(model, torch.zeros(2, 1, 1))
