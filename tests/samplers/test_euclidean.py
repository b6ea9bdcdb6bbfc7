"""Samplers of continuous states: distributions of one step and of many, orders of convergence.

The posteriors are exact: of atoms for single steps, whose law is then known in closed form, and of a Gaussian mixture for
whole simulations, which are held against its exact law on the path.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete.generators import Superposition
from gm_discrete.generators.landings import Bins
from gm_discrete.paths import EuclideanMixturePath, GaussianPath
from gm_discrete.paths.affine import AffineSchedule, CondOTSchedule
from gm_discrete.paths.exact import ExactGaussianModel
from gm_discrete.samplers import Adaptive, DormandPrince, simulate, time_grid
from tests.helpers.distributions import LEAST_P, SIGMAS, Lookup, chain
from tests.helpers.euclid import (
    SCHEDULES,
    Mixture,
    Model,
    density_slope,
    filled,
    kolmogorov,
    noise_of_ks,
    normal_cdf,
    normal_density,
    numbers,
    rng,
    times,
)

ATOMS = Mixture([-1.2, 0.4, 1.0], [0, 0, 0], [0.3, 0.5, 0.2])
DATA = Mixture([-1.2, 0.5, 0.9], [0.3, 0.25, 0.4], [0.3, 0.5, 0.2])
BINS = Bins(-4, 4)
MOVING = {"flow": [1.0, 0.0], "diffusion": [0.0, 0.25, 0.0], "jump": [0.0, 0.25, 1.0]}
PARTS: dict[str, Any] = {
    "flow": {"flow": 1.0},
    "diffusion": {"diffusion": 1.0},
    "jump": {"jump": 1.0},
    "half": {"flow": 0.5, "jump": 0.5},
    "all": {"flow": 0.2, "diffusion": 0.4, "jump": 0.4},
    "moving": MOVING,
}
every_superposition = pytest.mark.parametrize("name", PARTS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)

STEPS = 100
BIAS = 0.012
"""KS distance that 100 steps leave by themselves: of jumps on a geometric grid 0.018 at 50 and 0.006 at 200 steps, in an
independent implementation with 10⁵ samples; of flows and diffusions half as much at 50 even steps."""


def model(weights: Any, data: Mixture = DATA, schedule: AffineSchedule | None = None, **options: Any) -> Any:
    """An exact posterior; its jump's mean is a sum of 8 terms."""
    path = GaussianPath(weights, schedule=schedule, bins=BINS, **options)
    return ExactGaussianModel(path, data.means[:, None], data.stds, data.law)


def even_normals(n: int) -> Tensor:
    """Quantiles of the prior, in a random order: a sample of it without noise."""
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    return x[torch.randperm(n, generator=rng(9))][:, None]


# ---- one step


def posterior_of_atoms(schedule: AffineSchedule, x: float, t: float) -> Tensor:
    now = numbers(t)
    return torch.softmax(ATOMS.law.log() - ((x - schedule.alpha(now) * ATOMS.means) / schedule.sigma(now)) ** 2 / 2, 0)


def landing_cdf(schedule: AffineSchedule, z: Tensor, s: float, y: Tensor) -> Tensor:
    """∫_{−∞}^y J(·|z) at the time s, [n, Z]: (w − ζ) φ(w) from w₋ to w, over its rise up to w₊."""
    now = numbers(s)
    zeta = -schedule.alpha_derivative(now) / schedule.sigma_derivative(now) * z
    low, high = ((zeta + sign * (zeta * zeta + 4).sqrt()) / 2 for sign in (-1, 1))
    w = ((y[:, None] - schedule.alpha(now) * z) / schedule.sigma(now)).clamp(low, high)
    reached = [(v - zeta) * normal_density(v) for v in (low, w, high)]
    return (reached[1] - reached[0]) / (reached[2] - reached[0])


def one_step(schedule: AffineSchedule, weights: dict[str, float], x: float, t: float, s: float, noise: float) -> Any:
    """(probability to jump, landing CDF, where it goes else, its standard deviation) of a step from x, by definition."""
    now, then = numbers(t), numbers(s)
    alpha, sigma, rise, fall = (
        f(now) for f in (schedule.alpha, schedule.sigma, schedule.alpha_derivative, schedule.sigma_derivative)
    )
    pi, z = posterior_of_atoms(schedule, x, t), ATOMS.means
    clean = (pi * z).sum()
    said = (x - alpha * clean) / sigma
    w = (x - alpha * z) / sigma
    rates = pi * (-fall / sigma * (w * w - 1) - rise / sigma * z * w).clamp(min=0)
    # ∫ f(r)/f(t) dr, f = speed/σ³, by the midpoint rule on 20 000 points: 1e-9
    r = t + (s - t) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    f = schedule.speed(r) / schedule.sigma(r) ** 3
    duration = f.mean() * (s - t) / (schedule.speed(now) / sigma**3)
    chance = 1 - torch.exp(-rates.sum() * duration * weights.get("jump", 0.0))
    mean = (schedule.alpha(then) * clean + schedule.sigma(then) * said - x) / (s - t)
    drift = weights.get("flow", 0.0) * mean + weights.get("diffusion", 0.0) * (mean - noise / 2 * said)
    std = (weights.get("diffusion", 0.0) * noise * (sigma + schedule.sigma(then)) / 2 * (s - t)).sqrt()

    def landing(y: Tensor) -> Tensor:
        return (landing_cdf(schedule, z, s, y) * rates).sum(1) / rates.sum()

    return float(chance), landing, float(x + (s - t) * drift), float(std)


@pytest.mark.slow
@every_superposition
@every_schedule
@pytest.mark.parametrize(("x", "t", "s"), [(-1.9, 0.3, 0.5), (1.6, 0.5, 0.7)])
def test_tau_leaping__distribution_of_one_step(
    name: str, schedule: AffineSchedule, x: float, t: float, s: float
) -> None:
    """The share that jumps, where it lands, and where the rest goes."""
    n, noise = 20_000, 0.8
    exact = model(PARTS[name], ATOMS, schedule, noise=noise)
    weights = {part: float(w[0]) for part, w in exact.path.weights(numbers(t)).items()}
    chance, landing, center, std = one_step(schedule, weights, x, t, s, noise)
    result = simulate(exact, filled(n, x), [t, s], rng(1), return_info=True)
    y = result.x[:, 0]
    if std > 0:
        cdf = lambda v: (1 - chance) * normal_cdf((v - center) / std) + chance * landing(v)  # noqa: E731
        assert kolmogorov(y, cdf)[1] > LEAST_P
        assert kolmogorov(y + 0.04, cdf)[1] < LEAST_P
        return
    stayed = (y - center).abs() < 1e-9
    assert int(result.jumps.sum()) == int((~stayed).sum())
    off = float(stayed.double().mean()) - (1 - chance)
    assert abs(off) <= SIGMAS * math.sqrt(chance * (1 - chance) / n)
    if "jump" in weights:
        assert 0.1 < chance < 0.99
        assert kolmogorov(y[~stayed], landing)[1] > LEAST_P
        assert kolmogorov(y[~stayed] + 0.1, landing)[1] < LEAST_P


@pytest.mark.parametrize("method", ["heun", "adaptive"])
def test_samplers__jump_as_often_and_land_where_leaps_do(method: str) -> None:
    """Heun's step of a superposition has the jumps of a leap; a controlled run starts with the leap of its first length."""
    schedule, n, t = CondOTSchedule(), 20_000, 0.5
    s = t + (0.02 if method == "adaptive" else 0.15)
    weights = {"flow": 0.3, "jump": 0.7}
    chance, landing, _, _ = one_step(schedule, weights, 1.9, t, s, 1.0)
    result = simulate(model(weights, ATOMS), filled(n, 1.9), [t, s], rng(3), method, return_info=True)
    share = float(result.jumps.double().mean())
    assert abs(share - chance) < SIGMAS * math.sqrt(chance * (1 - chance) / n)
    jumped = result.x[result.jumps > 0]
    assert kolmogorov(jumped, landing)[1] > LEAST_P


def test_tau_leaping__survival_is_that_of_the_growing_rate() -> None:
    """A particle at x = 2.2 with known z = 0.7, from 0.5 to 0.55: e^{−∫λ} = 0.3062, by the quadrature of λ; the step's
    own is 0.3059. At the rate of the start 0.364 would stay, which 20 000 particles tell apart (σ = 0.0033)."""
    z, x, t, s, n = 0.7, 2.2, 0.5, 0.55, 20_000
    r = t + (s - t) * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    rates = ((x - r * z) * (x - z) - (1 - r) ** 2) / (1 - r) ** 3
    survival, naive = math.exp(-float(rates.mean()) * (s - t)), math.exp(-float(rates[0]) * (s - t))
    path = GaussianPath({"jump": 1.0})
    known = Model(path, lambda y, a, b: path.conditional(torch.full_like(y, z), y, a, b))
    stayed = float((simulate(known, filled(n, x), [t, s], rng(4)) == x).double().mean())
    allowed = SIGMAS * math.sqrt(survival * (1 - survival) / n)
    assert abs(stayed - survival) < allowed + 0.0005
    assert abs(stayed - naive) > 2 * allowed


# ---- whole simulations


NUMBER = 2_000
LATE = 0.025
"""Most by which samples may be late, or early. Half of the jumps make a superposition with a flow late by 0.03."""


def lateness(schedule: AffineSchedule, t: float, x: Tensor) -> float:
    """By how much the samples x lag behind the time t: about δ, on average, if they are of p_{t−δ}.

    The mean of ∂_t log p_t is 0 over p_t, and −δ times its variance over p_{t−δ}: no statistic tells delays with less noise.
    """

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        return density_slope(lambda time: DATA.density(schedule, time, x), t)

    p, change = slope(x[:, 0].double())
    points = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    q, everywhere = slope(points)
    return -float((change / p).mean() / torch.trapezoid(everywhere**2 / q.clamp(min=1e-300), points))


def check_distribution(exact: Any, method: str = "tau_leaping", grid: Tensor | None = None) -> Any:
    """KS distances to the exact law at 1/2, at the start of the last step and at 1; how late it is at about 0.7 and 0.9."""
    grid = time_grid(exact.path, STEPS) if grid is None else grid
    indices = [int((grid <= t + 1e-9).sum()) - 1 for t in (0.5, 0.7, 0.9)] + [len(grid) - 2, len(grid) - 1]
    result = simulate(exact, even_normals(NUMBER), grid, rng(2), method, save_at=indices, return_info=True)
    states = {float(grid[i]): x for i, x in zip(indices, result.states, strict=True)}
    half, *later, _, _ = times = list(states)
    schedule = exact.path.schedule
    for t in (half, *times[-2:]):
        assert kolmogorov(states[t], DATA.cdf(schedule, t))[0] < noise_of_ks(NUMBER) + BIAS
    assert abs(sum(lateness(schedule, t, states[t]) for t in later) / 2) < LATE
    return result


@pytest.mark.slow
@every_superposition
def test_tau_leaping__distribution_at_an_intermediate_and_at_the_final_time(name: str) -> None:
    check_distribution(model(PARTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=lambda s: s.type_name)
@pytest.mark.parametrize("name", ["half", "diffusion"])
def test_tau_leaping__distribution_with_other_schedules(schedule: AffineSchedule, name: str) -> None:
    check_distribution(model(PARTS[name], schedule=schedule))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "half", "moving"])
def test_heun__distribution(name: str) -> None:
    """On a superposition: flow and diffusion of second order, jumps of first, the "mixed" method."""
    check_distribution(model(PARTS[name]), "heun")


CORNERS = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -0.2]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jump", "all"])
def test_tau_leaping__distribution_of_two_dependent_coordinates(name: str) -> None:
    """Jumps move one coordinate at a time, and yet the joint law is met: coordinates, their sum and their difference."""
    n, std, law = 4_000, 0.3, [0.4, 0.4, 0.2]
    path = GaussianPath(PARTS[name], bins=BINS)
    exact = ExactGaussianModel(path, CORNERS, std, numbers(*law))
    grid = time_grid(path, STEPS)
    half = int((grid <= 0.5).sum()) - 1
    x_0 = torch.randn(n, 2, generator=rng(6), dtype=torch.float64)
    states = simulate(exact, x_0, grid, rng(7), save_at=[half, -1], return_info=True).states
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5], [0.5**0.5, -(0.5**0.5)]):
        along = numbers(*direction)
        line = Mixture((CORNERS @ along).tolist(), [std] * 3, law)
        for x, t in zip(states, (float(grid[half]), 1.0), strict=True):
            assert kolmogorov(x @ along, line.cdf(path.schedule, t))[0] < noise_of_ks(n) + BIAS
    # with independent coordinates the difference would have another law
    mixed = torch.stack([states[1][:, 0], states[1][torch.randperm(n, generator=rng(8)), 1]], 1)
    assert kolmogorov(mixed @ along, line.cdf(path.schedule, 1.0))[0] > 3 * noise_of_ks(n)


def altered(what: str, right: Any, start: Any, t: Tensor, t_next: Tensor) -> Superposition:
    """A generator of a step whose jump is broken on purpose; `start` is that of its first moment."""
    jump = right.parts["jump"]
    if what == "landing at the start":
        jump = replace(jump, kernel=start.parts["jump"].kernel)
    if what == "naive survival":
        naive = 1 - torch.exp(-jump.intensity * (t_next - t)[:, None])
        jump = replace(jump, probability=naive, guessed=False)
    return replace(right, parts={**right.parts, "jump": jump})


def distance_after_ten_steps(what: str, num_sequences: int) -> float:
    """KS distance from p_t at t = 0.95 of 20 000 entries in so many sequences, where data is known to be z.

    p_t is then N(αz, σ²), and the only error is that of the length of the steps.
    """
    n, z, path = 20_000, 0.7, GaussianPath({"jump": 1.0})

    def generator(x: Tensor, t: Tensor, t_next: Tensor | None) -> Any:
        data = torch.full_like(x, z)
        assert t_next is not None
        return altered(what, path.conditional(data, x, t, t_next), path.conditional(data, x, t), t, t_next)

    grid = 1 - torch.logspace(0, math.log10(0.05), 11, dtype=torch.float64)
    x = simulate(Model(path, generator), even_normals(n).view(num_sequences, -1), grid, rng(5))
    return float(kolmogorov(x, lambda y: normal_cdf((y - 0.95 * z) / 0.05))[0])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["landing at the start", "naive survival"])
def test_tau_leaping__broken_jumps_are_seen(what: str) -> None:
    """Landing where the path was at the start of the step, or leaving at the rate of the start, shows in the distribution.

    In sequences of 200 entries the distance is 0.024, and broken it is twice that: 0.058 and 0.050.
    """
    right, broken = (distance_after_ten_steps(kind, 100) for kind in ("", what))
    assert right < 0.03
    assert broken > right + 1.5 * noise_of_ks(20_000)


def test_tau_leaping__growth_of_a_single_entry_is_drawn_to_the_prior() -> None:
    """What shrinkage costs where data is known, so that rates grow with power 3: with n = 1 entry, p = (p̂ + 16)/17 ≈ 1.

    The distance is 0.040 in place of the 0.024 of many entries, and still below the 0.050 of rates that do not grow.
    """
    one, many = (distance_after_ten_steps("", num_sequences) for num_sequences in (20_000, 100))
    assert many < 0.03 < one < 0.045 < distance_after_ten_steps("naive survival", 20_000)


def test_tau_leaping__landing_at_the_start_is_another_distribution_of_one_step() -> None:
    """The same in one step, where nothing else can hide it: 20 000 landings of it fail the law that the end's pass."""
    n, t, s = 20_000, 0.3, 0.5
    exact = model({"jump": 1.0}, ATOMS)
    _, landing, center, _ = one_step(exact.path.schedule, {"jump": 1.0}, -1.9, t, s, 1.0)
    values = {}
    for what in ("", "landing at the start"):

        def generator(x: Tensor, a: Tensor, b: Tensor | None, what: str = what) -> Any:
            assert b is not None
            return altered(what, exact.generator(x, a, b), exact.generator(x, a), a, b)

        y = simulate(Model(exact.path, generator), filled(n, -1.9), [t, s], rng(1))
        values[what] = kolmogorov(y[(y - center).abs() > 1e-9], landing)[1]
    assert values[""] > LEAST_P
    assert values["landing at the start"] < 1e-12


# ---- order of convergence of a flow


def flow_error(steps: int, method: str, schedule: AffineSchedule, until: float = 0.9) -> float:
    """A flow of a number keeps its quantile: max |F_t(x_t) − F_0(x_0)|, without a reference solver."""
    x_0 = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)[:, None]
    grid = torch.linspace(0, until, steps + 1, dtype=torch.float64)
    x = simulate(model({"flow": 1.0}, schedule=schedule), x_0, grid, sampler=method)
    return float((DATA.cdf(schedule, until)(x[:, 0]) - normal_cdf(x_0[:, 0])).abs().max())


@every_schedule
@pytest.mark.parametrize(("method", "order"), [("tau_leaping", 1), ("euler", 1), ("heun", 2)])
def test_samplers__flow_converges_with_its_order(schedule: AffineSchedule, method: str, order: int) -> None:
    """Twice the steps, 2^order less of an error: within 15 % from 64 steps on."""
    coarse, fine = (flow_error(n, method, schedule) for n in (64, 128))
    assert coarse / fine == pytest.approx(2**order, rel=0.15)
    assert fine < (0.02, 0.002)[order - 1]


def test_heun__last_step_is_a_leap() -> None:
    """To t = 1, where velocities have no bound: it goes to the mean of the data given x."""
    exact = model({"flow": 1.0})
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    clean = exact.generator(x, times(0.9, 9), times(1.0, 9)).parts["flow"]
    for method in ("heun", "tau_leaping", "euler"):
        y = simulate(exact, x, [0.9, 1.0], rng(), method)
        torch.testing.assert_close(y, x + 0.1 * clean.mean, rtol=0, atol=1e-14)


@every_schedule
def test_dormand_prince__is_as_accurate_as_asked(schedule: AffineSchedule) -> None:
    """To t = 0.9: 10⁻⁷ of a state, of a slope of F below 1, is an error below 10⁻⁵ of F over some tens of steps."""
    x_0 = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)[:, None]
    errors, calls = [], []
    for tolerance in (1e-3, 1e-7):
        result = simulate(
            model({"flow": 1.0}, schedule=schedule),
            x_0,
            [0.0, 0.9],
            sampler=DormandPrince(tolerance),
            return_info=True,
        )
        cdf = DATA.cdf(schedule, 0.9)(result.x[:, 0])
        errors.append(float((cdf - normal_cdf(x_0[:, 0])).abs().max()))
        calls.append(float(result.network_calls.double().mean()))
    assert errors[1] < 1e-5
    assert errors[1] < errors[0] < 1e-2
    assert calls[1] > calls[0]


def test_dormand_prince__distribution_and_calls() -> None:
    exact = model({"flow": 1.0})
    counted = Model(exact.path, exact.generator)
    result = simulate(counted, even_normals(10_000), [0.0, 1.0], rng(), "dopri5", return_info=True)
    assert (
        kolmogorov(result.x, DATA.cdf(exact.path.schedule, 1.0))[0] < 0.003
    )  # even quantiles: no noise but ẑ at 0.995
    assert int(result.network_calls.max()) == counted.calls
    assert int(result.network_calls.min()) >= 2 + 6  # the first slope, a step of six more, and the last step
    # a start within the last step
    late = simulate(counted, even_normals(5), [0.999, 1.0], rng(), "dopri5", return_info=True)
    assert late.network_calls.tolist() == [1] * 5


@pytest.mark.parametrize("name", ["jump", "half", "diffusion", "all", "moving"])
def test_dormand_prince__refuses_other_generators(name: str) -> None:
    with pytest.raises(TypeError, match=r"dopri5 .*sampler='heun'"):
        simulate(model(PARTS[name]), even_normals(4), [0.2, 1.0], rng(), "dopri5")


def test_dormand_prince__takes_a_superposition_that_is_a_flow() -> None:
    x_0, grid = even_normals(8), [0.0, 1.0]
    alone, beside = (
        simulate(model(weights), x_0, grid, rng(), "dopri5") for weights in ({"flow": 1.0}, {"flow": 1.0, "jump": 0.0})
    )
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-12)


def test_dormand_prince__tolerance_is_positive() -> None:
    with pytest.raises(ValueError, match="tolerance=0"):
        DormandPrince(0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30], ids=["NaN", "infinite", "noise"])
def test_dormand_prince__ends_where_no_step_can_be_accepted(broken: float) -> None:
    """A velocity that is no number from t = 0.4 on, or so large and rough that the steps have no length any more."""
    exact = model({"flow": 1.0})

    def generator(x: Tensor, t: Tensor, t_next: Tensor | None) -> Any:
        right = exact.generator(x, t, t_next)
        rough = torch.where(t[:, None] > 0.4, broken * torch.randn(x.shape, generator=noise, dtype=x.dtype), 0.0)
        flow = right.parts["flow"]
        return replace(right, parts={**right.parts, "flow": replace(flow, velocity=flow.velocity + rough)})

    noise = rng(1)
    reason = r"dopri5.*t=0\.[34].*tolerance=1e-05.*heun" if math.isfinite(broken) else "velocity is not finite"
    with pytest.raises(FloatingPointError, match=reason):
        simulate(Model(exact.path, generator), even_normals(4), [0.0, 0.9], rng(), "dopri5")


def test_dormand_prince__agrees_with_torchdiffeq() -> None:
    odeint = pytest.importorskip("torchdiffeq").odeint
    exact, x_0 = model({"flow": 1.0}), torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
    ours = simulate(exact, x_0, [0.1, 0.9], sampler=DormandPrince(1e-9))
    velocity = lambda t, x: exact.generator(x, t.expand(len(x))).parts["flow"].velocity  # noqa: E731
    theirs = odeint(velocity, x_0, numbers(0.1, 0.9), rtol=1e-9, atol=1e-9, method="dopri5")[-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


# ---- adaptive


@pytest.mark.slow
@every_superposition
def test_adaptive__distribution(name: str) -> None:
    """At the default tolerance the bias is no more than that of 100 steps, which it takes at most."""
    stops = torch.tensor([0.0, 0.5, 0.7, 0.9, 0.99, 1.0], dtype=torch.float64)
    result = check_distribution(model(PARTS[name]), "adaptive", stops)
    assert 5 < float(result.network_calls.double().mean()) < 120


def test_adaptive__steps_follow_the_tolerance_and_are_counted() -> None:
    calls = []
    for tolerance in (0.05, 0.005, 0.0005):
        exact = model(PARTS["half"])
        counted = Model(exact.path, exact.generator)
        result = simulate(
            counted, even_normals(200), [0.0, 1.0], rng(3), Adaptive(tolerance=tolerance), return_info=True
        )
        assert int(result.network_calls.max()) == counted.calls  # every sequence goes at its own pace
        assert len(result.network_calls.unique()) > 1
        calls.append(float(result.network_calls.double().mean()))
    # A step is as long as the root of the tolerance where jumps decide, its third root where the flow does.
    assert calls[1] > 1.5 * calls[0]
    assert calls[2] > 1.5 * calls[1]


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_adaptive__weighs_jumps_by_their_length(factor: float) -> None:
    """Jumps that lead four times as far need steps that are half as long, and twice as many of them."""

    def calls(factor: float) -> float:
        exact = model({"jump": 1.0})

        def generator(x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
            found = exact.generator(x, t, t_next)
            jump = found.parts["jump"]
            longer = replace(jump, length=factor * jump.length)
            return replace(found, parts={**found.parts, "jump": longer})

        x_0 = even_normals(200)
        run = simulate(Model(exact.path, generator), x_0, [0.0, 1.0], rng(3), "adaptive", return_info=True)
        return float(run.network_calls.double().mean())

    assert calls(factor) / calls(1.0) == pytest.approx(factor**0.5, rel=0.2)


def test_adaptive__needs_generators_made_by_a_path() -> None:
    exact = model({"flow": 1.0})
    alone = Model(exact.path, lambda x, t, s: exact.generator(x, t, s).parts["flow"])
    with pytest.raises(TypeError, match="was not made by a path"):
        simulate(alone, even_normals(4), [0.0, 1.0], sampler="adaptive")


# ---- bookkeeping


@pytest.mark.parametrize(("name", "method"), [(n, m) for n in PARTS for m in ("tau_leaping", "heun", "adaptive")])
def test_samplers__fixed_entries_stay_as_they_are(name: str, method: str) -> None:
    """Bit by bit; and the others move."""
    path = GaussianPath(PARTS[name], bins=BINS)
    exact = ExactGaussianModel(path, CORNERS, 0.3)
    x_0 = torch.randn(50, 2, generator=rng(1))
    fixed = torch.rand(50, 2, generator=rng(2)) < 0.4
    x = simulate(exact, x_0, time_grid(path, 12), rng(3), method, fixed)
    assert torch.equal(x[fixed], x_0[fixed])
    assert bool((x[~fixed] != x_0[~fixed]).all())
    assert x.dtype == torch.float32


def test_dormand_prince__fixed_entries_stay() -> None:
    exact = ExactGaussianModel(GaussianPath(), CORNERS, 0.3)
    x_0, fixed = torch.randn(50, 2, generator=rng(1)), torch.rand(50, 2, generator=rng(2)) < 0.4
    x = simulate(exact, x_0, [0.0, 1.0], rng(3), "dopri5", fixed)
    assert torch.equal(x[fixed], x_0[fixed])
    assert bool((x[~fixed] != x_0[~fixed]).all())


@pytest.mark.parametrize(("method", "calls"), [("tau_leaping", 7), ("euler", 7), ("heun", 13)])
def test_samplers__network_calls(method: str, calls: int) -> None:
    """Seven steps; Heun takes two evaluations in all but the last."""
    exact = model(PARTS["all"])
    counted = Model(exact.path, exact.generator)
    result = simulate(counted, even_normals(6), time_grid(exact.path, 7), rng(), method, return_info=True)
    assert counted.calls == calls
    assert result.network_calls.tolist() == [calls] * 6


def test_simulation__only_jumps_are_counted_as_jumps() -> None:
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    drifting = simulate(model(PARTS["diffusion"]), even_normals(20), grid, rng(), return_info=True)
    assert int(drifting.jumps.sum()) == 0
    jumping = simulate(model(PARTS["jump"]), even_normals(20), grid, rng(), return_info=True)
    assert int(jumping.jumps.sum()) > 0


def test_simulate__states_of_any_shape() -> None:
    """Images [B, C, H, W]: every coordinate is simulated as it would be in a row; the seed gives the same numbers."""
    means = torch.randn(3, 2, 2, 2, generator=rng(1), dtype=torch.float64)
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, 2, bins=BINS)
    image, row = ExactGaussianModel(path, means, 0.2), ExactGaussianModel(path, means.flatten(1), 0.2)
    x_0 = torch.randn(5, 2, 2, 2, generator=rng(2), dtype=torch.float64)
    images = simulate(image, x_0, time_grid(path, 10), rng(3))
    rows = simulate(row, x_0.flatten(1), time_grid(path, 10), rng(3))
    assert images.shape == x_0.shape
    torch.testing.assert_close(images.flatten(1), rows, rtol=0, atol=1e-12)


def test_samplers__of_discrete_and_continuous_states_are_told_apart() -> None:
    for method in ("trapezoidal", "first_hitting", "uniformization", "entropy_bounded"):
        with pytest.raises(ValueError, match=rf"sampler='{method}'.*continuous.*heun"):
            simulate(model(PARTS["jump"]), even_normals(4), [0.0, 1.0], rng(), method)
    symbols = chain("masked", 2, kind=Lookup)
    for method in ("dopri5", "heun"):
        with pytest.raises(ValueError, match=rf"sampler='{method}'.*discrete.*tau_leaping"):
            simulate(symbols, torch.zeros(3, 2).long(), [0.1, 0.5], rng(), method)


# ---- grids


@pytest.mark.parametrize("stop", [0.005, 0.02])
def test_time_grid__geometric_is_even_in_the_logarithm_of_the_rest(stop: float) -> None:
    path = GaussianPath({"jump": 1.0}, stop=stop)
    grid = time_grid(path, 20)
    assert torch.equal(grid, time_grid(path, 20, "geometric"))
    left = 1 - grid
    assert (len(grid), float(grid[0]), float(grid[-1])) == (21, 0.0, 1.0)
    assert float(left[-2]) == pytest.approx(stop, rel=1e-12)
    torch.testing.assert_close(left[1:-1] / left[:-2], filled(19, stop ** (1 / 19))[:, 0], rtol=1e-12, atol=0)
    assert time_grid(path, 1).tolist() == [0.0, 1.0]
    torch.testing.assert_close(time_grid(GaussianPath(), 4), torch.linspace(0, 1, 5).double())
    assert torch.equal(time_grid(EuclideanMixturePath(stop=stop), 20), grid)
