"""Where a jump lands: rows asked only where needed, distributions, and gradients."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gm_discrete.generators.kernels import Categorical, Dirac, GatheredLogits, Kernel, Reversal, TensorReadout
from gm_discrete.generators.rows import categorical_from_prior, chunked, equal_chunks, inverse_cdf, map_rows
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import LEAST_P, chi_square

LARGEST = 1 - 2**-53  # of torch's float64 uniforms
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


class SpyReadout:
    """Remembers which rows were asked."""

    def __init__(self, logits: Tensor) -> None:
        self.readout, self.asked = TensorReadout(logits), []

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        assert head == "tokens"
        self.asked.append(where.tolist())
        return self.readout(head, where)


def categorical(logits: Tensor, readout: Any = None) -> Categorical:
    return Categorical(readout or TensorReadout(logits), logits.shape[:-1], logits.shape[-1], CPU)


def reversal(logits: Tensor, x: Tensor, prior: Tensor, kappa_t: float, kappa_s: float) -> Reversal:
    times = (torch.full((len(x), 1), kappa, dtype=torch.float64) for kappa in (kappa_t, kappa_s))
    return Reversal(categorical(logits), x, prior, *times)


# ---- Dirac


def test_dirac__lands_on_its_target() -> None:
    target = torch.tensor([[2, 0, 1]])
    kernel = Dirac(target, 3)
    assert kernel.sample(None, torch.tensor([2, 0])).tolist() == [1, 2]
    assert torch.equal(kernel.probs(), torch.eye(3, dtype=torch.float64)[target])


# ---- Categorical


def test_categorical__computes_only_the_rows_that_are_needed() -> None:
    logits = randn(2, 4, 5)
    spy = SpyReadout(logits)
    kernel = categorical(logits, spy)
    assert spy.asked == []
    where = torch.tensor([6, 1])
    kernel.sample(rng(), where)
    rows = kernel.log_probs(where)
    kernel.log_landing(torch.tensor([0, 1]), torch.tensor([2, 3]), where)
    assert spy.asked == [[6, 1]] * 3
    torch.testing.assert_close(rows, logits.flatten(0, 1)[where].log_softmax(1), rtol=0, atol=0)


def test_tensor_readout__returns_rows_that_may_be_written_to() -> None:
    logits = randn(1, 2, 3)
    readout = TensorReadout(logits.clone(), excluded=(1,))
    for where in (None, torch.tensor([0, 1])):
        rows = readout("tokens", where)
        assert bool((rows[:, 1] == -torch.inf).all())
        rows.zero_()
        torch.testing.assert_close(readout("tokens", where)[:, [0, 2]], logits[0][:, [0, 2]], rtol=0, atol=0)


def test_categorical__names_a_readout_of_the_wrong_shape() -> None:
    kernel = Categorical(TensorReadout(torch.zeros(1, 2, 3)), torch.Size([1, 2]), 4, CPU)
    with pytest.raises(ValueError, match=r"readout returned \(2, 3\) for 2 positions; expected \[2, vocab_size=4\]"):
        kernel.log_probs(torch.tensor([0, 1]))


def test_kernel__log_landing_sums_the_others_instead_of_subtracting_from_1() -> None:
    """log(1 − k(x)) at k(x) = 1 − 2e-30, where 1 − k(x) would be 0."""
    logits = torch.tensor([[[0.0, -69.0, -69.0]]], dtype=torch.float64)
    zero = torch.tensor([0])
    for kernel in (categorical(logits), Dirac(torch.zeros(1, 1, dtype=torch.long), 3)):
        log_y, log_leave = kernel.log_landing(torch.tensor([1]), zero, zero)
        expected = (-69.0, -69 + np.log(2)) if isinstance(kernel, Categorical) else (-np.inf, -np.inf)
        assert float(log_y) == pytest.approx(expected[0], rel=1e-15)
        assert float(log_leave) == pytest.approx(expected[1], rel=1e-15)


def test_categorical__samples_have_the_softmax_distribution() -> None:
    law = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.04999, 1e-5], dtype=torch.float64)
    logits = law.log().expand(300, 1000, 6)
    drawn = categorical(logits).sample(rng(1), torch.arange(300_000))
    assert chi_square(torch.bincount(drawn, minlength=6), law) > LEAST_P


# ---- inverse CDF


def exact_inverse(probs: Tensor, uniform: Tensor) -> Tensor:
    """The definition: the first symbol whose cumulative probability exceeds u."""
    cumulative = probs.double().cumsum(-1)
    return (cumulative <= uniform[:, None] * cumulative[..., -1:]).sum(-1)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
def test_inverse_cdf__is_its_definition(size: int) -> None:
    """Any u not within 1e-6 of a step of the cumulative sum, where the rounding of sums in float32 may decide."""
    probs = torch.rand(2000, size, generator=rng(size)).pow(6)  # float32, many orders of magnitude
    probs[:, torch.rand(size, generator=rng(1)) < 0.3] = 0
    probs[:, -1] += 1e-3
    uniform = torch.rand(2000, generator=rng(2), dtype=torch.float64)
    cumulative = probs.double().cumsum(1)
    far = ((cumulative / cumulative[:, -1:] - uniform[:, None]).abs() > 1e-6).all(1)
    assert far.float().mean() > 0.98
    assert torch.equal(inverse_cdf(probs, uniform)[far], exact_inverse(probs, uniform)[far])


def quantile(probs: Tensor, symbol: int) -> float:
    """The uniform from which on symbols beyond `symbol` are drawn, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(54):
        middle = (low + high) / 2
        beyond = int(inverse_cdf(probs, torch.tensor([middle], dtype=torch.float64))) > symbol
        low, high = (low, middle) if beyond else (middle, high)
    return high


@pytest.mark.parametrize("symbol", [0, 224, 31415, 50175, 50256])
def test_inverse_cdf__keeps_a_probability_of_1e_12_in_a_vocabulary_of_50257(symbol: int) -> None:
    """The uniforms that draw a rare symbol, at the ends of blocks and among the last ones, have its probability."""
    probs = torch.full((1, 50257), 1 / 50257)
    probs[0, symbol] = 1e-12
    low, high = (quantile(probs, end) if end >= 0 else 0.0 for end in (symbol - 1, symbol))
    assert (high if symbol < 50256 else 1.0) - low == pytest.approx(1e-12, rel=1e-3)


def zipf(size: int = 50257) -> Tensor:
    """A float32 row of probabilities ∝ 1/rank², of which the rarest is 2e-10, in a shuffled order."""
    law = torch.arange(1, size + 1, dtype=torch.float64).pow(-2)
    return (law / law.sum())[torch.randperm(size, generator=rng(3))].float()


def test_inverse_cdf__a_dense_grid_of_uniforms_has_the_frequencies_of_rare_symbols() -> None:
    """Of a Zipf distribution, among the 200 symbols around the rarest: 2,000 even uniforms, of which each has its share."""
    probs = zipf()
    rare = int(probs.argmin()) // 200 * 200
    low, high = quantile(probs[None], rare - 1), quantile(probs[None], rare + 199)
    counts = torch.zeros(200)
    blocks = probs.expand(250, -1)
    for part in range(8):
        share = (torch.arange(250, dtype=torch.float64) + 250 * part + 0.5) / 2000
        counts += torch.bincount(inverse_cdf(blocks, low + (high - low) * share) - rare, minlength=200)
    expected = probs[rare : rare + 200].double()
    expected = expected / expected.sum() * 2000
    assert bool(((counts.double() - expected).abs() <= 1.01).all())  # the ends of its interval fall between grid points


def test_inverse_cdf__samples_of_a_zipf_distribution_pass_a_chi_square_test() -> None:
    probs, uniform = zipf(), torch.rand(40_000, generator=rng(5), dtype=torch.float64)
    drawn = torch.cat([inverse_cdf(probs.expand(len(part), -1), part) for part in uniform.split(500)])
    order = probs.argsort(descending=True)
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))[drawn]
    cell = (place + 1).log2().long()  # symbols of ranks 1, 2–3, 4–7, …
    law = torch.zeros(16, dtype=torch.float64).index_add(
        0, (torch.arange(50257) + 1).log2().long(), probs[order].double()
    )
    assert chi_square(torch.bincount(cell, minlength=16), law) > LEAST_P


@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1.0)), min_size=1, max_size=40).filter(any),
    uniform=st.one_of(st.sampled_from([0.0, 2**-53, 0.5, LARGEST]), st.floats(0, LARGEST)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_inverse_cdf__never_draws_a_symbol_without_mass(
    weights: list[float], uniform: float, dtype: torch.dtype
) -> None:
    probs = torch.tensor([weights], dtype=dtype)
    u = torch.tensor([uniform], dtype=torch.float64)
    for drawn in (inverse_cdf(probs, u), categorical_from_prior(probs[0], u)):
        assert probs[0, int(drawn)] > 0
    massive = probs[0].nonzero()
    if uniform == 0:
        assert int(inverse_cdf(probs, u)) == int(massive[0])


@pytest.mark.parametrize("size", [1, 5, 50257])
def test_inverse_cdf__extreme_uniforms_draw_the_first_and_last_symbol_with_mass(size: int) -> None:
    probs = torch.full((2, size), 1 / size)
    probs[:, : size // 3] = 0
    probs[:, size - size // 3 :] = 0
    mass = probs[0].nonzero().squeeze(1)
    ends = [int(mass[0]), int(mass[-1])]
    uniform = torch.tensor([0.0, LARGEST], dtype=torch.float64)
    assert inverse_cdf(probs, uniform).tolist() == ends
    assert categorical_from_prior(probs[0], uniform).tolist() == ends


def test_categorical_from_prior__has_its_probabilities() -> None:
    prior = torch.tensor([0.0, 0.7, 0.0, 0.29, 0.01, 0.0], dtype=torch.float64)
    drawn = categorical_from_prior(prior, torch.rand(100, 1000, generator=rng(3), dtype=torch.float64))
    assert drawn.shape == (100, 1000)
    assert chi_square(torch.bincount(drawn.flatten(), minlength=6), prior) > LEAST_P


# ---- the noise of a position does not depend on which others are asked


def some_kernels() -> dict[str, Kernel]:
    logits, x = randn(3, 5, 4), torch.randint(4, (3, 5), generator=rng(5))
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return {
        "dirac": Dirac(x, 4),
        "categorical": categorical(logits),
        "reversal": reversal(logits, x, prior, 0.3, 0.6),
        "reversal target": Reversal(Dirac(x, 4), x, prior, torch.full((3, 1), 0.3), torch.full((3, 1), 0.6)),
    }


@pytest.mark.parametrize("name", list(some_kernels()))
def test_kernel__draws_the_same_symbol_whichever_other_positions_are_drawn(name: str) -> None:
    kernel, everywhere = some_kernels()[name], torch.arange(15)
    for seed in range(20):
        drawn = kernel.sample(rng(seed), everywhere)
        where = torch.randperm(15, generator=rng(seed))[: 1 + seed % 7]
        assert torch.equal(kernel.sample(rng(seed), where), drawn[where])


def test_kernel__draws_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = some_kernels()["categorical"].sample(rng(0), torch.arange(15))
    set_chunks(8, monkeypatch)  # two rows of four symbols
    assert torch.equal(some_kernels()["categorical"].sample(rng(0), torch.arange(15)), whole)


# ---- gradients


def test_gathered_logits__has_the_gradient_of_its_definition() -> None:
    """(rows[y], rows[x], logsumexp over the symbols other than x), against finite differences in float64.

    The function writes into the rows that it is given, hence the clones.
    """
    rows = randn(6, 5).requires_grad_()
    y, x = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 2, 2, 4, 1, 3])  # y = x among them
    assert torch.autograd.gradcheck(lambda r: GatheredLogits.apply(r.clone(), y, x), rows)
    rows = rows.detach()
    at_y, at_x, others = GatheredLogits.apply(rows.clone(), y, x)
    for n in range(6):
        assert float(at_y[n]) == float(rows[n, y[n]])
        assert float(at_x[n]) == float(rows[n, x[n]])
        rest = torch.cat([rows[n, : x[n]], rows[n, x[n] + 1 :]])
        assert float(others[n]) == pytest.approx(float(rest.logsumexp(0)), rel=1e-14)


def test_gathered_logits__gradient_of_excluded_symbols_is_0() -> None:
    rows = randn(3, 5)
    rows[:, 4] = -torch.inf
    rows.requires_grad_()
    at_y, _, others = GatheredLogits.apply(rows.clone(), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 0]))
    (at_y + others).sum().backward()
    assert bool(rows.grad.isfinite().all())
    assert bool((rows.grad[:, 4] == 0).all())


def test_categorical__certain_belief_leaves_its_symbol_with_probability_0() -> None:
    """π = 1[z = x]: log(1 − π(x)) = −∞ and log π(z) = 0, not NaN. Exact posteriors of sure tokens are such beliefs."""
    rows = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    zero = torch.tensor([0])
    log_y, log_leave = categorical(rows[None]).log_landing(zero, zero, zero)
    assert (float(log_y), float(log_leave)) == (0.0, -np.inf)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_map_rows__in_chunks_is_the_function_of_the_whole(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Bit for bit, values and gradients, in one call per chunk (and one more for each in backward)."""
    logits = randn(20, 4).requires_grad_()
    where, sizes = torch.arange(19, -1, -2), []

    def function(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return logits[rows].logsumexp(1) * logits[rows, 0]

    expected = function(where)
    expected_grad = torch.autograd.grad(expected.sum(), logits)[0]
    sizes.clear()
    set_chunks(4 * chunk, monkeypatch)
    values = map_rows(function, chunked(where, row_size=4))
    assert max(sizes) <= chunk
    assert sum(sizes) == len(where)
    assert torch.equal(values, expected)
    assert torch.equal(torch.autograd.grad(values.sum(), logits)[0], expected_grad)
    with torch.no_grad():
        assert torch.equal(map_rows(function, chunked(where, row_size=4)), expected)


def test_equal_chunks__number_of_chunks_depends_on_the_total_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that share the weights must call the head equally often."""
    set_chunks(12, monkeypatch)
    for asked in (0, 1, 7, 10):
        chunks = equal_chunks(torch.arange(asked), row_size=4, total=10, kept=True)
        assert len(chunks) == 4
        assert torch.cat(list(chunks)).tolist() == list(range(asked))


def test_map_rows__dropout_is_the_same_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunks(8, monkeypatch)
    weight = torch.ones(10, requires_grad=True)
    chunks = chunked(torch.arange(10), row_size=4)
    assert len(chunks) == 5
    values = map_rows(lambda rows: torch.nn.functional.dropout(weight[rows], 0.5), chunks)
    assert torch.equal(torch.autograd.grad(values.sum(), weight)[0], values.detach())


@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf])
def test_inverse_cdf__names_probabilities_that_are_nan_or_have_no_mass(spoil: float) -> None:
    readout = TensorReadout(torch.full((1, 2, 4), spoil))
    kernel = Categorical(readout, torch.Size([1, 2]), 4, torch.device("cpu"))
    with pytest.raises(FloatingPointError, match="NaN or has no mass"):
        kernel.sample(torch.Generator(), torch.arange(2))


# ---- Reversal

PRIORS = {
    "uniform": [0.25] * 4,
    "arbitrary": [0.1, 0.2, 0.3, 0.4],
    "special": [0.5, 0.3, 0.2, 0.0],
}
times = pytest.mark.parametrize(("kappa_t", "kappa_s"), [(0.3, 0.6), (0.3, 0.3), (0.01, 0.99), (0.0, 0.2), (0.5, 1.0)])


def reversal_by_sum(posterior: Tensor, x: int, prior: Tensor, kappa_t: float, kappa_s: float) -> Tensor:
    """k(y) = Σ_z π(z) [a(z) p_s(y|z) + (1 − a(z)) 1[y = x]], a(z) = B / (B + κ_t 1[z = x]), term by term."""
    law, b = torch.zeros_like(prior), (1 - kappa_t) * prior[x]
    for z, y in itertools.product(range(len(prior)), repeat=2):
        accepted = b / (b + kappa_t * (z == x))
        landing = (1 - kappa_s) * prior[y] + kappa_s * (y == z)
        law[y] += posterior[z] * (accepted * landing + (1 - accepted) * (y == x))
    return law


@times
@pytest.mark.parametrize("name", PRIORS)
def test_reversal__is_the_sum_over_the_data_symbol(name: str, kappa_t: float, kappa_s: float) -> None:
    prior = torch.tensor(PRIORS[name], dtype=torch.float64)
    x = (prior > 0).nonzero().T.repeat(2, 1)  # every symbol that a noisy token can hold by chance
    logits = 2 * randn(*x.shape, 4)
    logits[1, :, 2] = -30
    kernel = reversal(logits, x, prior, kappa_t, kappa_s)
    rows = kernel.probs()
    posterior = logits.softmax(-1)
    for b, position in itertools.product(range(2), range(x.shape[1])):
        expected = reversal_by_sum(posterior[b, position], int(x[b, position]), prior, kappa_t, kappa_s)
        torch.testing.assert_close(rows[b, position], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(rows.sum(-1), torch.ones(x.shape, dtype=torch.float64), rtol=0, atol=1e-14)


@times
@pytest.mark.parametrize("name", PRIORS)
def test_reversal__samples_have_its_probabilities(name: str, kappa_t: float, kappa_s: float) -> None:
    prior = torch.tensor(PRIORS[name], dtype=torch.float64)
    for x in (0, 2):
        states = torch.full((100, 500), x)
        logits = torch.tensor([0.0, 1.0, 0.5, -1.0], dtype=torch.float64)
        law = reversal(logits.expand(1, 1, 4), states[:1, :1], prior, kappa_t, kappa_s).probs()[0, 0]
        kernel = reversal(logits.expand(100, 500, 4), states, prior, kappa_t, kappa_s)
        drawn = kernel.sample(rng(x), torch.arange(50_000))
        assert chi_square(torch.bincount(drawn, minlength=4), law) > LEAST_P


def test_reversal__of_a_certain_belief_is_that_of_the_dirac() -> None:
    prior = torch.tensor(PRIORS["arbitrary"], dtype=torch.float64)
    x, z = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 3, 2, 1]])
    kappas = torch.tensor([[0.3]]).double(), torch.tensor([[0.6]]).double()
    logits = torch.full((1, 4, 4), -torch.inf, dtype=torch.float64).scatter(2, z[..., None], 0.0)
    expected = Reversal(Dirac(z, 4), x, prior, *kappas).probs()
    torch.testing.assert_close(Reversal(categorical(logits), x, prior, *kappas).probs(), expected, rtol=0, atol=1e-15)


def test_reversal__rows_keep_float32_precision() -> None:
    prior = torch.tensor(PRIORS["arbitrary"], dtype=torch.float64)
    x, logits = torch.tensor([[0, 1, 2, 3]]), randn(1, 4, 4)
    double = reversal(logits, x, prior, 0.3, 0.6).probs()
    single = reversal(logits.float(), x, prior, 0.3, 0.6).probs()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)  # eight units in the last place of float32
