"""`generate` of tokens: prompts are returned unchanged, mask tokens are filled, and samples follow the model."""

import logging
import math
from typing import Any

import pytest
import torch

from gm_discrete import (
    CosineSchedule,
    ExponentialSchedule,
    GMModel,
    LinearSchedule,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
)
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square
from tests.helpers.networks import (
    LENGTH,
    MASK,
    PAD,
    PATHS,
    K,
    constant,
    every_sampler,
    frequencies,
    network,
    rng,
    suits,
)
from tests.helpers.networks import untrained as network_of

every_path = pytest.mark.parametrize("name", PATHS)
ON_THE_GRID = ("tau_leaping", "euler", "trapezoidal")
SCHEDULES = [
    LinearSchedule(),
    PowerSchedule(0.5),
    PowerSchedule(3),
    CosineSchedule(),
    SquaredSineSchedule(),
    ExponentialSchedule(),
    ExponentialSchedule(5),
    ExponentialSchedule(20),
]


def mask_of(model: GMModel) -> int | None:
    return model.config.mask_token_id


# ---- without prompts


@every_path
@every_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_generate__leaves_no_mask(name: str, sampler: str, num_steps: int) -> None:
    model = network(name)
    if not suits(name, sampler):
        with pytest.raises(ValueError, match=r"^sampler="):
            model.generate(sampler=sampler)
        return
    if sampler not in ON_THE_GRID and num_steps > 1:
        pytest.skip("it chooses its own times")
    shape = (1, 3) if sampler == "uniformization" else (4, 9)  # which has many candidate events
    options = {"batch_size": shape[0], "length": shape[1], "num_steps": num_steps}
    sample = model.generate(**options, sampler=sampler, seed=1)
    assert sample.shape == shape
    assert sample.dtype == torch.long
    assert 0 <= int(sample.min()) <= int(sample.max()) < K
    if mask_of(model) is not None:
        assert not bool((sample == mask_of(model)).any())


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*ON_THE_GRID, "adaptive"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_generate__reaches_the_end_of_every_schedule(schedule: Any, sampler: str) -> None:
    """The grid ends at t = 1 exactly: one ulp before it, Euler would leave masks; after it, fail."""
    for num_steps in (1, 3, 20) if sampler in ON_THE_GRID else (1,):
        for path in (MaskedPath(K, schedule=schedule), UniformPath(K, schedule)):
            sample = network_of(path).generate(batch_size=10, length=20, num_steps=num_steps, sampler=sampler, seed=2)
            assert not isinstance(path, MaskedPath) or not bool((sample == MASK).any())


def test_generate__default_is_one_sequence_of_the_trained_length() -> None:
    assert network().generate(num_steps=2).shape == (1, LENGTH)
    assert network().generate(num_steps=2, length=5).shape == (1, 5)
    assert network().generate(num_steps=2, batch_size=3).shape == (3, LENGTH)


def test_generate__samples_follow_the_posterior() -> None:
    law = [0.5, 0.3, 0.15, 0.05]
    model = constant(law)
    assert chi_square(frequencies(model), torch.tensor([*law, 0.0])) > LEAST_P


@every_path
def test_generate__seeds_reproduce_and_differ(name: str) -> None:
    model = network(name)
    first, again, other = (model.generate(batch_size=3, num_steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_generate__without_seed_uses_the_global_generator() -> None:
    model, samples = network(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        samples.append(model.generate(batch_size=3, num_steps=5))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    torch.manual_seed(5)
    model.generate(seed=1, num_steps=2)
    assert torch.equal(model.generate(batch_size=3, num_steps=5), samples[0])  # a given seed leaves torch's own alone


# ---- from prompts


@every_path
@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("pad_token_id", [None, PAD])
def test_generate__new_tokens_follow_directly_after_each_prompt(
    name: str, pad_left: bool, pad_token_id: int | None
) -> None:
    model = network(name, pad_token_id=pad_token_id)
    prompts = [[1, 2, 4, 5, 6], [7, 8], [9]]
    width, new = 5, 3
    rows = [[0] * (width - len(p)) + p if pad_left else p + [0] * (width - len(p)) for p in prompts]
    mask = [
        [0] * (width - len(p)) + [1] * len(p) if pad_left else [1] * len(p) + [0] * (width - len(p)) for p in prompts
    ]
    ids, attention = torch.tensor(rows), torch.tensor(mask)
    before = ids.clone()
    out = model.generate(
        ids, attention_mask=attention, max_new_tokens=new, num_steps=5, seed=3, return_dict_in_generate=True
    )
    assert torch.equal(ids, before)
    assert out.sequences.shape == (3, width + new)
    for prompt, row, real in zip(prompts, out.sequences.tolist(), out.attention_mask.tolist(), strict=True):
        start = width - len(prompt) if pad_left else 0
        end = start + len(prompt) + new
        assert row[start : start + len(prompt)] == prompt
        assert real == [0] * start + [1] * (end - start) + [0] * (width + new - end)
        assert mask_of(model) not in row[start:end]
        assert set(row[:start] + row[end:]) <= {0}


@pytest.mark.parametrize("name", ["masked", "mask is 3"])
@pytest.mark.parametrize("conv_kernel_size", [0, 3])
def test_generate__padding_changes_nothing(name: str, conv_kernel_size: int) -> None:
    """With masks in the new places, top_k = 1 and one step, they are a function of the prompt, whatever pads it."""
    model = network(name, conv_kernel_size=conv_kernel_size)
    prompt = torch.tensor([[1, 2, 4]])
    options = {"max_new_tokens": 2, "num_steps": 1, "top_k": 1, "seed": 0}
    expected = model.generate(prompt, **options)[0, 3:]
    right = model.generate(torch.tensor([[1, 2, 4, 9, 9]]), attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), **options)
    left = model.generate(torch.tensor([[9, 9, 1, 2, 4]]), attention_mask=torch.tensor([[0, 0, 1, 1, 1]]), **options)
    assert torch.equal(right[0, 3:5], expected)
    assert torch.equal(left[0, 5:], expected)


@pytest.mark.parametrize("name", ["masked", "mask is 3", "reversal"])
@pytest.mark.parametrize("num_steps", [1, 20])
def test_generate__fills_only_masks(name: str, num_steps: int) -> None:
    model = network(name)
    mask = mask_of(model)
    ids = torch.randint(K, (6, LENGTH), generator=rng(4))
    gaps = torch.rand(ids.shape, generator=rng(5)) < 0.4
    ids = torch.where(gaps, mask, torch.where(ids == mask, (mask + 1) % K, ids))
    filled = model.generate(ids, num_steps=num_steps, seed=1)
    assert filled.shape == ids.shape
    assert torch.equal(filled[~gaps], ids[~gaps])
    assert not bool((filled == mask).any())
    assert not torch.equal(filled, model.generate(ids, num_steps=num_steps, seed=2))


def test_generate__fills_masks_inside_and_after_a_prompt() -> None:
    model = network()
    out = model.generate(torch.tensor([[1, MASK, 2]]), max_new_tokens=2, num_steps=4, seed=0)
    assert out.shape == (1, 5)
    assert (int(out[0, 0]), int(out[0, 2])) == (1, 2)
    assert MASK not in out.tolist()[0]


def test_generate__does_not_fill_masks_in_padding() -> None:
    model = network()
    ids, attention = torch.tensor([[1, MASK, MASK]]), torch.tensor([[1, 1, 0]])
    out = model.generate(ids, attention_mask=attention, num_steps=4, seed=0, return_dict_in_generate=True)
    assert int(out.sequences[0, 0]) == 1
    assert int(out.sequences[0, 1]) != MASK
    assert out.jumps.tolist() == [1]


def test_generate__prompt_without_gaps_needs_no_network() -> None:
    model, ids = network(), torch.tensor([[1, 2, 3]])
    out = model.generate(ids, return_dict_in_generate=True)
    assert torch.equal(out.sequences, ids)
    assert out.network_calls.tolist() == [0]


@every_path
def test_generate__empty_prompts(name: str) -> None:
    model = network(name)
    assert model.generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=4, num_steps=3, seed=0).shape == (2, 4)
    ids, attention = torch.tensor([[1, 2], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    options = {"attention_mask": attention, "max_new_tokens": 2, "num_steps": 3, "return_dict_in_generate": True}
    out = model.generate(ids, **options)
    assert out.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert out.sequences[0, :2].tolist() == [1, 2]
    assert mask_of(model) not in out.sequences[1, :2].tolist()


def test_generate__infilling_conditions_on_both_sides() -> None:
    """The token after a gap changes what fills it."""
    model = network()
    filled = [model.generate(torch.tensor([[5, MASK, last] * 20]), num_steps=1, seed=0)[0, 1::3] for last in (1, 7)]
    assert not torch.equal(*filled)


@pytest.mark.parametrize("name", ["masked", "mixture", "reversal", "prior"])
def test_generate__network_sees_prompts_at_the_noise_of_the_time(name: str) -> None:
    """As in training: clean for a masked model; else from p_t(·|prompt), which keeps a symbol with κ + (1 − κ) p0.

    Two steps, at κ = 0 and ½ (linear grid); 3000 tokens each, within 4.5 standard errors.
    """
    model, seen = network(name), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0][""][:, :10].clone()))
    prompt = (torch.arange(10) % 3).expand(300, 10)
    out = model.generate(prompt, max_new_tokens=6, num_steps=2, grid="linear", seed=1)
    assert torch.equal(out[:, :10], prompt)
    for kappa, shown in zip((0.0, 0.5), seen, strict=True):
        prior = model.path.prior_probs(shown.device)[prompt[0]].mean()
        expected = 1.0 if name == "masked" else kappa + (1 - kappa) * float(prior)
        kept = (shown == prompt[: len(shown)]).double().mean()
        assert abs(float(kept) - expected) <= SIGMAS * math.sqrt(expected * (1 - expected) / shown.numel())


@every_path
@every_sampler
def test_generate__every_sampler_keeps_prompts_and_fills_gaps(name: str, sampler: str) -> None:
    """Rows of different length, padded on the right, gaps inside, new positions after; the same seed, the same sample."""
    if not suits(name, sampler):
        return
    model, mask = network(name, mask_token_id=MASK if name != "mask is 3" else 3), 3 if name == "mask is 3" else MASK
    prompt = torch.tensor([[1, 2, mask, 4, 5], [6, mask, 7, PAD, PAD]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    options: dict = {"attention_mask": real, "max_new_tokens": 3, "num_steps": 4, "sampler": sampler, "seed": 1}
    out = model.generate(prompt, **options)
    assert out[0, [0, 1, 3, 4]].tolist() == [1, 2, 4, 5]
    assert out[1, [0, 2]].tolist() == [6, 7]
    assert not bool((out == mask).any())
    assert out[1, 6:].tolist() == [PAD, PAD]
    assert torch.equal(model.generate(prompt, **options), out)


# ---- sources, output, mode


def test_generate__coupled_path_starts_from_its_sources() -> None:
    """Certain that data is its symbol 7, or on the way there from the source."""
    path = MixturePath(K, coupled=True)
    model, source = network_of(path), torch.arange(K).expand(3, K) % 5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.heads.tokens.weight[7] = 0
    out = model.generate(x_0=source, num_steps=4, seed=0)
    assert out.shape == source.shape
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0][""].clone()))
    prompt = torch.tensor([[1, 2]]).expand(3, 2)
    filled = model.generate(prompt, max_new_tokens=K - 2, x_0=source, num_steps=4, seed=0)
    assert torch.equal(filled[:, :2], prompt)
    assert torch.equal(seen[0][:, 2:], source[: len(seen[0]), 2:])
    assert torch.equal(seen[0][:, :2], source[: len(seen[0]), :2])  # the prompt at the noise of t = 0: its source
    with pytest.raises(ValueError, match="x_0"):
        model.generate(batch_size=2)
    with pytest.raises(ValueError, match=r"length.* x_0 has 11, length has 3"):
        model.generate(x_0=source, length=3)
    with pytest.raises(ValueError, match="input_ids has 1, x_0 has 3"):
        model.generate(torch.tensor([[1, 2]]), x_0=source)
    for name in ("masked", "prior"):
        with pytest.raises(ValueError, match=r"x_0.*coupled"):
            network(name).generate(x_0=source)


def test_generate__output_counts_calls_and_jumps() -> None:
    model = network()
    out = model.generate(batch_size=3, num_steps=200, seed=1, return_dict_in_generate=True)
    assert out.sequences.shape == (3, LENGTH)
    assert out.jumps.tolist() == [LENGTH] * 3
    assert int(out.network_calls.max()) <= LENGTH
    assert bool(out.attention_mask.all())


def test_generate__runs_in_evaluation_mode() -> None:
    model = network(hidden_dropout=0.5)
    expected = model.generate(batch_size=3, num_steps=3, seed=1)
    assert not model.training
    assert torch.equal(model.train().generate(batch_size=3, num_steps=3, seed=1), expected)
    assert model.training


def test_generate__warns_of_lengths_beyond_training(caplog: pytest.LogCaptureFixture) -> None:
    logger: Any = logging.getLogger("transformers")
    type(logger).warning_once.cache_clear()  # of other tests in this process
    logger.propagate = True
    try:
        with caplog.at_level("WARNING"):
            network().generate(length=LENGTH + 1, num_steps=1)
    finally:
        logger.propagate = False
    assert f"{LENGTH + 1} positions; the model is made for max_position_embeddings={LENGTH}" in caplog.text


def test_generate__is_the_same_whoever_shares_the_batch() -> None:
    """With the argmax of the posterior and one step a sample is a function of its prompt alone."""
    model, prompts = network(), torch.randint(K - 1, (6, 4), generator=rng(3))
    options: dict[str, Any] = {"max_new_tokens": 5, "num_steps": 1, "top_k": 1, "seed": 0}
    together = model.generate(prompts, **options)
    assert torch.equal(together, torch.cat([model.generate(row[None], **options) for row in prompts]))


def test_generate__evaluates_nothing_without_the_class_unless_guided() -> None:
    model, rows = network(num_classes=2), []
    model.backbone.register_forward_pre_hook(lambda _, args: rows.append(None if args[3] is None else len(args[3])))
    model.generate(class_labels=[0, 1], num_steps=1, seed=0)
    assert rows == [2]
    rows.clear()
    model.generate(class_labels=[0, 1], guidance_scale=2.0, num_steps=1, seed=0)
    assert sorted(rows, key=str) == [2, None]
