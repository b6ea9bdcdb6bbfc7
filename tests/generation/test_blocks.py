"""Generation block by block: its distribution, the ends of sequences, observers, and a cache that changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from gm_discrete import AllowedTokens, Blocks, GMModel
from gm_discrete.nn.readout import Network
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.networks import BLOCK, LENGTH, MASK, PAD, K, causal, data, network

EOS = 7


def logits(model: GMModel, x: Tensor, t: Tensor) -> Tensor:
    return model(input_ids=x, time=t).logits


@pytest.mark.parametrize("sampler", ["tau_leaping", "first_hitting", "adaptive", "entropy_bounded"])
def test_blocks__cache_changes_no_sample(sampler: str) -> None:
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


def test_blocks__cache_changes_the_network_output_by_rounding_alone() -> None:
    """Logits at the same states with and without the cache, to 1e-5."""
    model = causal()
    seen: list[list[Tensor]] = []

    class Look:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            seen[-1].append(scores)
            return scores

    for cache in (None, "exact"):
        seen.append([])
        model.generate(
            data(rows=4, length=5), max_new_tokens=11, num_steps=3, blocks=Blocks(BLOCK, cache), seed=3,
            logits_processor=[Look()],
        )  # fmt: skip
    assert len(seen[0]) == len(seen[1]) > 5
    for plain, cached in zip(*seen, strict=True):
        torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)


def test_blocks__ended_rows_leave_the_cache() -> None:
    model, z = causal(), data(rows=40, length=4)
    options: Any = {"max_new_tokens": 16, "num_steps": 4, "seed": 0, "eos_token_id": EOS, "pad_token_id": PAD}
    plain, cached = (model.generate(z, use_cache=use_cache, **options) for use_cache in (False, True))
    assert torch.equal(plain, cached)
    ends = (plain[:, 4:] == EOS).any(1)
    assert ends.any()
    assert not ends.all()


# ---- which positions are filled, and what the network sees


def with_follows(model: GMModel, symbol_after: dict[int, int]) -> GMModel:
    """The model, with a logits processor `follows` that fixes the token after each of those on the left."""

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
def test_blocks__of_one_position_are_filled_from_left_to_right(block_size: int | None) -> None:
    model = with_follows(network("masked", block_size=block_size), {k: (k + 1) % 9 for k in range(9)})
    prompts = torch.tensor([[2, 5], [0, 8]])
    found = model.generate(prompts, max_new_tokens=5, blocks=Blocks(1), logits_processor=[model.follows], seed=0)
    assert found[:, 2:].tolist() == [[6, 7, 8, 0, 1], [0, 1, 2, 3, 4]]


def test_blocks__network_sees_earlier_blocks_and_masks_after() -> None:
    model = network("masked")
    seen: list[tuple[list[list[int]], list[int]]] = []

    class Look:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            seen.append((input_ids.tolist(), (position % input_ids.shape[1]).tolist()))
            return scores

    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=6, blocks=Blocks(3), num_steps=1, logits_processor=[Look()], seed=0
    )
    assert [columns for _, columns in seen] == [[2, 3, 4], [5, 6, 7]]
    assert seen[0][0][0] == [1, 2, *[MASK] * 6]
    assert seen[1][0][0] == [*end[0, :5].tolist(), *[MASK] * 3]


def test_blocks__block_causal_models_see_nothing_after() -> None:
    model, seen = causal(), []

    class Look:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            seen.append((input_ids.shape[1], sorted(set((position % input_ids.shape[1]).tolist()))))
            return scores

    model.generate(data(rows=2, length=6), max_new_tokens=6, num_steps=1, logits_processor=[Look()], seed=0)
    assert seen == [(8, [6, 7]), (12, [8, 9, 10, 11])]  # blocks start at multiples of their size, wherever prompts end


def test_blocks__are_the_default_of_block_causal_models() -> None:
    model = causal()
    one, two = (
        model.generate(length=8, seed=0, num_steps=8),
        model.generate(length=8, seed=0, num_steps=8, blocks=Blocks(BLOCK)),
    )
    assert torch.equal(one, two)


def test_blocks__distribution_is_that_of_the_chain_rule() -> None:
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


# ---- the end of a sequence


@pytest.mark.parametrize("block_size", [None, BLOCK])
def test_blocks__eos_ends_a_sequence_and_the_rest_is_padding(block_size: int | None) -> None:
    model = with_follows(network("masked", block_size=block_size), {1: 2, 2: 3, 3: EOS, 4: 5, 5: 6, 6: 1, EOS: 1})
    prompts, mask = torch.tensor([[4, 4], [2, PAD], [3, EOS]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    found = model.generate(
        prompts, attention_mask=mask, max_new_tokens=12, blocks=Blocks(1) if block_size is None else None, num_steps=64,
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


def test_blocks__ended_sequences_cost_no_more_calls() -> None:
    model = with_follows(network("masked"), {1: EOS, 2: 3, 3: 2})
    found = model.generate(
        torch.tensor([[1], [2]]), max_new_tokens=8, blocks=Blocks(1), num_steps=1, logits_processor=[model.follows],
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, seed=0,
    )  # fmt: skip
    assert found.sequences.tolist() == [[1, EOS, *[PAD] * 7], [2, 3, 2, 3, 2, 3, 2, 3, 2]]
    assert found.network_calls.tolist() == [1, 8]
    assert found.jumps.tolist() == [1, 8]


def test_blocks__other_sequences_keep_their_class_and_allowed_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ends at once; the class and the allowed symbols of the second are not those of the first."""
    model, seen = network("masked", num_classes=3), []
    hidden = Network.hidden

    def recorded(self: Network, x: Any, t: Any, mask: Any = None, labels: Any = None, *rest: Any) -> Tensor:
        seen.append(labels.tolist())
        return hidden(self, x, t, mask, labels, *rest)

    monkeypatch.setattr(Network, "hidden", recorded)
    allowed = torch.zeros(2, 6, K, dtype=torch.bool)
    allowed[0, :, EOS] = allowed[1, :, 6] = True
    found = model.generate(
        class_labels=[0, 2], length=6, blocks=Blocks(2), num_steps=1, logits_processor=[AllowedTokens(allowed)],
        eos_token_id=EOS, pad_token_id=PAD, seed=0,
    )  # fmt: skip
    assert found.tolist() == [[EOS, *[PAD] * 5], [6] * 6]
    assert seen == [[0, 2], [2], [2]]


def test_blocks__without_eos_every_position_is_filled() -> None:
    model = with_follows(network("masked"), {1: EOS, EOS: 1})
    options: Any = {"max_new_tokens": 4, "blocks": Blocks(1), "logits_processor": [model.follows], "seed": 0}
    assert model.generate(torch.tensor([[1]]), **options).tolist() == [[1, EOS, 1, EOS, 1]]
    several = model.generate(torch.tensor([[1]]), eos_token_id=[5, EOS], **options)
    assert several.tolist() == [[1, EOS]]


def test_blocks__unconditional_samples_have_their_own_length() -> None:
    model = network("masked")
    found = model.generate(batch_size=30, length=LENGTH, blocks=Blocks(3), num_steps=3, eos_token_id=EOS, pad_token_id=PAD,
                           seed=0, return_dict_in_generate=True)  # fmt: skip
    lengths = found.attention_mask.sum(1)
    assert len(lengths.unique()) > 3
    assert found.sequences.shape[1] == lengths.max()


def test_blocks__gaps_in_prompts_are_filled_and_eos_inside_ends_nothing() -> None:
    model = network("masked")
    prompt = torch.tensor([[1, MASK, 3, MASK, 5]])
    allowed = torch.zeros(8, K, dtype=torch.bool)
    allowed[:, EOS] = True
    found = model.generate(prompt, max_new_tokens=3, blocks=Blocks(2), eos_token_id=EOS, pad_token_id=PAD,
                           logits_processor=[AllowedTokens(allowed)], seed=0)  # fmt: skip
    assert found.tolist() == [[1, EOS, 3, EOS, 5, EOS]]


def test_blocks__prompts_padded_on_the_left_move_to_the_start() -> None:
    model = network("masked")
    left = model.generate(torch.tensor([[PAD, PAD, 4, 6]]), attention_mask=torch.tensor([[0, 0, 1, 1]]),
                          max_new_tokens=4, blocks=Blocks(2), seed=1)  # fmt: skip
    right = model.generate(torch.tensor([[4, 6]]), max_new_tokens=4, blocks=Blocks(2), seed=1)
    assert left[:, :6].tolist() == right.tolist()


# ---- observers


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


def test_blocks__streamers_get_block_after_block() -> None:
    model, streamer = network("masked"), Pieces()
    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=6, blocks=Blocks(3), num_steps=8, streamer=streamer, seed=0
    )
    row = end[0].tolist()
    assert streamer.puts == [row[:2], row[2:5], row[5:]]
    assert streamer.ended == 1
    assert all(len(draft) == 3 for draft in streamer.drafts)
    assert streamer.drafts[0] != row[2:5]


def test_blocks__criteria_see_the_whole_sequence_and_end_with_their_block() -> None:
    seen: list[list[int]] = []

    class Second(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
            seen.append(input_ids[0].tolist())
            return torch.tensor([input_ids.shape[1] == 8 and bool((input_ids[0, 5:] != MASK).any())])

    model = network("masked")
    end = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=9, blocks=Blocks(3), num_steps=30, seed=0,
        stopping_criteria=StoppingCriteriaList([Second()]),
    )  # fmt: skip
    assert [len(row) for row in seen[:2]] == [5, 5]
    assert (end[0, :8] != MASK).all()
    assert end.shape[1] == 8  # what was not begun is not returned


class FirstBlock(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
        return torch.tensor([bool((input_ids[0, 2:6] != MASK).all())])


def test_blocks__criteria_that_hold_at_the_end_of_a_block_end_with_it() -> None:
    found = network("masked").generate(
        torch.tensor([[3, 2]]), max_new_tokens=12, blocks=Blocks(4), num_steps=2, seed=0,
        stopping_criteria=StoppingCriteriaList([FirstBlock()]),
    )  # fmt: skip
    assert found.shape[1] == 6
    assert (found != MASK).all()


def test_blocks__criteria_ignore_ended_sequences() -> None:
    class FirstBlockOfTheFirst(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # pyright: ignore
            return torch.tensor([input_ids.shape[1] >= 4, False])

    model = with_follows(network("masked"), {1: EOS, 2: 3, 3: 2})
    options: Any = {"max_new_tokens": 8, "blocks": Blocks(1), "num_steps": 1, "seed": 0, "pad_token_id": PAD}
    options |= {
        "logits_processor": [model.follows],
        "stopping_criteria": StoppingCriteriaList([FirstBlockOfTheFirst()]),
    }
    found = model.generate(torch.tensor([[2], [1]]), eos_token_id=EOS, **options)
    assert found.tolist() == [[2, 3, 2, 3], [1, EOS, PAD, PAD]]
    assert model.generate(torch.tensor([[2], [1]]), **options).shape[1] == 9


def test_blocks__streamers_get_all_of_prompts_with_gaps() -> None:
    model, prompt = network("masked"), torch.tensor([[1, 2, 3, 4, 5, 6, MASK, 7, 8, 9, 1, MASK]])
    for block in (model, causal()):
        streamer = Pieces()
        end = block.generate(
            prompt, num_steps=2, streamer=streamer, seed=0, blocks=Blocks(2) if block is model else None
        )
        assert [symbol for part in streamer.puts for symbol in part] == end[0].tolist()


def test_blocks__errors_of_exact_samplers_add_up() -> None:
    model = network("masked")
    options: Any = {"length": 8, "seed": 0, "return_dict_in_generate": True}
    assert model.generate(sampler="first_hitting", blocks=Blocks(4), **options).error_bound.tolist() == [0.0]
    assert model.generate(num_steps=2, blocks=Blocks(4), **options).error_bound is None
    assert model.generate(num_steps=2, bad_words_ids=[[1, 2], [3, 4], [9, 9]], **options).error_bound is None


def test_blocks__empty_prompts_stay_empty() -> None:
    found = network("masked").generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=0, blocks=Blocks(4))
    assert found.shape == (2, 0)


def test_trajectory__goes_through_the_blocks() -> None:
    model = network("masked")
    found = model.generate(
        torch.tensor([[1, 2], [3, 4]]), max_new_tokens=6, blocks=Blocks(3), num_steps=4, seed=0,
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


def test_trajectory__ended_rows_have_no_entropy() -> None:
    model = with_follows(network("masked"), {1: EOS, 2: 3, 3: 2})
    found = model.generate(
        torch.tensor([[1], [2]]), max_new_tokens=4, blocks=Blocks(1), num_steps=1, logits_processor=[model.follows],
        eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, output_trajectory=True, seed=0,
    )  # fmt: skip
    assert found.trajectory.entropy.isnan().tolist() == [[False, False], [True, False], [True, False], [True, False]]
    assert found.trajectory.jumps.tolist() == [[1, 1], [0, 1], [0, 1], [0, 1]]
