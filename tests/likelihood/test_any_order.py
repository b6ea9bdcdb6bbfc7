"""The likelihood of an any-order model: exact against enumerations, and its bound by importance sampling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete import (
    GMConfig,
    GMModel,
    MaskedPath,
    UniformPath,
    any_order_bound,
    any_order_likelihood,
    simulate,
)
from tests.helpers.distributions import SIGMAS, Wrong, WrongInTime, chain, exact_bound, rng


def by_orders(model: Any, z: Tensor, positions: tuple[int, ...]) -> float:
    """−log of the mean over all orders of the product of the model's probabilities, one position at a time."""
    products = []
    for order in itertools.permutations(positions):
        x, product = z.clone(), torch.zeros((), dtype=torch.float64)
        x[list(positions)] = model.path.mask_token_id
        for i in order:
            logits = model.logits(x[None], torch.full((1,), 0.5).double())[0, i]
            logits = logits.index_fill(0, torch.tensor(model.path.mask_token_id), -torch.inf)
            product = product + logits.log_softmax(0)[z[i]]
            x[i] = z[i]
        products.append(product)
    return math.log(len(products)) - float(torch.stack(products).logsumexp(0))


@pytest.mark.parametrize("name", ["masked", "mask is 1"])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_any_order_likelihood__of_the_exact_posterior_is_exact(name: str, length: int) -> None:
    model = chain(name, length)
    found = any_order_likelihood(model, model.data)
    torch.testing.assert_close(found.nats, -model.weights.log(), rtol=0, atol=1e-10)
    assert found.kind == "any_order"
    assert found.num_tokens.tolist() == [length] * len(model.data)


def test_any_order_likelihood__of_a_wrong_model_is_the_mean_over_orders() -> None:
    """It sums to 1 for every network, and lies below the bound, which takes the logarithm of every order by itself."""
    model = chain("masked", 3, kind=Wrong)
    found = any_order_likelihood(model, model.data, batch_size=7).nats
    assert float((-found).exp().sum()) == pytest.approx(1, abs=1e-12)
    expected = [by_orders(model, z, (0, 1, 2)) for z in model.data]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    gap = exact_bound(model, 40) - found
    assert float(gap.min()) > 0.01


def test_any_order_likelihood__is_that_of_first_hitting_samples() -> None:
    """χ² of 4000 samples of `first_hitting`, at p > 1e-5."""
    model = chain("masked", 2, kind=Wrong)
    law = (-any_order_likelihood(model, model.data).nats).exp()
    start = torch.full((4000, 2), 3)
    x = simulate(model, start, torch.tensor([0.0, 1.0]).double(), rng(1), "first_hitting")
    counts = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).double()
    statistic = ((counts - 4000 * law) ** 2 / (4000 * law)).sum()
    assert float((4000 * law).min()) > 5
    assert float(torch.special.gammaincc(torch.tensor(4.0).double(), statistic / 2)) > 1e-5


def test_any_order_likelihood__scored_positions_are_given_the_others() -> None:
    model = chain("masked", 3, kind=Wrong)
    z = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 1, 1], [0, 2, 0]])
    scored = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]]).bool()
    found = any_order_likelihood(model, z, scored=scored)
    positions = [tuple(row.nonzero().flatten().tolist()) for row in scored]
    expected = [by_orders(model, row, places) if places else 0.0 for row, places in zip(z, positions, strict=True)]
    assert found.nats.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.num_tokens.tolist() == [2, 2, 0, 1]
    bound = any_order_bound(model, z, None, 3, 2000, rng(2), scored=scored)
    assert bool((bound.nats - found.nats > -SIGMAS * bound.nats_stderr - 1e-9).all())
    assert bound.nats[[2, 3]].tolist() == pytest.approx(expected[2:], abs=1e-9)


# ---- the bound


def mean_over_tuples(model: Any, z: Tensor, num_orders: int) -> float:
    """E[−log (1/M) Σ_m w_m] over all M-tuples of orders of three positions."""
    weights = []
    for order in itertools.permutations(range(3)):
        x, total = torch.full((1, 3), model.path.mask_token_id), 0.0
        for i in order:
            logits = model.logits(x, torch.full((1,), 0.5).double())[0, i, :-1]
            total += float(logits.log_softmax(0)[z[i]])
            x[0, i] = z[i]
        weights.append(total)
    rows = torch.tensor(list(itertools.product(weights, repeat=num_orders))).double()
    return float((math.log(num_orders) - rows.logsumexp(1)).mean())


def test_any_order_bound__more_orders_are_tighter() -> None:
    """Means of 4000 repetitions against the sum over all tuples of orders; for one order that is the plain bound."""
    model, z = chain("masked", 3, kind=Wrong), torch.tensor([[0, 1, 2]])
    exact = float(any_order_likelihood(model, z).nats)
    expected = [mean_over_tuples(model, z[0], num_orders) for num_orders in (1, 2, 4)]
    assert expected[0] > expected[1] + 0.01 > expected[2] + 0.02 > exact + 0.02
    assert expected[0] == pytest.approx(float(exact_bound(model, 40)[5]), abs=1e-6)
    for num_orders, value in zip((1, 2, 4), expected, strict=True):
        bound = any_order_bound(model, z, num_orders=num_orders, num_samples=4000, rng=rng(3))
        assert abs(float(bound.nats) - value) < SIGMAS * float(bound.nats_stderr)
        assert float(bound.nats_stderr) < 0.02


def test_any_order_bound__evaluates_a_time_dependent_model_at_the_jump_times() -> None:
    """Σ_z E w = 1, and one order is the plain bound, integrated over the time: within 4.5 standard errors."""
    model = chain("masked", 2, kind=WrongInTime)
    bound = any_order_bound(model, model.data, num_orders=1, num_samples=5000, rng=rng(4))
    assert bound.draws is not None
    assert bool(((bound.nats - exact_bound(model, 60)).abs() < SIGMAS * bound.nats_stderr).all())
    weights = (-bound.draws).exp()
    error = math.sqrt(float(weights.var(1).sum()) / weights.shape[1])
    assert abs(float(weights.mean(1).sum()) - 1) < SIGMAS * error
    assert error < 0.02
    with pytest.raises(ValueError, match="any_order_bound"):
        any_order_likelihood(model, model.data)


def test_any_order_bound__paired_rows_share_their_orders() -> None:
    model = chain("masked", 3, kind=Wrong)
    z = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 1]])
    paired, alone = (
        any_order_bound(model, z, num_orders=1, rng=rng(7), paired=paired).nats for paired in (True, False)
    )
    assert paired[0] == paired[1] != paired[2]
    assert alone[0] != alone[1]


# ---- networks


def network(**config: Any) -> GMModel:
    path = MaskedPath(5)
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **config))
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=rng(9))
    return model


def test_any_order_likelihood__evaluates_networks_in_evaluation_mode_and_in_batches() -> None:
    model, z = network(hidden_dropout=0.5).train(), torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    read = []
    model.backbone.register_forward_hook(lambda _, __, states: read.append(len(states)))
    found = any_order_likelihood(model, z, mask, batch_size=6)
    assert (sum(read), max(read)) == (2**4 - 1 + 2**3 - 1, 6)
    assert model.training
    other = any_order_likelihood(model.eval(), F.pad(z[1:, :3], (0, 2)), torch.tensor([[1, 1, 1, 0, 0]]))
    assert float(other.nats) == pytest.approx(float(found.nats[1]), rel=1e-5)
    bound = any_order_bound(model.train(), z, mask, 200, rng=rng(10), batch_size=6)
    assert bound.nats.tolist() == pytest.approx(found.nats.tolist(), abs=0.2)
    assert not bound.nats.requires_grad
    assert model.training


def test_any_order_bound__orders_that_have_revealed_the_same_share_a_row() -> None:
    """Of 500 orders of 4 positions every set of 0 to 3 is met once: 15 rows."""
    model, read = network(), []
    model.backbone.register_forward_hook(lambda _, __, states: read.append(len(states)))
    any_order_bound(model, torch.tensor([[0, 1, 2, 3]]), num_orders=500, rng=rng(11))
    assert sum(read) == 15


# ---- errors


@pytest.mark.parametrize(
    ("function", "options", "match"),
    [
        (
            any_order_likelihood,
            {"max_scored": 2},
            "3 scored positions.*max_scored=2",
        ),
        (any_order_likelihood, {"batch_size": 0}, "batch_size=0"),
        (any_order_bound, {"num_orders": 0}, "num_orders=0"),
        (any_order_bound, {"num_samples": 0}, "num_samples=0"),
        (any_order_bound, {"scored": torch.ones(1, 2)}, "scored"),
    ],
)
def test_any_order__bad_arguments_are_named(function: Any, options: dict, match: str) -> None:
    model = chain("masked")
    with pytest.raises(ValueError, match=match):
        function(model, model.data, **options)


def test_any_order__needs_a_masked_path() -> None:
    model = GMModel(GMConfig(path=UniformPath(5), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    for function in (any_order_likelihood, any_order_bound):
        with pytest.raises(TypeError, match=r"UniformPath\(.*likelihood_bound"):
            function(model, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="any_order_bound"):
        any_order_likelihood(network(time_conditioning=True), torch.zeros(1, 3, dtype=torch.long))
