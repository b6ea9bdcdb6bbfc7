from __future__ import annotations

import pytest
import torch

from tests.helpers.networks import LENGTH, data, network

pytestmark = pytest.mark.gpu
pytest.importorskip("gm_discrete.nn.masks", reason="documents are not separated")


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_attention__documents_do_not_see_each_other(device: str, attention: str) -> None:
    model = network("masked", attn_implementation=attention).to(device)
    x = data(rows=2).to(device)
    other = x.clone()
    other[:, 5:] = other[:, 5:].flip(1)
    t = torch.full((2,), 0.5, device=device)
    documents = (1 + (torch.arange(LENGTH) >= 5).long()).expand(2, -1).to(device)
    first, second = (model(input_ids=state, time=t, attention_mask=documents).logits for state in (x, other))
    torch.testing.assert_close(first[:, :5], second[:, :5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-3)


def test_attention__flex_is_sdpa(device: str) -> None:
    x, t = data(rows=2).to(device), torch.full((2,), 0.5, device=device)
    documents = torch.tensor([[1] * 5 + [2] * (LENGTH - 7) + [0] * 2, [1] * LENGTH], device=device)
    found = []
    for attention in ("sdpa", "flex_attention"):
        model = network("masked", attn_implementation=attention).to(device)
        found.append(model(input_ids=x, time=t, attention_mask=documents).logits[documents > 0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
