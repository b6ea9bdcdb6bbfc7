"""ExactModel is Bayes' rule over all data, and check_kolmogorov finds the rates that do not carry their path."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    ExponentialSchedule,
    FinitePath,
    Jump,
    MaskedPath,
    MetricPath,
    MixturePath,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
    check_kolmogorov,
    simulate,
)
from gm_discrete.paths import Path
from gm_discrete.paths.schedules import Schedule
from tests.generators.test_transport import DISTANCE, blurred, coarse

SCHEDULES: list[Any] = [None, PowerSchedule(3), CosineSchedule(), SquaredSineSchedule(), ExponentialSchedule(3)]
PRIOR = [0.5, 0.3, 0.2]

# name → path of a schedule
PATHS: dict[str, Any] = {
    "masked": lambda s: MaskedPath(4, mask_token_id=1, schedule=s),
    "uniform reversal": lambda s: UniformPath(3, s),
    "uniform mixture": lambda s: UniformPath(3, s, rates="mixture"),
    "special": lambda s: UniformPath(4, s, special_token_ids=(1,)),
    "prior reversal": lambda s: MixturePath(3, PRIOR, s),
    "prior mixture": lambda s: MixturePath(3, PRIOR, s, rates="mixture"),
    "metric": lambda s: MetricPath(4, distance=DISTANCE, prior=[0.1, 0.2, 0.3, 0.4], schedule=s),
    "embeddings": lambda s: MetricPath(3, embeddings=[[0.0, 1], [1, 0.5], [-1, 0]], normalize=True, c=0.2, schedule=s),
    "embeddings to the power 1, a = 1/2": lambda s: MetricPath(
        3, embeddings=[[0.0], [1], [3]], power=1, a=0.5, schedule=s
    ),
    "own": lambda s: blurred(s),
    "own with impossible symbols": lambda s: coarse(s),
}
every_path = pytest.mark.parametrize("name", PATHS)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


# ---- ExactModel


def some_data(path: FinitePath) -> tuple[Tensor, Tensor]:
    """Five sequences of length 3 with uneven weights; most sequences are no data."""
    symbols = torch.tensor([s for s in range(path.vocab_size) if s not in path.excluded])
    picked = torch.randint(len(symbols), (5, 3), generator=torch.Generator().manual_seed(3))
    return symbols[picked], torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0])


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_exact_model__logits_are_bayes_rule(name: str, t: float) -> None:
    """π(k|x) ∝ Σ_{z: z_i = k} P(z) Π_j p_t(x_j|z_j), by loops over everything."""
    path = PATHS[name](CosineSchedule())
    data, law = some_data(path)
    model = ExactModel(path, data, law)
    rng = torch.Generator().manual_seed(0)
    x = path.sample(data.repeat(4, 1), times(t, 20), rng)
    posterior = model.logits(x, times(t, 20)).softmax(-1)
    symbols = torch.arange(path.vocab_size)
    p = path.probs(symbols, times(t, len(symbols)))
    for row, state in enumerate(x):
        weights = [
            float(w) * math.prod(float(p[z[i], state[i]]) for i in range(3)) for z, w in zip(data, law, strict=True)
        ]
        for i, k in itertools.product(range(3), range(path.vocab_size)):
            expected = sum(w for z, w in zip(data, weights, strict=True) if z[i] == k) / sum(weights)
            assert float(posterior[row, i, k]) == pytest.approx(expected, rel=1e-11, abs=1e-14)


def test_exact_model__weighs_pairs_of_a_coupled_path() -> None:
    """p_t(x|z, x_0) = Π (1 − κ) 1[x = x_0] + κ 1[x = z], over the pairs (z, x_0)."""
    path = MixturePath(3, coupled=True)
    data, x_0 = torch.tensor([[0, 1], [2, 1], [1, 1]]), torch.tensor([[1, 2], [1, 1], [0, 2]])
    model = ExactModel(path, data, torch.tensor([1.0, 2.0, 3.0]), x_0)
    # x = (1, 1) at κ = 0.2: the first pair gives .8 × .2, the second .8 × 1, the third .2 × .2
    weights = torch.tensor([0.16, 2 * 0.8, 3 * 0.04], dtype=torch.float64)
    posterior = model.logits(torch.tensor([[1, 1]]), times(0.2, 1)).softmax(-1)[0]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for z, w in zip(data, weights / weights.sum(), strict=True):
        expected[torch.arange(2), z] += w
    torch.testing.assert_close(posterior, expected, rtol=1e-14, atol=1e-15)


@every_path
def test_exact_model__marginal_goes_from_the_prior_to_the_data(name: str) -> None:
    path = PATHS[name](None)
    data, law = some_data(path)
    model = ExactModel(path, data, law)
    states = model.states()
    for t in (0.0, 0.2, 0.9, 1.0):
        assert float(model.marginal(t).sum()) == pytest.approx(1, abs=1e-13)
    expected = torch.zeros(len(states), dtype=torch.float64).index_add(0, model.index(data), law.double() / law.sum())
    torch.testing.assert_close(model.marginal(1.0), expected, rtol=0, atol=1e-15)
    start = path.probs(data[0, :1], times(0.0, 1))[0]
    torch.testing.assert_close(model.marginal(0.0), start[states].prod(1), rtol=0, atol=1e-14)


def test_exact_model__states_and_index_agree() -> None:
    model = ExactModel(UniformPath(3), torch.tensor([[0, 1, 2, 0]]))
    states = model.states()
    assert states.shape == (81, 4)
    assert torch.equal(model.index(states), torch.arange(81))
    assert states[1].tolist() == [0, 0, 0, 1]


def test_exact_model__weights_are_equal_by_default_and_need_not_sum_to_1() -> None:
    path, data = UniformPath(3), torch.tensor([[0], [1]])
    assert ExactModel(path, data).weights.tolist() == [0.5, 0.5]
    assert ExactModel(path, data, torch.tensor([3, 1])).weights.tolist() == [0.75, 0.25]


def test_exact_model__refuses_more_states_than_a_matrix_can_hold() -> None:
    assert len(ExactModel(UniformPath(4), torch.zeros(1, 6, dtype=torch.long)).states()) == 4096
    model = ExactModel(UniformPath(4), torch.zeros(1, 7, dtype=torch.long))
    for call in (model.states, lambda: model.marginal(0.5), lambda: check_kolmogorov(UniformPath(4), length=7)):
        with pytest.raises(ValueError, match=r"vocab_size\^length = 4\^7 exceeds 4096 states"):
            call()


def test_exact_model__has_some_posterior_at_an_impossible_state() -> None:
    """Tokens that are drawn together can make such a state, and the simulation must go on: two of three masks are
    revealed as (0, 1), where data is (0, 0, 0) or (1, 1, 1)."""
    model = ExactModel(MaskedPath(3), torch.tensor([[0, 0, 0], [1, 1, 1]]))
    x = simulate(model, model.path.prior((200, 3)), torch.linspace(0, 1, 4), torch.Generator().manual_seed(0))
    assert int(x.max()) <= 1
    assert not bool(model.logits(torch.tensor([[0, 1, 2]]), times(0.5, 1)).softmax(-1).isnan().any())


# ---- Kolmogorov


@pytest.mark.slow
@every_path
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name if s else "linear")
def test_check_kolmogorov__rates_carry_the_path(name: str, schedule: Schedule | None) -> None:
    """∫ R p dt = Δp of p_t(·|z) for every z, and of p_t for sequences, to rounding and quadrature."""
    path = PATHS[name](schedule)
    long = path.vocab_size < 5 and schedule is None
    ends = path.schedule.inverse(torch.tensor([0.1, 0.3, 0.6, 0.8], dtype=torch.float64))
    residual = check_kolmogorov(path, None if long else ends, length=2 if long else 1)
    assert residual.worst < 1e-10
    assert len(residual.conditional) == len(residual.marginal) == len(residual.times) - 1


class Broken(MetricPath):
    """Rates of which something is wrong."""

    type_name = "user's broken"
    fault = ""

    def generator(self, belief: Any, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        jump = super().generator(belief, x, t, t_next)
        if self.fault == "half":
            return dataclasses.replace(jump, intensity=jump.intensity / 2)
        if self.fault == "late":
            return super().generator(belief, x, t * 0.9, t_next)
        return jump

    def derivative(self, z: Tensor, t: Tensor) -> Tensor:
        slope = super().derivative(z, t)
        return -slope if self.fault == "sign" else slope

    def distances(self, z: Tensor) -> Tensor:
        rows = super().distances(z)
        return self._rows[z] if self.fault == "swapped" and not self.inside else rows

    inside = False

    def probs(self, z: Tensor, t: Tensor) -> Tensor:  # the distribution itself stays as it is
        self.inside = True
        rows = super().probs(z, t)
        self.inside = False
        return rows


@pytest.mark.parametrize("fault", ["half", "sign", "swapped", "late"])
def test_check_kolmogorov__finds_wrong_rates(fault: str) -> None:
    """Half the intensity, −ṗ in place of ṗ, d(z, x) in place of d(x, z), the rates of another time."""
    path = Broken(4, distance=DISTANCE)
    ends = torch.tensor([0.1, 0.2, 0.4, 0.7], dtype=torch.float64)
    assert check_kolmogorov(path, ends, length=1).worst < 1e-10
    path.fault = fault
    residual = check_kolmogorov(path, ends, length=1)
    assert float(residual.conditional.max()) > 1e-3
    assert float(residual.marginal.max()) > 1e-3


class Deaf(UniformPath):
    """A belief that does not listen to the state: the conditional rates are right, the marginal ones are not."""

    type_name = "user's deaf"

    def marginal(self, readout: Any, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        return super().marginal(readout.exp().mean(0, keepdim=True).expand_as(readout).log(), x, t, t_next)


def test_check_kolmogorov__finds_a_wrong_posterior_by_the_marginal_residual_alone() -> None:
    residual = check_kolmogorov(Deaf(3), torch.tensor([0.2, 0.5, 0.8]))
    assert float(residual.conditional.max()) < 1e-10
    assert float(residual.marginal.min()) > 1e-3


def test_check_kolmogorov__finds_the_interval_of_a_fault() -> None:
    """The residual of each interval is its own: the fault is in the second of three."""

    class Jerky(UniformPath):
        type_name = "user's jerky"

        def probs(self, z: Tensor, t: Tensor) -> Tensor:
            rows = super().probs(z, t)
            return torch.where(((t > 0.5) & (t < 1))[:, None], rows.flip(1), rows)

    residual = check_kolmogorov(Jerky(3), torch.tensor([0.2, 0.45, 0.55, 0.8]), length=1)
    assert float(residual.conditional[0]) < 1e-10
    assert float(residual.conditional[1]) > 0.1


def test_check_kolmogorov__result_has_the_worst_residual() -> None:
    path = MetricPath(3, embeddings=[[0.0], [1], [3]])
    residual = check_kolmogorov(path, torch.tensor([0.2, 0.5, 0.8]), length=1, nodes=2)
    assert residual.worst == float(torch.cat([residual.conditional, residual.marginal]).max())
    assert residual.times.tolist() == pytest.approx([0.2, 0.5, 0.8])
    assert "2 intervals" in repr(residual)
    assert f"{float(residual.marginal.max()):.1e}" in repr(residual)
    finer = check_kolmogorov(path, torch.tensor([0.2, 0.5, 0.8]), length=1, nodes=6)
    assert finer.worst < residual.worst / 100  # what is left is quadrature


def test_check_kolmogorov__defaults_cover_the_path_to_its_ends() -> None:
    path = UniformPath(3, CosineSchedule())
    kappa = path.schedule.kappa(check_kolmogorov(path).times)
    torch.testing.assert_close(kappa[4:-4], torch.linspace(0.02, 0.98, 13, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(kappa[[0, -1]], torch.tensor([1e-4, 1 - 1e-4]).double(), rtol=0, atol=1e-6)


def test_path__subclass_without_type_name_does_not_take_that_of_its_parent() -> None:
    """A subclass without a `type_name` of its own is not what the config of its parent describes."""

    class Parent(UniformPath):
        type_name = "user's parent"

    class Unnamed(Parent):
        pass

    with pytest.raises(TypeError, match=r"Unnamed has no type_name.*type_name = 'unnamed'"):
        Unnamed(3).to_dict()
    assert issubclass(Unnamed, Parent)
    assert type(Path.from_dict(Parent(3).to_dict())) is Parent


def test_check_kolmogorov__refuses_a_coupled_path() -> None:
    with pytest.raises(ValueError, match="coupled=False"):
        check_kolmogorov(MixturePath(3, coupled=True))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda p: p.float(), r"float64, got torch.float32"),
        (lambda p: p - 1e-7 * (p == p.min()), r"negative, got -1e-07 at z=\d, t=1, x=\d"),
        (lambda p: p * torch.tensor([1.0, 1.0, 2.0]).double(), r"off by 1 at z=2, t=1\b"),
        (lambda p: p * torch.nan, r"got nan at z=0, t=0\b"),
    ],
)
def test_check_kolmogorov__names_the_worst_value_and_its_place(found: Any, message: str) -> None:
    class Changed(FinitePath):
        def probs(self, z: Tensor, t: Tensor) -> Tensor:
            kappa = self.schedule.kappa(t)[:, None]
            return found((1 - kappa) / 3 + kappa * torch.nn.functional.one_hot(z, 3))

    with pytest.raises(ValueError, match=message):
        check_kolmogorov(Changed(3))


class Odd(FinitePath):
    """A uniform path with something wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__(3)
        self.fault = fault

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        kappa = self.schedule.kappa(t)[:, None]
        if self.fault == "start":
            kappa = 0.1 + 0.9 * kappa
        if self.fault == "end":
            kappa = 0.9 * kappa
        rows = (1 - kappa) / 3 + kappa * torch.nn.functional.one_hot(z, 3)
        return {"sum": 2 * rows, "sign": rows - 0.4, "shape": rows[:, :2]}.get(self.fault, rows)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("start", "probs.*t = 0"),
        ("end", "probs.*t = 1"),
        ("sum", "probs.*sum"),
        ("sign", "probs.*negative"),
        ("shape", r"probs.*\[n, K\]"),
    ],
)
def test_check_kolmogorov__names_probs_that_are_no_path(fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_kolmogorov(Odd(fault))


def test_exact_model__checks_its_weights_and_sources() -> None:
    data = torch.tensor([[0, 1], [1, 1]])
    for law in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"weights=.*\b2\b"):
            ExactModel(UniformPath(3), data, law)
    with pytest.raises(ValueError, match="x_0 is given"):
        ExactModel(UniformPath(3), data, x_0=data)
    with pytest.raises(ValueError, match="x_0"):
        ExactModel(MixturePath(3, coupled=True), data)
    with pytest.raises(ValueError, match="must increase"):
        check_kolmogorov(UniformPath(3), times=[0.5, 0.1])
