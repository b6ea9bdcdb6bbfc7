"""Block-causal attention: what a position sees, how it is trained and scored, and its cache."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    GMConfig,
    GMModel,
    MaskedPath,
    UniformPath,
    any_order_likelihood,
    conditional_loss,
    likelihood_bound,
)
from gm_discrete.nn.blocks import BlockCache, block_mask
from tests.helpers.distributions import SIGMAS
from tests.helpers.networks import BLOCK, LENGTH, MASK, PAD, K, causal, data, network, noisy, rng

spans = [(start, start + BLOCK) for start in range(0, LENGTH, BLOCK)]


def logits(model: GMModel, x: Tensor, t: Tensor) -> Tensor:
    return model(input_ids=x, time=t).logits


# Attention


def seen_by(model: GMModel, position: int) -> list[int]:
    """The positions whose symbol the output at a position depends on."""
    x = data(rows=1)
    t = torch.full((1,), 0.5).double()
    before = model(input_ids=x, time=t).last_hidden_state[0, position]
    found = []
    for other in range(LENGTH):
        changed = x.clone()
        changed[0, other] = (x[0, other] + 1) % (K - 1)
        after = model(input_ids=changed, time=t).last_hidden_state[0, position]
        found += [other] if not torch.equal(before, after) else []
    return found


def encode(
    model: GMModel, x: Tensor, t: Tensor, mask: Tensor | None = None, clean: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Hidden states after the last attention."""
    masks, clean_state = (None if value is None else {"": value} for value in (mask, clean))
    return model.network.hidden({"": x}, t, masks, clean=clean_state, cache=cache)


def test_block_attention__reaches_the_own_block_and_those_before_it() -> None:
    model = causal()
    for position in range(LENGTH):
        assert seen_by(model, position) == list(range((position // BLOCK + 1) * BLOCK))
    assert seen_by(network("masked"), 0) == list(range(LENGTH))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_block_attention__training_conditions_every_block_on_clean_ones(implementation: str) -> None:
    """One pass over noisy and clean sequences says of each block what a pass over (clean blocks, noisy block) says."""
    model = causal(attn_implementation=implementation)
    z = data()
    x, t = noisy(model, z)
    hidden = encode(model, x, t, clean=z)
    for start, stop in spans:
        alone = torch.cat([z[:, :start], x[:, start:stop]], 1)
        torch.testing.assert_close(hidden[:, start:stop], encode(model, alone, t)[:, start:], rtol=0, atol=1e-5)
    assert not torch.allclose(hidden[:, BLOCK:], encode(model, x, t)[:, BLOCK:], atol=1e-3)  # noisy blocks in front


def test_block_loss__is_that_of_the_blocks_after_clean_ones() -> None:
    model = causal()
    z = data()
    x, t = noisy(model, z)
    loss = model(input_ids=x, time=t, labels=z).loss
    whole = torch.cat(
        [logits(model, torch.cat([z[:, :start], x[:, start:stop]], 1), t)[:, start:stop] for start, stop in spans], 1
    )
    nats = -whole.double().log_softmax(-1).gather(2, z[..., None])[..., 0] / (1 - t)[:, None]
    torch.testing.assert_close(loss.double(), torch.where(x == MASK, nats, 0.0).mean(), rtol=1e-5, atol=1e-6)


def test_block_attention__ignores_padding() -> None:
    model = causal()
    z, mask = data(), torch.ones(5, LENGTH, dtype=torch.long)
    mask[:, -3:] = 0
    x, t = noisy(model, z)
    x = torch.where(mask == 0, PAD, x)
    other, clean = torch.where(mask == 0, 5, x), torch.where(mask == 0, 6, z)
    first = encode(model, x, t, mask, clean=z)
    torch.testing.assert_close(first[:, :-3], encode(model, other, t, mask, clean=clean)[:, :-3])
    assert first.isfinite().all()
    assert model(input_ids=x, time=t, labels=torch.where(mask == 0, -100, z), attention_mask=mask).loss.isfinite()


def test_block_loss__has_gradients_for_every_parameter() -> None:
    model = causal()
    conditional_loss(model, data(), rng=rng()).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


@pytest.mark.slow
def test_likelihood_bound__of_blocks_is_the_sum_over_the_blocks() -> None:
    """−log p(z) ≤ Σ_b bound(z^b | z^{<b}); the clean blocks before are known to the network, those behind it never sees."""
    model = causal()
    z = data(rows=64)
    whole = likelihood_bound(model, z, num_samples=64, rng=rng(1))
    total, variance = 0.0, 0.0
    for start, stop in spans:
        scored = torch.zeros_like(z[:, :stop], dtype=torch.bool)
        scored[:, start:] = True
        part = likelihood_bound(model, z[:, :stop], num_samples=64, rng=rng(2), scored=scored)
        total, variance = total + float(part.nats.sum()), variance + 64 * float(part.nats.var())
    assert abs(float(whole.nats.sum()) - total) < SIGMAS * math.sqrt(2 * variance)


@pytest.mark.slow
def test_any_order_likelihood__of_blocks_is_the_product_over_the_blocks() -> None:
    """Within a uniform order of all positions, those of the blocks are uniform and independent of each other."""
    model = causal()
    z = data(rows=3, length=8)
    whole = any_order_likelihood(model, z)
    parts = []
    for start, stop in spans[:2]:
        scored = torch.zeros_like(z[:, :stop], dtype=torch.bool)
        scored[:, start:] = True
        parts.append(any_order_likelihood(model, z[:, :stop], scored=scored).nats)
    torch.testing.assert_close(whole.nats, parts[0] + parts[1], rtol=1e-4, atol=1e-4)
    bound = likelihood_bound(model, z, num_samples=400, rng=rng())
    assert (bound.nats > whole.nats - SIGMAS * 2).all()


# Cache


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_block_cache__leaves_logits_as_they_are(implementation: str, padded: bool) -> None:
    model = causal(num_hidden_layers=3, attn_implementation=implementation)
    z, t = data(), torch.full((5,), 0.5).double()
    mask = torch.ones_like(z)
    if padded:
        mask[0, 6:], mask[1, 9:] = 0, 0
    cache = BlockCache()
    for start, stop in spans:
        x, _ = noisy(model, z, 0.5)
        whole = torch.cat([z[:, :start], x[:, start:stop]], 1)
        expected = model.backbone.finish(encode(model, whole, t, mask[:, :stop])[:, start:], t)
        found = model.backbone.finish(encode(model, whole[:, start:], t, mask[:, :stop], cache=cache), t)
        real = mask[:, start:stop].bool()
        torch.testing.assert_close(
            model.heads["tokens"](found)[real], model.heads["tokens"](expected)[real], rtol=0, atol=1e-5
        )
        encode(model, z[:, start:stop], t, mask[:, :stop], cache=cache)
        cache = cache.grown()
        assert cache.length == stop


def test_block_cache__of_other_symbols_changes_the_output() -> None:
    model = causal()
    z, t = data(), torch.full((5,), 0.5).double()
    answers = []
    for before in (z, (z + 1) % (K - 1)):
        cache = BlockCache()
        encode(model, before[:, :BLOCK], t, cache=cache)
        answers.append(encode(model, z[:, BLOCK : 2 * BLOCK], t, cache=cache.grown()))
    assert not torch.allclose(*answers, atol=1e-2)


def test_block_cache__can_be_filled_in_parts_or_at_once_and_has_rows() -> None:
    model = causal()
    z, t = data(), torch.full((5,), 0.5).double()
    parts = BlockCache()
    for start, stop in spans[:2]:
        encode(model, z[:, start:stop], t, cache=parts)
        parts = parts.grown()
    once = BlockCache()
    encode(model, z[:, : 2 * BLOCK], t, cache=once)
    once, rows = once.grown(), torch.tensor([3, 1])
    for layer in parts.layers:
        for part, whole in zip(parts.layers[layer], once.layers[layer], strict=True):
            torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)
            assert torch.equal(once.rows(rows).layers[layer][0], once.layers[layer][0][rows])


def test_block_mask__lets_a_padded_query_attend_to_padding() -> None:
    mask = block_mask(4, 2, 2, False, torch.tensor([[1, 1, 1, 0]]), torch.zeros(1))
    assert (mask[0, 0] == 0).tolist() == [[True, True, True, False], [False, False, False, True]]


def test_block_mask__separates_documents() -> None:
    mask = block_mask(4, 0, 2, False, torch.tensor([[1, 2, 2, 0]]), torch.zeros(1))
    seen = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert torch.equal((mask[0, 0] == 0).long(), seen)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": UniformPath(K)}, "MaskedPath"),
        ({"time_conditioning": True}, "time_conditioning=False"),
        ({"conv_kernel_size": 3}, "conv_kernel_size=0"),
        ({"block_size": 0}, "block_size=0"),
    ],
)
def test_config__block_sizes_that_do_not_fit_are_named(options: dict, message: str) -> None:
    small: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=message):
        GMConfig(**{"path": MaskedPath(K), "block_size": 4, **small, **options})


def test_generator__clean_needs_a_block_size() -> None:
    x, t = data(), torch.full((5,), 0.5).double()
    with pytest.raises(ValueError, match="block_size"):
        network("masked").generator(x, t, clean=x)


def test_block_attention__other_implementations_are_refused() -> None:
    model = causal()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="takes 'sdpa' or 'eager'"):
        logits(model, data(), torch.full((5,), 0.5).double())
