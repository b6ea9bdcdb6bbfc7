"""λ = [−∂_t log p]₊ and J ∝ [∂_t p]₊ of the path N(αz, σ²): every closed form against the density itself."""

import math

import pytest
import torch
from torch import Tensor

from gm_discrete.generators.jump_heads import BinnedLanding, KnownLanding
from gm_discrete.generators.kernels import Categorical, Dirac, TensorReadout
from gm_discrete.generators.landings import Bins, Landing, check_within, gain, landing_quantile, roots, total_gain
from gm_discrete.paths.affine import AffineSchedule
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.euclid import (
    SCHEDULES,
    conditional_density,
    density_slope,
    kolmogorov,
    normal_density,
    numbers,
    panels,
    rng,
    times,
)

ZETAS = [-1e6, -30.0, -1.3, -1e-9, 0.0, 0.4, 2.0, 30.0, 1e6]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)
QUADRATURE = 1e-12
"""Gauss–Legendre of 60 nodes on panels of at most two standard deviations of φ is exact to rounding."""


def sign_changes(schedule: AffineSchedule, z: float, t: float) -> tuple[float, float]:
    """The two x at which ∂_t p_t(x|z) changes its sign, by bisection of the derivative of the log density."""
    center, sigma = schedule.alpha(numbers(t)) * z, schedule.sigma(numbers(t))

    def rising(w: float) -> bool:
        x = center + sigma * w
        _, slope = density_slope(conditional_density(schedule, z, x), t)
        return bool(slope > 0)

    # It rises in the middle, where log p does not depend on t but for σ, and falls far out.
    ends = []
    for sign in (-1, 1):
        inside, outside = 0.0, sign * 60.0
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if rising(middle) else (inside, middle)
        ends.append(float(center + sigma * inside))
    return ends[0], ends[1]


def known(schedule: AffineSchedule, z: Tensor, t: float, bins: Bins) -> KnownLanding:
    """ζ = −(α'/σ') z from differences of the schedule itself, with which it must agree."""
    now, step = numbers(t), 1e-6
    slope = [(f(now + step) - f(now - step)) / (2 * step) for f in (schedule.alpha, schedule.sigma)]
    values = (-slope[0] / slope[1] * z, schedule.alpha(now).expand(z.shape), schedule.sigma(now).expand(z.shape))
    return KnownLanding(z, *values, bins)


# ---- rates


@pytest.mark.parametrize("zeta", ZETAS)
def test_landing__roots_enclose_where_the_density_grows(zeta: float) -> None:
    """w₋ < 0 < w₊ solve w² − ζw − 1 = 0: product −1, difference √(ζ² + 4); the small one keeps its relative precision."""
    low, high = (float(w) for w in roots(numbers(zeta)))
    assert low < 0 < high
    assert low * high == pytest.approx(-1, rel=1e-15)
    assert high - low == pytest.approx(math.hypot(zeta, 2), rel=1e-15)
    assert low + high == pytest.approx(zeta, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("zeta", [-30.0, -1.3, 0.0, 0.4, 2.0])
def test_landing__gain_is_the_integral_of_the_growth(zeta: float) -> None:
    """∫ (1 + ζv − v²) φ(v) dv from w₋, constant outside of [w₋, w₊]."""
    low, high = (float(w) for w in roots(numbers(zeta)))
    for part in (-0.5, 0.0, 0.1, 0.5, 0.9, 1.0, 2.0):
        w = low + part * (high - low)
        end = min(max(w, low), high)
        v, weight = panels([low + (end - low) * i / 24 for i in range(25)]) if end > low else (numbers(0), numbers(0))
        expected = float(((1 + zeta * v - v * v) * normal_density(v) * weight).sum())
        assert float(gain(numbers(w), numbers(zeta))) == pytest.approx(expected, rel=QUADRATURE, abs=1e-15)
    assert float(total_gain(numbers(zeta))) == pytest.approx(float(gain(numbers(high), numbers(zeta))), rel=1e-15)


@every_schedule
@pytest.mark.parametrize("z", [-1.4, 0.0, 0.7])
def test_landing__total_gain_is_the_mean_rate(schedule: AffineSchedule, z: float) -> None:
    """h C(ζ) = ∫ [∂_t p]₊ dx = ∫ λ p dx, integrated between the changes of sign."""
    t = 0.6
    now = numbers(t)
    center, sigma = float(schedule.alpha(now) * z), float(schedule.sigma(now))
    ends = sign_changes(schedule, z, t)
    x, weight = panels([*ends, *(center + sigma * i for i in range(-12, 13))])
    _, slope = density_slope(conditional_density(schedule, z, x), t)
    mean = (
        -schedule.sigma_derivative(now)
        / sigma
        * total_gain(-schedule.alpha_derivative(now) / schedule.sigma_derivative(now) * z)
    )
    assert float((slope.clamp(min=0) * weight).sum()) == pytest.approx(float(mean), rel=1e-11)
    assert float(((-slope).clamp(min=0) * weight).sum()) == pytest.approx(float(mean), rel=1e-11)


# ---- landings of known z


@pytest.mark.parametrize("zeta", ZETAS)
def test_landing__quantile_inverts_the_distribution_function(zeta: float) -> None:
    """To 2⁻⁴⁴ of [w₋, w₊] in w, in which the distribution function rises by at most its greatest density."""
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    at = numbers(zeta).expand(u.shape)
    w = landing_quantile(u, at)
    reached = gain(w, at) / total_gain(at)
    low, high = (float(v) for v in roots(numbers(zeta)))
    densest = float(((1 + zeta * w - w * w) * normal_density(w)).max() / total_gain(numbers(zeta)))
    allowed = 2.0**-44 * (high - low) * 1.1 * densest + 1e-14  # the greatest of 101 values is nearly that of all
    assert allowed < 1e-7
    assert float((reached - u).abs().max()) < allowed
    assert bool((w.diff() >= 0).all())
    assert low <= float(w[0])
    assert float(w[-1]) <= high


@every_schedule
@pytest.mark.parametrize(("z", "t"), [(-1.4, 0.3), (0.0, 0.6), (0.7, 0.95)])
def test_known_landing__masses_are_those_of_the_growth_of_the_density(
    schedule: AffineSchedule, z: float, t: float
) -> None:
    """∫_bin [∂_t p]₊ dx / ∫ [∂_t p]₊ dx; what lies beyond the bins counts to the outermost ones.

    ζ comes of differences over 2e-6, of relative error 1e-10.
    """
    bins = Bins(-1.0, 1.0, 16)
    kernel = known(schedule, numbers(z), t, bins)
    masses = kernel.masses(torch.tensor([0]))[0]
    ends, edges = sign_changes(schedule, z, t), bins.edges(torch.device("cpu")).tolist()
    expected = []
    for left, right in zip([-math.inf, *edges[1:-1]], [*edges[1:-1], math.inf], strict=True):
        left, right = max(left, ends[0]), min(right, ends[1])
        if left >= right:
            expected.append(0.0)
            continue
        x, weight = panels([left + (right - left) * i / 8 for i in range(9)])
        _, slope = density_slope(conditional_density(schedule, z, x), t)
        expected.append(float((slope.clamp(min=0) * weight).sum()))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(masses, wanted / wanted.sum(), rtol=1e-8, atol=1e-9)
    assert float(masses.sum()) == pytest.approx(1, abs=1e-14)
    assert bool((masses[1:-1] > 0).any())


def test_known_landing__masses_are_never_negative() -> None:
    """Rounding must not make log_probs NaN, for edges next to the roots, where the distribution function is flat."""
    z = torch.cat([torch.randn(2000, generator=rng(), dtype=torch.float64) * 2, numbers(0.0)])
    for sigma in (1.0, 0.03):
        zeta, alpha, width = z, torch.full_like(z, 1 - sigma), torch.full_like(z, sigma)
        kernel = KnownLanding(z, zeta, alpha, width, Bins(-4, 4, 512))
        where = torch.arange(len(z))
        masses = kernel.masses(where)
        assert bool((masses >= 0).all())
        assert not bool(kernel.log_probs(where).isnan().any())
        torch.testing.assert_close(masses.sum(1), torch.ones_like(z), rtol=0, atol=1e-13)
    # z = 0, σ = 1: the roots are ±1, and edges lie a rounding of float32 beside them
    for tiny in (1e-5, 1e-6, 5e-7):
        bins = Bins(-1 - 255 * tiny, -1 + 257 * tiny, 512)
        zero = torch.zeros(1, dtype=torch.float64)
        kernel = KnownLanding(zero, zero, zero, zero + 1, bins)
        assert not bool(kernel.log_probs(torch.tensor([0])).isnan().any())


@every_schedule
@pytest.mark.parametrize("t", [0.2, 0.9])
def test_known_landing__samples_have_the_growth_of_the_density(schedule: AffineSchedule, t: float) -> None:
    """20 000 landings against the distribution function of [∂_t p]₊, summed on 4 000 points; the sum is off by 1e-6."""
    z, n = -0.8, 20_000
    kernel = known(schedule, torch.full((n,), z, dtype=torch.float64), t, Bins(-4, 4, 8))
    x = kernel.sample(rng(3), torch.arange(n))
    low, high = sign_changes(schedule, z, t)
    grid = torch.linspace(low, high, 4001, dtype=torch.float64)
    _, slope = density_slope(conditional_density(schedule, z, grid), t)
    summed = torch.cat([numbers(0), torch.cumulative_trapezoid(slope.clamp(min=0), grid)])

    def cdf(y: Tensor) -> Tensor:
        right = torch.searchsorted(grid, y).clamp(1, 4000)
        part = (y - grid[right - 1]) / (grid[right] - grid[right - 1])
        return torch.lerp(summed[right - 1], summed[right], part) / summed[-1]

    assert low <= float(x.min())
    assert float(x.max()) <= high
    assert kolmogorov(x, cdf)[1] > LEAST_P
    assert kolmogorov(x + 0.1 * (high - low), cdf)[1] < LEAST_P


def test_landing__nodes_are_a_quadrature_of_the_landing() -> None:
    """400 quantiles; their error falls like n^(−3/2), as a landing density falls to 0 at both ends: 1e-4 of the width."""
    z, t, schedule = numbers(-0.8, 0.3), 0.4, SCHEDULES[0]
    kernel = known(schedule, z, t, Bins(-4, 4, 4000))
    where = torch.arange(2)
    points, weights = kernel.nodes(where)
    middles = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:-1] + 0.001
    for f in (torch.sin, torch.square):
        exact = (kernel.masses(where) * f(middles)).sum(1)
        torch.testing.assert_close((weights * f(points)).sum(1), exact, rtol=0, atol=4e-4)
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())


# ---- bins


def test_bins__fit_spreads_the_middle_half_of_the_data_over_ten_bins() -> None:
    """Of data with a long tail, which 64 bins of their range would leave in a few."""
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert Bins.fit(normal).number < 80
    assert Bins.fit(normal.view(100, 200), number=32).number == 32
    assert Bins.fit((1.2 * normal).exp()).number == 256
    tailed = Bins.fit((0.6 * normal).exp())
    middle = (0.6 * normal).exp().quantile(torch.tensor([0.25, 0.75])).diff()
    assert 64 < tailed.number < 256
    assert float(middle) / tailed.width == pytest.approx(10, abs=0.5)
    assert Bins.fit(torch.tensor([0.0] * 90 + [1.0] * 10)).number == 64  # most are the same


def test_bins__covering_has_the_ends_as_centres() -> None:
    centers = Bins.covering(-1, 1, 16).centers(torch.device("cpu"))
    assert (float(centers[0]), float(centers[-1])) == pytest.approx((-1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "low=1.0 must be below high=1.0"),
        ({"low": 2.0, "high": -2.0}, "low=2.0 must be below high=-2.0"),
        ({"high": math.inf}, "high=inf"),
        ({"low": math.nan}, "low=nan"),
        ({"number": 1}, "number=1 must be an integer from 2"),
    ],
)
def test_bins__names_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bins(**arguments)


def test_bins__cut_an_interval_into_equal_parts() -> None:
    bins = Bins(-2, 1, 6)
    assert bins.edges(torch.device("cpu")).tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1]
    assert bins.width == 0.5
    values = numbers(-9, -2, -1.75, -0.01, 0, 0.99, 1, 9)
    assert bins.index(values).tolist() == [0, 0, 0, 3, 4, 5, 5, 5]
    index = torch.arange(6)
    assert bins.value(index, torch.zeros(6)).tolist() == bins.edges(torch.device("cpu"))[:-1].tolist()
    assert torch.equal(bins.index(bins.value(index, torch.full((6,), 0.9))), index)
    assert Bins.from_dict(bins.to_dict()) == bins
    assert Bins(-2, 1, 7) != bins
    assert bins.std == pytest.approx(0.5 / math.sqrt(12))


@pytest.mark.parametrize("value", [-1.01, 1.01])
def test_bins__names_values_outside(value: float) -> None:
    with pytest.raises(ValueError, match=r"z .*-1 to 1.*Bins\("):
        check_within(Bins(), numbers(0.0, value), "z")
    check_within(Bins(), numbers(-1.0, 1.0), "z")


# ---- landings of a belief


BELIEF = numbers(0.5, 0.2, 0.3, 0.0)


def belief(n: int) -> Categorical:
    return Categorical(TensorReadout(BELIEF.log().expand(1, n, 4)), torch.Size([1, n]), 4, torch.device("cpu"))


def test_binned_landing__is_uniform_within_each_bin() -> None:
    """χ² of the bins, and Kolmogorov–Smirnov of the place within them."""
    n, bins = 20_000, Bins(-2, 2, 4)
    x, where = torch.zeros(1, n), torch.arange(n)
    kernel = BinnedLanding(belief(n), x, bins)
    landing = kernel.sample(rng(5), where)
    index = bins.index(landing)
    assert chi_square(torch.bincount(index, minlength=4), BELIEF) > LEAST_P
    assert kolmogorov(landing + 2 - index, lambda part: part)[1] > LEAST_P
    torch.testing.assert_close(kernel.log_probs(where[:3]).exp(), BELIEF.expand(3, -1))
    points, weights = kernel.nodes(where[:3])
    assert points[0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    torch.testing.assert_close(weights, BELIEF.expand(3, -1))


def test_landing__of_a_belief_is_the_mixture_of_landings() -> None:
    """z even within its cell, then J(·|z) = z + quantile(u): its distribution function is Σ_k π_k ∫ G((y − z)/1, z) dz."""
    n, bins = 20_000, Bins(-2, 2, 4)
    x, where = torch.zeros(1, n), torch.arange(n)
    kernel = Landing(belief(n), x, lambda cells, u, _: bins.value(cells, u), lambda z, u, _: z + landing_quantile(u, z))
    z, weight = panels([-2, -1, 0, 1, 2], 20)

    def cdf(y: Tensor) -> Tensor:
        law = BELIEF[bins.index(z)] * weight
        return (gain(y[:, None] - z, z.expand(len(y), -1)) / total_gain(z) * law).sum(1)

    landing = kernel.sample(rng(6), where)
    assert kolmogorov(landing, cdf)[1] > LEAST_P
    assert kolmogorov(landing + 0.1, cdf)[1] < LEAST_P
    torch.testing.assert_close(kernel.log_probs(where[:2]).exp(), BELIEF.expand(2, -1))
    points, weights = kernel.nodes(where[:1], 200)
    torch.testing.assert_close(weights.sum(1), torch.ones(1).double())
    y = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    mean = 6 - torch.trapezoid(cdf(y), y)
    assert float((points * weights).sum()) == pytest.approx(float(mean), abs=0.01)


@pytest.mark.parametrize("kind", ["known", "landing", "binned"])
def test_landing__draws_the_same_whichever_other_positions_are_drawn(kind: str) -> None:
    n, bins = 50, Bins(-2, 2, 4)
    x, z = torch.zeros(1, n), torch.linspace(-1, 1, n).double()
    one = torch.ones(n).double()
    kernels = {
        "known": KnownLanding(z, z, one, one, bins),
        "landing": Landing(belief(n), x, lambda c, u, _: bins.value(c, u), lambda z, u, _: landing_quantile(u, z)),
        "binned": BinnedLanding(belief(n), x, bins),
    }
    some = torch.tensor([3, 17, 41])
    assert torch.equal(kernels[kind].sample(rng(7), torch.arange(n))[some], kernels[kind].sample(rng(7), some))


def test_landing__uses_the_given_value_of_a_known_cell() -> None:
    """As in a target: the cell is a `Dirac`, and z itself need not be anywhere near it."""
    z = numbers(0.25, -0.5, 0.9)
    kernel = Landing(Dirac(torch.tensor([[0, 1, 0]]), 2), z[None], lambda c, u, where: z[where], lambda v, u, _: 10 * v)
    assert kernel.sample(rng(), torch.tensor([2, 0])).tolist() == [9.0, 2.5]
    assert kernel.log_probs(torch.tensor([1])).tolist() == [[-math.inf, 0.0]]


def test_landing__times_are_those_of_each_sequence() -> None:
    """A landing of row b is made with α, σ and ζ of its own time."""
    from gm_discrete.paths import GaussianPath

    path = GaussianPath({"jump": 1.0})
    z = torch.full((2, 3), 0.5, dtype=torch.float64)
    when = torch.cat([times(0.1, 1), times(0.99, 1)])
    at = path.landing(Dirac(path.bins.index(z), 64), z, when, lambda c, u, where: z.flatten()[where])
    points, _ = at.nodes(torch.tensor([0, 5]), 400)
    spread = points.max(1).values - points.min(1).values
    low, high = (float(w) for w in roots(numbers(0.5)))
    # quantiles u = 1/800 and 1 − 1/800 reach within 10 % of the ends
    assert float(spread[0]) == pytest.approx(0.9 * (high - low), rel=0.1)
    assert float(spread[1]) == pytest.approx(0.01 * (high - low), rel=0.1)


def test_bins__too_narrow_for_float32_around_0_are_refused() -> None:
    with pytest.raises(ValueError, match=r"high=1e-320.*float32"):
        Bins(0, 1e-320, 4)
