"""Block-causal models, their cache, and generation block by block."""

import math
from typing import Any

import pytest
import torch
from laws import LEAST_P, SIGMAS, chi_square
from networks import LENGTH, MASK, PAD, K, data, network, noisy, rng
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from gm_discrete import (
    GMConfig,
    GMModel,
    MaskedPath,
    UniformPath,
    any_order_likelihood,
    conditional_loss,
    likelihood_bound,
)
from gm_discrete.models.blocks import BlockCache, block_mask

SIZE, EOS = 4, 7
spans = [(start, start + SIZE) for start in range(0, LENGTH, SIZE)]


def causal(**options: Any) -> GMModel:
    return network("masked", block_size=SIZE, **options)


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


def test_a_position_sees_its_block_and_those_before_it() -> None:
    model = causal()
    for position in range(LENGTH):
        assert seen_by(model, position) == list(range((position // SIZE + 1) * SIZE))
    assert seen_by(network("masked"), 0) == list(range(LENGTH))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_training_reads_every_block_behind_clean_ones(implementation: str) -> None:
    """One pass over noisy and clean sequences says of each block what a pass over (clean blocks, noisy block) says."""
    model = causal(attn_implementation=implementation)
    z = data()
    x, t = noisy(model, z)
    hidden = model.encode(x, t, clean=z)
    for start, stop in spans:
        alone = torch.cat([z[:, :start], x[:, start:stop]], 1)
        torch.testing.assert_close(hidden[:, start:stop], model.encode(alone, t)[:, start:], rtol=0, atol=1e-5)
    assert not torch.allclose(hidden[:, SIZE:], model.encode(x, t)[:, SIZE:], atol=1e-3)  # noisy blocks in front


def test_the_loss_is_that_of_the_blocks_behind_clean_ones() -> None:
    model = causal()
    z = data()
    x, t = noisy(model, z)
    loss = model(input_ids=x, time=t, labels=z).loss
    whole = torch.cat(
        [logits(model, torch.cat([z[:, :start], x[:, start:stop]], 1), t)[:, start:stop] for start, stop in spans], 1
    )
    nats = -whole.double().log_softmax(-1).gather(2, z[..., None])[..., 0] / (1 - t)[:, None]
    torch.testing.assert_close(loss.double(), torch.where(x == MASK, nats, 0.0).mean(), rtol=1e-5, atol=1e-6)


def test_padding_is_not_seen() -> None:
    model = causal()
    z, mask = data(), torch.ones(5, LENGTH, dtype=torch.long)
    mask[:, -3:] = 0
    x, t = noisy(model, z)
    x = torch.where(mask == 0, PAD, x)
    other, clean = torch.where(mask == 0, 5, x), torch.where(mask == 0, 6, z)
    first = model.encode(x, t, mask, clean=z)
    torch.testing.assert_close(first[:, :-3], model.encode(other, t, mask, clean=clean)[:, :-3])
    assert first.isfinite().all()
    assert model(input_ids=x, time=t, labels=torch.where(mask == 0, -100, z), attention_mask=mask).loss.isfinite()


def test_gradients_reach_every_parameter() -> None:
    model = causal()
    conditional_loss(model, data(), rng=rng()).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_the_bound_is_the_sum_of_the_bounds_of_the_blocks() -> None:
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


def test_the_exact_likelihood_is_the_product_over_the_blocks() -> None:
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
def test_cached_and_uncached_logits_agree(implementation: str, padded: bool) -> None:
    model = causal(num_hidden_layers=3, attn_implementation=implementation)
    z, t = data(), torch.full((5,), 0.5).double()
    mask = torch.ones_like(z)
    if padded:
        mask[0, 6:], mask[1, 9:] = 0, 0
    cache = BlockCache()
    for start, stop in spans:
        x, _ = noisy(model, z, 0.5)
        whole = torch.cat([z[:, :start], x[:, start:stop]], 1)
        expected = model.finish(model.encode(whole, t, mask[:, :stop])[:, start:], t)
        found = model.finish(model.encode(whole[:, start:], t, mask[:, :stop], cache=cache), t)
        real = mask[:, start:stop].bool()
        torch.testing.assert_close(
            model.heads["tokens"](found)[real], model.heads["tokens"](expected)[real], rtol=0, atol=1e-5
        )
        model.encode(z[:, start:stop], t, mask[:, :stop], cache=cache)
        cache = cache.grown()
        assert cache.length == stop


def test_a_cache_of_other_symbols_shows() -> None:
    model = causal()
    z, t = data(), torch.full((5,), 0.5).double()
    answers = []
    for before in (z, (z + 1) % (K - 1)):
        cache = BlockCache()
        model.encode(before[:, :SIZE], t, cache=cache)
        answers.append(model.encode(z[:, SIZE : 2 * SIZE], t, cache=cache.grown()))
    assert not torch.allclose(*answers, atol=1e-2)


def test_a_cache_can_be_filled_in_parts_or_at_once_and_has_rows() -> None:
    model = causal()
    z, t = data(), torch.full((5,), 0.5).double()
    parts = BlockCache()
    for start, stop in spans[:2]:
        model.encode(z[:, start:stop], t, cache=parts)
        parts = parts.grown()
    once = BlockCache()
    model.encode(z[:, : 2 * SIZE], t, cache=once)
    once, rows = once.grown(), torch.tensor([3, 1])
    for layer in parts.layers:
        for part, whole in zip(parts.layers[layer], once.layers[layer], strict=True):
            torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)
            assert torch.equal(once.rows(rows).layers[layer][0], once.layers[layer][0][rows])


def test_the_mask_of_a_query_that_sees_nothing_shows_it_itself() -> None:
    mask = block_mask(4, 2, 2, False, torch.tensor([[1, 1, 1, 0]]), torch.zeros(1))
    assert (mask[0, 0] == 0).tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("sampler", ["tau_leaping", "first_hitting", "adaptive", "entropy_bounded"])
def test_generation_with_and_without_cache_is_the_same(sampler: str) -> None:
    model = causal()
    prompts = data(rows=4, length=5)
    options: Any = {
        "max_new_tokens": 11,
        "num_steps": 6,
        "sampler": sampler,
        "seed": 3,
        "return_dict_in_generate": True,
    }
    plain, cached = (model.generate(prompts, use_cache=use_cache, **options) for use_cache in (False, True))
    assert torch.equal(plain.sequences, cached.sequences)
    assert torch.equal(plain.jumps, cached.jumps)
    # One more call for each block that is kept: the two that are full of the prompt or done, before the third and fourth.
    assert torch.equal(cached.network_calls, plain.network_calls + 3)
    assert not torch.equal(plain.sequences, model.generate(prompts, **options | {"seed": 4}).sequences)


def test_rows_that_have_ended_leave_the_cache() -> None:
    model, z = causal(), data(rows=40, length=4)
    options: Any = {"max_new_tokens": 16, "num_steps": 4, "seed": 0, "eos_token_id": EOS, "pad_token_id": PAD}
    plain, cached = (model.generate(z, use_cache=use_cache, **options) for use_cache in (False, True))
    assert torch.equal(plain, cached)
    ends = (plain[:, 4:] == EOS).any(1)
    assert ends.any()
    assert not ends.all()


# Generation


def told(model: GMModel, symbol_after: dict[int, int]) -> GMModel:
    """The model with a head that ignores the network: −∞ but for what follows the symbol on the left."""

    class Follows:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            column = position % input_ids.shape[1]
            left = input_ids.gather(1, (column - 1).clamp(min=0)[:, None]).squeeze(1)
            rows = torch.full_like(scores, -torch.inf)
            for symbol, next_ in symbol_after.items():
                rows[left == symbol, next_] = 0.0
            rows[(rows == -torch.inf).all(1)] = scores[(rows == -torch.inf).all(1)]
            return rows

    model.follows = Follows()  # pyright: ignore
    return model


@pytest.mark.parametrize("block_size", [None, 1])
def test_blocks_of_one_position_are_written_from_left_to_right(block_size: int | None) -> None:
    model = told(network("masked", block_size=block_size), {k: (k + 1) % 9 for k in range(9)})
    prompts = torch.tensor([[2, 5], [0, 8]])
    found = model.generate(prompts, max_new_tokens=5, block_length=1, logits_processor=[model.follows], seed=0)
    assert found[:, 2:].tolist() == [[6, 7, 8, 0, 1], [0, 1, 2, 3, 4]]


def test_a_block_sees_what_was_written_before_it_and_masks_behind() -> None:
    model = network("masked")
    seen: list[tuple[list[list[int]], list[int]]] = []

    class Look:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            seen.append((input_ids.tolist(), (position % input_ids.shape[1]).tolist()))
            return scores

    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=6, block_length=3, num_steps=1, logits_processor=[Look()], seed=0
    )
    assert [columns for _, columns in seen] == [[2, 3, 4], [5, 6, 7]]
    assert seen[0][0][0] == [1, 2, *[MASK] * 6]
    assert seen[1][0][0] == [*end[0, :5].tolist(), *[MASK] * 3]


def test_block_causal_models_see_nothing_behind() -> None:
    model, seen = causal(), []

    class Look:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            seen.append((input_ids.shape[1], sorted(set((position % input_ids.shape[1]).tolist()))))
            return scores

    model.generate(data(rows=2, length=6), max_new_tokens=6, num_steps=1, logits_processor=[Look()], seed=0)
    assert seen == [(8, [6, 7]), (12, [8, 9, 10, 11])]  # blocks start at multiples of their size, wherever prompts end


def test_block_causal_models_always_generate_in_blocks() -> None:
    model = causal()
    one, two = (
        model.generate(length=8, seed=0, num_steps=8),
        model.generate(length=8, seed=0, num_steps=8, block_length=SIZE),
    )
    assert torch.equal(one, two)


def test_blocks_have_the_law_of_the_chain_rule() -> None:
    """Two blocks of one position: p(x_1) p(x_2 | x_1), as the network states them."""
    model = network("masked", block_size=1)
    t = torch.full((1,), 0.5).double()
    empty = torch.tensor([[MASK, MASK]])
    first = logits(model, empty, t)[0, 0].double().softmax(-1)[: K - 1]
    pairs = torch.stack([torch.arange(K - 1), torch.full((K - 1,), MASK)], 1)
    second = logits(model, pairs, t.expand(K - 1))[:, 1].double().softmax(-1)[:, : K - 1]
    law = (first[:, None] * second).flatten()
    x = model.generate(batch_size=30_000, length=2, num_steps=1, seed=0)
    assert chi_square(torch.bincount(x[:, 0] * (K - 1) + x[:, 1], minlength=(K - 1) ** 2), law) > LEAST_P
    independent = (first[:, None] * (first[:, None] * second).sum(0)).flatten()
    assert chi_square(torch.bincount(x[:, 0] * (K - 1) + x[:, 1], minlength=(K - 1) ** 2), independent) < LEAST_P


# The end of a sequence


@pytest.mark.parametrize("block_size", [None, SIZE])
def test_sequences_end_with_eos_and_the_rest_is_padding(block_size: int | None) -> None:
    model = told(network("masked", block_size=block_size), {1: 2, 2: 3, 3: EOS, 4: 5, 5: 6, 6: 1, EOS: 1})
    prompts, mask = torch.tensor([[4, 4], [2, PAD], [3, EOS]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    found = model.generate(
        prompts, attention_mask=mask, max_new_tokens=12, block_length=1 if block_size is None else None, num_steps=64,
        sampler="first_hitting" if block_size is None else "tau_leaping", logits_processor=[model.follows], seed=0,
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True,
    )  # fmt: skip
    if block_size is None:  # 4 4 5 6 1 2 3 EOS, 2 3 EOS, and EOS 1 2 3 EOS: that of a prompt does not end anything
        assert found.sequences.tolist() == [
            [4, 4, 5, 6, 1, 2, 3, EOS],
            [2, 3, EOS, *[PAD] * 5],
            [3, EOS, 1, 2, 3, EOS, PAD, PAD],
        ]
        assert found.attention_mask.tolist() == [[1] * 8, [1] * 3 + [0] * 5, [1] * 6 + [0] * 2]
    for row, real, start in zip(found.sequences, found.attention_mask, (2, 1, 2), strict=True):
        ends = [i for i in range(start, len(row)) if row[i] == EOS and real[i]]
        length = int(real.sum())
        assert ends in ([], [length - 1])
        assert (row[length:] == PAD).all()
        assert (row[:length] != MASK).all()


def test_what_ends_early_costs_no_more_calls() -> None:
    model = told(network("masked"), {1: EOS, 2: 3, 3: 2})
    found = model.generate(
        torch.tensor([[1], [2]]), max_new_tokens=8, block_length=1, num_steps=1, logits_processor=[model.follows],
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, seed=0,
    )  # fmt: skip
    assert found.sequences.tolist() == [[1, EOS, *[PAD] * 7], [2, 3, 2, 3, 2, 3, 2, 3, 2]]
    assert found.network_calls.tolist() == [1, 8]
    assert found.jumps.tolist() == [1, 8]


def test_without_an_end_every_place_is_filled() -> None:
    model = told(network("masked"), {1: EOS, EOS: 1})
    options: Any = {"max_new_tokens": 4, "block_length": 1, "logits_processor": [model.follows], "seed": 0}
    assert model.generate(torch.tensor([[1]]), **options).tolist() == [[1, EOS, 1, EOS, 1]]
    several = model.generate(torch.tensor([[1]]), eos_token_id=[5, EOS], **options)
    assert several.tolist() == [[1, EOS]]


def test_unconditional_samples_in_blocks_have_their_own_length() -> None:
    model = network("masked")
    found = model.generate(batch_size=30, length=LENGTH, block_length=3, num_steps=3, eos_token_id=EOS, pad_token_id=PAD,
                           seed=0, return_dict_in_generate=True)  # fmt: skip
    lengths = found.attention_mask.sum(1)
    assert len(lengths.unique()) > 3
    assert found.sequences.shape[1] == lengths.max()


def test_gaps_in_prompts_are_filled_and_their_ends_end_nothing() -> None:
    model = network("masked")
    prompt = torch.tensor([[1, MASK, 3, MASK, 5]])
    allowed = torch.zeros(8, K, dtype=torch.bool)
    allowed[:, EOS] = True
    found = model.generate(prompt, max_new_tokens=3, block_length=2, eos_token_id=EOS, pad_token_id=PAD,
                           allowed_symbols=allowed, seed=0)  # fmt: skip
    assert found.tolist() == [[1, EOS, 3, EOS, 5, EOS]]


def test_prompts_padded_on_the_left_move_to_the_start() -> None:
    model = network("masked")
    left = model.generate(torch.tensor([[PAD, PAD, 4, 6]]), attention_mask=torch.tensor([[0, 0, 1, 1]]),
                          max_new_tokens=4, block_length=2, seed=1)  # fmt: skip
    right = model.generate(torch.tensor([[4, 6]]), max_new_tokens=4, block_length=2, seed=1)
    assert left[:, :6].tolist() == right.tolist()


# Who looks on


class Pieces:
    """A streamer that keeps everything."""

    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.drafts: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.puts.append(value[0].tolist())

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value[0].tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamers_get_block_after_block() -> None:
    model, streamer = network("masked"), Pieces()
    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=6, block_length=3, num_steps=8, streamer=streamer, seed=0
    )
    row = end[0].tolist()
    assert streamer.puts == [row[:2], row[2:5], row[5:]]
    assert streamer.ended == 1
    assert all(len(draft) == 3 for draft in streamer.drafts)
    assert streamer.drafts[0] != row[2:5]


def test_criteria_see_the_whole_text_and_end_with_their_block() -> None:
    seen: list[list[int]] = []

    class Second(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
            seen.append(input_ids[0].tolist())
            return torch.tensor([input_ids.shape[1] == 8 and bool((input_ids[0, 5:] != MASK).any())])

    model = network("masked")
    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=9, block_length=3, num_steps=30, seed=0,
        stopping_criteria=StoppingCriteriaList([Second()]),
    )  # fmt: skip
    assert [len(row) for row in seen[:2]] == [5, 5]
    assert (end[0, :8] != MASK).all()
    assert end.shape[1] == 8  # what was not begun is not returned


def test_criteria_that_hold_at_the_end_of_a_block_end_with_it() -> None:
    found = network("masked").generate(
        torch.tensor([[3, 2]]), max_new_tokens=12, block_length=4, num_steps=2, seed=0,
        stopping_criteria=StoppingCriteriaList([FirstBlock()]),
    )  # fmt: skip
    assert found.shape[1] == 6
    assert (found != MASK).all()


class FirstBlock(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
        return torch.tensor([bool((input_ids[0, 2:6] != MASK).all())])


def test_criteria_of_sequences_that_have_ended_count_no_more() -> None:
    class FirstBlockOfTheFirst(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
            return torch.tensor([input_ids.shape[1] >= 4, False])

    model = told(network("masked"), {1: EOS, 2: 3, 3: 2})
    options: Any = {"max_new_tokens": 8, "block_length": 1, "num_steps": 1, "seed": 0, "pad_token_id": PAD}
    options |= {
        "logits_processor": [model.follows],
        "stopping_criteria": StoppingCriteriaList([FirstBlockOfTheFirst()]),
    }
    found = model.generate(torch.tensor([[2], [1]]), eos_token_id=EOS, **options)
    assert found.tolist() == [[2, 3, 2, 3], [1, EOS, PAD, PAD]]
    assert model.generate(torch.tensor([[2], [1]]), **options).shape[1] == 9


def test_streamers_lose_nothing_of_prompts_with_gaps() -> None:
    model, prompt = network("masked"), torch.tensor([[1, 2, 3, 4, 5, 6, MASK, 7, 8, 9, 1, MASK]])
    for block in (model, causal()):
        streamer = Pieces()
        end = block.generate(prompt, num_steps=2, streamer=streamer, seed=0, block_length=2 if block is model else None)
        assert [symbol for part in streamer.puts for symbol in part] == end[0].tolist()


def test_errors_of_exact_samplers_add_up_over_blocks() -> None:
    model = network("masked")
    options: Any = {"length": 8, "seed": 0, "return_dict_in_generate": True}
    assert model.generate(sampler="first_hitting", block_length=4, **options).error_bound.tolist() == [0.0]
    assert model.generate(num_steps=2, block_length=4, **options).error_bound is None
    assert model.generate(num_steps=2, bad_words_ids=[[1, 2], [3, 4], [9, 9]], **options).error_bound is None


def test_an_empty_canvas_comes_back_empty() -> None:
    found = network("masked").generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=0, block_length=4)
    assert found.shape == (2, 0)


def test_attention_without_blocks_is_refused() -> None:
    model = causal()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="takes 'sdpa' or 'eager'"):
        logits(model, data(), torch.full((5,), 0.5).double())


def test_trajectories_go_through_the_blocks() -> None:
    model = network("masked")
    found = model.generate(
        torch.tensor([[1, 2], [3, 4]]), max_new_tokens=6, block_length=3, num_steps=4, seed=0,
        return_dict_in_generate=True, output_trajectory=True,
    )  # fmt: skip
    trajectory = found.trajectory
    assert trajectory.times.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert torch.equal(trajectory.states[-1], found.sequences)
    assert trajectory.states[0].tolist() == [[1, 2, *[MASK] * 6], [3, 4, *[MASK] * 6]]
    assert (trajectory.states[4][:, :5] != MASK).all()
    assert (trajectory.states[4][:, 5:] == MASK).all()
    assert torch.equal(trajectory.jumps.sum(0), found.jumps)
    assert trajectory.fixed[:, :2].all()
    assert not trajectory.fixed[:, 2:].any()


def test_trajectories_of_rows_that_have_ended_read_nothing_more() -> None:
    model = told(network("masked"), {1: EOS, 2: 3, 3: 2})
    found = model.generate(
        torch.tensor([[1], [2]]), max_new_tokens=4, block_length=1, num_steps=1, logits_processor=[model.follows],
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, output_trajectory=True, seed=0,
    )  # fmt: skip
    assert found.trajectory.entropy.isnan().tolist() == [[False, False], [True, False], [True, False], [True, False]]
    assert found.trajectory.jumps.tolist() == [[1, 1], [0, 1], [0, 1], [0, 1]]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": UniformPath(K)}, "MaskedPath"),
        ({"time_conditioning": True}, "time_conditioning=False"),
        ({"conv_kernel_size": 3}, "conv_kernel_size=0"),
        ({"block_size": 0}, "at least 1"),
    ],
)
def test_block_sizes_that_do_not_fit_are_named(options: dict, message: str) -> None:
    small: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=message):
        GMConfig(**{"path": MaskedPath(K), "block_size": 4, **small, **options})


def test_clean_sequences_are_of_block_causal_models() -> None:
    x, t = data(), torch.full((5,), 0.5).double()
    with pytest.raises(ValueError, match="block_size"):
        network("masked").generator(x, t, clean=x)
