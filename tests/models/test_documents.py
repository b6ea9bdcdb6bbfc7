"""Packed documents: what a model makes of one depends neither on its neighbours nor on its place in the block."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Blocks, GMModel, conditional_loss, likelihood_bound
from gm_discrete.likelihood import any_order_likelihood
from gm_discrete.objective.loss import field_divergences
from tests.helpers import product_models
from tests.helpers.networks import MASK, data, network, noisy, rng

SPANS = [slice(0, 5), slice(5, 9), slice(9, 12)]
DOCUMENTS = torch.tensor([[1] * 5 + [2] * 4 + [3] * 3] * 5)
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""Losses of size 10 from float32 sums that run in another order, at other rotary positions."""

MODELS: dict[str, dict[str, Any]] = {
    "masked": {"name": "masked"},
    "uniform, conditioned on the time": {"name": "reversal"},
    "dit": {"name": "reversal", "backbone": "dit", "condition_size": 16},
    "convolution": {"name": "reversal", "conv_kernel_size": 5},
    "eager": {"name": "masked", "attn_implementation": "eager"},
}


def terms(model: GMModel, z: Tensor, x: Tensor, t: Tensor, documents: Tensor | None = None) -> Tensor:
    """The terms of the loss [B, L]."""
    predicted: Any = model.generator(x, t, attention_mask=documents)
    scored = torch.ones_like(z, dtype=torch.bool)
    return field_divergences(model.path, {"": predicted}, {"": z}, {"": x}, t, {"": scored})[""]["jump"]


@pytest.mark.parametrize("kind", MODELS)
def test_documents__the_loss_of_one_does_not_depend_on_its_neighbours(kind: str) -> None:
    model, z = network(**MODELS[kind]), data()
    x, t = noisy(model, z)
    packed = terms(model, z, x, t, DOCUMENTS)
    for span in SPANS:
        torch.testing.assert_close(packed[:, span], terms(model, z[:, span], x[:, span], t), **ROUNDING)
    changed = x.clone()
    changed[:, SPANS[1]] = torch.where(x[:, SPANS[1]] == MASK, 1, MASK)
    again = terms(model, z, changed, t, DOCUMENTS)
    for span in (SPANS[0], SPANS[2]):
        torch.testing.assert_close(again[:, span], packed[:, span], **ROUNDING)
    together = terms(model, z, x, t)  # as one document they do depend on each other
    assert not torch.allclose(together, packed, atol=0.1)


@pytest.mark.parametrize("kind", ["uniform, conditioned on the time", "convolution"])
def test_documents__gradients_of_one_do_not_depend_on_its_neighbours(kind: str) -> None:
    model, z, span = network(**MODELS[kind]), data(), SPANS[1]
    x, t = noisy(model, z)
    found = []
    for loss in (terms(model, z, x, t, DOCUMENTS)[:, span], terms(model, z[:, span], x[:, span], t)):
        model.zero_grad()
        loss.sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-3, atol=1e-4 * max(size, 1))


def test_documents__numbers_are_names() -> None:
    """Any different positive numbers will do, and the loss counts positions, not their numbers."""
    model, z = network("masked"), data()
    renamed = torch.tensor([0, 7, 2, 40])[DOCUMENTS]
    first, second = (conditional_loss(model, z, mask, rng(1)) for mask in (DOCUMENTS, renamed))
    torch.testing.assert_close(first, second)
    assert not torch.isclose(first, conditional_loss(model, z, None, rng(1)))
    padded = torch.where(DOCUMENTS == 3, 0, renamed)
    for bound in (likelihood_bound(model, z, padded, 2, rng(2)), any_order_likelihood(model, z, padded)):
        assert bound.num_tokens.tolist() == [9] * 5
    alone = conditional_loss(model, z, torch.where(DOCUMENTS == 2, 5, 0), rng(1))
    torch.testing.assert_close(alone, conditional_loss(model, z, torch.where(DOCUMENTS == 2, 1, 0), rng(1)))


def test_documents__their_likelihoods_multiply() -> None:
    """Over all orders of revealing four tokens, two of each document."""
    model, z = network("masked"), data()[:, :4]
    whole = any_order_likelihood(model, z, torch.tensor([[1, 1, 2, 2]] * 5)).nats
    alone = [any_order_likelihood(model, part).nats for part in (z[:, :2], z[:, 2:])]
    torch.testing.assert_close(whole, alone[0] + alone[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole, any_order_likelihood(model, z).nats, atol=1e-2)


@pytest.mark.parametrize("blocks", [None, 2])
def test_generate__new_tokens_belong_to_the_last_document_of_the_prompt(blocks: int | None) -> None:
    model = network("masked", pad_token_id=0)
    prompt, numbers = torch.tensor([[3, 4, 5, 6, 7], [8, 2, 1, 0, 0]]), torch.tensor([[1, 1, 2, 2, 2], [4, 9, 9, 0, 0]])
    options: dict[str, Any] = {"max_new_tokens": 4, "num_steps": 4, "seed": 0, "return_dict_in_generate": True}
    options |= {"blocks": None if blocks is None else Blocks(blocks), "temperature": 0}
    found = model.generate(prompt, attention_mask=numbers, **options)
    assert found.attention_mask.tolist() == [[1, 1, 2, 2, 2, 2, 2, 2, 2], [4, 9, 9, 9, 9, 9, 9, 0, 0]]
    other = prompt.clone()
    other[0, :2], other[1, 0] = 9, 9
    again = model.generate(other, attention_mask=numbers, **options).sequences
    assert torch.equal(again[0, 5:], found.sequences[0, 5:])
    assert torch.equal(again[1, 3:7], found.sequences[1, 3:7])


@torch.no_grad()
@pytest.mark.parametrize("kernel", [0, 3])
def test_documents__of_aligned_fields_are_separate(kernel: int) -> None:
    model = product_models.network("notes", conv_kernel_size=kernel)
    x, t = product_models.noisy(model, product_models.data(model))
    numbers = torch.tensor([[1, 1, 2, 2, 2]] * 5)
    masks = {"pitch": numbers, "gap": numbers}
    whole = product_models.said(model, x, t, attention_mask=masks)
    moved = {**x, "pitch": x["pitch"].clone()}
    moved["pitch"][:, 0] = (x["pitch"][:, 0] + 1) % 3
    again = product_models.said(model, moved, t, attention_mask=masks)
    torch.testing.assert_close(again["pitch"][:, 2:], whole["pitch"][:, 2:], **ROUNDING)
    assert not torch.allclose(again["pitch"][:, 1], whole["pitch"][:, 1], atol=1e-3)
