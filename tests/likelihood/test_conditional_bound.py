"""`likelihood_bound` given a part of the sequence, and what ranking needs: shared noise, errors per sequence."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Likelihood, bregman, likelihood_bound
from gm_discrete.paths import FinitePath
from tests.helpers.distributions import SIGMAS, Wrong, WrongInTime, chain, kappa_nodes, rng

SUBSETS = [subset for n in (1, 2, 3) for subset in itertools.combinations(range(3), n)]


def mask_of(subset: tuple[int, ...]) -> Tensor:
    return torch.zeros(3, dtype=torch.bool).index_fill(0, torch.tensor(subset), True)


def conditional(model: Any, subset: tuple[int, ...]) -> Tensor:
    """−log p(z_S | z_C) of every z, [Z]."""
    others = [i for i in range(model.length) if i not in subset]
    same = (model.data[:, None, others] == model.data[None, :, others]).all(2)
    return (same.double() @ model.weights).log() - model.weights.log()


def bound_given(model: Any, subset: tuple[int, ...], nodes: int) -> Tensor:
    """∫ E D dt of the scored positions alone, with the others clean, summed over all their states: [Z]."""
    path: FinitePath = model.path
    states = torch.tensor(list(itertools.product(range(path.vocab_size), repeat=len(subset))))
    data = model.data.repeat_interleave(len(states), 0)
    x = data.clone()
    x[:, list(subset)] = states.repeat(len(model.data), 1)
    total = torch.zeros(len(model.data), dtype=torch.float64)
    for kappa, weight in kappa_nodes(nodes):
        t = path.schedule.inverse(torch.tensor(kappa, dtype=torch.float64)).expand(len(x))
        tokens = (1 - kappa) * path.prior_probs(x.device)[x] + kappa * (x == data).double()
        chance = tokens[:, list(subset)].prod(1)
        target, predicted = path.conditional(data, x, t), path.marginal(model.logits(x, t), x, t)
        loss = bregman.divergence(target, predicted, x, where=mask_of(subset).expand(x.shape)).sum(1)
        loss = torch.where(chance > 0, chance * loss, 0.0)
        total += weight * loss.view(len(model.data), -1).sum(1) / path.schedule.derivative(t[0])
    return total


# ---- given a part


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("name", ["masked", "mask is 1"])
def test_likelihood_bound__scored_masked_exact_posterior_is_tight(name: str, subset: tuple[int, ...]) -> None:
    """Suffixes and all other subsets, for every z: to the error of the quadrature."""
    model = chain(name)
    torch.testing.assert_close(bound_given(model, subset, 40), conditional(model, subset), rtol=0, atol=1e-9)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("estimator", ["time", "mask_count"])
def test_likelihood_bound__scored_masked_estimates_are_of_the_conditional(
    subset: tuple[int, ...], estimator: str
) -> None:
    """2000 rows of 8 draws, within 4.5 standard errors of their mean; zero error where one position is scored."""
    model = chain("masked")
    z, scored = model.data[[5]].expand(2000, -1), mask_of(subset).expand(2000, -1)
    bound = likelihood_bound(model, z, num_samples=8, rng=rng(1), scored=scored, estimator=estimator)
    expected = float(conditional(model, subset)[5])
    assert abs(float(bound.nats.mean()) - expected) <= SIGMAS * float(bound.nats.std()) / math.sqrt(2000) + 1e-9
    assert float(bound.nats.std()) / math.sqrt(2000) < 0.03 * expected


@pytest.mark.parametrize("kind", [Wrong, WrongInTime])
def test_likelihood_bound__scored_masked_of_a_wrong_model_lies_above_the_conditional(kind: Any) -> None:
    model = chain("masked", 3, kind=kind)
    for subset in ((2,), (1, 2), (0, 2)):
        assert float((bound_given(model, subset, 40) - conditional(model, subset)) @ model.weights) > 0.1


@pytest.mark.parametrize("name", ["uniform reversal", "prior reversal", "uniform mixture"])
def test_likelihood_bound__scored_without_masks_exceeds_the_conditional(name: str) -> None:
    """The exact posterior takes the clean part for noisy: its process does not have the conditional distribution, so that
    the mean of the bound exceeds the conditional entropy; that of the whole sequence does not where the bound is tight."""
    model = chain(name)
    excess = {
        s: float((bound_given(model, s, 60) - conditional(model, s)) @ model.weights) for s in ((1, 2), (0, 1, 2))
    }
    assert excess[1, 2] > 0.05
    assert name == "uniform mixture" or excess[0, 1, 2] == pytest.approx(0, abs=1e-6)


# ---- pairs


CANDIDATES = torch.tensor([[0, 1, 2], [0, 1, 1], [0, 2, 2], [1, 1, 2]])


@pytest.mark.parametrize(
    ("name", "estimator"), [("masked", "mask_count"), ("masked", "time"), ("uniform reversal", "time")]
)
def test_likelihood_bound__paired_lowers_the_variance_of_differences(name: str, estimator: str) -> None:
    """Candidates that differ in one symbol, under the exact posterior: the variance falls to less than a third, as it was
    measured; over 100 repetitions half of it or more would be seen once in 10⁴. Means agree in 4.5 standard errors."""
    model = chain(name)
    z = CANDIDATES[[0, 3]]
    differences = {}
    for paired in (True, False):
        noise = rng(2)
        draws = [
            likelihood_bound(model, z, num_samples=4, rng=noise, estimator=estimator, paired=paired).nats.diff()
            for _ in range(100)
        ]
        differences[paired] = torch.cat(draws)
    assert float(differences[True].var()) < 0.5 * float(differences[False].var())
    error = math.sqrt(sum(float(part.var()) for part in differences.values()) / 100)
    assert abs(float(differences[True].mean() - differences[False].mean())) < SIGMAS * error


@pytest.mark.parametrize("estimator", ["mask_count", "time"])
def test_likelihood_bound__paired_equal_rows_get_equal_bounds(estimator: str) -> None:
    model = chain("masked", 3, kind=Wrong)
    z = CANDIDATES[[0, 0, 1, 0]]
    scored = torch.tensor([[0, 1, 1]] * 3 + [[1, 1, 1]]).bool()
    bound = likelihood_bound(model, z, rng=rng(3), scored=scored, estimator=estimator, paired=True)
    assert bound.nats[0] == bound.nats[1]
    assert bound.nats[0] != bound.nats[2]
    alone = likelihood_bound(model, z[:1].expand(50, -1), rng=rng(3), estimator=estimator)
    assert len(alone.nats.unique()) > 1
    one = likelihood_bound(model, z[:1], scored=scored[:1], estimator=estimator, paired=True)  # and without a generator
    assert bool(one.nats.isfinite())


# ---- errors, and draws that go together


@pytest.mark.parametrize("estimator", ["mask_count", "time"])
def test_likelihood__nats_stderr_errs_on_the_safe_side(estimator: str) -> None:
    """Over 2000 rows: the mean square of `nats_stderr` is (σ² − V)/(S − 1), no less than the variance V of `nats` where
    strata help. Of a heavy-tailed integrand (`"time"`) squares agree to 25 %, else to 10 %."""
    model = chain("masked", 3, kind=Wrong)
    z = CANDIDATES[[0]].expand(2000, -1)
    bound = likelihood_bound(model, z, num_samples=6, rng=rng(4), estimator=estimator)
    single = likelihood_bound(model, z, num_samples=1, rng=rng(5), estimator=estimator)
    estimate, true = float(bound.nats_stderr.square().mean()), float(bound.nats.var())
    expected = (float(single.nats.var()) - true) / 5
    assert estimate == pytest.approx(expected, rel=0.25 if estimator == "time" else 0.1)
    assert estimate > true
    assert torch.equal(bound.nats, bound.draws.mean(1))  # pyright: ignore
    assert bool(single.nats_stderr.isnan().all())
    assert bool(Likelihood(bound.nats, bound.num_tokens).nats_stderr.isnan().all())


def test_likelihood_bound__batch_size_joins_draws_in_one_call() -> None:
    model = chain("masked", 3, kind=Wrong)
    expected = likelihood_bound(model, CANDIDATES, num_samples=5, rng=rng(6))
    for batch_size, calls in ((1, 5), (9, 3), (100, 1)):
        model.calls = 0
        bound = likelihood_bound(model, CANDIDATES, num_samples=5, rng=rng(6), batch_size=batch_size)
        torch.testing.assert_close(bound.draws, expected.draws, rtol=1e-12, atol=0)
        assert model.calls == calls
    with pytest.raises(ValueError, match="batch_size=0"):
        likelihood_bound(model, CANDIDATES, batch_size=0)


def test_likelihood__cat_keeps_draws_of_one_number() -> None:
    model = chain("masked")
    parts = [likelihood_bound(model, CANDIDATES[:n], rng=rng(n)) for n in (1, 3)]
    expected = torch.cat([part.nats_stderr for part in parts])
    torch.testing.assert_close(Likelihood.cat(parts).nats_stderr, expected, rtol=1e-12, atol=0)
    other = likelihood_bound(model, CANDIDATES, num_samples=3, rng=rng())
    assert Likelihood.cat([*parts, other]).draws is None
