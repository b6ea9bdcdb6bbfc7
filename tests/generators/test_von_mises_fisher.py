"""The symmetrised von Mises–Fisher distribution: every closed form and every table against quadrature."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_simpson, simpson
from scipy.special import ive
from torch import Tensor

from gm_discrete.generators import quaternions
from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.von_mises_fisher_tables import tables
from tests.helpers.distributions import LEAST_P, SIGMAS, rng
from tests.helpers.euclid import kolmogorov, numbers

CONCENTRATIONS = [1e-3, 0.05, 1.0, 8.0, 60.0, 1e3, 1e6]
every_k = pytest.mark.parametrize("k", CONCENTRATIONS)


class Reference(NamedTuple):
    """Quadrature at one concentration, on a fine grid.

    Attributes:
        alpha: the half angles, uniform, from 0 to where less than e⁻³⁸ is left, or to π/2.
        density: g.
        below: G.
        above: 1 − G, which does not cancel.
        growth: ∂_k G, from the left inside the boundary and from the right outside it.
    """

    alpha: np.ndarray
    density: np.ndarray
    below: np.ndarray
    above: np.ndarray
    growth: np.ndarray


@functools.cache
def reference(k: float) -> Reference:
    alpha = np.linspace(0, min(math.pi / 2, 2 * math.asin(min(math.sqrt(20 / k), 1.0))), 100001)
    a = torch.tensor(alpha)
    density = (4 / math.pi * a.sin() ** 2 * vmf.log_density(a, numbers(k)).exp()).numpy()
    change = vmf.slope(a, numbers(k)).numpy() * density

    def cumulated(y: np.ndarray) -> np.ndarray:
        return cumulative_simpson(y, dx=alpha[1], initial=0)

    def from_right(y: np.ndarray) -> np.ndarray:
        return cumulated(y[::-1])[::-1]

    inside = alpha <= float(vmf.boundary(numbers(k)))
    growth = np.where(inside, cumulated(change), -from_right(change))
    return Reference(alpha, density, cumulated(density), from_right(density), growth)


def quantile_in(u: Tensor, alpha: Tensor, cumulated: np.ndarray, grid: np.ndarray) -> float:
    """The greatest distance between u and the distribution function at α."""
    return float(np.abs(np.interp(alpha.numpy(), grid, cumulated) - u.numpy()).max())


def test_bessel_ratio__is_i2_over_i1() -> None:
    k = torch.logspace(-2, 4, 601, dtype=torch.float64)
    expected = ive(2, k.numpy()) / ive(1, k.numpy())
    np.testing.assert_allclose(vmf.bessel_ratio(k).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(vmf.bessel_ratio_complement(k).numpy(), 1 - expected, rtol=1e-10)


def test_bessel_ratio__has_the_limits_of_small_and_large_concentrations() -> None:
    small, large = numbers(0.0, 1e-9, 1e-5), numbers(1e5, 1e8, 1e12)
    torch.testing.assert_close(vmf.bessel_ratio(small), small / 4, rtol=1e-10, atol=0)
    expected = 1.5 / large - 0.375 / large**2
    torch.testing.assert_close(vmf.bessel_ratio_complement(large), expected, rtol=1e-10, atol=0)


def test_log_normalizer__is_log_2_i1_over_k() -> None:
    k = torch.logspace(-6, 5, 551, dtype=torch.float64)
    scaled = np.log(2 * ive(1, k.numpy()) / k.numpy())
    np.testing.assert_allclose(vmf.log_scaled_normalizer(k).numpy(), scaled, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(vmf.log_normalizer(k).numpy(), scaled + k.numpy(), rtol=1e-12, atol=1e-14)
    small, large = numbers(0.0, 1e-7, 1e-4), numbers(1e8, 1e12)
    torch.testing.assert_close(vmf.log_normalizer(small), small**2 / 8, rtol=1e-8, atol=0)
    expected = -1.5 * large.log() - math.log(math.pi / 2) / 2
    torch.testing.assert_close(vmf.log_scaled_normalizer(large), expected, rtol=1e-9, atol=0)


def test_log_normalizer__has_the_ratio_as_its_derivative() -> None:
    k = numbers(0.0, 1e-9, 0.3, 1.0, 5.0, 19.9, 20.1, 1e4, 1e12).requires_grad_()
    (grad,) = torch.autograd.grad(vmf.log_normalizer(k).sum(), k)
    (scaled,) = torch.autograd.grad(vmf.log_scaled_normalizer(k).sum(), k)
    torch.testing.assert_close(grad, vmf.bessel_ratio(k.detach()), rtol=1e-14, atol=0)
    torch.testing.assert_close(scaled, -vmf.bessel_ratio_complement(k.detach()), rtol=1e-14, atol=0)
    moderate = numbers(0.01, 0.3, 1.0, 5.0, 19.0, 30.0).requires_grad_()
    for function in (vmf.log_normalizer, vmf.log_scaled_normalizer):
        assert torch.autograd.gradcheck(function, moderate)
        assert torch.autograd.gradgradcheck(function, moderate)


@pytest.mark.parametrize("k", [0.0, *CONCENTRATIONS])
def test_log_density__integrates_to_1(k: float) -> None:
    alpha = np.linspace(0, min(math.pi / 2, 9 / math.sqrt(max(k, 1e-9))), 20001)
    density = vmf.log_density(torch.tensor(alpha), numbers(k)).exp().numpy() * 4 / math.pi * np.sin(alpha) ** 2
    assert simpson(density, x=alpha) == pytest.approx(1, abs=1e-11)


def test_log_density__is_that_of_cosh() -> None:
    alpha, k = torch.linspace(0, math.pi / 2, 41, dtype=torch.float64)[:, None], numbers(0.0, 0.1, 2.0, 50.0)
    expected = (k * alpha.cos()).cosh().log() - vmf.log_normalizer(k)
    torch.testing.assert_close(vmf.log_density(alpha, k), expected, rtol=1e-12, atol=1e-13)


@every_k
def test_slope__is_the_derivative_of_the_log_density(k: float) -> None:
    alpha = torch.linspace(0.01, min(math.pi / 2, 5 / math.sqrt(k)), 50, dtype=torch.float64)
    h = 1e-4 * k
    difference = (vmf.log_density(alpha, numbers(k + h)) - vmf.log_density(alpha, numbers(k - h))) / (2 * h)
    # the difference has an error of 1e-8 by its third derivative, and of 1e-15/h by rounding
    torch.testing.assert_close(vmf.slope(alpha, numbers(k)), difference, rtol=1e-6, atol=1e-7 / k + 1e-15 / h)


def test_slope__does_not_cancel_for_small_angles_and_large_concentrations() -> None:
    alpha, k = numbers(0.0, 1e-7, 1e-6, 3e-6), numbers(1e8, 1e10, 1e12)[:, None]
    expected = 1.5 / k - 0.375 / k**2 - alpha**2 / 2
    torch.testing.assert_close(vmf.slope(alpha, k), expected, rtol=1e-11, atol=1e-24)


def test_slope__changes_its_sign_once_as_k_grows() -> None:
    """From + to −, at `peak`; from π/3 on it is negative throughout."""
    alpha = torch.linspace(0.002, math.pi / 2, 400, dtype=torch.float64)[:, None]
    k = torch.logspace(-4, 8, 2000, dtype=torch.float64)
    positive = vmf.slope(alpha, k) > 0
    assert bool((positive.long().diff(dim=-1) <= 0).all())
    assert not bool(positive[alpha.squeeze(-1) > math.pi / 3].any())
    peak = vmf.peak(alpha)
    off = (k / peak - 1).abs() > 2e-6
    assert bool((positive == (k < peak))[off].all())


def test_peak__is_the_inverse_of_the_boundary() -> None:
    k = torch.logspace(-2, 12, 1401, dtype=torch.float64)
    torch.testing.assert_close(vmf.peak(vmf.boundary(k)), k, rtol=1e-6, atol=0)
    outside = numbers(math.pi / 3 + 1e-12, 1.3, math.pi / 2)
    assert vmf.peak(outside).tolist() == [0, 0, 0]
    assert vmf.peak(numbers(0.0)).tolist() == [math.inf]
    assert float(vmf.peak(numbers(1e-7))) == pytest.approx(3e14, rel=1e-9)


def test_boundary__is_where_the_slope_is_0() -> None:
    k = torch.logspace(-3, 12, 1501, dtype=torch.float64)
    alpha = vmf.boundary(k)
    assert bool((vmf.slope(alpha * (1 - 1e-9), k) > 0).all())
    assert bool((vmf.slope(alpha * (1 + 1e-9), k) < 0).all())
    assert bool((alpha.diff() < 0).all())
    assert float(vmf.boundary(numbers(0.0))) == pytest.approx(math.pi / 3, rel=1e-11)
    large = numbers(1e10, 1e12)
    torch.testing.assert_close(vmf.boundary(large), (3 / large).sqrt(), rtol=1e-9, atol=0)


@every_k
def test_slope__moves_as_much_mass_in_as_out(k: float) -> None:
    found = reference(k)
    change = found.density * vmf.slope(torch.tensor(found.alpha), numbers(k)).numpy()
    landing, leaving = simpson(change.clip(min=0), x=found.alpha), simpson((-change).clip(min=0), x=found.alpha)
    assert landing == pytest.approx(leaving, rel=1e-8)


@every_k
def test_radial_speed__is_that_of_the_quantiles(k: float) -> None:
    found = reference(k)
    at = slice(100, -1, 7)
    likely = found.above[at] > 1e-9
    expected = -found.growth[at][likely] / found.density[at][likely]
    speed = vmf.radial_speed(torch.tensor(found.alpha[at][likely]), numbers(k)).numpy()
    np.testing.assert_allclose(speed, expected, rtol=1.2e-5)


def test_radial_speed__has_the_limits_of_small_and_large_concentrations() -> None:
    alpha, small, large = torch.linspace(0, math.pi / 2, 20, dtype=torch.float64), numbers(1e-4), numbers(1e9)
    expected = -small * (2 * alpha).sin() / 8
    torch.testing.assert_close(vmf.radial_speed(alpha, small), expected, rtol=1e-5, atol=1e-12)
    near = alpha * 1e-4
    torch.testing.assert_close(vmf.radial_speed(near, large), -(near / 2).tan() / large, rtol=1e-8, atol=0)
    assert float(vmf.radial_speed(numbers(1.0), numbers(0.0))) == 0


@every_k
@pytest.mark.parametrize("factor", [1.0, 1.1, 3.0, 50.0, 1e4])
def test_transported_angle__keeps_the_quantile(k: float, factor: float) -> None:
    before, after = reference(k), reference(k * factor)
    at = np.linspace(500, len(before.alpha) - 500, 300).astype(int)
    alpha = vmf.transported_angle(torch.tensor(before.alpha[at]), numbers(k), numbers(k * factor)).numpy()
    # by whichever end of the distribution is nearer, so that neither tail cancels
    low = np.interp(before.below[at] ** (1 / 3), after.below ** (1 / 3), after.alpha)
    tails = -np.log(after.above.clip(min=1e-300))
    high = np.interp(-np.log(before.above[at]), tails, after.alpha)
    expected = np.where(before.below[at] < 0.5, low, high)
    likely = before.above[at] > 1e-9
    np.testing.assert_allclose(alpha[likely], expected[likely], rtol=1.5e-4)


def test_transported_angle__integrates_the_radial_speed() -> None:
    """By Runge–Kutta steps in log k."""
    alpha, k, end = torch.linspace(0.02, 1.5, 40, dtype=torch.float64), 0.3, 40.0
    start, step = alpha.clone(), math.log(end / k) / 200

    def rate(a: Tensor, log_k: float) -> Tensor:
        return math.exp(log_k) * vmf.radial_speed(a, numbers(math.exp(log_k)))

    for n in range(200):
        m = math.log(k) + n * step
        first = rate(alpha, m)
        second = rate(alpha + first * step / 2, m + step / 2)
        third = rate(alpha + second * step / 2, m + step / 2)
        alpha = alpha + step / 6 * (first + 2 * second + 2 * third + rate(alpha + third * step, m + step))
    torch.testing.assert_close(vmf.transported_angle(start, numbers(k), numbers(end)), alpha, rtol=1e-4, atol=0)


def test_transported_angle__leaves_the_ends() -> None:
    k, k_next = numbers(0.0, 1.0, 900.0, 1e6), numbers(0.5, 1.0, 2e3, math.inf)
    assert vmf.transported_angle(numbers(0.0), k, k_next).tolist() == [0, 0, 0, 0]
    found = vmf.transported_angle(numbers(1e-7), k, k_next)
    assert bool((found[:3] > 0).all())
    assert float(found[1]) == pytest.approx(1e-7, rel=1e-12)
    assert float(found[3]) == 0
    tail = vmf.transported_angle(numbers(1.5), numbers(500.0), numbers(500.0, 2000.0))  # 1 − G is e⁻⁴⁶⁰
    torch.testing.assert_close(tail, numbers(1.5, 2 * math.asin(math.sin(0.75) / 2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("k", [0.0, *CONCENTRATIONS])
def test_angle_quantile__inverts_the_distribution_function(k: float) -> None:
    found = reference(k) if k else reference(1e-6)
    u = torch.rand(20000, generator=rng(), dtype=torch.float64)
    alpha = vmf.angle_quantile(u, numbers(k))
    assert quantile_in(u, alpha, found.below, found.alpha) < 1e-4
    ends = vmf.angle_quantile(numbers(0.0, 1e-30, 1 - 1e-16, 1.0), numbers(k))
    assert bool((ends.diff() >= 0).all())
    assert float(ends[0]) == 0
    assert math.isfinite(float(ends[-1]))
    assert float(ends[-1]) <= math.pi / 2 + 1e-15


@pytest.mark.parametrize("k", [0.0, *CONCENTRATIONS])
def test_landing_quantile__inverts_the_distribution_function(k: float) -> None:
    found = reference(k or 1e-4)
    edge = float(vmf.boundary(numbers(k)))
    last = int((found.alpha <= edge).sum())
    cumulated = found.growth[:last] / found.growth[:last].max()
    u = torch.rand(20000, generator=rng(), dtype=torch.float64)
    alpha = vmf.landing_quantile(u, numbers(k))
    assert quantile_in(u, alpha, cumulated, found.alpha[:last]) < 2e-5
    ends = vmf.landing_quantile(numbers(0.0, 1.0), numbers(k))
    torch.testing.assert_close(ends, numbers(0.0, edge), rtol=1e-12, atol=0)


def test_landing_quantile__has_the_limit_of_large_concentrations() -> None:
    u, k = torch.rand(1000, generator=rng(), dtype=torch.float64), numbers(1e12)
    r = k * vmf.landing_quantile(u, k) ** 2 / 2
    assert float(((2 * r / 3) ** 1.5 * (1.5 - r).exp() - u).abs().max()) < 1e-3 / 9


@pytest.mark.parametrize("k", [0.0, 1.0, 60.0, 1e6])
def test_sample__has_the_distribution(k: float) -> None:
    center = quaternions.uniform((20000,), rng(1), dtype=torch.float64)
    q = vmf.sample(center, numbers(k), rng(2))
    quaternions.check_quaternions(q, "q")
    alpha = quaternions.half_angle(q, center)
    found = reference(k) if k else reference(1e-6)

    def cdf(x: Tensor) -> Tensor:
        return torch.tensor(np.interp(x.numpy(), found.alpha, found.below))

    assert kolmogorov(alpha, cdf)[1] > LEAST_P
    turn = quaternions.log(quaternions.multiply(quaternions.conjugate(center), q))
    axis = turn / turn.norm(dim=-1, keepdim=True)
    for j in range(3):  # a coordinate of a uniform point of the sphere is uniform
        assert kolmogorov(axis[:, j], lambda x: (x + 1) / 2)[1] > LEAST_P
    products = axis[:, [0, 0, 1]] * axis[:, [1, 2, 2]]  # of mean 0 and variance 1/15
    assert float(products.mean(0).abs().max()) < SIGMAS / math.sqrt(15 * len(axis))


def test_sample__is_reproducible_and_of_the_centers_type() -> None:
    center = quaternions.uniform((5, 3), rng())
    k = torch.tensor([[0.0], [1.0], [100.0], [1e12], [math.inf]])
    first, second = vmf.sample(center, k, rng(3)), vmf.sample(center, k, rng(3))
    assert torch.equal(first, second)
    assert first.shape == center.shape
    assert first.dtype == torch.float32
    assert bool((quaternions.half_angle(first, center)[-1] < 1e-6).all())
    assert vmf.sample(center[:0], k[:0]).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("center", "k", "words"),
    [
        (torch.ones(2, 3), torch.ones(2), ["center", "(2, 3)"]),
        (torch.ones(2, 4), torch.ones(3, 2), ["k", "(3, 2)", "(2,)"]),
    ],
)
def test_sample__rejects_shapes(center: Tensor, k: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        vmf.sample(center, k)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "function", [vmf.log_density, vmf.slope, vmf.radial_speed, vmf.angle_quantile, vmf.landing_quantile]
)
def test_functions__broadcast_and_return_the_promoted_type(function) -> None:
    x, k = torch.tensor([[0.1], [0.7]]), numbers(0.0, 2.0, 1e4)
    found = function(x, k)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    low = function(x, k.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), found, rtol=1e-5, atol=1e-7)
    assert function(x[:0], k).shape == (0, 3)


def test_tables__are_the_same_wherever_they_are_built() -> None:
    """Also in inference mode, under autocast and with another default type."""
    device = torch.device("cpu")
    expected = tables(device)
    tables.cache_clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = tables(device)
        alpha = vmf.transported_angle(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([9.0]))
    assert all(torch.equal(a, b) and not a.is_inference() for a, b in zip(found, expected, strict=True))
    assert torch.equal(alpha, vmf.transported_angle(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([9.0])))


def test_functions__let_nan_through() -> None:
    """Rotations that are missing are NaN."""
    nan, k = numbers(math.nan), numbers(3.0)
    for function in (vmf.log_density, vmf.slope, vmf.radial_speed):
        assert bool(function(nan, k).isnan().all())
    assert bool(vmf.transported_angle(nan, k, 2 * k).isnan().all())
    assert bool(vmf.sample(torch.full((1, 4), math.nan), k, rng()).isnan().all())
