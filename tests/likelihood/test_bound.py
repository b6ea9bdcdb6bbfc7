"""−log p(z) ≤ ∫ E D dt: equal for the exact posterior where theory says so, and estimated without bias."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    GMConfig,
    GMModel,
    MaskedPath,
    PowerSchedule,
    UniformPath,
    likelihood_bound,
)
from gm_discrete.paths.schedules import Schedule
from tests.helpers.distributions import PATHS, SIGMAS, Wrong, WrongInTime, chain, exact_bound, kappa_nodes

TIGHT = ["masked", "mask is 1", "uniform reversal", "prior reversal", "special reversal"]
GAPS = ["uniform mixture", "prior mixture"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- exact sums


@pytest.mark.slow
@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("schedule", [None, CosineSchedule()], ids=["linear", "cosine"])
def test_likelihood_bound__of_the_exact_posterior_is_the_entropy(name: str, schedule: Schedule | None) -> None:
    """For every z the integral is −log p(z), and its mean the entropy, to 1e-8. The schedule cancels."""
    model = chain(name, 2 if name.startswith("special") else 3, schedule)
    bound = exact_bound(model, 80 if model.path.rates == "masked" else 200)
    assert float(bound @ model.weights) == pytest.approx(model.entropy, abs=1e-8)
    likely = model.weights > 1e-4  # the rarest sequences weigh 1e-8 or less, and their integrand needs more nodes
    torch.testing.assert_close(bound[likely], -model.weights.log()[likely], rtol=0, atol=1e-6)


def history_gap(model: Any, nodes: int) -> float:
    """KL of the mixture of conditional processes from the Markov process, for mixture rates.

    Jumps always land on z, so a token's history says whether it has jumped: of an unjumped token, in v, the likelihood
    is p0(v) (1 if v = z, else 1 − κ), and its rate is h P(z = y | history); after a jump it is 0.
    """
    path, K, L = model.path, model.path.vocab_size, model.length
    prior, symbols = path.prior_probs(torch.device("cpu")), torch.arange(model.path.vocab_size)
    cells = list(itertools.product((False, True), range(K)))
    histories = torch.tensor(list(itertools.product(range(2 * K), repeat=L)))
    x = histories % K
    jumped = histories >= K
    onehot = torch.nn.functional.one_hot(model.data, K).double()
    total = 0.0
    for kappa, weight in kappa_nodes(nodes):
        t = path.schedule.inverse(kappa)
        rows = [
            kappa * (1 - prior[v]) * (symbols == v) if moved else prior[v] * torch.where(symbols == v, 1.0, 1 - kappa)
            for moved, v in cells
        ]
        token = torch.stack(rows).double()  # likelihood of each cell given z, [2K, K]
        joint = torch.stack([token[histories[:, i]][:, model.data[:, i]] for i in range(L)]).prod(0) * model.weights
        mass = joint.sum(1, keepdim=True)
        given_history = torch.einsum("hz,zlk->hlk", joint / mass.clamp(min=1e-300), onehot)
        given_state = model.logits(x, t.expand(len(x))).exp()
        a = torch.where(jumped[..., None], 0.0, given_history)
        kl = torch.where(a > 0, a * torch.log(a / given_state), 0.0) - a + given_state
        kl = kl.scatter(2, x[..., None], 0.0).sum((1, 2))
        total += weight / (1 - kappa) * float((mass.squeeze(1) * kl).sum())
    return total


@pytest.mark.parametrize("name", GAPS)
def test_likelihood_bound__of_mixture_rates_exceeds_the_entropy_by_the_information_in_histories(name: str) -> None:
    model = chain(name)
    gap = float(exact_bound(model, 60) @ model.weights) - model.entropy
    assert gap > 0.5
    assert gap == pytest.approx(history_gap(model, 60), abs=1e-6)


def time_free_bound(model: Any) -> Tensor:
    """Σ_n (1/n) E_{|M|=n} Σ_{i∈M} −log π(z_i | z without M), over every subset M of positions, [Z]."""
    mask, bound = model.path.mask_token_id, torch.zeros(len(model.data), dtype=torch.float64)
    for n in range(1, model.length + 1):
        subsets = list(itertools.combinations(range(model.length), n))
        for subset in subsets:
            x = model.data.index_fill(1, torch.tensor(subset), mask)
            log_pi = model.logits(x, torch.full((len(x),), 0.5).double())
            log_pi = log_pi.index_fill(2, torch.tensor(mask), -torch.inf).log_softmax(2)
            for i in subset:
                bound -= log_pi[:, i].gather(1, model.data[:, i, None]).squeeze(1) / n / len(subsets)
    return bound


@pytest.mark.parametrize("name", ["masked", "mask is 1"])
def test_likelihood_bound__is_the_time_free_sum_for_a_wrong_model(name: str) -> None:
    model = chain(name, 3, PowerSchedule(2), Wrong)
    expected = time_free_bound(model)
    torch.testing.assert_close(exact_bound(model, 40), expected, rtol=1e-10, atol=0)
    assert float(expected @ model.weights) > model.entropy + 0.1


def test_likelihood_bound__of_a_wrong_model_lies_above_the_entropy() -> None:
    """A bound for every network: it exceeds the exact one by D ≥ 0."""
    for name in (*TIGHT, *GAPS):
        model = chain(name, 2, kind=WrongInTime)
        assert float(exact_bound(model, 60) @ model.weights) > model.entropy + 0.05


# ---- the estimators


@pytest.mark.parametrize("kind", [None, Wrong, WrongInTime], ids=["exact", "wrong", "wrong in time"])
@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, "time") for name in PATHS] + [("masked", "mask_count"), ("mask is 1", "mask_count")],
)
def test_likelihood_bound__estimators_are_unbiased(name: str, estimator: str, kind: Any) -> None:
    """The mean over 4000 copies of one z is within 4.5 standard errors of the integral, at a precision of 4 %."""
    model = chain(name, 2, CosineSchedule(), *([kind] if kind else []))
    index = 3
    exact = float(exact_bound(model, 150)[index])
    z = model.data[index].expand(4000, -1)
    bound = likelihood_bound(model, z, num_samples=16, rng=rng(1), estimator=estimator)
    stderr = float(bound.nats.std()) / math.sqrt(4000)
    assert abs(float(bound.nats.mean()) - exact) < SIGMAS * stderr
    assert stderr < 0.04 * exact
    assert bound.kind == model.path.rates
    assert bound.num_tokens.tolist() == [2] * 4000


def test_likelihood_bound__any_number_of_samples_has_the_same_mean() -> None:
    """Strata are aligned at random, so that one draw is as unbiased as eight."""
    model = chain("masked", 3)
    z = model.data[5].expand(4000, -1)
    for num_samples in (1, 2, 8):
        for estimator in ("time", "mask_count"):
            bound = likelihood_bound(model, z, num_samples=num_samples, rng=rng(2), estimator=estimator)
            error = float(bound.nats.mean() + model.weights[5].log())
            assert abs(error) < SIGMAS * float(bound.nats.std()) / math.sqrt(4000)


def test_likelihood_bound__mask_count_is_the_default_for_masking_and_varies_less() -> None:
    """One draw a sequence: the number of masks alone does not vary the sum, the time does."""
    model = chain("masked", 3, kind=Wrong)
    z = model.data[torch.multinomial(model.weights, 2000, replacement=True, generator=rng(3))]
    auto = likelihood_bound(model, z, num_samples=1, rng=rng(4))
    count = likelihood_bound(model, z, num_samples=1, rng=rng(4), estimator="mask_count")
    time = likelihood_bound(model, z, num_samples=1, rng=rng(4), estimator="time")
    assert torch.equal(auto.nats, count.nats)
    assert float(count.nats.std()) < 0.9 * float(time.nats.std())


@pytest.mark.parametrize("estimator", ["time", "mask_count"])
def test_likelihood_bound__scored_tokens_are_bounded_given_the_others(estimator: str) -> None:
    """−log p(z_S | z without S), for rows of different S: by `scored`, by an attention mask, and by both."""
    model = chain("masked", 3)
    joint = model.weights.view(3, 3, 3)
    z = torch.tensor([[0, 1, 2], [0, 1, 2], [2, 0, 1], [1, 1, 1]]).repeat_interleave(4000, 0)
    scored = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]).bool().repeat_interleave(4000, 0)
    expected = [
        -joint[0, 1, 2].log(),
        -(joint[0, 1, 2] / joint[0].sum()).log(),
        -(joint[2, 0, 1] / joint[:, 0, 1].sum()).log(),
        torch.tensor(0.0),
    ]
    everything = torch.ones_like(scored)
    for masks in (
        {"scored": scored},
        {"attention_mask": scored.long()},
        {"attention_mask": (scored | (torch.arange(3) == 1)).long(), "scored": scored | ~everything},
    ):
        bound = likelihood_bound(model, z, num_samples=2, rng=rng(5), estimator=estimator, **masks)
        assert torch.equal(bound.num_tokens, scored.sum(1))
        for nats, exact in zip(bound.nats.split(4000), expected, strict=True):
            assert abs(float(nats.mean() - exact)) <= SIGMAS * float(nats.std()) / math.sqrt(4000) + 1e-12


def test_likelihood_bound__is_reproducible_and_evaluates_networks_in_evaluation_mode() -> None:
    config = GMConfig(
        path=MaskedPath(7), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, hidden_dropout=0.5
    )
    model = GMModel(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng(6))
    z = torch.randint(6, (4, 5), generator=rng(7))
    evaluated = likelihood_bound(model.eval(), z, rng=rng(8)).nats
    assert not model.training
    assert torch.equal(likelihood_bound(model.train(), z, rng=rng(8)).nats, evaluated)
    assert model.training
    assert not evaluated.requires_grad


@pytest.mark.parametrize("path", [MaskedPath(7), UniformPath(7)], ids=["masked", "uniform"])
def test_likelihood_bound__does_not_depend_on_padding(path: Any) -> None:
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, conv_kernel_size=3))
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng(9))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    bounds = []
    for fill in (0, 5):
        z = torch.where(mask.bool(), torch.tensor([[1, 2, 3, 4, 5], [3, 2, 1, 0, 0]]), fill)
        bounds.append(likelihood_bound(model, z, mask, rng=rng(10)))
    assert torch.equal(bounds[0].nats, bounds[1].nats)
    assert bounds[0].num_tokens.tolist() == [5, 3]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("masked", {"estimator": "elbo"}, "estimator='elbo'"),
        ("uniform reversal", {"estimator": "mask_count"}, "estimator='mask_count' .*MaskedPath"),
        ("masked", {"num_samples": 0}, "num_samples=0"),
        ("masked", {"attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ("masked", {"scored": torch.ones(1, 2)}, "scored"),
    ],
)
def test_likelihood_bound__bad_arguments_are_named(name: str, options: dict, match: str) -> None:
    model = chain(name)
    with pytest.raises(ValueError, match=match):
        likelihood_bound(model, model.data, **options)


def test_likelihood_bound__data_outside_the_vocabulary_is_named() -> None:
    model = chain("masked")
    for estimator in ("time", "mask_count"):
        with pytest.raises(ValueError, match=r"9.*vocab_size=4"):
            likelihood_bound(model, torch.full((2, 3), 9), estimator=estimator)


def test_likelihood_bound__data_without_a_batch_dimension_is_named() -> None:
    with pytest.raises(ValueError, match=r"z .*\(3,\)"):
        likelihood_bound(chain("masked"), torch.tensor([0, 1, 2]))
