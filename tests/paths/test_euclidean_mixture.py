"""p_t(x|z) = (1 − κ) U[low, high] + κ δ_z: the weak Kolmogorov equation of its jump, flow and diffusion, and their
distributions."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Flow, Jump
from gm_discrete.generators.landings import Bins
from gm_discrete.generators.spaces import Interval
from gm_discrete.paths import EuclideanMixturePath, Path
from gm_discrete.paths.schedules import CosineSchedule, LinearSchedule, PowerSchedule, Schedule
from gm_discrete.samplers import simulate, time_grid
from tests.helpers.distributions import LEAST_P, SIGMAS
from tests.helpers.euclid import Fresh, Model, filled, kolmogorov, noise_of_ks, numbers, panels, rng, times

LOW, HIGH = -1.0, 2.0
WIDTH = HIGH - LOW
ALL = {"jump": 0.4, "flow": 0.3, "diffusion": 0.3}
SCHEDULES = [LinearSchedule(), CosineSchedule(), PowerSchedule(2)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)
every_part = pytest.mark.parametrize("part", ["jump", "flow", "diffusion"])
WAVES = [lambda x, k=k: torch.cos(k * math.pi * (x[:, 0] - LOW) / WIDTH) for k in (1, 2, 3)]
"""Functions with f' = 0 at both ends: those on which a reflected diffusion's generator acts."""


def path_of(generators: Any = None, schedule: Schedule | None = None, **options: Any) -> EuclideanMixturePath:
    bins = options.pop("bins", Bins(LOW, HIGH, 3))
    return EuclideanMixturePath(generators or ALL, LOW, HIGH, schedule=schedule, bins=bins, **options)


# ---- Kolmogorov forward equation, weakly: d/dt E f = E L f


@every_part
@every_schedule
@pytest.mark.parametrize("z", [LOW, -0.4, 1.1, HIGH])
@pytest.mark.parametrize("t", [0.1, 0.6, 0.95])
def test_euclidean_mixture_path__conditional_generators_solve_the_kolmogorov_equation(
    part: str, schedule: Schedule, z: float, t: float
) -> None:
    """κ' (f(z) − mean f) = (1 − κ) ∫ L f dx/D + κ L f(z), by panels cut at z; what has come to z stays there."""
    now = numbers(t)
    x, weight = panels([LOW, *([z] if LOW < z < HIGH else []), HIGH], 60)
    states = torch.cat([x, numbers(z)])[:, None]
    generator = path_of(schedule=schedule).conditional(torch.full_like(states, z), states, times(t, len(states)))
    kappa, slope = schedule.kappa(now), schedule.derivative(now)
    for f in WAVES:
        action = generator.parts[part].action(f, states)
        assert float(action[-1].abs()) == 0
        mean = (f(states)[:-1] * weight).sum() / WIDTH
        expected = slope * (f(numbers(z)[:, None]) - mean)
        found = (1 - kappa) * (action[:-1] * weight).sum() / WIDTH + kappa * action[-1]
        assert float(found) == pytest.approx(float(expected), abs=1e-11 * float(1 + slope))
        assert float(expected.abs()) > 1e-4


@every_schedule
def test_euclidean_mixture_path__values_at_a_point(schedule: Schedule) -> None:
    """λ = h, u = h (x − low − D 1[x > z]), g² = 2h [½(z − low)² + D [x − z]₊ − ½(x − low)²]."""
    t, h = numbers(0.3), float(schedule.hazard(0.3))
    for x, z in ((0.5, -0.4), (0.5, 1.1), (-0.9, 1.9)):
        parts = path_of(schedule=schedule).conditional(filled(1, z), filled(1, x), t).parts
        jump, flow, diffusion = parts["jump"], parts["flow"], parts["diffusion"]
        assert isinstance(jump, Jump)
        assert isinstance(flow, Flow)
        assert isinstance(diffusion, Diffusion)
        assert float(jump.intensity) == pytest.approx(h)
        assert jump.kernel.sample(rng(), torch.tensor([0])).tolist() == [z]
        assert float(flow.velocity) == pytest.approx(h * (x + 1 - 3 * (x > z)))
        spread = 2 * h * ((z + 1) ** 2 / 2 + 3 * max(x - z, 0) - (x + 1) ** 2 / 2)
        assert float(diffusion.scale) == pytest.approx(math.sqrt(spread))
        assert diffusion.drift is None
        assert diffusion.space == Interval(LOW, HIGH)


@every_schedule
def test_euclidean_mixture_path__intervals_have_the_hazard_of_the_whole(schedule: Schedule) -> None:
    """∫h = −log of the share that is left; the jump's probability is exactly that share."""
    t, s = 0.3, 0.7
    left = float((1 - schedule.kappa(s)) / (1 - schedule.kappa(t)))
    z, x = filled(2, 0.5), numbers(-0.3, 0.5)[:, None]
    point, over = (path_of(schedule=schedule).conditional(z, x, times(t, 2), e).parts for e in (None, times(s, 2)))
    assert over["jump"].chance[:, 0].tolist() == pytest.approx([1 - left, 0.0])
    growth = -math.log(left) / (s - t) / float(schedule.hazard(t))
    torch.testing.assert_close(over["flow"].mean, point["flow"].velocity * growth)
    torch.testing.assert_close(over["flow"].velocity, point["flow"].velocity)
    torch.testing.assert_close(over["diffusion"].scale, point["diffusion"].scale * growth**0.5)


@pytest.mark.parametrize("generators", [{"flow": 1.0}, {"diffusion": 1.0}, {"flow": 0.5, "diffusion": 0.5}])
def test_euclidean_mixture_path__last_step_without_a_jump_stays(generators: Any) -> None:
    """Where the hazard is infinite only a jump arrives."""
    path = path_of(generators)
    known = Model(path, lambda x, t, s: path.conditional(torch.full_like(x, 0.5), x, t, s))
    x_0 = path.prior([50, 1], rng(1)).double()
    assert torch.equal(simulate(known, x_0, [0.99, 1.0], rng(2)), x_0)


@pytest.mark.parametrize("generators", [{"jump": 1.0}, ALL, {"flow": [1.0, 0.5], "jump": [0.0, 0.5]}])
def test_euclidean_mixture_path__last_step_with_a_jump_arrives(generators: Any) -> None:
    path = path_of(generators)
    known = Model(path, lambda x, t, s: path.conditional(torch.full_like(x, 0.5), x, t, s))
    assert bool((simulate(known, path.prior([50, 1], rng(1)).double(), [0.3, 1.0], rng(2)) == 0.5).all())


# ---- the distribution


def test_euclidean_mixture_path__samples_have_the_distribution_p_t() -> None:
    """Each number by itself: the share that is z, and the rest even on [low, high]. Both of two numbers: κ²."""
    path, n, z = path_of({"jump": 1.0}, PowerSchedule(2)), 20_000, 0.3
    x = path.sample(torch.full((n, 2), z), times(0.6, n), rng(1))
    kept = x == torch.tensor(z)
    for share, seen in ((0.36, kept[:, 0]), (0.36**2, kept.all(1))):
        assert abs(float(seen.double().mean()) - share) < SIGMAS * math.sqrt(share * (1 - share) / n)
    assert kolmogorov(x[~kept], lambda y: (y - LOW) / WIDTH)[1] > LEAST_P
    together = path_of({"jump": 1.0}, PowerSchedule(2), block=True).sample(torch.full((n, 2), z), times(0.6, n), rng(1))
    kept = together == torch.tensor(z)
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert abs(float(kept[:, 0].double().mean()) - 0.36) < SIGMAS * math.sqrt(0.36 * 0.64 / n)


RIPPLE, ATOM, SHARE = 0.8, 0.3, 0.4
"""Data: with probability SHARE the number ATOM, else of density (1 + RIPPLE cos 2πu)/D, u = (z − low)/D."""


def smooth_cdf(u: Tensor) -> Tensor:
    return u + RIPPLE * torch.sin(2 * math.pi * u) / (2 * math.pi)


def data(n: int, share: float, rng: torch.Generator | None) -> Tensor:
    """Draws, [n, 1]: the smooth part by bisection of its distribution function."""
    aim = torch.rand(n, generator=rng, dtype=torch.float64)
    low, high = torch.zeros_like(aim), torch.ones_like(aim)
    for _ in range(50):
        middle = (low + high) / 2
        below = smooth_cdf(middle) < aim
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    atom = torch.rand(n, generator=rng, dtype=torch.float64) < share
    return torch.where(atom, ATOM, LOW + WIDTH * (low + high) / 2)[:, None]


def exact(path: EuclideanMixturePath, share: float = 0.0) -> Model:
    """The posterior, by hand: x is noise with the odds (1 − κ)/D : κ q(x), and never where it is the atom. Noise says
    nothing of z; what is no noise is z. So every generator is P(noise|x) times its mean over the data."""

    def generator(x: Tensor, t: Tensor, t_next: Tensor | None) -> Any:
        kappa, u = path.schedule.kappa(t)[:, None], (x - LOW) / WIDTH
        density = (1 - share) * (1 + RIPPLE * torch.cos(2 * math.pi * u))
        noise = torch.where(x == ATOM, 0.0, (1 - kappa) / (1 - kappa + kappa * density))
        below = (1 - share) * smooth_cdf(u) + share * (x > ATOM)
        flow = WIDTH * (u - below)
        # E ½(z − low)² and E [x − z]₊ = ∫ F, both over the data
        a = (ATOM - LOW) / WIDTH
        square = (1 - share) * (1 / 3 + RIPPLE / (2 * math.pi**2)) + share * a * a
        area = (1 - share) * (u * u / 2 + RIPPLE * (1 - torch.cos(2 * math.pi * u)) / (2 * math.pi) ** 2)
        area = area + share * (u - a).clamp(min=0)
        spread = 2 * WIDTH**2 * (square / 2 + area - u * u / 2).clamp(min=0)
        kernel = Fresh(lambda rng: data(len(x), share, rng), x.shape)
        return path.generator(noise * flow, noise * spread, noise, kernel, x, t, t_next)

    return Model(path, generator)


def law_cdf(kappa: float, share: float = 0.0) -> Any:
    """Of (1 − κ) U + κ q without its atom."""

    def cdf(x: Tensor) -> Tensor:
        u = (x.double() - LOW) / WIDTH
        return ((1 - kappa) * u + kappa * (1 - share) * smooth_cdf(u)) / (1 - kappa * share)

    return cdf


@every_schedule
@pytest.mark.parametrize("t", [0.2, 0.8])
def test_euclidean_mixture_path__marginal_generators_solve_the_kolmogorov_equation(
    schedule: Schedule, t: float
) -> None:
    """Of smooth data: κ' (E_q f − mean f) = E_{p_t} L f, of flow and diffusion, analytic integrands."""
    path = path_of(schedule=schedule)
    x, weight = panels([LOW, 0.0, 1.0, HIGH], 40)
    parts = exact(path).generator(x[:, None], times(t, len(x))).parts
    kappa, slope = float(schedule.kappa(t)), float(schedule.derivative(t))
    density = 1 + RIPPLE * torch.cos(2 * math.pi * (x - LOW) / WIDTH)
    law = ((1 - kappa) + kappa * density) * weight / WIDTH
    for f in WAVES:
        values = f(x[:, None])
        expected = slope * float((values * (density - 1) * weight).sum()) / WIDTH
        for part in ("flow", "diffusion"):
            assert float((parts[part].action(f, x[:, None]) * law).sum()) == pytest.approx(expected, abs=1e-11)
        jump = parts["jump"].intensity[:, 0] * (float((values * density * weight).sum()) / WIDTH - values)
        assert float((jump * law).sum()) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("steps", [1, 4])
def test_euclidean_mixture_path__jump_is_exact_in_any_number_of_steps(steps: int) -> None:
    """Given x, whether it is noise still does not change on the way: at κ = 0.36, at 0.81 and at 1, atom and rest."""
    path, n = path_of({"jump": 1.0}, PowerSchedule(2)), 20_000
    grid = numbers(0.0, *(0.6 * (i + 1) / steps for i in range(steps)), 0.9, 1.0)
    x_0 = path.prior([n, 1], rng(1)).double()
    states = simulate(
        exact(path, SHARE), x_0, grid, rng(2), save_at=[steps, steps + 1, steps + 2], return_info=True
    ).states
    for x, kappa in zip(states, (0.36, 0.81, 1.0), strict=True):
        atom = x == ATOM
        share = kappa * SHARE
        assert abs(float(atom.double().mean()) - share) < SIGMAS * math.sqrt(share * (1 - share) / n)
        assert kolmogorov(x[~atom], law_cdf(kappa, SHARE))[1] > LEAST_P
        assert kolmogorov(x[~atom], law_cdf(kappa - 0.3, SHARE))[1] < LEAST_P


STEPS = 100
BIAS = 0.005
"""KS distance that 100 even steps to t = 0.95 leave by themselves, of first order: of the flow, whose distribution is
measured without noise below, 0.004."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "generators",
    [{"flow": 1.0}, {"diffusion": 1.0}, ALL, {"flow": [1.0, 0.0], "jump": [0.0, 1.0]}],
    ids=["flow", "diffusion", "all", "moving"],
)
@pytest.mark.parametrize("method", ["tau_leaping", "heun"])
def test_euclidean_mixture_path__every_generator_has_the_same_marginals(generators: Any, method: str) -> None:
    """They have one and the same: at κ = 0.5 and at 0.95, and at 1 where there is a jump to finish with."""
    path, n = path_of(generators), 10_000
    grid = torch.cat([torch.linspace(0, 0.95, STEPS + 1, dtype=torch.float64), numbers(1.0)])
    half = int((grid <= 0.5).sum()) - 1
    x_0 = path.prior([n, 1], rng(1)).double()
    states = simulate(exact(path), x_0, grid, rng(2), method, save_at=[half, -2, -1], return_info=True).states
    moments = [float(grid[half]), 0.95, 1.0 if "jump" in generators else 0.95]
    for x, kappa in zip(states, moments, strict=True):
        assert float(x.min()) >= LOW
        assert float(x.max()) <= HIGH
        assert kolmogorov(x, law_cdf(kappa))[0] < noise_of_ks(n) + BIAS
    assert kolmogorov(states[1], law_cdf(0.5))[0] > noise_of_ks(n) + BIAS


def test_euclidean_mixture_path__flow_converges_with_order_1() -> None:
    """Of even quantiles, without noise: F_t(x_t) = F_0(x_0); twice the steps, half the distance."""
    path, n = path_of({"flow": 1.0}), 2_000
    x_0 = (LOW + WIDTH * (torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    errors = []
    for steps in (50, 100):
        x = simulate(exact(path), x_0, torch.linspace(0, 0.95, steps + 1, dtype=torch.float64), rng())
        errors.append(float((law_cdf(0.95)(x[:, 0]) - (x_0[:, 0] - LOW) / WIDTH).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] < BIAS


def test_euclidean_mixture_path__conditional_jump_and_flow_reach_p_t() -> None:
    """z known: of 10 000 particles the jump brings the share κ to z exactly; the flow brings it close.

    In a step of length 0.005 a flow of speed h D = 6 passes z by up to 0.03: within 0.1 of z there are the share κ and the
    noise that lies there anyway. (The diffusion, whose steps pass z and start anew, needs ever smaller ones for an atom.)
    """
    z, n, t = 0.5, 10_000, 0.5
    for part, reach in (("jump", 0.0), ("flow", 0.1)):
        path = path_of({part: 1.0})
        known = Model(path, lambda x, a, b, path=path: path.conditional(torch.full_like(x, z), x, a, b))
        x = simulate(known, path.prior([n, 1], rng(3)).double(), torch.linspace(0, t, 101).double(), rng(4))
        share = t + (1 - t) * 2 * reach / WIDTH
        near = float(((x - z).abs() <= reach).double().mean())
        assert abs(near - share) < SIGMAS * math.sqrt(share * (1 - share) / n)


def test_euclidean_mixture_path__heun_is_right_where_noise_depends_on_the_state() -> None:
    """Noise that is the mean of both ends of a step goes with the step: a drift ¼ ∂g²/∂x, however short the steps."""
    path, n = path_of({"diffusion": 1.0}), 10_000
    grid = torch.linspace(0, 0.95, 151, dtype=torch.float64)
    x = simulate(exact(path), path.prior([n, 1], rng(1)).double(), grid, rng(2), "heun")
    assert kolmogorov(x, law_cdf(0.95))[0] < noise_of_ks(n) + BIAS


# ---- blocks


def test_euclidean_mixture_path__block_jumps_as_a_whole() -> None:
    """Data of two equal numbers: at κ the share κ of the states is such a pair, the rest two independent even numbers."""
    path, n = path_of({"jump": 1.0}, block=True), 20_000

    def generator(x: Tensor, t: Tensor, t_next: Tensor | None) -> Any:
        noise = (x[:, :1] != x[:, 1:]).double().expand(x.shape)
        kernel = Fresh(lambda rng: data(len(x), 0.0, rng).expand(x.shape), x.shape)
        return path.generator(None, None, noise, kernel, x, t, t_next)

    x_0 = path.prior([n, 2], rng(1)).double()
    states = simulate(
        Model(path, generator), x_0, [0.0, 0.2, 0.5, 1.0], rng(2), save_at=[2, 3], return_info=True
    ).states
    pair = states[0][:, 0] == states[0][:, 1]
    assert abs(float(pair.double().mean()) - 0.5) < SIGMAS * math.sqrt(0.25 / n)
    assert torch.equal(states[0][~pair], x_0[~pair])  # not one number alone has moved
    assert kolmogorov(states[0][pair][:, 0], law_cdf(1.0))[1] > LEAST_P
    assert bool((states[1][:, 0] == states[1][:, 1]).all())
    assert kolmogorov(states[1][:, 0], law_cdf(1.0))[1] > LEAST_P


def test_euclidean_mixture_path__block_is_noise_until_all_its_entries_have_jumped() -> None:
    path = path_of({"jump": 1.0}, block=True)
    z = torch.tensor([[0.1, 0.2], [0.1, 0.2]]).double()
    x = torch.tensor([[0.1, 0.9], [0.1, 0.2]]).double()
    jump = path.conditional(z, x, times(0.5, 2)).parts["jump"]
    assert isinstance(jump, Jump)
    assert jump.joint
    assert jump.intensity.tolist() == [[2.0, 2.0], [0.0, 0.0]]
    alone = path_of({"jump": 1.0}).conditional(z, x, times(0.5, 2)).parts["jump"]
    assert alone.intensity.tolist() == [[0.0, 2.0], [0.0, 0.0]]


# ---- what a network states


def test_euclidean_mixture_path__network_outputs_are_the_generator_in_units_of_the_hazard() -> None:
    """u/h, log g²/h, the logit of λ/h, and bins of where a jump is headed for."""
    path, t = path_of(), numbers(0.4, 0.4)
    h = 1 / 0.6
    x = numbers(0.2, 1.5)[:, None]
    answers = {
        "flow": numbers(0.3, -0.2)[:, None],
        "diffusion": numbers(0.5, 0.1)[:, None],
        "rate": numbers(0.7, -0.4)[:, None],
        "landing": numbers(0.1, 0.2, 0.7).log().expand(2, 3),
    }
    parts = path.marginal(lambda head, where=None: answers[head] if where is None else answers[head][where], x, t).parts
    torch.testing.assert_close(parts["flow"].velocity, h * answers["flow"])
    torch.testing.assert_close(parts["diffusion"].scale, (h * answers["diffusion"].exp()).sqrt())
    torch.testing.assert_close(parts["jump"].intensity, h / (1 + (-answers["rate"]).exp()))
    torch.testing.assert_close(parts["jump"].kernel.probs(), numbers(0.1, 0.2, 0.7).expand(2, 1, 3))
    landing = torch.cat([parts["jump"].kernel.sample(rng(i), torch.arange(2)) for i in range(800)])
    law = torch.bincount(((landing - LOW) / WIDTH * 3).long(), minlength=3) / 1600
    assert float((law - torch.tensor([0.1, 0.2, 0.7])).abs().max()) < SIGMAS * math.sqrt(0.25 / 1600)
    only = path_of({"flow": 1.0}).marginal(lambda head, where=None: answers[head], x, t)
    assert set(only.parts) == {"flow"}


def test_euclidean_mixture_path__normalized_states_lie_between_minus_1_and_1() -> None:
    seen = path_of().normalized(numbers(LOW, 0.5, HIGH), numbers(0.5))
    assert seen.tolist() == [-1, 0, 1]


# ---- configs and errors


@pytest.mark.parametrize(
    "arguments",
    [
        {"generators": ALL, "schedule": CosineSchedule(), "bins": Bins(LOW, HIGH, 17)},
        {"generators": {"flow": [1.0, 0.0], "jump": [0.0, 1.0]}, "num_channels": 3, "stop": 0.01},
        {"block": True},
    ],
)
def test_euclidean_mixture_path__travels_through_json(arguments: dict) -> None:
    path = EuclideanMixturePath(low=LOW, high=HIGH, **arguments)
    copy = Path.from_dict(json.loads(json.dumps(path.to_dict())))
    assert isinstance(copy, EuclideanMixturePath)
    assert copy == path
    for name, value in arguments.items():
        assert getattr(copy, name) == value


def test_euclidean_mixture_path__defaults() -> None:
    path = EuclideanMixturePath()
    assert path.generators == {"jump": 1.0}
    assert path.bins == Bins(-1.0, 1.0)
    assert path.heads == {"rate": 1, "landing": 64}
    assert path_of().heads == {"rate": 1, "landing": 3, "flow": 1, "diffusion": 1}
    assert path_of().default_divergence == {"jump": "generalized_kl", "flow": "squared", "diffusion": "generalized_kl"}
    assert float(time_grid(path, 10)[-2]) == pytest.approx(0.995)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"low": 1.0, "high": 1.0}, ValueError, "low=1.0 must be below high=1.0"),
        ({"low": 1.0, "high": 0.0, "bins": Bins()}, ValueError, "low=1.0 must be below high=0.0"),
        ({"block": True, "generators": {"flow": 1.0}}, ValueError, r"generators=.*not in a block"),
        ({"block": True, "generators": ALL}, ValueError, r"generators=.*not in a block"),
        ({"schedule": 0.5}, TypeError, "schedule=0.5 must be a Schedule"),
        ({"schedule": {"type": "condot"}}, ValueError, "names no Schedule"),
        (
            {"generators": {"drift": 1.0}},
            ValueError,
            "generators.*drift.*jump, flow, diffusion",
        ),
        ({"generators": {"jump": 0.5}}, ValueError, r"generators=\{'jump': 0.5\}"),
        ({"stop": 1.0}, ValueError, "stop=1.0 must be a finite number .* < 0.5"),
    ],
)
def test_euclidean_mixture_path__names_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EuclideanMixturePath(**arguments)


def test_euclidean_mixture_path__names_bad_states() -> None:
    path, x, t = path_of(), torch.zeros(2, 1), times(0.5, 2)
    with pytest.raises(ValueError, match=r"x .*2.1 to 2.1.*low=-1.0.*high=2.0"):
        path.conditional(x, x + 2.1, t)
    with pytest.raises(ValueError, match=r"z .*-1.5 to -1.5.*low=-1.0"):
        path.sample(x - 1.5, t)
    with pytest.raises(ValueError, match=r"z .*0 to 0.*0.5 to 1"):
        path_of(bins=Bins(0.5, 1.0)).conditional(x, x, t)
    with pytest.raises(ValueError, match="x must be a floating-point tensor"):
        path.conditional(x, x.long(), t)
    with pytest.raises(ValueError, match="block=True"):
        path_of({"jump": 1.0}, block=True).marginal(None, x, t)
