"""A path of one's own needs p_t(x|z) alone: samples, derivative, mean distribution, evidence, candidates, and its way
to a model."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    FinitePath,
    GMConfig,
    GMModel,
    MaskedPath,
    MetricPath,
    MixturePath,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
    conditional_loss,
    simulate,
)
from gm_discrete.generators.transport import moves
from gm_discrete.paths import Path
from tests.generators.test_transport import CPU, DISTANCE, Staged, blurred, coarse
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import LEAST_P, chi_square

OWN: dict[str, Staged] = {
    "blurred": blurred(CosineSchedule()),
    "coarse": coarse(PowerSchedule(2)),
}
PATHS: dict[str, Any] = OWN | {
    "masked": MaskedPath(4, mask_token_id=1),
    "uniform": UniformPath(4, SquaredSineSchedule(), special_token_ids=(2,)),
    "prior": MixturePath(4, [0.4, 0.3, 0.2, 0.1], CosineSchedule(), rates="mixture"),
    "metric": MetricPath(4, distance=DISTANCE, prior=[0.1, 0.2, 0.3, 0.4]),
}
every_own = pytest.mark.parametrize("name", OWN)
every_path = pytest.mark.parametrize("name", PATHS)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the distribution


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 1.0])
def test_finite_path__samples_have_the_distribution_p_t(name: str, t: float) -> None:
    """Jointly over two tokens, so that their independence is tested too."""
    path = PATHS[name]
    K = path.vocab_size
    z = torch.tensor([3, 0])
    x = path.sample(z.expand(20_000, 2), times(t, 20_000), rng(1))
    p = path.probs(z, times(t, 2))
    counts = torch.bincount(x[:, 0] * K + x[:, 1], minlength=K**2)
    assert chi_square(counts, torch.outer(p[0], p[1]).flatten()) > LEAST_P
    if t == 1:
        assert bool((x == z).all())


@every_own
def test_finite_path__prior_is_p_0(name: str) -> None:
    path = OWN[name]
    x = path.prior((50, 400), rng(2))
    assert x.shape == (50, 400)
    counts = torch.bincount(x.flatten(), minlength=path.vocab_size)
    assert chi_square(counts, torch.tensor(path.start, dtype=torch.float64)) > LEAST_P


@every_path
def test_finite_path__probs_sum_to_1_from_the_prior_to_the_data(name: str) -> None:
    path = PATHS[name]
    table = path.table(torch.tensor([0.0, 0.1, 0.9, 1.0, 0.1], dtype=torch.float64))  # [t, z, x]
    torch.testing.assert_close(table.sum(2), torch.ones_like(table[:, 0]), rtol=0, atol=1e-14)
    assert float(table.min()) >= 0
    torch.testing.assert_close(table[0], table[0, :1].expand_as(table[0]), rtol=0, atol=1e-15)
    torch.testing.assert_close(table[3], torch.eye(path.vocab_size, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(table[4], table[1])  # rows are in the order of the times, which may repeat
    z = torch.tensor([2, 0])
    assert torch.equal(table[2][z], path.probs(z, times(0.9, 2)))


@every_path
@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_finite_path__derivative_is_that_of_probs(name: str, t: float) -> None:
    """Central differences: h² ṗ''' / 6 + eps / h, below 1e-7 of the largest slope."""
    path, h = PATHS[name], 1e-5
    z = torch.arange(path.vocab_size)
    slope = path.derivative(z, times(t, len(z)))
    expected = (path.probs(z, times(t + h, len(z))) - path.probs(z, times(t - h, len(z)))) / (2 * h)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-7 * float(slope.abs().max()) + 1e-10)
    assert float(slope.sum(1).abs().max()) < 1e-13 * float(slope.abs().max())
    with torch.inference_mode():  # as sampling does
        assert torch.equal(path.derivative(z, times(t, len(z))), slope)


def test_finite_path__derivative_takes_one_time_for_all() -> None:
    """t.expand(n), whose elements share their memory."""
    path, z = OWN["blurred"], torch.arange(4)
    shared = torch.tensor(0.3, dtype=torch.float64).expand(4)
    assert torch.equal(path.derivative(z, shared), path.derivative(z, times(0.3, 4)))


@every_path
def test_finite_path__mean_probs_is_the_mean_over_the_belief(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PATHS[name]
    belief = torch.rand(5, path.vocab_size, generator=rng(), dtype=torch.float64)
    belief = belief / belief.sum(1, keepdim=True)
    t = torch.tensor([0.1, 0.9, 0.1, 0.5, 1.0], dtype=torch.float64)
    rows = path.mean_probs(belief, t)
    for n in range(5):
        z = torch.arange(path.vocab_size)
        expected = belief[n] @ path.probs(z, t[n].repeat(len(z)))
        torch.testing.assert_close(rows[n], expected, rtol=1e-13, atol=1e-16)
    set_chunks(1, monkeypatch)
    torch.testing.assert_close(path.mean_probs(belief, t), rows, rtol=1e-13, atol=1e-16)
    assert path.mean_probs(belief[:0], t[:0]).shape == (0, path.vocab_size)


@every_own
def test_finite_path__noise_is_the_same_in_chunks_and_for_single_precision_times(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, z, t = OWN[name], torch.arange(4).repeat(3, 2), torch.tensor([0.0, 0.5, 1.0])
    whole = path.sample(z, t, rng(5))
    assert torch.equal(path.sample(z, t.double(), rng(5)), whole)
    set_chunks(9, monkeypatch)
    assert torch.equal(path.sample(z, t, rng(5)), whole)


@every_path
def test_finite_path__overlap_and_purity_are_the_least_over_the_data_symbols(name: str) -> None:
    path = PATHS[name]
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    table = path.table(t)
    overlap = [sum(min(p[:, x].tolist()) for x in range(path.vocab_size)) for p in table]
    purity = [min(p.diagonal().tolist()) for p in table]
    if name in ("masked", "uniform", "prior"):  # in closed form, and on the safe side
        assert all(bound <= least + 1e-15 for bound, least in zip(path.overlap(t).tolist(), overlap, strict=True))
        assert all(bound <= least + 1e-15 for bound, least in zip(path.purity(t).tolist(), purity, strict=True))
    else:
        assert path.overlap(t).tolist() == pytest.approx(overlap, abs=1e-15)
        assert path.purity(t).tolist() == pytest.approx(purity, abs=1e-15)
    assert float(path.overlap(t)[0]) == pytest.approx(1, abs=1e-14)
    assert float(path.purity(t)[2]) == pytest.approx(1, abs=1e-14)


# ---- candidates


@every_own
@pytest.mark.parametrize("t", [0.01, 0.3, 0.6, 0.99])
def test_finite_path__candidates_are_at_least_as_likely_as_moves_of_any_z(name: str, t: float) -> None:
    path = OWN[name]
    K = path.vocab_size
    z, x = torch.arange(K).repeat_interleave(K), torch.arange(K).repeat(K)
    possible = path.probs(z, times(t, K * K)).gather(1, x[:, None]).squeeze(1) > 0
    intensity = path.intensity(torch.arange(K)[None], times(t, 1))[0].repeat(K)
    leave = moves(path, z, x, times(t, K * K), None).sum(1)
    assert bool((leave <= intensity * (1 + 1e-12))[possible].all())
    assert float(intensity[0]) < 20 * float(leave[possible].max())  # a bound that is of some use
    some = path.event_probability(x[None], times(t, 1), times(1.0, 1))
    assert bool((moves(path, z, x, times(t, K * K), times(1.0, K * K)).sum(1) <= some[0] + 1e-12).all())
    assert float(path.event_probability(x[None], times(t, 1), times(t, 1)).max()) == 0


# ---- what a symbol says about its data symbol


@pytest.mark.parametrize("name", [*OWN, "masked", "uniform", "prior", "metric"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.97])
def test_finite_path__evidence_turns_leave_one_out_logits_into_the_posterior(name: str, t: float) -> None:
    """P(z_i = k | x without x_i) p_t(x_i|k), normalised, is P(z_i = k | x), by brute force over all sequences.

    A metric path leaves out its normaliser Z_t(k) = Σ_y p0(y) e^{−β d(y, k)}, which no x_i changes: a network learns it.
    """
    path = PATHS[name]
    symbols = [s for s in range(path.vocab_size) if s not in path.excluded]
    data = torch.cartesian_prod(torch.tensor(symbols), torch.tensor(symbols))
    model = ExactModel(path, data, torch.rand(len(data), generator=rng(4)) ** 3)
    states = model.states()
    t_ = times(t, len(states))
    possible = model.marginal(t) > 0
    posterior = model.logits(states, t_).softmax(-1)
    p = path.table(times(t, 1))[0]  # [z, x]
    for i in range(2):
        other = p[data[:, 1 - i]][:, states[:, 1 - i]].T * model.weights  # [X, Z]
        onehot = torch.nn.functional.one_hot(data[:, i], path.vocab_size).double()
        logits = (other @ onehot).log()
        if name == "metric":
            d = path.distances(torch.arange(4))
            normaliser = (torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) * (-path.beta(t_)[:1] * d).exp()).sum(
                1
            )
            logits = logits - normaliser.log()
        for excluded in ((), path.excluded):
            rows = path.add_evidence(logits.clone(), states[:, i], t_, excluded)
            torch.testing.assert_close(rows.softmax(1)[possible], posterior[possible, i], rtol=0, atol=1e-12)


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_path__excluded_symbols_have_no_probability_and_the_rest_stays_finite(
    name: str, dtype: torch.dtype
) -> None:
    """At both ends of time too, where evidence is none at all or certain."""
    path = PATHS[name]
    x = torch.arange(path.vocab_size).repeat(3)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).repeat_interleave(path.vocab_size)
    rows = path.add_evidence(torch.zeros(len(x), path.vocab_size, dtype=dtype), x, t, (1, 3))
    assert rows.dtype == dtype
    assert bool((rows[:, [1, 3]] == -torch.inf).all())
    others = [k for k in range(path.vocab_size) if k not in (1, 3)]
    assert bool(rows[:, others].isfinite().all())
    start = rows[: path.vocab_size, others].softmax(1)
    torch.testing.assert_close(start.sum(1), torch.ones(path.vocab_size, dtype=dtype))
    end = rows[-path.vocab_size :].softmax(1)
    assert all(float(end[k, k]) == 1 for k in others)


@every_own
def test_finite_path__evidence_is_finite_where_a_symbol_is_impossible(name: str) -> None:
    path = OWN[name]
    K = path.vocab_size
    rows = path.log_evidence(torch.arange(K), times(0.5, K))
    p = path.table(times(0.5, 1))[0].T  # [x, z]
    torch.testing.assert_close(rows.exp(), p, rtol=1e-12, atol=0)
    assert float(rows.min()) >= -1e4
    gradient = torch.zeros(K, K, dtype=torch.float64, requires_grad=True)
    path.add_evidence(gradient, torch.arange(K), times(0.5, K), path.excluded).logsumexp(1).sum().backward()
    assert bool(gradient.grad.isfinite().all())


# ---- from the path to a model


def test_finite_path__subclass_travels_in_a_config_and_is_trained_and_sampled() -> None:
    path = OWN["coarse"]
    config = GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert config.divergence == "cross_entropy"
    copy = Path.from_dict(json.loads(json.dumps(config.path)))
    assert copy == path
    assert isinstance(copy, Staged)
    model = GMModel(config)
    z = torch.randint(4, (8, 5), generator=rng())
    for divergence in (None, "generalized_kl"):
        loss = conditional_loss(model, z, rng=rng(1), divergence=divergence)
        loss.backward()
        assert math.isfinite(loss.item())
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        assert float(model.heads.tokens.weight.grad.abs().max()) > 0


def test_finite_path__excluded_symbols_have_no_probability_in_a_model() -> None:
    """`excluded` of a path of one's own: π vanishes there, as it does at the mask of a masked path."""
    path = OWN["coarse"]
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).eval()
    x, t = path.prior((40, 5), rng()), times(0.3, 40)
    pi = model(input_ids=x, time=t).logits.detach().softmax(-1)
    assert float(pi[..., 4:].max()) == 0
    assert int(simulate(model, x, torch.linspace(0, 1, 4), rng()).max()) <= 3


@every_own
def test_finite_path__one_step_of_a_single_token_ends_in_the_data_distribution(name: str) -> None:
    """L = 1: the marginal step of the exact posterior maps p_0 to p_1, however long it is."""
    path = OWN[name]
    symbols = torch.tensor([s for s in range(path.vocab_size) if s not in path.excluded])
    model = ExactModel(path, symbols[:, None], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = simulate(model, path.prior((20_000, 1), rng(3)), [0.0, 0.4, 1.0], rng(4))
    law = torch.zeros(path.vocab_size, dtype=torch.float64).index_copy(0, symbols, model.weights)
    assert chi_square(torch.bincount(x[:, 0], minlength=path.vocab_size), law) > LEAST_P


def test_finite_path__needs_probs() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FinitePath(3)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Staged([1.0], [[1.0]]), ValueError, "vocab_size=1 must be an integer from 2"),
        (lambda: blurred(rates="reversal"), ValueError, "rates='reversal' must be 'kinetic'"),
        (lambda: blurred(0.5), TypeError, "schedule=0.5 must be a Schedule"),
        (lambda: blurred({"type": "cubic"}), ValueError, "schedule='cubic' names no Schedule"),
    ],
)
def test_finite_path__names_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_finite_path__refuses_sources_unless_coupled() -> None:
    z, t = torch.zeros(1, 2, dtype=torch.long), times(0.5, 1)
    for path in PATHS.values():
        with pytest.raises(ValueError, match=r"x_0 is given.*coupled=True"):
            path.sample(z, t, x_0=z)


@every_own
def test_finite_path__names_bad_states_and_times(name: str) -> None:
    path, x = OWN[name], torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="z holds ids from 9 to 9"):
        path.sample(x + 9, times(0.5, 2))
    with pytest.raises(ValueError, match="times must lie in"):
        path.conditional(x, x, times(1.5, 2))
    with pytest.raises(ValueError, match="z has shape"):
        path.conditional(x[:, :2], x, times(0.5, 2))
    with pytest.raises(ValueError, match=r"readout has shape \[2, 3, 2\]"):
        path.marginal(torch.zeros(2, 3, 2), x, times(0.5, 2))
    assert path.prior((1, 2), device="cpu").device == CPU
