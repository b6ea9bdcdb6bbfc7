"""Normal beliefs about z: rate of leaving, who leaves, and the generators that a belief over bins is turned into."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Bins, ExactGaussianModel, GaussianPath, simulate, time_grid
from gm_discrete.generators.beliefs import NormalBelief
from gm_discrete.paths.affine import AffineSchedule
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import LEAST_P
from tests.helpers.euclid import SCHEDULES, conditional_density, density_slope, kolmogorov, numbers, rng, times

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.type_name)


def beliefs(schedule: AffineSchedule, t: Tensor, std: Tensor) -> tuple[GaussianPath, Tensor, Tensor, NormalBelief]:
    """(path, x, c, belief) of centres that are spread out, and of x with twice the deviation that it has."""
    path = GaussianPath({"jump": 1.0}, schedule=schedule)
    center = 2 * torch.rand(len(t), generator=rng(2), dtype=torch.float64) - 1
    deviation = ((schedule.alpha(t) * std) ** 2 + schedule.sigma(t) ** 2).sqrt()
    x = schedule.alpha(t) * center + 2 * deviation * torch.randn(len(t), generator=rng(1), dtype=torch.float64)
    return path, x, center, NormalBelief(x, center, std, path.at(t).shaped(x))


def leaving(path: GaussianPath, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """[−∂_t log p_t(x|z)]₊ in units of speed/σ, from the density itself."""
    schedule, found = path.schedule, []
    for a, b, s in zip(x, z.tolist(), t.tolist(), strict=True):
        p, slope = density_slope(conditional_density(schedule, b, a[None]), s)
        found.append(-slope / p)
    speed = schedule.speed(t) / schedule.sigma(t)
    return torch.cat(found).clamp(min=0) / speed


@pytest.mark.slow
@every_schedule
def test_normal_belief__rate_given_z_is_the_fall_of_the_log_density(schedule: AffineSchedule) -> None:
    """With s = 0, at random x, z and t: λ(x|z) = [−∂_t log p_t(x|z)]₊; the density's slope is a difference over 2e-6."""
    t = 0.02 + 0.93 * torch.rand(300, generator=rng(3), dtype=torch.float64)
    path, x, z, belief = beliefs(schedule, t, torch.zeros(300, dtype=torch.float64))
    expected = leaving(path, x, z, t)
    assert 50 < int((expected > 0).sum()) < 250
    torch.testing.assert_close(belief.rate, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        belief.rate,
        path.reduced_rate(z, (x - path.at(t).shaped(x).alpha * z) / path.at(t).shaped(x).sigma, path.at(t).shaped(x)),
    )


@every_schedule
def test_normal_belief__rate_and_leaver_are_those_of_the_normal_distribution(schedule: AffineSchedule) -> None:
    """Against Bayes' rule on 20 001 values of z, ten standard deviations of the prior to each side."""
    t = torch.cat([numbers(0.0), 0.99 * torch.rand(59, generator=rng(4), dtype=torch.float64)])
    std = 0.02 + 0.6 * torch.rand(60, generator=rng(5), dtype=torch.float64)
    path, x, center, belief = beliefs(schedule, t, std)
    now = path.at(t).shaped(x[:, None])
    z = center[:, None] + std[:, None] * torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    noise = (x[:, None] - now.alpha * z) / now.sigma
    law = (-((z - center[:, None]) ** 2) / (2 * std[:, None] ** 2) - noise**2 / 2).softmax(1)
    torch.testing.assert_close((law * z).sum(1), belief.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        (law * (z - belief.mean[:, None]) ** 2).sum(1).sqrt(), belief.spread, rtol=1e-5, atol=1e-6
    )
    rates = law * path.reduced_rate(z, noise, now)
    torch.testing.assert_close(belief.rate, rates.sum(1), rtol=2e-3, atol=1e-6)
    u = torch.rand(60, generator=rng(6), dtype=torch.float64)
    found = belief.leaver(u)
    below = (rates * (z < found[:, None])).sum(1) / rates.sum(1)
    often = rates.sum(1) > 1e-6
    assert int(often.sum()) > 40
    error = torch.minimum((below - u).abs(), (below - (1 - u)).abs())  # the one or the other end is counted from
    assert float(error[often].max()) < 5e-3


def test_normal_belief__evidence_is_the_density_of_x() -> None:
    _, x, center, belief = beliefs(SCHEDULES[0], numbers(0.3), numbers(0.4))
    deviation = math.hypot(0.3 * 0.4, 0.7)
    normal = torch.distributions.Normal(0.3 * center, deviation)
    torch.testing.assert_close(belief.log_evidence, normal.log_prob(x) + math.log(2 * math.pi) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_schedule
def test_normal_belief__rates_are_never_nan(schedule: AffineSchedule, dtype: torch.dtype) -> None:
    """From t = 0 (of either sign) to the end, for distributions of any width, far out and where the quadratic is
    constant."""
    path = GaussianPath({"jump": 1.0}, schedule=schedule)
    axes = [
        numbers(-30, -1, 0, 1e-3, 2, 30), numbers(-1, 0, 0.7), numbers(0, 1e-3, 0.02, 0.6),
        numbers(0, -0.0, 0.5, path.latest),
    ]  # fmt: skip
    x, center, std, t = (v.flatten() for v in torch.meshgrid(*axes, indexing="ij"))
    exact = NormalBelief(x, center, std, path.at(t).shaped(x))
    belief = NormalBelief(x.to(dtype), center.to(dtype), std.to(dtype), path.at(t).shaped(x.to(dtype)))
    assert belief.rate.dtype == dtype
    assert bool((belief.rate >= 0).all())
    torch.testing.assert_close(belief.rate.double(), exact.rate, rtol=1e-3, atol=2e-4)
    for u in (0.0, 0.3, 1 - 1e-9):
        z = belief.leaver(torch.full_like(x, u).to(dtype))
        assert bool(z.isfinite().all())
        assert bool(((z - belief.mean).abs() <= 13.1 * belief.spread).all())


# ---- of bins


BINS = Bins(-1, 1, 5)
LAW = numbers(0.1, 0.3, 0.05, 0.35, 0.2)


def stated(path: GaussianPath, x: Tensor, t: Tensor) -> Any:
    """The readout of a network that predicts `LAW` given the other entries."""

    def readout(head: str, where: Tensor | None = None) -> Tensor:
        flat, time = x.flatten(), t.repeat_interleave(x[0].numel())
        where = torch.arange(x.numel()) if where is None else where
        return path.output(head, LAW.log().expand(len(where), -1), flat[where], time[where])

    return readout


@every_schedule
@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 0.99])
def test_binned_belief__has_the_generators_of_its_mixture(schedule: AffineSchedule, t: float) -> None:
    """In one dimension they are those of the exact model of data Σ_k π_k N(c_k, width²/12)."""
    generators = {"flow": 0.3, "diffusion": 0.3, "jump": 0.4}
    path = GaussianPath(generators, schedule=schedule, bins=BINS, data_std=0.3)
    centers = BINS.value(torch.arange(5), numbers(0.5))
    model = ExactGaussianModel(path, centers[:, None], BINS.width / math.sqrt(12), LAW)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    now = times(t, 50)
    for t_next in (None, times(min(t + 0.1, 1.0), 50)):
        found, exact = path.marginal(stated(path, x, now), x, now, t_next), model.generator(x, now, t_next)
        torch.testing.assert_close(found.parts["flow"].velocity, exact.parts["flow"].velocity)
        torch.testing.assert_close(found.parts["diffusion"].drift, exact.parts["diffusion"].drift)
        torch.testing.assert_close(found.parts["jump"].intensity, exact.parts["jump"].intensity, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(found.weights, exact.weights)
        where = torch.arange(50)
        often = where[exact.parts["jump"].intensity[:, 0] * (1 - t) > 1e-2]
        assert len(often) > 20
        torch.testing.assert_close(
            found.parts["jump"].kernel.log_probs(often).exp(), exact.parts["jump"].kernel.log_probs(often).exp(),
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip
        if t_next is not None:
            torch.testing.assert_close(found.parts["flow"].mean, exact.parts["flow"].mean)
            torch.testing.assert_close(found.parts["jump"].chance, exact.parts["jump"].chance, rtol=1e-4, atol=2e-5)
            draws = [g.parts["jump"].kernel.sample(rng(7), often) for g in (found, exact)]
            # But for a rounding next to a step of the distribution.
            assert int(((draws[0] - draws[1]).abs() > 1e-6).sum()) <= 1


def test_binned_belief__kept_rows_equal_those_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In many chunks nothing is kept."""
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, bins=BINS)
    x, t = torch.randn(3, 4, generator=rng(8)).double(), numbers(0.1, 0.5, 0.9)
    whole = path.marginal(stated(path, x, t), x, t).parts["jump"]
    assert whole.kernel.belief.rows is not None
    set_chunks(10, monkeypatch)
    monkeypatch.setattr("gm_discrete.paths.gaussian_belief.CACHED", 7)
    pieces = path.marginal(stated(path, x, t), x, t).parts["jump"]
    assert pieces.kernel.belief.rows is None
    torch.testing.assert_close(pieces.intensity, whole.intensity)
    where = torch.tensor([7, 2, 11])
    torch.testing.assert_close(pieces.kernel.log_probs(where), whole.kernel.log_probs(where))


@pytest.mark.slow
def test_binned_belief__jumps_carry_its_marginal() -> None:
    """Jumps alone in 200 steps bring N(0, 1) to Σ π_k N(c_k, s²), as a network would: by Kolmogorov–Smirnov."""
    path = GaussianPath({"jump": 1.0}, bins=BINS)

    class Network:
        def __init__(self) -> None:
            self.path = path

        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
            return path.marginal(stated(path, x, t), x, t, t_next)

    x = simulate(Network(), path.prior([5000, 1], rng(9)).double(), time_grid(path, 200), rng(10))
    centers, s = BINS.value(torch.arange(5), numbers(0.5)), BINS.width / math.sqrt(12)
    cdf = lambda y: (torch.special.ndtr((y[:, None] - centers) / s) * LAW).sum(1)  # noqa: E731
    assert kolmogorov(x[:, 0], cdf)[1] > LEAST_P
    assert kolmogorov(x[:, 0] + 0.05, cdf)[1] < LEAST_P


def test_binned_belief__mean_keeps_its_precision_under_autocast() -> None:
    """Close to the end the velocity is a difference over σ: a mean of 8 bits would be off by 0.2 with 256 bins."""
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, bins=Bins(-1, 1, 256))
    t, z = times(0.9975, 512), 2 * torch.rand(512, 1, generator=rng(12)) - 1
    x = path.sample(z, t, rng(13))
    logits = path.output("belief", torch.zeros(512, 256), x.flatten(), t).view(512, 1, 256)
    plain = path.marginal(logits, x, t).parts
    with torch.autocast("cpu", torch.bfloat16):
        cast = path.marginal(logits, x, t).parts
    torch.testing.assert_close(cast["flow"].velocity, plain["flow"].velocity, rtol=0, atol=1e-3)
    torch.testing.assert_close(cast["jump"].intensity, plain["jump"].intensity, rtol=1e-4, atol=1e-3)


def test_binned_belief__computes_bfloat16_states_in_float32() -> None:
    path = GaussianPath({"flow": 0.5, "jump": 0.5}, bins=BINS)
    x, t = torch.randn(6, 2, generator=rng(14)).bfloat16(), times(0.7, 6)
    low, high = (path.marginal(stated(path, s, t), s, t, t + 0.1).parts for s in (x, x.float()))
    assert low["flow"].velocity.dtype == torch.bfloat16
    torch.testing.assert_close(low["flow"].velocity.float(), high["flow"].velocity, rtol=0.03, atol=0.1)
    assert low["jump"].kernel.sample(rng(), torch.arange(12)).isfinite().all()


def test_binned_belief__velocity_at_the_end_is_finite() -> None:
    """There x is the data, ẑ = x; the noise of which it came is not known."""
    path = GaussianPath(prediction="belief", bins=BINS)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    velocity = path.marginal(stated(path, x, times(1.0, 9)), x, times(1.0, 9)).parts["flow"].velocity
    torch.testing.assert_close(velocity, x)


def test_normal_belief__leaver_is_found_far_in_the_tail() -> None:
    """In float64 the distribution of z is exact also where next to nobody leaves, far in the one or the other tail."""
    path = GaussianPath({"jump": 1.0})
    x, t = numbers(0.4, 0.8, -0.4, 0.2), times(0.5, 4)
    belief = NormalBelief(x, numbers(1.0, 1.0, -1.0, 0.0), 0.1, path.at(t).shaped(x))
    assert belief.rate.tolist() == pytest.approx([2.8e-5, 1.3e-11, 2.8e-5, 8.4e-7], rel=0.05)
    for u in (1e-6, 0.3, 0.999):
        z = belief.leaver(torch.full_like(x, u))
        noise = (x - 0.5 * z) / 0.5
        assert bool((noise * noise - z * noise - 1 > -1e-4).all())
