"""What networks on several fields run, and what enters them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import MaskedPath, ProductPath, simulate
from tests.helpers.chunks import set_chunks
from tests.helpers.product_models import CASES, Rows, at, data, network, noisy, rng, said

ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
"""float32 sums that run in another order."""
MOVED = 1e-3
"""Far more than rounding."""


@torch.no_grad()
def test_hidden_states__the_backbone_runs_once_for_all_fields() -> None:
    """And of masks alone, for the states that are asked about; what is said is no other for that."""
    model = network("two lines")
    x, t = noisy(model, data(model))
    count = Rows(model)
    said(model, x, t)
    assert count.sizes == [5]
    model.generator(x, t)
    generator: Any = network("row", path=ProductPath(a=MaskedPath(4), b=MaskedPath(3)), fields={"a": {"length": 2}})
    model, count = generator, Rows(generator)
    x = {"a": torch.full((6, 2), 3), "b": torch.full((6, 1), 2)}
    product: Any = model.generator(x, at(model, 6))
    assert count.sizes == []  # nothing is asked
    beliefs = {name: factor.posterior.belief for name, factor in product.factors.items()}
    some = beliefs["a"].log_probs(torch.tensor([2, 3, 9]))  # entries of the states 1 and 4
    assert count.sizes == [2]
    other = beliefs["b"].log_probs(torch.tensor([1, 4, 5]))  # and of 1, 4, 5
    assert count.sizes == [2, 1]
    whole: Any = model(fields=x, time=at(model, 6)).logits
    torch.testing.assert_close(some, whole["a"].flatten(0, 1)[[2, 3, 9]].log_softmax(1), **ROUNDING)
    torch.testing.assert_close(other, whole["b"].flatten(0, 1)[[1, 4, 5]].log_softmax(1), **ROUNDING)
    count.sizes.clear()
    run = simulate(model, x, torch.linspace(0, 1, 101), rng(1), return_info=True)
    assert sum(count.sizes) == int(run.network_calls.sum()) <= int(run.jumps.sum()) == 18


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_network__continuous_fields_enter_normalised_at_their_own_time(name: str) -> None:
    """(x − α m)/√(α² s² + σ²) of each field; symbols as they are."""
    model = network(name)
    x, t = noisy(model, data(model))
    entered: list[dict[str, Tensor]] = []
    model.backbone.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    said(model, x, t)
    for field, time in model.path.times(t).items():
        expected = x[field]
        if expected.is_floating_point():
            alpha = time.float().view(-1, *[1] * (expected.dim() - 1))
            expected = expected / ((alpha * model.path.factors[field].data_std) ** 2 + (1 - alpha) ** 2).sqrt()
        torch.testing.assert_close(entered[0][field], expected)


@torch.no_grad()
def test_network__classes_reach_every_field() -> None:
    model = network("two lines", num_classes=3)
    x, t = noisy(model, data(model))
    none, one = (said(model, x, t, class_labels=torch.full((5,), label)) for label in (-1, 1))
    assert all(torch.equal(said(model, x, t)[name], none[name]) for name in x)
    assert all(float((one[name] - none[name]).abs().max()) > MOVED for name in x)
    guided: Any = model.generator(x, t, class_labels=torch.ones(5).long(), guidance_scale=2.0)
    plain: Any = [model.generator(x, t, class_labels=labels) for labels in (None, torch.ones(5).long())]
    free, led, far = (generator.factors["size"].parts["flow"].velocity for generator in (*plain, guided))
    assert float((far - led).abs().max()) > MOVED
    assert float((led - free).abs().max()) > MOVED


@pytest.mark.parametrize("name", CASES)
def test_lazy_readout__heads_in_chunks_have_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks beyond the fourth are recomputed in backward, where what they share is already there."""

    def gradients() -> tuple[float, list[Tensor]]:
        model = network(name)
        z = data(model)
        x, t = noisy(model, z)
        loss = model(fields=x, time=t, labels=z).loss
        loss.backward()
        return float(loss.detach()), [weight.grad for weight in model.parameters() if weight.grad is not None]

    whole, expected = gradients()
    set_chunks(4, monkeypatch)
    found, chunked = gradients()
    assert found == pytest.approx(whole, rel=1e-6)
    assert len(chunked) == len(expected)
    for one, other in zip(chunked, expected, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6  # sums of float32 in another order
