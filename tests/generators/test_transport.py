"""moves(x → y|z) carry p_t(·|z) to p_s(·|z), and what kernels make of them: landing distributions, renewals,
extrapolations."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    FinitePath,
    MaskedPath,
    MetricPath,
    MixturePath,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
)
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, TensorReadout
from gm_discrete.generators.transport import Extrapolated, Renewal, Transport, moves
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import LEAST_P, chi_square

CPU = torch.device("cpu")
DISTANCE = [[0, 1, 2.5, 4], [1.5, 0, 1, 2], [2, 3, 0, 1], [3, 1, 2, 0]]  # not symmetric, and no metric


class Staged(FinitePath):
    """A user's path: p_t(·|z) = (1 − κ)² a + 2κ(1 − κ) b_z + κ² 1[z], by way of a distribution b_z between noise and
    data."""

    type_name = "user's staged"

    def __init__(self, start, middle, schedule=None, rates="kinetic", excluded=()) -> None:
        super().__init__(len(start), schedule, rates)
        self.start, self.middle, self.excluded = list(start), [list(row) for row in middle], tuple(excluded)

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        kappa = self.schedule.kappa(t)[:, None]
        start, middle = (torch.tensor(v, dtype=torch.float64, device=z.device) for v in (self.start, self.middle))
        data = torch.eye(self.vocab_size, dtype=torch.float64, device=z.device)
        return (1 - kappa) ** 2 * start + 2 * kappa * (1 - kappa) * middle[z] + kappa**2 * data[z]


def blurred(schedule=None, rates: str = "kinetic") -> Staged:
    """Every symbol is possible at every t < 1."""
    middle = [[0.4, 0.3, 0.2, 0.1], [0.5, 0.5, 0, 0], [0.0, 0.25, 0.5, 0.25], [0.1, 0.1, 0.1, 0.7]]
    return Staged([0.1, 0.2, 0.3, 0.4], middle, schedule, rates)


def coarse(schedule=None, rates: str = "kinetic") -> Staged:
    """A mask (6), then the class of the symbol (4 or 5), then the symbol: most x are impossible for most z."""
    middle = [[float(y == 4 + z // 2) for y in range(7)] for z in range(4)] + [[0.0] * 6 + [1.0]] * 3
    return Staged([0.0] * 6 + [1.0], middle, schedule, rates, excluded=(4, 5, 6))


LAWS: dict[str, Any] = {
    "mixture": MixturePath(4, [0.4, 0.3, 0.2, 0.1], PowerSchedule(2), rates="mixture"),
    "masked": MaskedPath(4, schedule=CosineSchedule()),
    "metric": MetricPath(4, distance=DISTANCE, prior=[0.1, 0.2, 0.3, 0.4], schedule=CosineSchedule()),
    "embeddings": MetricPath(4, embeddings=[[0.0, 1], [1, 0], [2, 2], [-1, 0.5]], power=1.5, a=2, c=0.5),
    "blurred": blurred(SquaredSineSchedule()),
    "coarse": coarse(),
}
every_law = pytest.mark.parametrize("name", LAWS)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(law: Any) -> Tensor:  # the symbols that data holds
    return torch.tensor([symbol for symbol in range(law.vocab_size) if symbol not in law.excluded])


def every_pair(law: Any) -> tuple[Tensor, Tensor]:  # z and x, each [Z K]
    z = data_of(law)
    return z.repeat_interleave(law.vocab_size), torch.arange(law.vocab_size).repeat(len(z))


def all_moves(law: Any, t: float, s: float | None = None) -> Tensor:
    """moves(x → y|z) of all z, x and y, [Z, K, K]."""
    z, x = every_pair(law)
    rows = moves(law, z, x, times(t, len(z)), None if s is None else times(s, len(z)))
    return rows.unflatten(0, (-1, law.vocab_size))


def laws_at(law: Any, t: float) -> tuple[Tensor, Tensor]:
    """p_t(x|z) and its derivative, [Z, K] each."""
    z = data_of(law)
    return law.probs(z, times(t, len(z))), law.derivative(z, times(t, len(z)))


# ---- the flows


@every_law
@settings(max_examples=25)
@given(start=st.one_of(st.just(0.0), st.floats(1e-100, 1)), end=st.floats(1e-100, 1))
def test_moves__step_of_any_length_carries_p_t_to_p_s(name: str, start: float, end: float) -> None:
    """p_t M = p_s to rounding, M = moves + stay; rows of M are distributions. (p_s(x)/p_t(x) overflows for t below
    1e-154.)"""
    law, (t, s) = LAWS[name], sorted((start, end))
    rows = all_moves(law, t, s)
    total = rows.sum(2)
    assert float(rows.min()) >= 0
    assert float(total.max()) <= 1 + 1e-12
    p, q = laws_at(law, t)[0], laws_at(law, s)[0]
    step = rows + torch.diag_embed(1 - total)
    torch.testing.assert_close(torch.einsum("zx,zxy->zy", p, step), q, rtol=0, atol=1e-13)


@every_law
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_moves__net_flow_is_that_of_the_kinetic_rates(name: str, t: float) -> None:
    """p(x) R(x → y) − p(y) R(y → x) is p(x) ṗ(y) − p(y) ṗ(x); one of the two directions is 0, and the flow solves the
    Kolmogorov equation."""
    law = LAWS[name]
    p, slope = laws_at(law, t)
    flow = torch.where((p > 0)[..., None], p[..., None] * all_moves(law, t), 0.0)
    net = flow - flow.mT
    expected = p[:, :, None] * slope[:, None] - p[:, None] * slope[:, :, None]
    scale = float(slope.abs().max())
    torch.testing.assert_close(net, expected, rtol=0, atol=1e-14 * scale)
    assert float(torch.minimum(flow, flow.mT).max()) < 1e-15 * scale
    torch.testing.assert_close(net.sum(1), slope, rtol=0, atol=1e-13 * scale)


@every_law
def test_moves__rate_is_the_limit_of_the_step(name: str) -> None:
    """moves(t, t + δ)/δ − moves(t) is O(δ): ten times smaller for a step ten times shorter."""
    law, t = LAWS[name], 0.4
    possible = laws_at(law, t)[0] > 0  # an x that contradicts z has left at once, at no rate
    errors = [float((all_moves(law, t, t + d) / d - all_moves(law, t))[possible].abs().max()) for d in (1e-4, 1e-5)]
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("name", ["mixture", "masked"])
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.3), (0.2, 0.7), (0.7, 1.0), (0.4, None)])
def test_moves__mixture_path_jumps_to_z(name: str, t: float, s: float | None) -> None:
    """With probability (κ_s − κ_t)/(1 − κ_t), at the rate κ'/(1 − κ), and nowhere else."""
    law = LAWS[name]
    schedule = law.schedule
    expected = float(schedule.hazard(t) if s is None else schedule.jump_probability(t, s))
    z, x = every_pair(law)
    possible = law.probs(z, times(t, len(z))).gather(1, x[:, None]).squeeze(1) > 0
    rows = moves(law, z, x, times(t, len(z)), None if s is None else times(s, len(z)))
    jump = torch.zeros_like(rows).scatter(1, z[:, None], expected).scatter(1, x[:, None], 0.0)
    torch.testing.assert_close(rows[possible], jump[possible], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["metric", "embeddings"])
def test_moves__metric_rate_is_the_closed_form_and_leads_only_closer(name: str) -> None:
    """R(x → y|z) = β' p_t(y|z) [d(x, z) − d(y, z)]₊; a step of any length leads only closer too."""
    law = LAWS[name]
    d = law.distances(data_of(law))  # [z, x]
    for t in (0.02, 0.3, 0.8, 0.95):
        p, _ = laws_at(law, t)
        beta = float(law.beta_derivative(times(t, 1)))
        expected = beta * p[:, None] * (d[:, :, None] - d[:, None]).clamp(min=0)
        possible = p > 0  # in float64: from where a token cannot be, the rate counts for nothing
        torch.testing.assert_close(all_moves(law, t)[possible], expected[possible], rtol=1e-9, atol=1e-13 * beta)
        for s in (t + 0.01, 0.99, 1.0):
            rows = all_moves(law, t, s)
            assert float(rows[d[:, None] >= d[:, :, None]].max()) <= 1e-15
            assert float(rows.max()) > 1e-4


@every_law
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_moves__step_to_the_end_lands_on_the_data_symbol(name: str, t: float) -> None:
    """moves(x → z) = 1 from every x ≠ z in [t, 1], of both flows, and none from z."""
    law = LAWS[name]
    z, x = every_pair(law)
    rows = moves(law, z, x, times(t, len(z)), times(1.0, len(z)))
    expected = torch.zeros_like(rows).scatter(1, z[:, None], 1.0).scatter(1, x[:, None], 0.0)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-14)


def test_moves__from_an_impossible_symbol_draw_from_p_s() -> None:
    """p_t(x|z) = 0, as only a wrong belief has it: a step draws from p_s(·|z), and rates are where the distribution
    grows."""
    law, t, s = LAWS["coarse"], 0.4, 0.6
    p, slope = laws_at(law, t)
    q = laws_at(law, s)[0]
    here = torch.eye(law.vocab_size, dtype=torch.bool)
    impossible = p == 0
    for rows, law_there in ((all_moves(law, t, s), q), (all_moves(law, t), slope.clamp(min=0))):
        expected = law_there[:, None].expand_as(rows).masked_fill(here, 0.0)
        torch.testing.assert_close(rows[impossible], expected[impossible], rtol=0, atol=1e-15)
    assert bool(impossible.any())


# ---- bounds and clocks


@given(
    seed=st.integers(0, 2**20),
    size=st.integers(2, 6),
    power=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    table=st.booleans(),
    c=st.floats(0.05, 20),
    a=st.sampled_from([0.5, 1.0, 3.0]),
    t=st.floats(0.001, 0.999),
    s=st.floats(0.001, 1),
)
def test_metric_path__candidates_are_at_least_as_likely_as_moves_of_any_z(
    seed: int, size: int, power: float, table: bool, c: float, a: float, t: float, s: float
) -> None:
    """Σ_y moves(x → y|z) ≤ event_probability(x) and ≤ intensity(x), for all z and possible x, but for rounding."""
    t, s = sorted((t, s))
    noise = torch.rand(size, size, generator=rng(seed), dtype=torch.float64)
    given_rows = {"distance": (noise + 0.01) ** 3 * (1 - torch.eye(size))} if table else {"embeddings": noise}
    law = MetricPath(size, **given_rows, power=power, c=c, a=a)
    x = torch.arange(size)[None]
    possible = laws_at(law, t)[0] > 1e-290  # in the subnormal numbers below ṗ/p is no longer a quotient
    most = torch.where(possible, all_moves(law, t, s).sum(2), 0.0).amax(0)
    bound = law.event_probability(x, times(t, 1), times(s, 1))[0]
    assert bool((most <= bound + 1e-12).all())
    fastest = torch.where(possible, all_moves(law, t).sum(2), 0.0).amax(0)
    assert bool((fastest <= law.intensity(x, times(t, 1))[0] * (1 + 1e-9)).all())


CLOCKS: dict[str, Any] = {
    "mixture": MixturePath(4, [0.4, 0.3, 0.2, 0.1], PowerSchedule(2), rates="mixture"),
    "reversal": MixturePath(4, [0.4, 0.3, 0.3, 0.0], CosineSchedule(), rates="reversal"),
    "masked": MaskedPath(4, schedule=SquaredSineSchedule()),
    "metric": MetricPath(4, distance=DISTANCE, c=0.5, a=2, schedule=CosineSchedule()),
    "metric slow start": MetricPath(4, distance=DISTANCE, a=0.5),
    "blurred": LAWS["blurred"],
    "coarse": LAWS["coarse"],
}
CLOSED = ["mixture", "reversal", "masked", "metric", "metric slow start"]  # the others are tabulated
KAPPAS = torch.tensor([1e-6, 0.01, 0.1, 0.3, 0.49, 0.72, 0.9, 0.99, 1 - 1e-6], dtype=torch.float64)


@pytest.mark.parametrize("name", CLOCKS)
def test_dominating_process__rate_is_at_least_that_of_candidates(name: str) -> None:
    """intensity(x, t) ≤ weight(x) G'(t) for every x and t; what mixture and kinetic metric paths ring are the candidates."""
    path = CLOCKS[name]
    x = torch.arange(path.vocab_size)[None].expand(len(KAPPAS), -1)
    t = path.schedule.inverse(KAPPAS)
    clock = path.dominating_process(x)
    assert clock.weight.shape == x.shape
    ring, candidates = clock.weight * clock.rate(t)[:, None], path.generator(Dirac(x, path.vocab_size), x, t).intensity
    assert bool((candidates <= ring * (1 + 1e-12)).all())
    if name in CLOSED:
        torch.testing.assert_close(candidates, ring, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CLOCKS)
def test_dominating_process__cumulative_rate_and_time_are_inverse(name: str) -> None:
    """time is the inverse of cumulative_rate, rate its derivative (by central differences), and cumulative_rate increases."""  # noqa: E501
    path = CLOCKS[name]
    clock = path.dominating_process(torch.zeros(1, 1, dtype=torch.long))
    t = path.schedule.inverse(KAPPAS)
    cumulative_rate = clock.cumulative_rate(t)
    assert bool((cumulative_rate.diff() > 0).all())
    # A table of G is linear between its nodes: it is inverted exactly, and differentiated away from a node. Where the
    # rates are 0 (late on a metric path, in float64) G stands still, and has no inverse.
    goes = clock.rate(t) > 0
    torch.testing.assert_close(clock.time(cumulative_rate)[goes], t[goes], rtol=1e-8, atol=1e-12)
    assert int(goes.sum()) >= len(t) - 1
    inside = t[1:-1]
    h = 1e-7
    slope = (clock.cumulative_rate(inside + h) - clock.cumulative_rate(inside - h)) / (2 * h)
    torch.testing.assert_close(clock.rate(inside), slope, rtol=1e-5, atol=1e-6)
    ends = clock.cumulative_rate(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert float(ends[1]) == torch.inf
    assert not bool(ends.isnan().any())


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(("t", "s"), [(0.1, 0.12), (0.2, 0.8), (0.9, 0.999), (0.5, 1.0)])
def test_dominating_process__events_of_a_step_are_its_candidates(name: str, t: float, s: float) -> None:
    """P = 1 − e^{−weight (G(s) − G(t))}: the same probability from the path's closed form and from its clock."""
    path = CLOCKS[name]
    x = torch.arange(path.vocab_size)[None]
    jump = path.generator(Dirac(x, path.vocab_size), x, times(t, 1), times(s, 1))
    clock = path.dominating_process(x)
    passed = clock.weight * (clock.cumulative_rate(times(s, 1)) - clock.cumulative_rate(times(t, 1)))[:, None]
    passed = torch.where(clock.weight > 0, passed, 0.0)
    torch.testing.assert_close(jump.probability, -torch.expm1(-passed), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["metric", "metric slow start", "blurred", "coarse"])
@pytest.mark.parametrize(("t", "s"), [(0.1, 0.12), (0.2, 0.5), (0.3, 0.95)])
def test_dominating_process__bounds_the_moves_of_a_step(name: str, t: float, s: float) -> None:
    """Σ_y moves(x → y|z) ≤ 1 − e^{−weight (G(s) − G(t))}, since p_s(y|z) ≥ p_t(y|z) e^{−(G(s) − G(t))}."""
    path = CLOCKS[name]
    clock = path.dominating_process(torch.arange(path.vocab_size)[None])
    passed = (clock.weight * (clock.cumulative_rate(times(s, 1)) - clock.cumulative_rate(times(t, 1))))[0]
    total = torch.where(laws_at(path, t)[0] > 0, all_moves(path, t, s).sum(2), 0.0)
    assert bool((total <= -torch.expm1(-passed) + 1e-12).all())


# ---- Transport


def belief(logits: Tensor, law: Any) -> Categorical:
    return Categorical(TensorReadout(logits, law.excluded), logits.shape[:-1], law.vocab_size, CPU)


def transport(law: Any, t: float, s: float | None, seed: int = 0) -> tuple[Transport, Tensor, Tensor]:
    """(kernel, x, π): every symbol at a position of its own, with a random belief about each."""
    size = law.vocab_size
    x = torch.arange(size).repeat(2).view(2, size)
    logits = torch.randn(2, size, size, generator=rng(seed), dtype=torch.float64)
    now, then = times(t, 2), None if s is None else times(s, 2)
    ceiling = law.generator(Dirac(x, size), x, now, then)
    ceiling = ceiling.intensity if then is None else ceiling.probability
    kernel = Transport(belief(logits, law), x, now, then, law, ceiling)
    return kernel, x, belief(logits, law).probs()


GENERAL = [name for name in LAWS if name not in ("mixture", "masked")]
every_transport = pytest.mark.parametrize("name", GENERAL)
every_step = pytest.mark.parametrize(("t", "s"), [(0.3, None), (0.3, 0.5), (0.6, 1.0), (0.2, 0.9)])


@every_transport
@every_step
def test_transport__probabilities_are_the_average_over_the_data_symbol(name: str, t: float, s: float | None) -> None:
    """k(y) = Σ_z π(z) moves(x → y|z)/ceiling for y ≠ x, term by term; the rest stays. Beliefs that x contradicts are
    left out: of them a candidate may be too rare."""
    law = LAWS[name]
    kernel, x, posterior = transport(law, t, s)
    rows = kernel.probs()
    size = law.vocab_size
    for row, position in itertools.product(range(2), range(size)):
        here, expected = int(x[row, position]), torch.zeros(size, dtype=torch.float64)
        for z in data_of(law).tolist():
            one = torch.tensor([z]), torch.tensor([here]), times(t, 1), None if s is None else times(s, 1)
            expected += posterior[row, position, z] * moves(law, *one)[0]
        expected /= kernel.ceiling.view(2, size)[row, position]
        if float(expected.sum()) <= 1:
            expected[here] = 1 - expected.sum()
            assert float(rows[row, position].sum()) == pytest.approx(1, abs=1e-13)
        torch.testing.assert_close(rows[row, position], expected, rtol=1e-12, atol=1e-15)


@every_transport
def test_transport__of_a_certain_belief_is_that_of_the_target(name: str) -> None:
    law = LAWS[name]
    kernel, x, _ = transport(law, 0.3, 0.5)
    z = data_of(law)[torch.randint(len(data_of(law)), x.shape, generator=rng(1))]
    sure = torch.full((*x.shape, law.vocab_size), -torch.inf, dtype=torch.float64).scatter(2, z[..., None], 0.0)
    shared = x, times(0.3, 2), times(0.5, 2), law, kernel.ceiling.view_as(x)
    expected = Transport(belief(sure, law), *shared).probs()
    torch.testing.assert_close(Transport(Dirac(z, law.vocab_size), *shared).probs(), expected, rtol=0, atol=1e-15)


@every_transport
@pytest.mark.parametrize("s", [None, 0.6])
def test_transport__samples_have_its_probabilities(name: str, s: float | None) -> None:
    """From a symbol that no z contradicts, so that candidates are frequent enough for every z."""
    law = LAWS[name]
    start = 6 if name.startswith("coarse") else 1
    n, size = 20_000, law.vocab_size
    x = torch.full((100, n // 100), start)
    logits = torch.tensor([0.5, -0.5, 1.0, 0.0, 0.3, 0.3, 0.3], dtype=torch.float64)[:size]
    jumps = [law.marginal(logits.expand(*v.shape, size), v, times(0.3, len(v)),
             None if s is None else times(s, len(v))) for v in (x, x[:1, :1])]  # fmt: skip
    drawn = jumps[0].kernel.sample(rng(3), torch.arange(n))
    expected = jumps[1].kernel.probs()[0, 0]
    assert chi_square(torch.bincount(drawn, minlength=size), expected) > LEAST_P
    assert float(expected[start]) < 0.999


def some_kernels(copies: int = 1) -> dict[str, Kernel]:
    law = LAWS["blurred"]
    x = torch.randint(4, (3, 5), generator=rng(5)).repeat_interleave(copies, 1)
    logits, old = (torch.randn(3, 5, 4, generator=rng(seed), dtype=torch.float64) for seed in (1, 2))
    logits, old = logits.repeat_interleave(copies, 1), old.repeat_interleave(copies, 1)
    now, then = times(0.3, 3), times(0.7, 3)
    step = Transport(belief(logits, law), x, now, then, law, torch.ones(x.shape, dtype=torch.float64))
    return {
        "transport": step,
        "transport to a target": Transport(Dirac(x.flip(0), 4), x, now, then, law, step.ceiling.view_as(x)),
        "renewal": Renewal(belief(logits, law), x, now, law),
        "renewal of a mixture": Renewal(belief(logits, LAWS["mixture"]), x, now, LAWS["mixture"]),
        "extrapolated": Extrapolated(belief(logits, law), belief(old, law), 2.0),
    }


every_kernel = pytest.mark.parametrize("name", list(some_kernels()))


@every_kernel
def test_transport__draws_the_same_symbol_whichever_other_positions_are_drawn(name: str) -> None:
    kernel, everywhere = some_kernels()[name], torch.arange(15)
    for seed in range(20):
        drawn = kernel.sample(rng(seed), everywhere)
        where = torch.randperm(15, generator=rng(seed))[: seed % 8]  # none of them, too
        assert torch.equal(kernel.sample(rng(seed), where), drawn[where])
        torch.testing.assert_close(kernel.log_probs(where), kernel.log_probs(everywhere)[where], rtol=1e-13, atol=1e-14)


@every_kernel
@pytest.mark.parametrize("elements", [1, 8, 40])
def test_transport__chunks_change_nothing(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = torch.arange(15)
    drawn, rows = some_kernels()[name].sample(rng(4), everywhere), some_kernels()[name].log_probs(everywhere)
    set_chunks(elements, monkeypatch)
    assert torch.equal(some_kernels()[name].sample(rng(4), everywhere), drawn)
    torch.testing.assert_close(some_kernels()[name].log_probs(everywhere), rows, rtol=1e-13, atol=1e-14)


@every_kernel
def test_transport__probabilities_sum_to_1_and_are_those_of_samples(name: str) -> None:
    law = some_kernels()[name].probs().flatten(0, 1)
    torch.testing.assert_close(law.sum(1), torch.ones(15, dtype=torch.float64), rtol=0, atol=1e-13)
    drawn = some_kernels(2000)[name].sample(rng(11), torch.arange(15 * 2000)).view(15, 2000)
    for position in range(15):
        counts = torch.bincount(drawn[position], minlength=4)
        assert chi_square(counts, law[position]) > LEAST_P / 15


@pytest.mark.parametrize("name", ["metric", "blurred", "coarse"])
@pytest.mark.parametrize("s", [None, 0.5])
def test_transport__gradient_reaches_the_belief(name: str, s: float | None) -> None:
    """Against finite differences and against the gradient of a dense sum; finite where a landing is impossible."""
    law, size = LAWS[name], LAWS[name].vocab_size
    x = torch.tensor([[6 if name == "coarse" else 1, 4 if name == "coarse" else 2]])
    now, then = times(0.3, 1), None if s is None else times(s, 1)
    logits = torch.randn(1, 2, size, generator=rng(), dtype=torch.float64).requires_grad_()
    where = torch.arange(2)

    def library(rows: Tensor) -> Tensor:
        return law.marginal(rows, x, now, then).kernel.log_probs(where)

    def dense(rows: Tensor) -> Tensor:
        z, here = torch.arange(size).repeat(2), x[0].repeat_interleave(size)
        then_ = None if then is None else then.repeat(2 * size)
        each = moves(law, z, here, now.repeat(2 * size), then_).view(2, size, size)
        jump = law.marginal(rows, x, now, then)
        ceiling = jump.intensity if s is None else jump.probability
        rows = rows.masked_fill(torch.isin(torch.arange(size), torch.tensor(law.excluded)), -torch.inf)
        k = torch.einsum("nz,nzy->ny", rows[0].softmax(1), each) / ceiling[0, :, None]
        return k + torch.nn.functional.one_hot(x[0], size) * (1 - k.sum(1, keepdim=True))

    assert torch.autograd.gradcheck(lambda rows: library(rows).exp(), logits)
    weight = torch.randn(2, size, generator=rng(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((f * weight).sum(), logits)[0] for f in (library(logits).exp(), dense(logits)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    in_logs = torch.autograd.grad(library(logits).sum(), logits)[0]
    assert bool(in_logs.isfinite().all())
    assert float(in_logs.abs().max()) > 1e-3


def test_transport__names_a_ceiling_below_the_moves() -> None:
    law, x = LAWS["blurred"], torch.zeros(1, 4, dtype=torch.long)
    low = torch.full((1, 4), 1e-3, dtype=torch.float64)
    kernel = Transport(Dirac(x + 3, 4), x, times(0.2, 1), times(0.8, 1), law, low)
    with pytest.raises(ValueError, match="intensity"):
        kernel.sample(rng(), torch.arange(4))


def test_transport__takes_a_belief_that_contradicts_the_state() -> None:
    """p_t(x|z) = 0: no bound on rates holds for such a z, and the token is drawn from where z's distribution grows."""
    law, x = LAWS["coarse"], torch.full((1, 50), 5)  # the class of 2 and 3
    low = torch.full((1, 50), 1e-3, dtype=torch.float64)
    drawn = Transport(Dirac(torch.zeros_like(x), 7), x, times(0.2, 1), times(0.8, 1), law, low).sample(
        rng(), torch.arange(50)
    )
    assert set(drawn.tolist()) == {0, 4, 6}


# ---- Renewal


@pytest.mark.parametrize("name", LAWS)
def test_renewal__is_mean_probs_of_the_belief(name: str) -> None:
    law = LAWS[name]
    size = law.vocab_size
    x = torch.arange(size).repeat(2).view(2, size)
    logits = torch.randn(2, size, size, generator=rng(), dtype=torch.float64)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    rows = Renewal(belief(logits, law), x, t, law).probs()
    p = torch.stack([law.probs(torch.arange(size), times(time, size)) for time in t.tolist()])  # [B, z, y]
    torch.testing.assert_close(rows, belief(logits, law).probs() @ p, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["mixture", "metric", "blurred", "coarse"])
def test_renewal__is_in_detailed_balance_with_the_exact_posterior(name: str) -> None:
    """p_t(x) G(x → y) = p_t(y) G(y → x) for sequences that differ in one token: p_t is left invariant."""
    law, t = LAWS[name], 0.45
    data = torch.tensor(list(itertools.product(data_of(law).tolist(), repeat=2)))
    weights = torch.rand(len(data), generator=rng(), dtype=torch.float64) ** 3
    model = ExactModel(law, data, weights)
    states, p = model.states(), model.marginal(t)
    jump = model.generator(states, times(t, len(states))).posterior.corrector()
    assert float((jump.intensity - 1).abs().max()) == 0
    rates = torch.where((p > 0)[:, None, None], jump.rates(states), 0.0)
    for position, symbol in itertools.product(range(2), range(law.vocab_size)):
        other = states.clone()
        other[:, position] = symbol
        moved = states[:, position] != symbol
        index, here = model.index(other), torch.arange(len(states))
        there = p * rates[:, position, symbol]
        back = p[index] * rates[index, position][here, states[:, position]]
        torch.testing.assert_close(there[moved], back[moved], rtol=1e-11, atol=1e-16)
    assert float(rates.max()) > 0.01


# ---- Extrapolated


def test_extrapolated__is_its_formula() -> None:
    """[w π_new − (w − 1) π_old]₊, normalised; w = 1 is the new belief."""
    new, old = (torch.tensor([[p]], dtype=torch.float64) for p in ([0.2, 0.5, 0.3], [0.6, 0.1, 0.3]))
    pair = [Categorical(TensorReadout(p.log()), p.shape[:-1], 3, CPU) for p in (new, old)]
    expected = torch.tensor([0.0, 0.9, 0.3], dtype=torch.float64)  # 2 π_new − π_old = (−0.2, 0.9, 0.3)
    rows = Extrapolated(*pair, 2.0).probs()[0, 0]
    torch.testing.assert_close(rows, expected / 1.2, rtol=1e-14, atol=0)
    torch.testing.assert_close(Extrapolated(*pair, 1.0).probs(), new, rtol=1e-14, atol=0)
    drawn = Extrapolated(*pair, 2.0).sample(rng(), torch.zeros(200, dtype=torch.long))
    assert 0 not in drawn.tolist()


def test_extrapolated__prepares_both_networks() -> None:
    asked: list[str] = []

    class Announced(TensorReadout):
        name = ""

        def prepare(self, where: Tensor) -> tuple[Tensor]:
            asked.append(self.name + str(where.tolist()))
            return (where,)

    readouts = [Announced(torch.zeros(1, 4, 3)) for _ in range(2)]
    readouts[0].name, readouts[1].name = "new", "old"
    pair = [Categorical(readout, torch.Size([1, 4]), 3, CPU) for readout in readouts]
    Extrapolated(*pair, 2.0).sample(rng(), torch.tensor([1, 3]))
    assert sorted(asked) == ["new[1, 3]", "old[1, 3]"]


# ---- what a belief can be asked for


@pytest.mark.parametrize("path", [UniformPath(4), UniformPath(4, rates="mixture"), MaskedPath(4), LAWS["metric"],
                                  LAWS["blurred"]], ids=repr)  # fmt: skip
def test_posterior__makes_steps_and_correctors_without_the_network(path: Any) -> None:
    """`posterior` reads the network once: the step, the clock and the corrector come from the belief that is there."""
    x, t, s = torch.tensor([[0, 3]]), times(0.3, 1), times(0.6, 1)
    logits = torch.randn(1, 2, 4, generator=rng(), dtype=torch.float64)
    posterior = path.marginal(logits, x, t).posterior
    step, expected = posterior.over(s), path.marginal(logits, x, t, s)
    assert torch.equal(step.probability, expected.probability)
    moving = step.probability[0] > 0
    assert torch.equal(step.kernel.probs()[0, moving], expected.kernel.probs()[0, moving])
    other = path.marginal(-logits, x, t).posterior.belief
    replaced = posterior.over(s, other).kernel.probs()[0, moving]
    assert torch.equal(replaced, path.marginal(-logits, x, t, s).kernel.probs()[0, moving])
    mean = path.mean_probs(posterior.belief.probs()[0], times(0.3, 2))
    torch.testing.assert_close(posterior.corrector().kernel.probs()[0], mean, rtol=1e-14, atol=1e-16)
    assert path.conditional(x, x, t).posterior.belief.probs().argmax(-1).tolist() == x.tolist()
