"""Logits processors: allowed tokens, banned sequences, temperatures; and guidance by a classifier."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    AllowedTokens,
    Blocks,
    ClassifierGuidance,
    EntropyBounded,
    MaskedPath,
    TauLeaping,
    simulate,
)
from gm_discrete.generation.processors import BannedSequences, TemperatureSchedule
from gm_discrete.samplers import Avoiding
from gm_discrete.samplers.banned import by_length, completing
from gm_discrete.samplers.banned import occurrences as found_by_length
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.networks import LENGTH, MASK, PATHS, K, every_sampler, network, rng, suits


def occurrences(x: Tensor, sequences: list[list[int]]) -> Tensor:
    return found_by_length(x, by_length(sequences))


every_path = pytest.mark.parametrize("name", PATHS)


def some_allowed() -> Tensor:
    allowed = torch.zeros(LENGTH, K, dtype=torch.bool)
    for column in range(LENGTH):
        allowed[column, [column % 9, (column + 4) % 9]] = True
    return allowed


# ---- allowed tokens


@every_path
@every_sampler
def test_allowed_tokens__no_other_is_sampled(name: str, sampler: str) -> None:
    if not suits(name, sampler):
        return
    model, allowed = network(name), some_allowed()
    if name == "mask is 3":
        allowed = torch.cat([allowed[:, :3], torch.zeros(LENGTH, 1, dtype=torch.bool), allowed[:, 3:-1]], 1)
    options: Any = {"batch_size": 20, "num_steps": 3, "sampler": sampler, "seed": 0}
    if sampler == "uniformization":  # which has many candidate events
        options |= {"batch_size": 1, "length": 4}
    x = model.generate(logits_processor=[AllowedTokens(allowed[: options.get("length")])], **options)
    columns = torch.arange(x.shape[1])
    assert allowed[columns, x].all()
    assert not allowed[columns, model.generate(**options)].all()


def test_allowed_tokens__by_sequence() -> None:
    model = network("masked")
    allowed = torch.zeros(2, LENGTH, K, dtype=torch.bool)
    allowed[0, :, 4] = allowed[1, :, 6] = True
    for options in ({}, {"blocks": Blocks(5)}):
        x = model.generate(batch_size=2, num_steps=4, logits_processor=[AllowedTokens(allowed)], **options)
        assert x.tolist() == [[4] * LENGTH, [6] * LENGTH]


def test_allowed_tokens__prompts_need_not_be_allowed() -> None:
    model = network("masked")
    allowed = torch.zeros(6, K, dtype=torch.bool)
    allowed[2:, 5] = True
    assert model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=4, logits_processor=[AllowedTokens(allowed)]
    ).tolist() == [[1, 2, 5, 5, 5, 5]]


def test_allowed_tokens__keep_their_proportions() -> None:
    scores = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    allowed = torch.tensor([[True, False, True]])
    found = AllowedTokens(allowed)(torch.zeros(1, 1, dtype=torch.long), scores, torch.zeros(1), torch.zeros(1).long())
    torch.testing.assert_close(found.softmax(1), torch.tensor([[2 / 7, 0, 5 / 7]]))


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (torch.ones(3, K, dtype=torch.bool), r"mask of shape \[3, 11\]"),
        (torch.ones(12, K), r"mask=torch.float32 \[12, 11\]"),
        (torch.zeros(12, K, dtype=torch.bool), "position 0 of sequence 0"),
    ],
)
def test_allowed_tokens__mask_is_checked(allowed: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network("masked").generate(logits_processor=[AllowedTokens(allowed)])


def test_allowed_tokens__mask_token_is_not_allowed() -> None:
    allowed = torch.zeros(12, K, dtype=torch.bool)
    allowed[:, K - 1] = True
    with pytest.raises(ValueError, match="position 0 of sequence 0"):
        network("masked").generate(logits_processor=[AllowedTokens(allowed)])


# ---- banned sequences


def test_completing__looks_to_both_sides() -> None:
    x = torch.tensor([[1, 2, 9, 4, 9]])
    at = torch.tensor([2])
    assert completing(x, at, torch.tensor([[1, 2, 3]]), 2).tolist() == [[True]]
    assert completing(x, at, torch.tensor([[2, 3, 4], [2, 3, 5]]), 1).tolist() == [[True, False]]
    assert completing(x, at, torch.tensor([[3]]), 0).tolist() == [[True]]
    last, first = torch.tensor([4]), torch.tensor([0])
    assert completing(x, last, torch.tensor([[3, 1]]), 0).tolist() == [[False]]  # there is nothing behind
    assert completing(x, first, torch.tensor([[1, 3]]), 1).tolist() == [[False]]


def test_occurrences__are_found_where_they_overlap() -> None:
    x = torch.tensor([[1, 2, 1, 2, 1, 3], [3, 3, 3, 1, 1, 1]])
    assert occurrences(x, [[1, 2, 1]]).tolist() == [[True] * 5 + [False], [False] * 6]
    assert occurrences(x, [[3, 3], [1, 1, 1, 1]]).tolist() == [[False] * 6, [True] * 3 + [False] * 3]
    assert not occurrences(x, [[1] * 7]).any()


BANNED = [[1, 2], [3], [4, 5, 4], [6, 6]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "mask is 3"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 1}, {"num_steps": 4}, {"sampler": "first_hitting"},
        {"sampler": EntropyBounded(entropy_bound=9.0)},
        {"sampler": TauLeaping(order="confidence"), "num_steps": 3}, {"sampler": "trapezoidal", "num_steps": 3},
        {"corrector": {"type": "remdm"}, "num_steps": 5}, {"corrector": {"type": "detailed_balance"}, "num_steps": 5},
        {"blocks": Blocks(5), "num_steps": 2},
    ],
    ids=str,
)  # fmt: skip
def test_bad_words_ids__never_occur(name: str, options: dict) -> None:
    model = network(name)
    banned = [[symbol + (symbol >= 3) for symbol in words] for words in BANNED] if name == "mask is 3" else BANNED
    x = model.generate(batch_size=200, length=30, bad_words_ids=banned, seed=0, **options)
    assert not occurrences(x, banned).any()
    assert (x != model.config.mask_token_id).all()
    assert occurrences(model.generate(batch_size=200, length=30, seed=0, **options), banned).any()


def test_bad_words_ids__do_not_occur_across_prompts_and_blocks() -> None:
    model = network("masked")
    prompts = torch.tensor([[9, 4, 5]] * 100)
    for options in ({}, {"blocks": Blocks(1)}, {"blocks": Blocks(4)}):
        x = model.generate(prompts, max_new_tokens=12, num_steps=2, bad_words_ids=BANNED, seed=0, **options)
        assert not occurrences(x, BANNED).any()
        assert (x[:, :3] == prompts).all()


def test_bad_words_ids__prompts_are_kept() -> None:
    model = network("masked")
    x = model.generate(torch.tensor([[1, 2, MASK]]), num_steps=1, bad_words_ids=[[1, 2]], seed=0)
    assert x[0, :2].tolist() == [1, 2]


def test_bad_words_ids__distribution_one_at_a_time_is_that_of_the_restricted_process() -> None:
    """Independent tokens, uniform over {0, 1, 2}, [0, 1] banned: enumerated over the two orders of two positions."""
    path = MaskedPath(4)

    class Even:
        def __init__(self) -> None:
            self.path = path

        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
            ban = BannedSequences([[0, 1]])

            def readout(head: str, where: Tensor | None = None) -> Tensor:
                assert where is not None
                rows = torch.zeros(len(where), 4, dtype=torch.float64)
                rows[:, 3] = -torch.inf
                return ban(x[where // 2], rows, t[where // 2], where)

            return path.marginal(readout, x, t, t_next)

    law = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        left_first = 1 / 3 * (0.0 if (a, b) == (0, 1) else 1 / 2 if a == 0 else 1 / 3)
        right_first = 1 / 3 * (0.0 if (a, b) == (0, 1) else 1 / 2 if b == 1 else 1 / 3)
        law[a, b] = (left_first + right_first) / 2
    assert law.sum() == pytest.approx(1)
    start = torch.full((20_000, 2), 3)
    x = simulate(Even(), start, [0, 1], rng(), "first_hitting")
    assert chi_square(torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9), law.flatten()) > LEAST_P
    # In one step the two are drawn together, and those that clash once more, one by one.
    x = simulate(Even(), start, [0, 1], rng(), Avoiding(TauLeaping(), [[0, 1]]))
    together = torch.full((9,), 1 / 9).double()
    together[1] = 0
    assert chi_square(torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9), together + law.flatten() / 9) > LEAST_P


# ---- temperatures


def test_temperature_schedule__is_linear_in_time() -> None:
    scores = torch.tensor([[1.0, 2.0]] * 3)
    time = torch.tensor([0.0, 0.25, 1.0]).double()
    found = TemperatureSchedule(0.5, 1.0)(torch.zeros(3, 1).long(), scores, time, torch.arange(3))
    torch.testing.assert_close(found, scores / torch.tensor([[0.5], [0.625], [1.0]]))


def test_temperature_schedule__of_equal_ends_is_a_temperature() -> None:
    model = network("masked")
    one, pair, plain = (
        model.generate(batch_size=4, num_steps=20, seed=0, temperature=value) for value in (0.4, (0.4, 0.4), None)
    )
    assert torch.equal(one, pair)
    assert not torch.equal(one, plain)


def test_temperature_schedule__hot_first_and_cold_last() -> None:
    """Hot first and cold last: what is revealed in the second half of the time is the likelier symbol, and not before."""
    model = network("masked", num_hidden_layers=1)
    model.backbone.layers[0].attention.output.weight.data.zero_()  # every position by itself
    found = model.generate(
        batch_size=400, num_steps=100, seed=0, temperature=(50.0, 0.01), return_dict_in_generate=True,
        output_trajectory=True,
    )  # fmt: skip
    t = torch.zeros(1).double()
    likeliest = model(input_ids=torch.full((1, LENGTH), MASK), time=t).logits[0, :, : K - 1].argmax(-1)
    states = found.trajectory.states
    first, last = states[20] != MASK, states[99] == MASK
    agree = states[-1] == likeliest
    assert agree[last].double().mean() > 0.6
    assert agree[first].double().mean() < 0.3


# ---- guidance


def test_classifier_guidance__classifier_sees_prompts_at_the_noise_of_the_time() -> None:
    model, seen = network("reversal"), []

    def watch(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.clone(), float(t[0])))
        return torch.zeros(len(x), dtype=torch.float64)

    prompt = torch.arange(8)[None].repeat(50, 1)
    model.generate(prompt, max_new_tokens=2, num_steps=2, guidance=ClassifierGuidance(watch), seed=0)
    first = next(x for x, t in seen if t == 0 and len(x) == 50)
    assert (first[:, :8] == prompt).double().mean() < 0.3
    last = [x for x, t in seen if t > 0.5 and len(x) == 50][-1]
    assert (last[:, :8] == prompt).double().mean() > 0.5


def test_classifier_guidance__ruling_out_everything_is_an_error() -> None:
    model = network("masked")
    impossible = ClassifierGuidance(lambda x, t: torch.full((len(x),), -torch.inf, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="rules out every"):
        model.generate(num_steps=2, guidance=impossible)
    steep = ClassifierGuidance(lambda x, t: -1000.0 * (x != MASK).sum(1).double())
    assert (model.generate(num_steps=4, guidance=steep) != MASK).all()


@pytest.mark.parametrize("method", ["exact", "taylor"])
@pytest.mark.parametrize("name", ["masked", "reversal"])
def test_classifier_guidance__pulls_towards_its_condition(name: str, method: str) -> None:
    model = network(name)

    def fives(x: Tensor, t: Tensor) -> Tensor:
        return 2.0 * (x[..., 5].sum(1) if x.is_floating_point() else (x == 5).sum(1).double())

    def share(**options: Any) -> float:
        return float((model.generate(batch_size=30, num_steps=12, seed=0, **options) == 5).double().mean())

    usual = share()
    assert share(guidance=ClassifierGuidance(fives, 1.0, method)) > usual + 0.1
    assert share(guidance=ClassifierGuidance(fives, 0.0, method)) == pytest.approx(usual, abs=0.12)


def test_logits_processors__need_not_take_a_position() -> None:
    model = network("masked")

    class Old:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.masked_fill(torch.arange(K) != 2, -torch.inf)

    assert (model.generate(num_steps=2, logits_processor=[Old()]) == 2).all()


def test_logits_processors__are_applied_to_the_guided_posterior_once() -> None:
    model, rows = network("masked", num_classes=3), []

    class Count:
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:
            rows.append(position.tolist())
            return scores

    model.generate(class_labels=[0, 1], guidance_scale=2.0, num_steps=1, seed=0, logits_processor=[Count()])
    assert rows == [list(range(2 * LENGTH))]
