"""`generate`: prompts stay, masks go, settings do what they say, and nothing unknown is swallowed."""

import logging
import math
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
    TextDiffusionStreamer,
    TextStreamer,
)

from gm_discrete import (
    BackwardNoise,
    CosineSchedule,
    DetailedBalance,
    EtaNoise,
    ExponentialSchedule,
    GMConfig,
    GMGenerationConfig,
    GMModel,
    LinearSchedule,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    ReMDM,
    SquaredSineSchedule,
    UniformPath,
    time_grid,
)
from gm_discrete.samplers import GRID_FREE, STEPS
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square
from tests.helpers.networks import LENGTH, MASK, PAD, PATHS, K, network, rng, suits

every_path = pytest.mark.parametrize("name", PATHS)
SAMPLERS = list(STEPS)
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


def constant(belief: list[float], path: Any = None, **kwargs: Any) -> GMModel:
    """A masked model that believes in the same law of the data symbols everywhere."""
    path = path or MaskedPath(len(belief) + 1)
    model = network_of(path, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.register_buffer("belief", torch.tensor([*belief, 0.0]).log(), persistent=False)
    model.heads.tokens.register_forward_hook(lambda _, args, output: output + model.belief)
    return model


def network_of(path: Any, **kwargs: Any) -> GMModel:
    config = GMConfig(
        path=path, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=LENGTH, **kwargs
    )
    return GMModel(config).eval()


def frequencies(model: GMModel, **options: Any) -> Tensor:
    sample = model.generate(batch_size=200, length=50, num_steps=4, seed=0, **options)
    return torch.bincount(sample.flatten(), minlength=model.config.vocab_size)


# ---- from nothing


@every_path
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_finished_output_holds_no_mask(name: str, sampler: str, num_steps: int) -> None:
    model = network(name)
    if not suits(name, sampler):
        with pytest.raises(ValueError, match="does not fit"):
            model.generate(sampler=sampler)
        return
    if sampler in GRID_FREE and num_steps > 1:
        pytest.skip("it has its own times")
    sample = model.generate(batch_size=4, length=9, num_steps=num_steps, sampler=sampler, seed=1)
    assert sample.shape == (4, 9)
    assert sample.dtype == torch.long
    assert 0 <= int(sample.min()) <= int(sample.max()) < K
    if mask_of(model) is not None:
        assert not bool((sample == mask_of(model)).any())


@pytest.mark.parametrize("sampler", [*(name for name in SAMPLERS if name not in GRID_FREE), "adaptive"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_is_generated_with_to_its_very_end(schedule: Any, sampler: str) -> None:
    """The grid ends at t = 1 exactly: one ulp before it, Euler would leave masks; behind it, fail."""
    for num_steps in (1, 3, 20):
        for path in (MaskedPath(K, schedule=schedule), UniformPath(K, schedule)):
            sample = network_of(path).generate(batch_size=30, length=20, num_steps=num_steps, sampler=sampler, seed=2)
            assert not isinstance(path, MaskedPath) or not bool((sample == MASK).any())


def test_defaults_are_one_sequence_of_the_trained_length() -> None:
    assert network().generate(num_steps=2).shape == (1, LENGTH)
    assert network().generate(num_steps=2, length=5).shape == (1, 5)
    assert network().generate(num_steps=2, batch_size=3).shape == (3, LENGTH)


def test_unconditional_samples_follow_the_belief() -> None:
    law = [0.5, 0.3, 0.15, 0.05]
    model = constant(law)
    assert chi_square(frequencies(model), torch.tensor([*law, 0.0])) > LEAST_P


@every_path
def test_seeds_reproduce_and_differ(name: str) -> None:
    model = network(name)
    first, again, other = (model.generate(batch_size=3, num_steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_torch_decides() -> None:
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
def test_prompts_of_different_length_come_back_with_new_tokens_right_behind(
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
def test_padding_does_not_change_what_is_generated(name: str, conv_kernel_size: int) -> None:
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
def test_only_the_masks_are_filled(name: str, num_steps: int) -> None:
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


def test_masks_in_a_prompt_and_behind_it_are_filled_together() -> None:
    model = network()
    out = model.generate(torch.tensor([[1, MASK, 2]]), max_new_tokens=2, num_steps=4, seed=0)
    assert out.shape == (1, 5)
    assert (int(out[0, 0]), int(out[0, 2])) == (1, 2)
    assert MASK not in out.tolist()[0]


def test_masks_under_the_padding_are_not_filled() -> None:
    model = network()
    ids, attention = torch.tensor([[1, MASK, MASK]]), torch.tensor([[1, 1, 0]])
    out = model.generate(ids, attention_mask=attention, num_steps=4, seed=0, return_dict_in_generate=True)
    assert int(out.sequences[0, 0]) == 1
    assert int(out.sequences[0, 1]) != MASK
    assert out.jumps.tolist() == [1]


def test_a_prompt_without_gaps_comes_back_for_nothing() -> None:
    model, ids = network(), torch.tensor([[1, 2, 3]])
    out = model.generate(ids, return_dict_in_generate=True)
    assert torch.equal(out.sequences, ids)
    assert out.network_calls.tolist() == [0]


@every_path
def test_empty_prompts_are_prompts(name: str) -> None:
    model = network(name)
    assert model.generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=4, num_steps=3, seed=0).shape == (2, 4)
    ids, attention = torch.tensor([[1, 2], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    options = {"attention_mask": attention, "max_new_tokens": 2, "num_steps": 3, "return_dict_in_generate": True}
    out = model.generate(ids, **options)
    assert out.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert out.sequences[0, :2].tolist() == [1, 2]
    assert mask_of(model) not in out.sequences[1, :2].tolist()


def test_infilling_reads_both_sides() -> None:
    """The token behind a gap moves what fills it."""
    model = network()
    filled = [model.generate(torch.tensor([[5, MASK, last] * 20]), num_steps=1, seed=0)[0, 1::3] for last in (1, 7)]
    assert not torch.equal(*filled)


@pytest.mark.parametrize("name", ["masked", "mixture", "reversal", "prior"])
def test_networks_see_prompts_at_the_noise_of_their_time(name: str) -> None:
    """As in training: clean for a masked model; else from p_t(·|prompt), which keeps a symbol with κ + (1 − κ) p0.

    Two steps, at κ = 0 and ½ (linear grid); 3000 tokens each, within 4.5 standard errors.
    """
    model, seen = network(name), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :10].clone()))
    prompt = (torch.arange(10) % 3).expand(300, 10)
    out = model.generate(prompt, max_new_tokens=6, num_steps=2, grid="linear", seed=1)
    assert torch.equal(out[:, :10], prompt)
    for kappa, shown in zip((0.0, 0.5), seen, strict=True):
        prior = model.path.prior_probs(shown.device)[prompt[0]].mean()
        expected = 1.0 if name == "masked" else kappa + (1 - kappa) * float(prior)
        kept = (shown == prompt[: len(shown)]).double().mean()
        assert abs(float(kept) - expected) <= SIGMAS * math.sqrt(expected * (1 - expected) / shown.numel())


# ---- settings


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if suits("masked", sampler)])
def test_top_k_1_takes_the_likeliest(sampler: str) -> None:
    assert frequencies(constant([0.3, 0.4, 0.3]), top_k=1, sampler=sampler).tolist() == [0, 10_000, 0, 0]


def test_temperature_sharpens_the_belief() -> None:
    """π^(1/T) normalised: at T = ½ squares, towards 0 the likeliest alone."""
    law = torch.tensor([0.3, 0.4, 0.25, 0.05])
    model = constant(law.tolist())
    assert chi_square(frequencies(model, temperature=0.5), torch.cat([law**2, torch.zeros(1)])) > LEAST_P
    assert frequencies(model, temperature=1e-4).tolist() == [0, 10_000, 0, 0, 0]
    assert torch.equal(frequencies(model, temperature=1.0), frequencies(model))


def test_top_k_and_top_p_truncate_the_belief() -> None:
    law = torch.tensor([0.3, 0.4, 0.25, 0.05])
    model = constant(law.tolist())
    assert chi_square(frequencies(model, top_k=2), torch.tensor([0.3, 0.4, 0.0, 0.0, 0.0])) > LEAST_P
    assert chi_square(frequencies(model, top_p=0.9), torch.tensor([0.3, 0.4, 0.25, 0.0, 0.0])) > LEAST_P
    assert torch.equal(frequencies(model, top_p=1.0), frequencies(model))
    assert torch.equal(frequencies(model, top_k=4), frequencies(model))


def test_nothing_is_truncated_by_default() -> None:
    """transformers' own defaults are top_k = 50 and max_length = 20."""
    config = network().generation_config
    assert type(config) is GMGenerationConfig
    assert (config.temperature, config.top_k, config.top_p, config.seed, config.length) == (None,) * 5
    assert (config.num_steps, config.sampler, config.max_new_tokens) == (128, "tau_leaping", 0)
    model = constant([1 / 60] * 60)
    assert chi_square(frequencies(model), torch.tensor([1.0] * 60 + [0.0])) > LEAST_P


class Forbid(LogitsProcessor):
    def __init__(self, *tokens: int) -> None:
        self.tokens, self.shapes = torch.tensor(tokens), []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(input_ids) == len(scores)
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape)))
        return scores.index_fill(1, self.tokens, -math.inf)


@every_path
def test_logits_processors_are_applied_before_the_warpers(name: str) -> None:
    model = network(name)
    free = [model.generate(batch_size=4, length=8, num_steps=6, seed=1, top_k=k) for k in (None, 1)]
    likeliest = int(free[1].flatten().mode().values)
    forbid = Forbid(likeliest)
    for top_k in (None, 1):  # with top_k first, top_k = 1 would leave nothing
        out = model.generate(
            batch_size=4, length=8, num_steps=6, seed=1, top_k=top_k, logits_processor=LogitsProcessorList([forbid])
        )
        if model.path.rates == "masked":
            assert likeliest not in out.flatten().tolist()
    assert forbid.shapes
    assert all(ids[1] == 8 and scores == (ids[0], K) for ids, scores in forbid.shapes)


def test_stopping_criteria_end_the_process_with_one_last_step() -> None:
    """Called with the unfinished sequences; the output is finished all the same."""
    model, seen = network(), []

    def half_full(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        seen.append(int((input_ids != MASK).sum()))
        return (input_ids != MASK).sum(1) >= LENGTH // 2

    out = model.generate(
        batch_size=2, num_steps=400, seed=1, return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([half_full]),
    )  # fmt: skip
    assert not bool((out.sequences == MASK).any())
    assert 10 < len(seen) < 390
    assert seen == sorted(seen)
    assert int(out.network_calls.max()) < LENGTH
    assert out.jumps.tolist() == [LENGTH, LENGTH]
    whole = model.generate(batch_size=2, num_steps=400, seed=1)
    never = model.generate(batch_size=2, num_steps=400, seed=1, stopping_criteria=StoppingCriteriaList([]))
    assert torch.equal(whole, never)


def test_transformers_own_criteria_work() -> None:
    out = network().generate(num_steps=50, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)]), seed=0)
    assert MASK not in out.flatten().tolist()


class Letters:
    """A tokenizer of eleven symbols, the mask the last."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join("abcdefghij_"[int(i)] for i in torch.as_tensor(ids).flatten())


class Recorder:
    def __init__(self) -> None:
        self.drafts: list[Tensor] = []
        self.final: list[Tensor] = []
        self.ended = 0

    def put_draft(self, value: Tensor, **_: Any) -> None:
        self.drafts.append(value.clone())

    def put(self, value: Tensor) -> None:
        self.final.append(value.clone())

    def end(self) -> None:
        self.ended += 1


@every_path
def test_streamers_get_every_new_draft_and_the_end(name: str) -> None:
    model, streamer = network(name), Recorder()
    prompt = torch.tensor([[1, 2, 4]])
    out = model.generate(prompt, max_new_tokens=6, num_steps=30, seed=1, streamer=streamer)
    assert streamer.ended == 1
    first, last = streamer.final
    assert torch.equal(first, prompt)
    assert torch.equal(torch.cat([first, last], 1), out)
    assert len(streamer.drafts) > 2
    for first, second in zip(streamer.drafts, streamer.drafts[1:], strict=False):
        assert not torch.equal(first, second)
    assert {draft.shape for draft in streamer.drafts} == {(1, 6)}
    assert torch.equal(model.generate(prompt, max_new_tokens=6, num_steps=30, seed=1), out)


def test_prompts_with_gaps_are_streamed_whole() -> None:
    streamer = Recorder()
    out = network().generate(torch.tensor([[1, MASK, 4]]), max_new_tokens=2, num_steps=9, seed=1, streamer=streamer)
    assert len(streamer.final) == 1
    assert torch.equal(streamer.final[0], out)
    assert {draft.shape for draft in streamer.drafts} == {(1, 5)}


def test_text_streamers_can_skip_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = torch.tensor([[1, 2, 4]])
    for skip in (False, True):
        streamer = TextStreamer(Letters(), skip_prompt=skip)
        out = network().generate(prompt, max_new_tokens=5, num_steps=4, seed=0, streamer=streamer)
        shown = capsys.readouterr().out.strip()
        assert shown == Letters().decode(out[:, 3:] if skip else out)


def test_streamers_without_drafts_get_the_end() -> None:
    class Plain:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def put(self, value: Tensor) -> None:
            self.calls.append("put")

        def end(self) -> None:
            self.calls.append("end")

    streamer = Plain()
    network().generate(num_steps=3, streamer=streamer)
    assert streamer.calls == ["put", "end"]


def test_the_diffusion_streamer_of_transformers_works(capsys: pytest.CaptureFixture[str]) -> None:
    out = network().generate(length=8, num_steps=8, seed=0, streamer=TextDiffusionStreamer(Letters()))
    shown = capsys.readouterr().out
    assert Letters().decode(out) in shown
    assert "_" in shown  # a draft


# ---- samplers, grids, correctors, sources


@every_path
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prompts_stay_and_gaps_are_filled_by_every_sampler(name: str, sampler: str) -> None:
    """Rows of different length, padded on the right, gaps inside, new positions behind; the same seed, the same sample."""
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


CORRECTORS = [DetailedBalance(2), BackwardNoise(0.5), EtaNoise(2.0), ReMDM()]


@pytest.mark.parametrize("name", ["masked", "mixture", "metric"])
@pytest.mark.parametrize("corrector", CORRECTORS, ids=lambda corrector: corrector.type_name)
def test_correctors_cost_calls_and_leave_prompts_alone(name: str, corrector: Any) -> None:
    model, prompt = network(name), torch.tensor([[1, 2, 4]]).expand(4, 3)
    options: dict = {"max_new_tokens": 5, "num_steps": 8, "seed": 1, "return_dict_in_generate": True}
    if (name == "metric" and not isinstance(corrector, DetailedBalance)) or (
        name == "mixture" and corrector == ReMDM()
    ):
        with pytest.raises(ValueError, match="use "):
            model.generate(prompt, corrector=corrector, **options)
        return
    plain, mended = model.generate(prompt, **options), model.generate(prompt, corrector=corrector, **options)
    assert torch.equal(mended.sequences[:, :3], prompt)
    assert name != "masked" or not bool((mended.sequences == MASK).any())
    assert int(mended.jumps.sum()) > int(plain.jumps.sum())
    again = model.generate(prompt, corrector=corrector.to_dict(), **options)
    assert torch.equal(again.sequences, mended.sequences)


@pytest.mark.parametrize("sampler", ["uniformization", "adaptive", "step_doubling"])
def test_correctors_act_at_the_grid_of_samplers_with_their_own_times(sampler: str) -> None:
    model, options = network("mixture"), {"batch_size": 4, "num_steps": 6, "seed": 1, "return_dict_in_generate": True}
    plain, mended = (model.generate(sampler=sampler, corrector=c, **options) for c in (None, DetailedBalance(3, 2.0)))
    assert bool((mended.network_calls >= 5 * 3).all())
    assert int(mended.jumps.sum()) > int(plain.jumps.sum())


def test_a_number_of_steps_goes_before_the_grid_of_the_config() -> None:
    model, times = network("mixture"), []
    model.generation_config = GMGenerationConfig(grid=[0, 0.5, 1])
    model.backbone.register_forward_pre_hook(lambda _, args: times.append(args[1][0].item()))
    model.generate(batch_size=8, num_steps=3, seed=0)
    assert times == pytest.approx([0, 5 / 9, 8 / 9])


def test_samplers_choose_their_own_times_unless_watched() -> None:
    model = network("mixture")
    steps = []
    model.backbone.register_forward_pre_hook(lambda _, args: steps.append(args[1][0].item()))
    options: dict = {"num_steps": 3, "seed": 1, "sampler": "adaptive", "max_expected_changes": 2.0}
    model.generate(**options)
    grid, own = set(time_grid(model.path, 3)[1:-1].tolist()), set(steps)
    assert not grid & own
    steps.clear()
    model.generate(**options, stopping_criteria=StoppingCriteriaList([lambda *_: torch.tensor([False])]))
    assert grid <= set(steps)


def test_grids_are_the_paths_own_or_those_of_the_user() -> None:
    seen = []
    for name, grid in (("masked", None), ("mixture", None), ("mixture", "linear"), ("mixture", [0, 0.1, 0.7, 1])):
        model, times = network(name), []
        model.backbone.register_forward_pre_hook(lambda _, args, times=times: times.append(args[1][0].item()))
        model.generate(batch_size=8, num_steps=3, grid=grid, seed=0)
        seen.append(times)
    expected = [[0, 1 / 3, 2 / 3], [0, 5 / 9, 8 / 9], [0, 1 / 3, 2 / 3], [0, 0.1, 0.7]]
    for times, those in zip(seen, expected, strict=True):
        assert times == pytest.approx(those)


def test_exact_samplers_report_their_error() -> None:
    options: dict = {"seed": 1, "return_dict_in_generate": True}
    assert network().generate(sampler="first_hitting", **options).error_bound.tolist() == [0]
    bound = network("reversal").generate(sampler="uniformization", tolerance=0.01, **options).error_bound
    assert 0.009 < float(bound) <= 0.01
    assert network().generate(**options).error_bound is None


def test_another_sampler_starts_without_the_options_of_the_config() -> None:
    model = network()
    model.generation_config = GMGenerationConfig(sampler="adaptive", max_expected_changes=2.0)
    model.generate(sampler="euler", num_steps=2)
    with pytest.raises(ValueError, match="max_expected_changes is an option of adaptive, not of 'euler'"):
        model.generate(sampler="euler", max_expected_changes=2.0)


def test_a_coupled_model_starts_from_its_sources() -> None:
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
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    prompt = torch.tensor([[1, 2]]).expand(3, 2)
    filled = model.generate(prompt, max_new_tokens=K - 2, x_0=source, num_steps=4, seed=0)
    assert torch.equal(filled[:, :2], prompt)
    assert torch.equal(seen[0][:, 2:], source[: len(seen[0]), 2:])
    assert torch.equal(seen[0][:, :2], source[: len(seen[0]), :2])  # the prompt at the noise of t = 0: its source
    with pytest.raises(ValueError, match="a coupled path needs x_0"):
        model.generate(batch_size=2)
    with pytest.raises(ValueError, match="batch_size and length are those of x_0"):
        model.generate(x_0=source, length=3)
    with pytest.raises(ValueError, match=r"of z's shape \(1, 2\); got shape \(3, 11\)"):
        model.generate(torch.tensor([[1, 2]]), x_0=source)
    with pytest.raises(ValueError, match="the path is not coupled"):
        network().generate(x_0=source)


def test_the_output_counts_calls_and_jumps() -> None:
    model = network()
    out = model.generate(batch_size=3, num_steps=200, seed=1, return_dict_in_generate=True)
    assert out.sequences.shape == (3, LENGTH)
    assert out.jumps.tolist() == [LENGTH] * 3
    assert int(out.network_calls.max()) <= LENGTH
    assert bool(out.attention_mask.all())


def test_models_generate_in_evaluation_mode_and_return_to_theirs() -> None:
    model = network(hidden_dropout=0.5)
    expected = model.generate(batch_size=3, num_steps=3, seed=1)
    assert not model.training
    assert torch.equal(model.train().generate(batch_size=3, num_steps=3, seed=1), expected)
    assert model.training


# ---- the generation config


def test_a_generation_config_replaces_that_of_the_model_and_arguments_go_first() -> None:
    model = network()
    config = GMGenerationConfig(num_steps=3, length=5, seed=1)
    assert torch.equal(model.generate(generation_config=config), model.generate(num_steps=3, length=5, seed=1))
    assert model.generate(generation_config=config, length=7).shape == (1, 7)
    assert (config.length, model.generation_config.num_steps) == (5, 128)  # neither is written to
    model.generation_config.length = 4
    assert model.generate(num_steps=2).shape == (1, 4)


def test_the_generation_config_travels_with_the_weights(tmp_path: File) -> None:
    model = network()
    model.generation_config = GMGenerationConfig(
        num_steps=9, sampler="adaptive", max_expected_changes=3.0, grid=[0, 0.5, 1], corrector=EtaNoise(0.5),
        temperature=0.7, top_k=3, top_p=0.9, seed=4,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    names = ("num_steps", "sampler", "temperature", "top_k", "top_p", "seed", "max_new_tokens", "grid", "corrector")
    names += ("max_expected_changes", "tolerance")
    assert type(again.generation_config) is GMGenerationConfig
    for name in names:
        assert getattr(again.generation_config, name) == getattr(model.generation_config, name)
    assert torch.equal(again.generate(batch_size=2), model.generate(batch_size=2))
    assert GMGenerationConfig.from_pretrained(tmp_path).num_steps == 9


def test_a_model_saved_without_generation_config_has_the_defaults(tmp_path: File) -> None:
    network().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert GMModel.from_pretrained(tmp_path).generation_config.num_steps == 128


# ---- errors


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="num_beams"):
        network().generate(num_beams=4)
    with pytest.raises(ValueError, match="GMGenerationConfig takes no argument num_beams"):
        GMGenerationConfig(num_beams=4)


def test_the_generation_config_of_other_models_is_refused_by_name() -> None:
    with pytest.raises((TypeError, ValueError), match="GMGenerationConfig"):
        network().generate(generation_config=GenerationConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be an integer ≥ 1"),
        ({"num_steps": 2.5}, "num_steps=2.5"),
        ({"num_steps": True}, "num_steps=True"),
        ({"sampler": "heun"}, "sampler='heun' does not fit MaskedPath"),
        ({"sampler": "magic"}, "sampler='magic' must be one of tau_leaping, euler, ancestral"),
        (
            {"grid": "cubic"},
            "grid='cubic' must be one of linear, quadratic, logarithmic, geometric, or increasing times",
        ),
        ({"grid": 5}, "grid=5 must be one of linear"),
        ({"x_0": [[1, 2]]}, r"x_0 must be a long tensor \[B, L\], got list"),
        ({"grid": [0.5, 1.0]}, r"grid=\[0.5, 1.0\] must be"),
        ({"grid": [0.0, 0.5, 0.5, 1.0]}, "grid="),
        ({"max_expected_changes": 0}, "max_expected_changes=0 must be positive"),
        ({"max_expected_changes": 1.0}, "max_expected_changes is an option of adaptive, not of 'tau_leaping'"),
        ({"tolerance": 0.1}, r"tolerance is an option of uniformization .*step_doubling.*, not of 'tau_leaping'"),
        ({"sampler": "uniformization", "tolerance": 1.5}, r"tolerance=1.5 must lie in \[1e-12, 1\)"),
        ({"corrector": {"type": "magic"}}, "type='magic' names no Corrector; known: backward_noise, detailed_balance"),
        ({"corrector": {"type": "remdm"}, "sampler": "euler"}, 'use it with the method "tau_leaping"'),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"temperature": -1.0}, "temperature=-1.0 must be positive"),
        ({"temperature": math.nan}, "temperature=nan must be positive"),
        ({"top_k": 0}, "top_k=0 must be an integer ≥ 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"length": 0}, "length=0 must be an integer ≥ 1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must be an integer ≥ 0"),
        ({"seed": -3}, "seed=-3 must be an integer ≥ 0"),
        ({"max_new_tokens": 4}, "max_new_tokens go with input_ids"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask and max_new_tokens go with input_ids"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -2}, "batch_size=-2"),
        ({"input_ids": torch.tensor([[1, 2]]), "batch_size": 2}, "batch_size and length are those of input_ids"),
        ({"input_ids": torch.tensor([[1, 2]]), "length": 2}, "batch_size and length are those of input_ids"),
        ({"input_ids": torch.tensor([[1, K]])}, "input_ids holds ids from 1 to 11; vocab_size=11"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids must be a long tensor \[B, L\]"),
        ({"input_ids": torch.tensor([[0.5]])}, r"input_ids must be a long tensor \[B, L\]"),
        (
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 3)},
            r"attention_mask has shape \(1, 3\); input_ids has \(1, 2\)",
        ),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network().generate(**options)


def test_what_is_no_tensor_is_named() -> None:
    for prompt in ("text", [[1, 2]]):
        with pytest.raises(TypeError, match=f"input_ids is a {type(prompt).__name__}; give a tensor"):
            network().generate(prompt)


def test_lengths_beyond_those_of_training_are_told(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        with caplog.at_level("WARNING"):
            network().generate(length=LENGTH + 1, num_steps=1)
    finally:
        logger.propagate = False
    assert f"{LENGTH + 1} positions; the model is made for max_position_embeddings={LENGTH}" in caplog.text
