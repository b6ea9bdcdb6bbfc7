"""A decoder of transformers as a block diffusion: training on noisy and clean sequences at once, and transformers' cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from gm_discrete import Blocks, conditional_loss
from gm_discrete.nn.blocks import BlockCache
from tests.helpers.backbones import LENGTH, MASK, data, network, noisy
from tests.helpers.networks import rng

SIZE = 4
SPANS = [(0, 4), (4, 8), (8, 10)]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
both = pytest.mark.parametrize("shift", [True, False], ids=["shift", "no shift"])


def causal(shift: bool = True, name: str = "qwen3", **options: Any) -> Any:
    return network(name, block_size=SIZE, shift=shift, **options)


def encode(model: Any, x: Tensor, mask: Tensor | None = None, clean: Tensor | None = None, cache: Any = None) -> Tensor:
    """Final hidden states."""
    t = torch.full((len(x),), 0.5).double()
    masks, clean_state = (None if value is None else {"": value} for value in (mask, clean))
    hidden = model.network.hidden({"": x}, t, masks, clean=clean_state, cache=cache)
    return model.backbone.finish(hidden, t)


@torch.no_grad()
@both
def test_blocks__a_position_attends_to_its_own_block_and_those_before(shift: bool) -> None:
    model, x = causal(shift), data(rows=1)
    before = encode(model, x)[0]
    for source in range(LENGTH):
        changed = x.clone()
        changed[0, source] = 2 if x[0, source] != 2 else 3
        seen = (encode(model, changed)[0] != before).any(-1)
        for position in range(LENGTH):
            read = max(position - 1, 0) if shift else position
            assert bool(seen[position]) == (source // SIZE <= read // SIZE)


@torch.no_grad()
@both
@pytest.mark.parametrize(("name", "implementation"), [("qwen3", "sdpa"), ("gemma3", "eager")])
def test_blocks__training_conditions_every_block_on_clean_ones(name: str, implementation: str, shift: bool) -> None:
    """One pass over noisy and clean sequences has of each block what a pass over (clean blocks, noisy block) has."""
    model = causal(shift, name, attn_implementation=implementation)
    z = data()
    x = noisy(z)
    found = encode(model, x, clean=z)
    assert found.shape == (3, LENGTH, 32)
    for start, stop in SPANS:
        alone = encode(model, torch.cat([z[:, :start], x[:, start:stop]], 1))
        torch.testing.assert_close(found[:, start:stop], alone[:, start:], **CLOSE)
    assert not torch.allclose(found[:, SIZE:], encode(model, x)[:, SIZE:], atol=1e-2)  # noisy blocks in front


@torch.no_grad()
@both
def test_blocks__padding_and_documents_are_left_out_in_training(shift: bool) -> None:
    model, z = causal(shift), data(rows=2)
    x, mask = noisy(z), torch.tensor([[1] * 7 + [0] * 3, [1] * 4 + [2] * 6])
    found = encode(model, x, mask, z)
    other_x, other_z = x.clone(), z.clone()
    other_x[0, 7:], other_z[0, 7:] = 9, 8
    other_x[1, :4], other_z[1, :4] = 9, 8
    again = encode(model, other_x, mask, other_z)
    torch.testing.assert_close(again[0, :7], found[0, :7], **CLOSE)
    torch.testing.assert_close(again[1, 4:], found[1, 4:], **CLOSE)
    assert bool(found.isfinite().all())


@both
def test_blocks__the_loss_is_that_of_blocks_after_clean_ones(shift: bool) -> None:
    model, z, t = causal(shift), data(), torch.tensor([0.2, 0.5, 0.8]).double()
    x = noisy(z)
    loss = model(input_ids=x, time=t, labels=z).loss
    whole = torch.cat(
        [
            model(input_ids=torch.cat([z[:, :start], x[:, start:stop]], 1), time=t).logits[:, start:stop]
            for start, stop in SPANS
        ], 1,
    )  # fmt: skip
    nats = -whole.double().log_softmax(-1).gather(2, z[..., None])[..., 0] / (1 - t)[:, None]
    torch.testing.assert_close(loss.double(), torch.where(x == MASK, nats, 0.0).mean(), rtol=1e-5, atol=1e-6)
    loss.backward()
    lacking = [name for name, w in model.named_parameters() if w.grad is None or not bool(w.grad.any())]
    assert not lacking


@torch.no_grad()
@both
@pytest.mark.parametrize(("name", "implementation"), [("qwen3", "sdpa"), ("gemma3", "eager")])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_block_cache__leaves_logits_as_they_are(name: str, implementation: str, shift: bool, padded: bool) -> None:
    """That of a shift, too, which reads the end of the block before."""
    model = causal(shift, name, attn_implementation=implementation)
    z = data()
    mask = torch.ones_like(z)
    if padded:
        mask[0, 6:], mask[1, :3], mask[2, 9:] = 0, 0, 0
    cache = BlockCache()
    for start, stop in SPANS:
        whole = torch.cat([z[:, :start], noisy(z)[:, start:stop]], 1)
        expected = encode(model, whole, mask[:, :stop])[:, start:]
        found = encode(model, whole[:, start:], mask[:, :stop], cache=cache)
        real = mask[:, start:stop].bool()
        torch.testing.assert_close(found[real], expected[real], **CLOSE)
        encode(model, z[:, start:stop], mask[:, :stop], cache=cache)
        cache = cache.grown()
        assert cache.length == stop


@torch.no_grad()
@both
def test_block_cache__has_rows(shift: bool) -> None:
    model, z, rows = causal(shift), data(), torch.tensor([2, 0])
    cache = BlockCache()
    encode(model, z[:, :SIZE], cache=cache)
    cache = cache.grown()
    found = encode(model, z[rows, SIZE : 2 * SIZE], cache=cache.rows(rows))
    torch.testing.assert_close(found, encode(model, z[:, SIZE : 2 * SIZE], cache=cache)[rows], **CLOSE)


@pytest.mark.parametrize(("name", "shift"), [("qwen3", False), ("llama", True)])
def test_generate__by_blocks_with_a_cache_is_without(name: str, shift: bool) -> None:
    model, prompt = causal(shift, name), data(rows=3, length=5)
    mask = torch.ones_like(prompt)
    mask[1, :2] = mask[2, 4:] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 7, "num_steps": 4, "seed": 0}
    plain = model.generate(prompt, **options)
    seen: list[Any] = []
    model.backbone.network.register_forward_pre_hook(
        lambda *args: seen.append(args[2].get("past_key_values")), with_kwargs=True
    )
    cached = model.generate(prompt, **options, blocks=Blocks(SIZE, cache="exact"))
    assert torch.equal(cached, plain)
    assert not bool((cached == MASK).any())
    assert all(isinstance(one, DynamicCache) for one in seen)
    assert {one.get_seq_length() for one in seen} >= {4, 8}  # after the call: with what it has appended


@both
def test_blocks__train(shift: bool) -> None:
    model, z = causal(shift), data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = conditional_loss(model, z, rng=rng(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_blocks__belong_to_decoders_and_to_sdpa_and_eager() -> None:
    with pytest.raises(ValueError, match=r"block_size=4.*bert"):
        network("bert", block_size=SIZE)
    model = causal()
    model.backbone.network.config._attn_implementation_internal = "flash_attention_2"
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="takes 'sdpa' or 'eager'"):
        encode(model, data())
