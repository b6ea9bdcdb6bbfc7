"""`ExactGaussianModel`: mean of the data, rate and landing of the jump, against sums over one and two numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete.generators.landings import Bins
from gm_discrete.paths import GaussianPath, UniformPath
from gm_discrete.paths.affine import AffineSchedule
from gm_discrete.paths.exact import ExactGaussianModel
from tests.helpers.distributions import LEAST_P, SIGMAS
from tests.helpers.euclid import SCHEDULES, Mixture, kolmogorov, normal_density, numbers, panels, rng, times

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)
DATA = Mixture([-1.2, 0.5, 0.9], [0.3, 0.25, 0.4], [0.3, 0.5, 0.2])
CORNERS = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -0.2]], dtype=torch.float64)
STDS, LAW = numbers(0.3, 0.2, 0.4), numbers(0.4, 0.4, 0.2)
ALL = {"flow": 0.3, "diffusion": 0.3, "jump": 0.4}
EDGE = 0.02
"""Of 48 Gauss–Hermite nodes, whose integrand has an edge: the distance of two nodes, 0.2 standard deviations, squared and
divided by two."""


def rate_given(schedule: AffineSchedule, z: Tensor, x: Tensor, t: float) -> Tensor:
    """λ(x|z), from the slope of log N(x; αz, σ²)."""
    now = numbers(t)
    w = (x - schedule.alpha(now) * z) / schedule.sigma(now)
    fall, rise = schedule.sigma_derivative(now), schedule.alpha_derivative(now)
    return ((-fall * (w * w - 1) - rise * z * w) / schedule.sigma(now)).clamp(min=0)


def clean_of(generator: Any, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
    """ẑ, from where the flow leads in one step."""
    end = generator.over(torch.ones_like(t)).parts["flow"].mean
    return x + (1 - t[0]) * end


@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_exact_gaussian_model__one_number(schedule: AffineSchedule, t: float) -> None:
    """Against panels of Gauss–Legendre over z, which are exact for the mean; of the rate the sum has an edge of its own."""
    path = GaussianPath(ALL, schedule=schedule, bins=Bins(-4, 4))
    model = ExactGaussianModel(path, DATA.means[:, None], DATA.stds, DATA.law)
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
    z, weight = panels(torch.linspace(-5, 5, 401).tolist(), 10)
    now = numbers(t)
    prior = (DATA.law * normal_density((z[:, None] - DATA.means) / DATA.stds) / DATA.stds).sum(1)
    joint = normal_density((x - schedule.alpha(now) * z) / schedule.sigma(now)) * prior * weight
    posterior = joint / joint.sum(1, keepdim=True)
    generator = model.generator(x, times(t, 11))
    clean = (posterior * z).sum(1, keepdim=True)
    torch.testing.assert_close(clean_of(generator, path, x, times(t, 11)), clean, rtol=0, atol=1e-10)
    noise = (x - schedule.alpha(now) * clean) / schedule.sigma(now)
    velocity = schedule.alpha_derivative(now) * clean + schedule.sigma_derivative(now) * noise
    torch.testing.assert_close(generator.parts["flow"].velocity, velocity, rtol=1e-9, atol=1e-9)
    rate = (posterior * rate_given(schedule, z, x, t)).sum(1, keepdim=True)
    assert float(rate.max()) > 0.2
    stated = generator.parts["jump"].intensity
    assert float((stated - rate).abs().max()) < EDGE * float(rate.max())


@every_schedule
def test_exact_gaussian_model__rate_of_atoms_is_exact(schedule: AffineSchedule) -> None:
    t, path = 0.6, GaussianPath(ALL, schedule=schedule, bins=Bins(-4, 4))
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
    now = numbers(t)
    atoms = ExactGaussianModel(path, DATA.means[:, None], 0.0, DATA.law)
    joint = normal_density((x - schedule.alpha(now) * DATA.means) / schedule.sigma(now)) * DATA.law
    posterior = joint / joint.sum(1, keepdim=True)
    expected = (posterior * rate_given(schedule, DATA.means, x, t)).sum(1, keepdim=True)
    torch.testing.assert_close(
        atoms.generator(x, times(t, 11)).parts["jump"].intensity, expected, rtol=1e-12, atol=1e-13
    )


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("x", [-1.8, 1.4])
def test_exact_gaussian_model__landing_is_the_mixture_of_landings(schedule: AffineSchedule, x: float) -> None:
    """E[λ J(·|z)]/E λ: 10 000 landings of it, against the sum over z of each distribution function."""
    t, s, n = 0.4, 0.5, 10_000
    path = GaussianPath(ALL, schedule=schedule, bins=Bins(-4, 4))
    model = ExactGaussianModel(path, DATA.means[:, None], DATA.stds, DATA.law)
    state = torch.full((n, 1), x, dtype=torch.float64)
    landing = model.generator(state, times(t, n), times(s, n)).parts["jump"].kernel.sample(rng(2), torch.arange(n))
    z, weight = panels(torch.linspace(-4, 4, 81).tolist(), 6)
    now, then = numbers(t), numbers(s)
    prior = (DATA.law * normal_density((z[:, None] - DATA.means) / DATA.stds) / DATA.stds).sum(1)
    law = normal_density((x - schedule.alpha(now) * z) / schedule.sigma(now)) * prior * weight
    law = law * rate_given(schedule, z, numbers(x), t)
    law = law / law.sum()
    zeta = -schedule.alpha_derivative(then) / schedule.sigma_derivative(then) * z
    low, high = ((zeta + sign * (zeta * zeta + 4).sqrt()) / 2 for sign in (-1, 1))

    def cdf(y: Tensor) -> Tensor:
        w = ((y[:, None] - schedule.alpha(then) * z) / schedule.sigma(then)).clamp(low, high)
        a, b, c = ((v - zeta) * normal_density(v) for v in (low, w, high))
        return ((b - a) / (c - a) * law).sum(1)

    assert kolmogorov(landing, cdf)[1] > LEAST_P
    assert kolmogorov(landing + 0.1, cdf)[1] < LEAST_P


@every_schedule
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_exact_gaussian_model__two_dependent_numbers(schedule: AffineSchedule, t: float) -> None:
    """The posterior of each number is given both: sums over a plane of 301 × 301, and for the first number alone it is
    another one."""
    path = GaussianPath(ALL, schedule=schedule, bins=Bins(-4, 4))
    model = ExactGaussianModel(path, CORNERS, STDS, LAW)
    x = torch.tensor([[-1.3, 0.2], [0.4, -0.6], [1.9, 1.6], [0.5, -2.0]], dtype=torch.float64)
    line = torch.linspace(-3.5, 3.5, 301, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    prior = sum(
        w * torch.exp(-((plane - m) ** 2).sum(1) / (2 * s * s)) / s**2
        for w, m, s in zip(LAW, CORNERS, STDS, strict=True)
    )
    now = numbers(t)
    likelihood = torch.exp(-(((x[:, None] - schedule.alpha(now) * plane) / schedule.sigma(now)) ** 2).sum(2) / 2)
    posterior = likelihood * prior
    posterior = posterior / posterior.sum(1, keepdim=True)
    generator = model.generator(x, times(t, 4))
    clean = posterior @ plane
    torch.testing.assert_close(clean_of(generator, path, x, times(t, 4)), clean, rtol=0, atol=1e-8)
    rate = (posterior[..., None] * rate_given(schedule, plane, x[:, None], t)).sum(1)
    stated = generator.parts["jump"].intensity
    assert float((stated - rate).abs().max()) < EDGE * float(rate.max())
    alone = ExactGaussianModel(path, CORNERS[:, :1], STDS, LAW).generator(x[:, :1], times(t, 4)).parts["jump"]
    assert float((stated[:, :1] - alone.intensity).abs().max()) > 5 * EDGE * float(rate.max())


def test_exact_gaussian_model__weighs_components_of_different_width_by_their_volume() -> None:
    """In d numbers the density of a wide component at its middle is s^−d: posterior odds of two at the same place."""
    path = GaussianPath(schedule=SCHEDULES[0])
    means = torch.zeros(2, 3, dtype=torch.float64)
    means[1] = 1e-9  # told apart by nothing but their widths
    model = ExactGaussianModel(path, means, numbers(0.1, 1.0), numbers(0.5, 0.5))
    x, t = torch.full((1, 3), 0.5, dtype=torch.float64), 0.5
    v = numbers(0.25 * 0.01 + 0.25, 0.25 * 1.0 + 0.25)
    odds = torch.softmax(-(3 * 0.25 / v + 3 * v.log()) / 2, 0)
    expected = float((odds * 0.5 * numbers(0.01, 1.0) / v).sum() * 0.5)
    clean = clean_of(model.generator(x, times(t, 1)), path, x, times(t, 1))
    assert clean[0].tolist() == pytest.approx([expected] * 3, rel=1e-8)


def test_exact_gaussian_model__samples_have_the_data_distribution() -> None:
    path = GaussianPath()
    x = ExactGaussianModel(path, DATA.means[:, None], DATA.stds, DATA.law).sample(20_000, rng(3))
    assert kolmogorov(x, DATA.cdf(SCHEDULES[0], 1.0))[1] > LEAST_P
    y = ExactGaussianModel(path, CORNERS, STDS, LAW).sample(20_000, rng(4))
    mean = LAW @ CORNERS
    covariance = (LAW[:, None, None] * (CORNERS - mean)[:, :, None] * (CORNERS - mean)[:, None]).sum(0)
    covariance = covariance + (LAW * STDS**2).sum() * torch.eye(2)
    # products of two numbers of variance below 1 and kurtosis below 3: standard errors below √3/√n
    assert float((y.mean(0) - mean).abs().max()) < SIGMAS / 20_000**0.5
    assert float((y.T.cov() - covariance).abs().max()) < SIGMAS * (3 / 20_000) ** 0.5
    assert ExactGaussianModel(path, torch.zeros(2, 3, 4, 4)).sample(5).shape == (5, 3, 4, 4)


def test_exact_gaussian_model__states_keep_their_shape_and_precision() -> None:
    path = GaussianPath(ALL, 3, bins=Bins(-4, 4))
    model = ExactGaussianModel(path, torch.randn(4, 3, 2, 2, generator=rng(1)), 0.2)
    x = torch.randn(5, 3, 2, 2, generator=rng(2))
    single, double = (model.generator(v, times(0.4, 5), times(0.5, 5)).parts for v in (x, x.double()))
    for name, value in (("flow", "velocity"), ("flow", "mean"), ("diffusion", "drift"), ("jump", "intensity")):
        one, two = getattr(single[name], value), getattr(double[name], value)
        assert one.dtype == torch.float32
        assert one.shape == x.shape
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-5)


def test_exact_gaussian_model__over_is_the_generator_of_the_interval() -> None:
    model = ExactGaussianModel(GaussianPath(ALL, bins=Bins(-4, 4)), DATA.means[:, None], DATA.stds, DATA.law)
    x, t, s = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], times(0.4, 5), times(0.6, 5)
    asked, later = model.generator(x, t, s), model.generator(x, t).over(s)
    torch.testing.assert_close(asked.parts["jump"].chance, later.parts["jump"].chance, rtol=0, atol=0)
    torch.testing.assert_close(asked.parts["flow"].mean, later.parts["flow"].mean, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": UniformPath(3)}, TypeError, "must be a GaussianPath"),
        ({"std": -0.1}, ValueError, r"std=\[-0.1, -0.1\]"),
        ({"std": numbers(0.1, -0.1)}, ValueError, r"std=\[0.1, -0.1\]"),
        ({"weights": numbers(0.5, 0.6)}, ValueError, r"weights=\[0.5, 0.6\] must hold 2 probabilities"),
        ({"weights": numbers(1.0)}, ValueError, r"weights=\[1.0\] must hold 2 probabilities"),
    ],
)
def test_exact_gaussian_model__names_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExactGaussianModel(**{"path": GaussianPath(), "means": torch.zeros(2, 1), **arguments})
