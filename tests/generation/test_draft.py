"""Drafts that are revised in place: the distribution of the result, what stays, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Blocks,
    CosineSchedule,
    DetailedBalance,
    Draft,
    FinitePath,
    GMModel,
    MaskedPath,
    MixturePath,
    ReMDM,
    TauLeaping,
    UniformPath,
)
from tests.helpers import continuous, product_models
from tests.helpers.chains import EnumeratedChain, index_of
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.networks import DISCRETE, LENGTH, MASK, PAD, K, causal, data, network, rng, untrained

ALMOST = 1 - 1e-12


def exact(path: FinitePath) -> tuple[GMModel, EnumeratedChain]:
    """A model whose generator is the exact posterior's of a distribution over sequences of three symbols."""
    model, chain = untrained(path), EnumeratedChain(path, 3, 3)
    vars(model)["generator"] = lambda x, t, t_next=None, **_: chain.generator(x, t, t_next)
    return model, chain


EXACT = [
    pytest.param(MaskedPath(4), "first_hitting", id="masked"),
    pytest.param(MaskedPath(4, schedule=CosineSchedule()), "first_hitting", id="cosine"),
    pytest.param(UniformPath(3), "uniformization", id="uniform"),
]


@pytest.mark.parametrize(("path", "sampler"), EXACT)
@pytest.mark.parametrize("time", [0.0, 0.4])
def test_draft__of_one_text_is_revised_to_the_posterior_of_its_noised_states(
    path: FinitePath, sampler: str, time: float
) -> None:
    """Σ_x p_t(x|draft) p(z|x): at t = 0 the model distribution."""
    model, chain = exact(path)
    draft = 15
    found = model.generate(start_from=Draft(chain.data[draft].expand(5000, -1), time=time), sampler=sampler, seed=0)
    states = chain.states()
    forward = chain.likelihood(states, torch.full((len(states),), time, dtype=torch.float64))  # [X, Z]
    joint = forward * chain.weights
    backward = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
    expected = forward[:, draft] @ backward
    if time == 0:
        torch.testing.assert_close(expected, chain.weights)
    assert chi_square(torch.bincount(index_of(found, 3), minlength=27), expected) > LEAST_P


@pytest.mark.parametrize(("path", "sampler"), EXACT)
def test_draft__with_the_model_distribution_gives_samples_of_it(path: FinitePath, sampler: str) -> None:
    model, chain = exact(path)
    drafts = chain.data[torch.multinomial(chain.weights, 5000, replacement=True, generator=rng(5))]
    found = model.generate(start_from=Draft(drafts, time=0.6), sampler=sampler, seed=0)
    assert (found != drafts).any()
    assert chi_square(torch.bincount(index_of(found, 3), minlength=27), chain.weights) > LEAST_P


@pytest.mark.parametrize("name", ["masked", "reversal", "mixture", "metric"])
def test_draft__at_almost_one_comes_back(name: str) -> None:
    drafts = torch.randint(1, K - 1, (4, LENGTH), generator=rng(1))
    assert torch.equal(network(name).generate(start_from=Draft(drafts, ALMOST), seed=0), drafts)


def test_draft__later_times_keep_more_of_it() -> None:
    drafts, model = torch.randint(1, K - 1, (60, LENGTH), generator=rng(1)), network()
    kept = [
        float((model.generate(start_from=Draft(drafts, time), num_steps=8, seed=0) == drafts).float().mean())
        for time in (0.1, 0.5, 0.9)
    ]
    assert kept[0] + 0.2 < kept[1] < kept[2] - 0.2
    half = model.generate(start_from=drafts, num_steps=8, seed=0)
    assert float((half == drafts).float().mean()) == kept[1]


@pytest.mark.parametrize("sampler", [*DISCRETE, TauLeaping("margin", threshold=0.99)], ids=str)
def test_draft__masks_in_it_are_filled(sampler: Any) -> None:
    drafts = torch.randint(1, K - 1, (4, LENGTH), generator=rng(1))
    drafts[:, ::3] = MASK
    for time in (0.5, ALMOST, math.nextafter(1, 0)):
        found = network().generate(start_from=Draft(drafts, time), num_steps=8, sampler=sampler, seed=0)
        assert (found != MASK).all()
    assert torch.equal(found[drafts != MASK], drafts[drafts != MASK])


def test_draft__gaps_in_it_are_filled_without_masks_too() -> None:
    drafts = torch.randint(1, K - 1, (4, LENGTH), generator=rng(1))
    drafts[:, ::3] = MASK
    other = network("reversal").generate(start_from=Draft(drafts, 0.9), seed=0)
    assert (other != MASK).all()


# ---- with prompts, padding and other options


@pytest.mark.parametrize("name", ["masked", "reversal"])
def test_draft__fixed_tokens_of_prompts_stay_and_gaps_start_from_it(name: str) -> None:
    prompt, draft = data(rows=3, length=8), torch.randint(1, K - 1, (3, 8), generator=rng(4))
    prompt[:, 2:5] = MASK
    found = network(name).generate(prompt, start_from=Draft(draft, ALMOST), seed=0)
    assert torch.equal(found, torch.where(prompt == MASK, draft, prompt))
    found = network(name).generate(prompt, start_from=Draft(draft, 0.0), seed=0)
    assert torch.equal(found[prompt != MASK], prompt[prompt != MASK])


def test_draft__of_an_earlier_call_fits_the_same_arguments() -> None:
    """New tokens after prompts of different lengths; their number is that of the draft."""
    model, ids = network(), data(rows=3, length=6)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    given: Any = {"input_ids": ids, "attention_mask": mask, "seed": 1, "num_steps": 4, "pad_token_id": PAD}
    first = model.generate(max_new_tokens=5, **given)
    for options in ({"max_new_tokens": 5}, {}, {"max_length": 11}):
        assert torch.equal(model.generate(start_from=Draft(first, ALMOST), **given, **options), first)
    again = model.generate(start_from=first, **given)
    assert torch.equal(again[0, :6], ids[0])
    assert torch.equal(again[1, [0, 1, 2, 3, 9, 10]], first[1, [0, 1, 2, 3, 9, 10]])


@pytest.mark.parametrize("blocks", [None, Blocks(3)])
def test_draft__with_padding_keeps_the_padding_and_does_not_read_it(blocks: Blocks | None) -> None:
    model, draft = network(), torch.randint(1, K - 1, (2, 8), generator=rng(4))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    options: Any = {"attention_mask": mask, "num_steps": 4, "seed": 0, "temperature": 0, "blocks": blocks}
    found = model.generate(start_from=Draft(draft, 0.3), **options)
    assert torch.equal(found[1, 5:], draft[1, 5:])
    other = draft.clone()
    other[1, 5:] = 1
    assert torch.equal(model.generate(start_from=Draft(other, 0.3), **options)[:, :5], found[:, :5])


CALLS: dict[str, dict[str, Any]] = {
    "remdm": {"corrector": ReMDM(0.3)},
    "detailed balance": {"corrector": DetailedBalance()},
    "order": {"sampler": TauLeaping("confidence")},
    "threshold": {"sampler": TauLeaping("confidence", threshold=0.8)},
    "adaptive": {"sampler": "adaptive"},
    "blocks": {"blocks": Blocks(5)},
    "cache": {"blocks": Blocks(5, cache="dual")},
    "return sequences": {"num_return_sequences": 2},
}


@pytest.mark.parametrize("name", CALLS)
def test_draft__works_with(name: str) -> None:
    options = CALLS[name]
    drafts, model = torch.randint(1, K - 1, (3, LENGTH), generator=rng(1)), network()
    call: Any = {"start_from": Draft(drafts, 0.6), "num_steps": 10, "seed": 3, **options}
    found = model.generate(**call)
    repeated = drafts.repeat_interleave(options.get("num_return_sequences", 1), 0)
    share = float((found == repeated).float().mean())
    assert 0.35 < share < 1
    assert torch.equal(model.generate(**call), found)
    assert not torch.equal(model.generate(**call | {"seed": 4}), found)
    almost = model.generate(**call | {"start_from": Draft(drafts, ALMOST), "corrector": None})
    assert torch.equal(almost, repeated)


def test_draft__in_a_model_with_blocks() -> None:
    drafts, model = torch.randint(1, K - 1, (3, LENGTH), generator=rng(1)), causal()
    plain, cached = (
        model.generate(start_from=Draft(drafts, 0.5), num_steps=6, seed=0, use_cache=cache) for cache in (False, True)
    )
    assert torch.equal(plain, cached)
    assert 0.3 < float((plain == drafts).float().mean()) < 1


def test_draft__is_revised_by_the_rest_of_the_grid() -> None:
    options: Any = {"return_dict_in_generate": True, "output_trajectory": True, "seed": 0}
    drafts = torch.randint(1, K - 1, (2, LENGTH), generator=rng(1))
    model = network()
    found = model.generate(start_from=Draft(drafts, 0.55), num_steps=10, **options)
    assert found.trajectory.times.tolist() == pytest.approx([0.55, 0.6, 0.7, 0.8, 0.9, 1.0])
    first = found.trajectory.states[0]
    assert ((first == drafts) | (first == MASK)).all()
    assert (first == MASK).any()
    found = model.generate(start_from=Draft(drafts, 0.5), grid=[0, 0.5, 0.75, 1], **options)
    assert found.trajectory.times.tolist() == [0.5, 0.75, 1.0]


def test_draft__keeps_no_banned_words() -> None:
    model, drafts = network(), torch.tensor([[1, 2, 3, 1, 2, 5], [4, 4, 4, 4, 4, 2]])
    found = model.generate(start_from=Draft(drafts, 0.99), bad_words_ids=[[1, 2], [4]], num_steps=4, seed=0)
    pairs = found.unfold(1, 2, 1).reshape(-1, 2).tolist()
    assert [1, 2] not in pairs
    assert not (found == 4).any()
    assert (found[0, [2, 5]] == drafts[0, [2, 5]]).all()


# ---- numbers, images and several fields


def test_draft__of_numbers_and_images() -> None:
    model = continuous.network("flow")
    draft = torch.randn(3, 5, 2, generator=rng(1))
    near = model.generate(start_from=Draft(draft, 1 - 1e-6), num_steps=4, seed=0)
    torch.testing.assert_close(near, draft, rtol=0, atol=1e-3)
    far = model.generate(start_from=Draft(draft, 0.0), num_steps=4, seed=0)
    assert (far - draft).abs().max() > 0.5
    draft[0, 0] = math.nan
    gap = model.generate(start_from=Draft(draft, 0.999), num_steps=4, seed=0)
    assert gap.isfinite().all()
    images = torch.randint(4, (2, 3, 4, 6), generator=rng(1))
    assert torch.equal(continuous.network("masked").generate(start_from=Draft(images, ALMOST), seed=0), images)


def test_draft__of_some_fields() -> None:
    model = product_models.network("two lines")
    name = next(iter(model.state_fields))
    drafts = {name: product_models.data(model)[name]}
    found = model.generate(start_from=Draft(drafts, ALMOST), num_steps=3, seed=0)
    if drafts[name].is_floating_point():
        torch.testing.assert_close(found[name], drafts[name], rtol=0, atol=1e-3)
    else:
        assert torch.equal(found[name], drafts[name])


TOKENS = torch.ones(2, 6, dtype=torch.long)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(), {"start_from": Draft(TOKENS), "length": 5}, "length.*start_from has 6"),
        (network(), {"start_from": Draft(TOKENS), "batch_size": 3}, "batch.*start_from has 2"),
        (network(), {"start_from": TOKENS, "input_ids": TOKENS, "max_new_tokens": 2}, "start_from has 6 positions.* 8"),
        (network(), {"start_from": TOKENS[:, :2], "input_ids": TOKENS}, "start_from has 2 positions.* 6"),
        (network(), {"start_from": TOKENS + K}, "start_from holds ids outside"),
        (network(), {"start_from": "a text"}, "start_from holds 'a text'"),
        (network(), {"start_from": TOKENS.float()}, "start_from is torch.float32"),
        (network(), {"start_from": torch.ones(2, dtype=torch.long)[:, None, None]}, "start_from has shape"),
        (untrained(MixturePath(K, coupled=True)), {"start_from": TOKENS}, "start_from.*x_0"),
        (untrained(MixturePath(K, coupled=True)), {"start_from": TOKENS, "x_0": TOKENS}, "start_from cannot be .* x_0"),
        (product_models.network("two lines"), {"start_from": {"other": TOKENS}}, "start_from must be a dict by field"),
        (product_models.network("two lines"), {"start_from": TOKENS}, "start_from must be a dict by field"),
    ],
)
def test_draft__that_does_not_fit_is_refused(model: GMModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(num_steps=1, **options)


@pytest.mark.parametrize(
    ("time", "error"), [(1.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("half", TypeError)]
)
def test_draft__time_out_of_range_is_named(time: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"time={time!r}"):
        Draft(Tensor(TOKENS), time)
