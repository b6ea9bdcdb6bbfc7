"""p_t(x|z) = N(αz, σ²): the Kolmogorov equation of its flow, diffusion and jump, what they make of an interval, configs."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Flow, Superposition
from gm_discrete.generators.jump_heads import KnownLanding
from gm_discrete.generators.landings import Bins, roots
from gm_discrete.paths import GaussianPath, Path
from gm_discrete.paths.affine import AffineSchedule, CondOTSchedule, TrigonometricSchedule
from gm_discrete.paths.exact import ExactGaussianModel
from tests.helpers.distributions import LEAST_P
from tests.helpers.euclid import (
    FUNCTIONS,
    SCHEDULES,
    BentSchedule,
    Mixture,
    conditional_density,
    density_slope,
    finer,
    kolmogorov,
    normal_cdf,
    numbers,
    panels,
    rng,
    times,
)

ALL = {"flow": 0.3, "diffusion": 0.2, "jump": 0.5}
MOVING = {"flow": [1.0, 0.0], "diffusion": [0.0, 0.25, 0.0], "jump": [0.0, 0.25, 1.0]}
"""Weights that change with time, of sum 1 at 0, 1/2 and 1, and between."""

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)
every_time = pytest.mark.parametrize("t", [0.0, 0.04, 0.5, 0.93])
DATA = Mixture([-1.2, 0.5, 0.9], [0.3, 0.2, 0.4], [0.3, 0.5, 0.2])
ATOMS = Mixture([-1.2, 0.5, 0.9], [0, 0, 0], [0.3, 0.5, 0.2])


def exact_model(path: GaussianPath, data: Mixture) -> ExactGaussianModel:
    return ExactGaussianModel(path, data.means[:, None], data.stds, data.law)


def integration_points(
    schedule: AffineSchedule, zs: Tensor, t: float, stds: float = 0.0, nodes: int = 16
) -> tuple[Tensor, Tensor]:
    """Panels of at most one standard deviation around every αz, cut where a jump's rate begins."""
    now = numbers(t)
    alpha, sigma = float(schedule.alpha(now)), float(schedule.sigma(now))
    zeta = schedule.alpha_derivative(now) / (-schedule.sigma_derivative(now)).clamp(min=1e-6) * zs
    edges = torch.cat(list(roots(zeta))).clamp(-11, 11) * sigma + torch.cat([alpha * zs] * 2)
    width, reach = math.hypot(sigma, alpha * stds), 24 if stds else 11
    around = [float(alpha * z + i * width) for z in zs for i in range(-reach, reach + 1)]
    return panels([*around, *edges.tolist()], nodes)


def residual(generator: Any, x: Tensor, weight: Tensor, density: Any, t: float) -> Tensor:
    """d/dt E_{p_t} f − E_{p_t} L f for each of the test functions, in units of 1/(1 − t)."""
    p, slope = density_slope(density, t)
    states = x[:, None]
    return torch.stack(
        [(slope * f(states) * weight).sum() - (p * generator.action(f, states) * weight).sum() for f in FUNCTIONS]
    ) * (1 - t)


def slopes(x: Tensor, weight: Tensor, density: Any, t: float) -> Tensor:
    """d/dt E_{p_t} f, of which a residual must be a small part."""
    _, slope = density_slope(density, t)
    return torch.stack([(slope * f(x[:, None]) * weight).sum() for f in FUNCTIONS]) * (1 - t)


# ---- Kolmogorov forward equation


@every_schedule
@every_time
@pytest.mark.parametrize("z", [-1.3, 0.0, 0.8])
@pytest.mark.parametrize("part", ["flow", "diffusion"])
def test_gaussian_path__conditional_drifts_solve_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float, z: float, part: str
) -> None:
    """To rounding: the integrands are analytic."""
    path = GaussianPath(ALL, schedule=schedule, bins=Bins(-2, 2), noise=0.7)
    x, weight = integration_points(schedule, numbers(z), t)
    generator = path.conditional(torch.full_like(x, z)[:, None], x[:, None], times(t, len(x)))
    density = conditional_density(schedule, z, x)
    assert float(residual(generator.parts[part], x, weight, density, t).abs().max()) < 1e-11
    if z and t:
        assert float(slopes(x, weight, density, t).abs().max()) > 1e-2


@every_schedule
@every_time
@pytest.mark.parametrize("z", [-1.3, 0.0, 0.8])
@pytest.mark.parametrize("prediction", ["belief", "velocity"])
def test_gaussian_path__conditional_jump_solves_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float, z: float, prediction: str
) -> None:
    """Landings at n = 4 000 quantiles: J falls to 0 at its ends, so that their error is of order n^(−3/2) = 4e-6, times
    the mean rate and the slope of the functions, of order 1 here. A quarter of the nodes leaves more."""
    path = GaussianPath(ALL, schedule=schedule, prediction=prediction, bins=Bins(-4, 4, 2))
    x, weight = integration_points(schedule, numbers(z), t)
    # L f = λ (E_J f − f), and E_J f is one and the same number at all x: it is asked at one of them only.
    generator = path.conditional(torch.full_like(x, z)[:, None], x[:, None], times(t, len(x)))
    jump, (p, slope) = generator.parts["jump"], density_slope(conditional_density(schedule, z, x), t)
    rate = jump.intensity[:, 0]
    errors = {}
    for n in (1000, 4000):
        points, mass = jump.kernel.nodes(torch.tensor([0]), n)
        changes = [(f(points[0, :, None]) * mass[0]).sum() - f(x[:, None]) for f in FUNCTIONS]
        values = [f(x[:, None]) for f in FUNCTIONS]
        left = [((slope * f - p * rate * df) * weight).sum() for f, df in zip(values, changes, strict=True)]
        errors[n] = torch.stack(left).abs() * (1 - t)
    assert float(errors[4000].max()) < 2e-5
    assert float(errors[4000].sum()) < float(errors[1000].sum()) + 1e-12
    # where the density falls, mass leaves, and only there
    torch.testing.assert_close(p * rate, (-slope).clamp(min=0), rtol=1e-10, atol=1e-10 / (1 - t))


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.5, 0.93])
def test_gaussian_path__conditional_jump_by_its_action(schedule: AffineSchedule, t: float) -> None:
    """As above, through `action` with 600 nodes: n^(−3/2) = 7e-5."""
    z = -1.3
    path = GaussianPath(ALL, schedule=schedule, bins=Bins(-2, 2, 2))  # a node of each cell, also of those of mass 0
    x, weight = integration_points(schedule, numbers(z), t, nodes=8)
    generator = path.conditional(torch.full_like(x, z)[:, None], x[:, None], times(t, len(x)))
    jump = finer(generator.parts["jump"], 600)
    density = conditional_density(schedule, z, x)
    assert float(residual(jump, x, weight, density, t).abs().max()) < 3e-4
    assert float(slopes(x, weight, density, t).abs().max()) > 1e-2


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize(("t", "weights"), [(0.0, ALL), (0.5, MOVING), (0.93, MOVING)])
def test_gaussian_path__marginal_superposition_solves_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float, weights: Any
) -> None:
    """Data of three numbers, for which the exact model has no quadrature of its own; landings at 200 nodes (4e-4)."""
    path = GaussianPath(weights, schedule=schedule, bins=Bins(-4, 4))
    x, weight = integration_points(schedule, ATOMS.means, t, nodes=8)
    generator = exact_model(path, ATOMS).generator(x[:, None], times(t, len(x)))
    share = {name: float(w[0]) for name, w in generator.weights.items()}
    assert sum(share.values()) == pytest.approx(1, abs=1e-12)
    density = lambda time: ATOMS.density(schedule, time, x)  # noqa: E731
    for name in ("flow", "diffusion"):
        assert float(residual(generator.parts[name], x, weight, density, t).abs().max()) < 1e-7  # 8 nodes a panel
    x, weight = integration_points(schedule, ATOMS.means, t, nodes=3)  # as good as the 200 landings are
    generator = exact_model(path, ATOMS).generator(x[:, None], times(t, len(x)))
    error = residual(finer(generator, 200), x, weight, density, t).abs().max()
    assert float(error) < 1e-3 * share["jump"] + 1e-7
    if t:
        assert float(slopes(x, weight, density, t).abs().max()) > 1e-2


@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.5, 0.93])
def test_gaussian_path__marginal_drifts_of_smooth_data_solve_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float
) -> None:
    path = GaussianPath({"flow": 0.5, "diffusion": 0.5}, schedule=schedule, noise=1.3)
    x, weight = integration_points(schedule, DATA.means, t, float(DATA.stds.min()))
    generator = exact_model(path, DATA).generator(x[:, None], times(t, len(x)))
    density = lambda time: DATA.density(schedule, time, x)  # noqa: E731
    for part in (*generator.parts.values(), generator):
        assert float(residual(part, x, weight, density, t).abs().max()) < 1e-9


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("t", [0.1, 0.7])
def test_gaussian_path__marginal_jump_of_smooth_data_solves_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float
) -> None:
    """Rate and distribution are exact, landings a lattice of 400 pairs (z, landing). The slopes are 0.02 to 0.3."""
    path = GaussianPath({"jump": 1.0}, schedule=schedule, bins=Bins(-4, 4))
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    weight = torch.full_like(x, 12 / 199)
    density = lambda time: DATA.density(schedule, time, x)  # noqa: E731
    generator = exact_model(path, DATA).generator(x[:, None], times(t, len(x)))
    error = residual(finer(generator.parts["jump"], 400), x, weight, density, t).abs()
    assert float(error.max()) < 1e-3
    assert float(slopes(x, weight, density, t).abs().max()) > 0.02


def best_readout(path: GaussianPath, schedule: AffineSchedule, x: Tensor, t: float, cells: int = 24) -> Any:
    """What the heads of a network should say of `DATA` at x [N]: posterior sums over z, written from the definitions."""
    now = numbers(t)
    alpha, sigma = schedule.alpha(now), schedule.sigma(now)
    edges = path.bins.edges(torch.device("cpu")) if path.prediction == "belief" else torch.linspace(-4, 4, 97)
    z, dz = panels(edges.tolist(), cells)
    prior = (DATA.law * torch.exp(-(((z[:, None] - DATA.means) / DATA.stds) ** 2) / 2) / DATA.stds).sum(1) * dz
    joint = torch.exp(-(((x[:, None] - alpha * z) / sigma) ** 2) / 2) * prior
    posterior = joint / joint.sum(1, keepdim=True)  # [N, Z]
    w = (x[:, None] - alpha * z) / sigma
    rise, fall = schedule.alpha_derivative(now), schedule.sigma_derivative(now)
    rates = posterior * (-fall * (w * w - 1) - rise * z * w).clamp(min=0) / sigma
    rate, ones = rates.sum(1), torch.ones_like(z)
    known = KnownLanding(z, -rise / fall * z, alpha * ones, sigma * ones, path.bins)
    velocity = (rise * (posterior * z).sum(1) + fall * (posterior * w).sum(1))[:, None]
    answers = {
        "flow": velocity,
        "rate": (rate * sigma / schedule.speed(now)).log()[:, None],
        "landing": (rates @ known.masses(torch.arange(len(z)))).clamp(min=1e-300).log(),
    }
    if path.prediction == "belief":
        answers = {"belief": posterior.view(len(x), path.bins.number, cells).sum(2).clamp(min=1e-300).log()}
    return lambda head, where=None: answers[head] if where is None else answers[head][where].clone()


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("t", [0.1, 0.6])
@pytest.mark.parametrize(("prediction", "bins"), [("belief", Bins(-3, 3, 60)), ("velocity", Bins(-6, 6, 240))])
def test_gaussian_path__marginal_of_the_best_network_solves_the_kolmogorov_equation(
    schedule: AffineSchedule, t: float, prediction: str, bins: Bins
) -> None:
    """The distributions of bins are matched exactly; what is left is the width of the bins squared, of the order of
    10⁻³, and of a flow by its velocity the data beyond the ends of z, 10⁻⁷. The slopes are 0.05 to 0.3."""
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, schedule=schedule, prediction=prediction, bins=bins)
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    weight = torch.full_like(x, 12 / 199)
    generator = path.marginal(best_readout(path, schedule, x, t), x[:, None], times(t, len(x)))
    density = lambda time: DATA.density(schedule, time, x)  # noqa: E731
    least = 1e-3 if prediction == "belief" else 1e-7
    assert float(residual(generator.parts["flow"], x, weight, density, t).abs().max()) < least
    jump = finer(generator.parts["jump"], 20 if prediction == "belief" else None)
    assert float(residual(jump, x, weight, density, t).abs().max()) < 1e-3
    assert float(slopes(x, weight, density, t).abs().max()) > 0.05


# ---- the distribution


@every_schedule
def test_gaussian_path__samples_have_the_distribution_p_t(schedule: AffineSchedule) -> None:
    path = GaussianPath(schedule=schedule)
    z = torch.full((20_000, 1), 0.7)
    for t in (0.0, 0.3, 0.9):
        x = path.sample(z, times(t, len(z)), rng(4))
        assert x.dtype == torch.float32
        alpha, sigma = schedule.alpha(numbers(t)), schedule.sigma(numbers(t))
        assert kolmogorov(x, lambda y, a=alpha, s=sigma: normal_cdf((y - 0.7 * a) / s))[1] > LEAST_P
    assert torch.equal(path.sample(z, times(1.0, len(z)), rng(4)), z)
    assert kolmogorov(path.prior([20_000], rng(5)), normal_cdf)[1] > LEAST_P


def test_gaussian_path__each_state_has_its_own_time() -> None:
    """In a batch of states [B, C, H, W] the conditional generator of row b is that of row b alone."""
    path = GaussianPath(ALL, 3, TrigonometricSchedule(), bins=Bins(-4, 4))
    z = torch.randn(4, 3, 2, 2, generator=rng(1), dtype=torch.float64).clamp(-4, 4)
    t = numbers(0.1, 0.4, 0.7, 0.9)
    x = path.sample(z, t, rng(2))
    whole = path.conditional(z, x, t, t + 0.05)
    for b in range(4):
        alone = path.conditional(z[b : b + 1], x[b : b + 1], t[b : b + 1], t[b : b + 1] + 0.05)
        for name in ALL:
            one, other = alone.parts[name], whole.parts[name]
            for value in ("velocity", "mean", "scale", "drift", "intensity", "probability"):
                if (mine := getattr(one, value, None)) is not None:
                    torch.testing.assert_close(mine[0], getattr(other, value)[b], rtol=1e-12, atol=1e-12)
            assert float(alone.weights[name]) == float(whole.weights[name][b])


# ---- what a network states


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_gaussian_path__predictions_of_velocity_data_and_noise_give_one_generator(
    schedule: AffineSchedule, t: float
) -> None:
    """u = α' ẑ + σ' ε̂ and x = α ẑ + σ ε̂: rounding is multiplied by at most 1/α = 20."""
    generator = rng(3)
    x, clean = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    now = numbers(t)
    alpha, sigma = schedule.alpha(now), schedule.sigma(now)
    noise = (x - alpha * clean) / sigma
    velocity = schedule.alpha_derivative(now) * clean + schedule.sigma_derivative(now) * noise
    for prediction, stated in (("velocity", velocity), ("data", clean), ("noise", noise)):
        path = GaussianPath({"flow": 0.5, "diffusion": 0.5}, 2, schedule, prediction)
        parts = path.marginal(stated, x, times(t, 5), times(min(t + 0.2, 1.0), 5)).parts
        torch.testing.assert_close(parts["flow"].velocity, velocity, rtol=1e-11, atol=1e-11)
        for value, own in zip(path.clean_and_noise(stated, x, times(t, 5)), (clean, noise), strict=True):
            torch.testing.assert_close(value, own, rtol=1e-10, atol=1e-10)
        # the score of p_t(x|z) at the mean of z is −ε̂/σ
        expected = velocity - 0.5 * (path.noise * sigma) / sigma * noise
        torch.testing.assert_close(parts["diffusion"].drift, expected, rtol=1e-10, atol=1e-10)
        # over the interval g² is the mean of both ends; at a point, that of the point
        ends = (sigma + schedule.sigma(numbers(min(t + 0.2, 1.0)))) / 2
        point = path.marginal(stated, x, times(t, 5)).parts["diffusion"]
        torch.testing.assert_close(point.scale.expand(5, 2), (path.noise * sigma).sqrt().expand(5, 2))
        scale = (path.noise * ends).sqrt()
        torch.testing.assert_close(parts["diffusion"].scale.expand(5, 2), scale.expand(5, 2))


def test_gaussian_path__noise_prediction_does_not_determine_data_at_the_start() -> None:
    """At t = 0 the data are taken for their mean, and the velocity stays finite."""
    path = GaussianPath(prediction="noise", data_mean=0.4)
    x = torch.randn(3, 2, generator=rng(), dtype=torch.float64)
    clean, _ = path.clean_and_noise(x, x, times(0.0, 3))
    assert bool((clean == 0.4).all())
    torch.testing.assert_close(path.marginal(x, x, times(0.0, 3)).parts["flow"].velocity, 0.4 - x)


@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_gaussian_path__best_raw_output_has_unit_size(schedule: AffineSchedule, t: float, prediction: str) -> None:
    """For data of mean m and deviation s: mean 0 and variance 1, as far as it is not known from x already.

    Means and covariances of z and ε are exact over the four points z = m ± s, ε = ±1.
    """
    mean, std, now = -0.6, 1.7, numbers(t)
    path = GaussianPath(schedule=schedule, prediction=prediction, data_mean=mean, data_std=std)
    z, noise = mean + std * numbers(1, 1, -1, -1)[:, None], numbers(1, -1, 1, -1)[:, None]
    x = schedule.alpha(now) * z + schedule.sigma(now) * noise
    velocity = schedule.alpha_derivative(now) * z + schedule.sigma_derivative(now) * noise
    aim = {"velocity": velocity, "data": z, "noise": noise}[prediction]
    nothing, one = (path.output("flow", torch.full_like(x, v), x, times(t, 4)) for v in (0.0, 1.0))
    size = one - nothing
    if prediction == "noise" and t == 0:  # x is the noise: nothing is left to say
        assert float(size.abs().max()) == 0
        torch.testing.assert_close(nothing, noise)
        return
    raw = (aim - nothing) / size
    assert float(raw.mean()) == pytest.approx(0, abs=1e-12)
    assert float((raw**2).mean()) == pytest.approx(1, rel=1e-12)
    assert float((raw * x).mean()) == pytest.approx(0, abs=1e-12)  # the best linear guess is taken out
    seen = path.normalized(x, times(t, 4))
    assert float(seen.mean()) == pytest.approx(0, abs=1e-12)
    assert float((seen**2).mean()) == pytest.approx(1, rel=1e-12)
    assert torch.equal(path.output("rate", x, x, times(t, 4)), x)


@every_schedule
def test_gaussian_path__units_are_those_of_the_generators(schedule: AffineSchedule) -> None:
    """Of flows what the network's share is multiplied with for a velocity, of jumps speed/σ."""
    path, t = GaussianPath(ALL, schedule=schedule, prediction="data", data_std=0.5, bins=Bins(-4, 4)), numbers(0.1, 0.8)
    velocity = GaussianPath(schedule=schedule, data_std=0.5)
    x = torch.zeros(2, 1, dtype=torch.float64)
    size = velocity.output("flow", x + 1, x, t) - velocity.output("flow", x, x, t)
    units = path.units(t)
    torch.testing.assert_close(units["flow"], size[:, 0])
    torch.testing.assert_close(units["jump"], schedule.speed(t) / schedule.sigma(t))
    assert set(velocity.units(t)) == {"flow"}


@every_schedule
def test_gaussian_path__jump_length_is_sigma(schedule: AffineSchedule) -> None:
    """Their length is σ; the rms of the distance, over x ~ p_t, is between σ and 3σ."""
    path = GaussianPath({"jump": 1.0}, schedule=schedule)
    for t in (0.1, 0.9):
        z = torch.full((20_000, 1), 0.4, dtype=torch.float64)
        x = path.sample(z, times(t, len(z)), rng(11))
        jump = path.conditional(z, x, times(t, len(z))).parts["jump"]
        torch.testing.assert_close(jump.length, schedule.sigma(times(t, len(z))))
        far = (jump.kernel.sample(rng(12), torch.arange(len(z))).view_as(x) - x).square()
        rms = float(((far * jump.intensity).sum() / jump.intensity.sum()).sqrt() / jump.length[0])
        assert 1 < rms < 3


# ---- intervals


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.3), (0.4, 0.9), (0.9, 1.0), (0.0, 1.0)])
def test_gaussian_path__mean_velocity_leads_to_the_end_of_the_step(
    schedule: AffineSchedule, t: float, s: float
) -> None:
    """x + (s − t) ū = α_s ẑ + σ_s ε̂, and to ẑ in the step to t = 1."""
    x, clean = (torch.randn(6, 2, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    now, then = numbers(t), numbers(s)
    noise = (x - schedule.alpha(now) * clean) / schedule.sigma(now)
    path = GaussianPath({"flow": 0.5, "diffusion": 0.5}, 2, schedule, prediction="data")
    parts = path.marginal(clean, x, times(t, 6), times(s, 6)).parts
    flow, diffusion = parts["flow"], parts["diffusion"]
    assert isinstance(flow, Flow)
    assert isinstance(diffusion, Diffusion)
    reached = x + (s - t) * flow.mean
    torch.testing.assert_close(reached, schedule.alpha(then) * clean + schedule.sigma(then) * noise, rtol=0, atol=1e-13)
    if s == 1:
        torch.testing.assert_close(reached, clean, rtol=0, atol=1e-13)
    torch.testing.assert_close(diffusion.mean, flow.mean - path.noise / 2 * noise, rtol=1e-12, atol=1e-12)
    empty = path.marginal(clean, x, times(t, 6), times(t, 6)).parts["flow"]
    assert torch.equal(empty.mean, empty.velocity)


@every_schedule
def test_gaussian_path__mean_velocity_of_a_short_step_is_the_velocity(schedule: AffineSchedule) -> None:
    """To the first order in its length: 10⁻⁵ of (1 + |α''| + |σ''|)/2."""
    path, x = GaussianPath(schedule=schedule, prediction="data"), torch.linspace(-2, 2, 6).double()[:, None]
    flow = path.marginal(-x, x, times(0.6, 6), times(0.6 + 1e-5, 6)).parts["flow"]
    torch.testing.assert_close(flow.mean, flow.velocity, rtol=0, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("weights", [{"jump": 1.0}, ALL, MOVING, {"diffusion": 1.0}])
def test_gaussian_path__last_step_is_taken_by_the_flow(schedule: AffineSchedule, weights: Any) -> None:
    path = GaussianPath(weights, schedule=schedule, bins=Bins(-4, 4))
    x = torch.randn(3, 1, generator=rng(), dtype=torch.float64)
    model = exact_model(path, ATOMS)
    last = model.generator(x, numbers(0.5, 0.9, 0.995), times(1.0, 3))
    assert last.weights["flow"].tolist() == [1, 1, 1]
    assert all(last.weights[name].tolist() == [0, 0, 0] for name in last.parts if name != "flow")
    now = numbers(0.5, 0.9, 0.99)
    before = model.generator(x, now, numbers(0.6, 1.0, 0.995)).weights["flow"]
    own = path.weights(now).get("flow", torch.zeros(3).double())
    assert before.tolist() == [float(own[0]), 1, float(own[2])]


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.5, 0.55), (0.6, 0.75), (0.9, 0.95)])
@pytest.mark.parametrize("z", [-0.5, 0.0, 0.5])
def test_gaussian_path__jump_probability_is_that_of_the_integrated_rate(
    schedule: AffineSchedule, t: float, s: float, z: float
) -> None:
    """1 − exp(−∫ λ(x|z)) of a particle that stays at x, by quadrature of [−∂_t log p]₊.

    The rate is taken to grow like speed/σ³, as its leading term w² does. At 3 and 4 standard deviations that leaves less
    than half of the error of the naive 1 − exp(−λ Δ), and less than 15 %.
    """
    path = GaussianPath({"jump": 1.0}, schedule=schedule)
    now = numbers(t)
    x = schedule.alpha(now) * z + schedule.sigma(now) * numbers(-4, -3, 3, 4)
    node, weight = panels([t, (t + s) / 2, s], 30)

    def rate(time: Tensor) -> Tensor:
        p, slope = density_slope(conditional_density(schedule, z, x), time)
        return (-slope / p).clamp(min=0)

    exact = rate(node[:, None]).mul(weight[:, None]).sum(0)
    jump = path.conditional(torch.full((4, 1), z).double(), x[:, None], times(t, 4), times(s, 4)).parts["jump"]
    stated = -torch.log1p(-jump.chance[:, 0])
    naive = rate(now) * (s - t)
    torch.testing.assert_close(jump.intensity[:, 0], rate(now), rtol=1e-9, atol=1e-9)
    assert float((stated - exact).abs().mean()) < 0.5 * float((naive - exact).abs().mean())
    assert float((stated / exact - 1).abs().mean()) < 0.15


@every_schedule
def test_gaussian_path__jump_probability_is_its_definition(schedule: AffineSchedule) -> None:
    """1 − exp(−λ ∫f/f(t)), f = speed/σ³, by quadrature on both sides of t = 1/2."""
    path = GaussianPath({"jump": 1.0}, schedule=schedule, bins=Bins(-3, 3))
    t, s = 0.52, 0.7
    x, z = torch.tensor([[-2.0], [0.5], [3.0]]).double(), torch.tensor([[0.3], [0.4], [-1.0]]).double()
    node, weight = panels([t, (t + s) / 2, s], 30)
    f = schedule.speed(node) / schedule.sigma(node) ** 3
    duration = (f * weight).sum() / (schedule.speed(numbers(t)) / schedule.sigma(numbers(t)) ** 3)
    jump = path.conditional(z, x, times(t, 3), times(s, 3)).parts["jump"]
    torch.testing.assert_close(jump.chance, 1 - torch.exp(-jump.intensity * duration), rtol=1e-12, atol=1e-15)
    assert float(jump.chance[1]) == 0  # where the density rises nothing leaves
    with pytest.raises(ValueError, match=r"probability=None.*t_next"):
        _ = path.conditional(z, x, times(t, 3)).parts["jump"].chance


@every_schedule
@pytest.mark.parametrize("prediction", ["belief", "velocity"])
def test_gaussian_path__landing_of_an_interval_is_that_of_its_end(schedule: AffineSchedule, prediction: str) -> None:
    path = GaussianPath({"jump": 1.0}, schedule=schedule, prediction=prediction, bins=Bins(-4, 4))
    z, x = torch.tensor([[0.9]]).double(), torch.tensor([[2.5]]).double()
    where, t, s = torch.tensor([0]), times(0.3, 1), times(0.6, 1)
    over = path.conditional(z, x, t, s).parts["jump"].kernel.nodes(where, 50)[0]
    later = path.conditional(z, x, s).parts["jump"].kernel.nodes(where, 50)[0]
    torch.testing.assert_close(over, later, rtol=0, atol=1e-12)
    start = path.conditional(z, x, t).parts["jump"].kernel.nodes(where, 50)[0]
    assert float((over - start).abs().max()) > 0.1
    # and after `over`, which a sampler asks for once the belief is known
    again = path.conditional(z, x, t)
    assert again.over is not None
    kernel = again.over(s).parts["jump"].kernel
    torch.testing.assert_close(kernel.nodes(where, 50)[0], over, rtol=0, atol=1e-12)


def test_gaussian_path__values_stay_finite_near_the_end_and_in_float32() -> None:
    """Far out, at t = 0 where σ' of the trigonometric schedule is 0, and at 1 − ε/4, the latest that is trained at."""
    for schedule in SCHEDULES:
        for prediction in ("belief", "velocity"):
            path = GaussianPath(ALL, schedule=schedule, prediction=prediction, bins=Bins(-4, 4, 32))
            for t in (0.0, 0.5, path.latest):
                x = torch.tensor([[-30.0, -4.0, 0.0], [0.5, 4.0, 30.0]])
                z = torch.tensor([[0.0, -4.0, 1.0], [0.5, 4.0, -1.0]])
                for then in (None, times(1.0, 2), times(0.5 + t / 2, 2)):
                    parts = path.conditional(z, x, times(t, 2), then).parts
                    values = [parts["flow"].velocity, parts["diffusion"].drift, parts["jump"].intensity]
                    values += [] if then is None else [parts["flow"].mean, parts["jump"].chance]
                    assert all(v.dtype == torch.float32 and bool(v.isfinite().all()) for v in values)
                    landing = parts["jump"].kernel.sample(rng(), torch.arange(6))
                    assert bool(landing.isfinite().all())
                    assert float(landing.abs().max()) < 13  # 9 standard deviations from data of at most 4


# ---- weights


def test_gaussian_path__weights_over_time_are_straight_lines() -> None:
    path = GaussianPath(MOVING)
    weights = path.weights(numbers(0, 0.25, 0.5, 0.75, 1))
    torch.testing.assert_close(weights["flow"], numbers(1, 0.75, 0.5, 0.25, 0))
    torch.testing.assert_close(weights["diffusion"], numbers(0, 0.125, 0.25, 0.125, 0))
    torch.testing.assert_close(weights["jump"], numbers(0, 0.125, 0.25, 0.625, 1))


def test_gaussian_path__action_of_a_superposition_is_weighed() -> None:
    path = GaussianPath(MOVING, bins=Bins(-4, 4, 2))
    x, z = torch.tensor([[1.7], [-0.4]]).double(), torch.tensor([[0.2], [0.4]]).double()
    generator = path.conditional(z, x, numbers(0.25, 0.7))
    expected = sum(
        path.weights(numbers(0.25, 0.7))[name] * generator.parts[name].action(FUNCTIONS[0], x) for name in MOVING
    )
    torch.testing.assert_close(generator.action(FUNCTIONS[0], x), expected)
    assert isinstance(generator, Superposition)


@pytest.mark.parametrize(
    "weights",
    [
        {"flow": 0.5},
        {"flow": 0.6, "jump": 0.6},
        {"flow": 1.5, "jump": -0.5},
        {"flow": [1.0, 0.0], "jump": 0.5},
        {"flow": [1.0, 0.5, 1.0], "jump": [0.0, 0.0]},
        {"flow": [2.0, -1.0], "jump": [-1.0, 2.0]},
        {"flow": math.nan},
    ],
)
def test_gaussian_path__refuses_weights_that_do_not_sum_to_1(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"generators(=\{.*|\[)'flow'"):
        GaussianPath(weights)
    with pytest.raises(ValueError, match=r"generators(=\{.*|\[)'flow'"):
        GaussianPath(ALL).reweighted(weights)


def test_gaussian_path__reweighted_differs_in_its_weights_alone() -> None:
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, 3, BentSchedule(0.2), noise=0.3, bins=Bins(-4, 4))
    other = path.reweighted({"jump": 0.9, "diffusion": 0.1})
    assert other.generators == {"jump": 0.9, "diffusion": 0.1}
    assert {**other.to_dict(), "generators": None} == {**path.to_dict(), "generators": None}
    assert path.generators == {"flow": 0.5, "jump": 0.5}
    with pytest.raises(ValueError, match="need landing, rate"):
        GaussianPath({"flow": 1.0}).reweighted({"jump": 1.0})
    assert GaussianPath({"flow": 1.0}, prediction="belief").reweighted({"jump": 1.0}).heads == {"belief": 64}


def test_gaussian_path__heads_and_divergences_are_those_of_the_parts() -> None:
    """The diffusion needs no head of its own: its drift follows from the flow."""
    assert GaussianPath({"flow": 0.5, "diffusion": 0.5}).heads == {"flow": 1}
    path = GaussianPath({"jump": 1.0}, prediction="data", bins=Bins(-4, 4, 16))
    assert path.heads == {"flow": 1, "rate": 1, "landing": 16}  # the jump needs ẑ to finish
    assert path.default_divergence == {"flow": "squared", "jump": "generalized_kl"}
    path = GaussianPath({"jump": 1.0}, bins=Bins(number=16))
    assert (path.prediction, path.heads, path.default_divergence) == (
        "belief",
        {"belief": 16},
        {"jump": "generalized_kl"},
    )
    path = GaussianPath({"jump": 0.5, "flow": 0.5}, bins=Bins(number=16))
    assert path.default_divergence == {"flow": "squared", "jump": "generalized_kl"}
    assert GaussianPath(prediction="belief").default_divergence == {"flow": "squared"}
    assert (path.spacing, GaussianPath().spacing) == ("linear", "linear")
    assert GaussianPath({"jump": 1.0}).spacing == "geometric"


# ---- fitted to data


def test_gaussian_path__a_belief_is_the_default_where_bins_say_where_the_data_lie() -> None:
    assert GaussianPath().prediction == "velocity"
    assert GaussianPath(bins=Bins(-3, 3)).prediction == "belief"
    assert GaussianPath({"diffusion": 1.0}, bins=Bins(-3, 3)).heads == {"belief": 64}
    assert GaussianPath({"jump": 1.0}).prediction == "belief"
    assert GaussianPath(bins=Bins(-3, 3), prediction="velocity").heads == {"flow": 1}
    for path in (GaussianPath(), GaussianPath(bins=Bins(-3, 3))):  # a saved path names its prediction
        assert Path.from_dict(json.loads(json.dumps(path.to_dict()))) == path


@pytest.mark.parametrize("shape", [(40, 5, 2), (10, 2, 5, 4)])
def test_gaussian_path__fit_takes_channels_moments_and_range_from_data(shape: tuple[int, ...]) -> None:
    data = 5 + 3 * torch.rand(shape, generator=rng())
    data.view(-1)[7] = torch.nan
    path, held = GaussianPath.fit(data, {"flow": 0.5, "jump": 0.5}), data[~data.isnan()]
    assert (path.num_channels, path.prediction, path.bins.number) == (2, "belief", 64)
    assert (path.data_mean, path.data_std) == pytest.approx((float(held.mean()), float(held.std(correction=0))))
    margin = 0.05 * float(held.max() - held.min())
    ends = float(held.min()) - margin, float(held.max()) + margin
    assert (path.bins.low, path.bins.high) == pytest.approx(ends)
    assert path.conditional(held.view(-1, 1), held.view(-1, 1), times(0.5, len(held))) is not None
    assert GaussianPath.fit(data).generators == {"flow": 1.0}


def test_gaussian_path__fit_leaves_what_is_given() -> None:
    data = torch.randn(50, 1, 1, generator=rng())
    path = GaussianPath.fit(data, num_bins=12, margin=0.0, prediction="data", data_mean=0.25, stop=0.01)
    assert (path.prediction, path.data_mean, path.stop, path.bins.number) == ("data", 0.25, 0.01, 12)
    assert (path.bins.low, path.bins.high) == (float(data.min()), float(data.max()))
    assert GaussianPath.fit(data, bins=Bins(-9, 9, 30)).bins == Bins(-9, 9, 30)
    landing = GaussianPath.fit(0.1 * data, {"jump": 1.0}, prediction="velocity").bins  # of noisy values
    assert (landing.low, landing.high) == (-4, 4)
    constant = GaussianPath.fit(torch.full((3, 1, 1), 7.0))
    assert (constant.data_std, constant.bins) == (1.0, Bins(6.5, 7.5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 2), r"data must be .*\[N, L, C\].*\(3, 2\)"),
        (torch.zeros(3, 1, 2).long(), "data must be .*int64"),
        ([0.0, 1.0], r"data must be .*\[0.0, 1.0\]"),
        (torch.full((3, 1, 2), torch.nan), "data must hold finite numbers.*none"),
        (torch.tensor([1.0, torch.inf]).view(2, 1, 1), "data must hold finite numbers.*1 infinite"),
    ],
)
def test_gaussian_path__fit_names_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianPath.fit(data)
    with pytest.raises(ValueError, match=r"margin=-0\.1 must be"):
        GaussianPath.fit(torch.zeros(3, 1, 1), margin=-0.1)


# ---- configs and errors


@pytest.mark.parametrize("generators", [None, ALL, MOVING, {"jump": (0.5, 1.0), "flow": (0.5, 0.0)}])
@every_schedule
def test_gaussian_path__travels_through_json(generators: Any, schedule: AffineSchedule) -> None:
    bins = Bins(-3.5, 3.5, 32)
    path = GaussianPath(generators, 3, schedule, "noise", 0.1, 0.4, bins, 0.7, 0.01)
    copy = Path.from_dict(json.loads(json.dumps(path.to_dict())))
    assert isinstance(copy, GaussianPath)
    assert copy == path
    assert copy.to_dict() == path.to_dict()
    assert copy.bins == bins
    assert copy.schedule == schedule
    assert (copy.num_channels, copy.prediction, copy.data_mean, copy.data_std) == (3, "noise", 0.1, 0.4)
    assert (copy.noise, copy.stop) == (0.7, 0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"generators": {"flow": 0.5, "drift": 0.5}},
            ValueError,
            "generators.*drift.*flow, diff",
        ),
        ({"generators": 0.5}, TypeError, "generators=0.5"),
        ({"generators": ["flow"]}, TypeError, "must be weights by name"),
        ({"generators": {"flow": [1.0]}}, ValueError, r"two values, got \[1.0\]"),
        ({"num_channels": 0}, ValueError, "num_channels=0 must be an integer from 1"),
        ({"schedule": 0.5}, TypeError, "schedule=0.5 must be a.* AffineSchedule"),
        ({"schedule": {"type": "linear"}}, ValueError, "names no AffineSchedule"),
        ({"prediction": "score"}, ValueError, "prediction='score' must be 'belief', 'velocity', 'data' or 'noise'"),
        ({"data_std": 0.0}, ValueError, "data_std=0.0 must be"),
        ({"noise": -0.1}, ValueError, "noise=-0.1 must be"),
        ({"stop": 0.0}, ValueError, r"stop=0.0 must be .* < 0.5"),
        ({"stop": 0.5}, ValueError, r"stop=0.5 must be .* < 0.5"),
        ({"bins": (0, 1)}, TypeError, "bins=.* must be a Bins"),
        (
            {"generators": {"jump": 1.0}, "prediction": "velocity"},
            ValueError,
            "bins.*-1.0.*1.0",
        ),
        (
            {"generators": {"jump": 1.0}, "prediction": "data", "bins": Bins(-9, 3.2)},
            ValueError,
            "bins.*low ≤ −3.3.*high ≥ 3.3",
        ),
        (
            {"generators": {"jump": 1.0}, "prediction": "noise", "bins": Bins(1, 9)},
            ValueError,
            "do not cover the prior",
        ),
    ],
)
def test_gaussian_path__names_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GaussianPath(**arguments)


def test_gaussian_path__takes_landing_bins_that_cover_the_prior() -> None:
    GaussianPath({"jump": 1.0}, prediction="velocity", bins=Bins(-3.3, 3.3))
    GaussianPath({"flow": 1.0}, prediction="velocity", bins=Bins(-1, 1))  # which no jump uses


STATE = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("z", "x", "t", "message"),
    [
        (STATE, STATE.long(), times(0.5, 2), "x .*floating-point.*torch.int64"),
        (STATE.long(), STATE, times(0.5, 2), "z must be a floating-point tensor"),
        (STATE, [[0.0]], times(0.5, 2), "x must be a floating-point tensor"),
        (STATE, torch.zeros(2), times(0.5, 2), r"x .*floating-point.*shape \(2,\)"),
        (STATE, STATE.clone().fill_(math.nan), times(0.5, 2), "x .*finite"),
        (STATE.clone().fill_(math.inf), STATE, times(0.5, 2), "z .*finite"),
        (torch.zeros(2, 4), STATE, times(0.5, 2), r"z has shape \(2, 4\), x has \(2, 3\)"),
        (STATE, STATE, times(0.5, 3), r"t must have shape \[B\] = \[2\]"),
        (STATE, STATE, 0.5, r"t must have shape \[B\] = \[2\], got 0.5"),
        (STATE, STATE, times(1.5, 2), r"times must lie in \[0, 1\]"),
        (STATE + 1.5, STATE, times(0.5, 2), "z .*1.5 to 1.5.*-1 to 1"),
    ],
)
def test_gaussian_path__names_bad_states(z: Any, x: Any, t: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianPath(ALL).conditional(z, x, t)


def test_gaussian_path__data_may_lie_outside_of_bins_that_are_not_used() -> None:
    GaussianPath().conditional(STATE + 9, STATE, times(0.5, 2))
    GaussianPath(prediction="noise").conditional(STATE + 9, STATE, times(0.5, 2))
    for path in (GaussianPath(ALL, prediction="velocity", bins=Bins(-4, 4)), GaussianPath(prediction="belief")):
        with pytest.raises(ValueError, match=r"z .*9 to 9"):
            path.conditional(STATE + 9, STATE, times(0.5, 2))


def test_gaussian_path__names_bad_readouts() -> None:
    with pytest.raises(ValueError, match=r"readout\('flow'\) has shape \(2, 2\); expected x's shape \(2, 3\)"):
        GaussianPath().marginal(torch.zeros(2, 2), STATE, times(0.5, 2))
    with pytest.raises(ValueError, match=r"readout.*'rate'.*'landing'"):
        GaussianPath(ALL, prediction="data", bins=Bins(-4, 4)).marginal(STATE, STATE, times(0.5, 2))
    with pytest.raises(ValueError, match=r"x .*finite"):
        GaussianPath().marginal(STATE, STATE / 0, times(0.5, 2))
    with pytest.raises(ValueError, match="x_0 is given"):
        GaussianPath().sample(STATE, times(0.5, 2), rng(), STATE)


def test_gaussian_path__default_schedule_is_condot() -> None:
    assert GaussianPath().schedule == CondOTSchedule()
