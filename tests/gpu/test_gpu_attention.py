from __future__ import annotations

import pytest
import torch

from tests.helpers.networks import LENGTH, data, network, noisy
from tests.helpers.on_device import cosine

pytestmark = pytest.mark.gpu


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_attention__documents_do_not_see_each_other(device: str, attention: str) -> None:
    if attention == "flex_attention" and device == "cpu":
        pytest.skip("on a CPU it is compiled, which takes a minute, and has no gradients")
    model = network("masked", attn_implementation=attention).to(device)
    x = data(rows=2).to(device)
    other = x.clone()
    other[:, 5:] = other[:, 5:].flip(1)
    t = torch.full((2,), 0.5, device=device)
    documents = (1 + (torch.arange(LENGTH) >= 5).long()).expand(2, -1).to(device)
    first, second = (model(input_ids=state, time=t, attention_mask=documents).logits for state in (x, other))
    torch.testing.assert_close(first[:, :5], second[:, :5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-3)


def test_attention__gradients_through_flex_are_those_through_sdpa(gpu: str) -> None:
    z = data(rows=2)
    x, t = noisy(network("masked"), z)
    documents = torch.tensor([[1] * 5 + [2] * (LENGTH - 7) + [0] * 2, [1] * LENGTH])
    losses, gradients = [], []
    for attention in ("sdpa", "flex_attention"):
        model = network("masked", attn_implementation=attention).to(gpu)
        given = {"input_ids": x, "time": t, "attention_mask": documents, "labels": z.masked_fill(documents == 0, -100)}
        loss = model(**{name: value.to(gpu) for name, value in given.items()}).loss
        losses.append(float(loss.detach()))
        gradients.append(list(torch.autograd.grad(loss, list(model.parameters()))))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert cosine(*gradients) > 1 - 1e-3
