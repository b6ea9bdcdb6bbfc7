"""Options of `generate` for tokens: truncation, processors, criteria, streamers, samplers, grids, correctors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
    TextDiffusionStreamer,
    TextStreamer,
)

from gm_discrete import Adaptive, DetailedBalance, GMGenerationConfig, ReMDM, TauLeaping, Uniformization, time_grid
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.networks import DISCRETE, LENGTH, MASK, PATHS, K, constant, frequencies, network, suits

every_path = pytest.mark.parametrize("name", PATHS)


@pytest.mark.parametrize("sampler", [sampler for sampler in DISCRETE if suits("masked", sampler)])
def test_generate__top_k_1_takes_the_likeliest(sampler: str) -> None:
    assert frequencies(constant([0.3, 0.4, 0.3]), top_k=1, sampler=sampler).tolist() == [0, 10_000, 0, 0]


def test_generate__temperature_sharpens_the_posterior() -> None:
    """π^(1/T) normalised: at T = ½ squares, towards 0 the likeliest alone."""
    law = torch.tensor([0.3, 0.4, 0.25, 0.05])
    model = constant(law.tolist())
    assert chi_square(frequencies(model, temperature=0.5), torch.cat([law**2, torch.zeros(1)])) > LEAST_P
    assert frequencies(model, temperature=1e-4).tolist() == [0, 10_000, 0, 0, 0]
    assert torch.equal(frequencies(model, temperature=1.0), frequencies(model))


def test_generate__top_k_and_top_p_truncate_the_posterior() -> None:
    law = torch.tensor([0.3, 0.4, 0.25, 0.05])
    model = constant(law.tolist())
    assert chi_square(frequencies(model, top_k=2), torch.tensor([0.3, 0.4, 0.0, 0.0, 0.0])) > LEAST_P
    assert chi_square(frequencies(model, top_p=0.9), torch.tensor([0.3, 0.4, 0.25, 0.0, 0.0])) > LEAST_P
    assert torch.equal(frequencies(model, top_p=1.0), frequencies(model))
    assert torch.equal(frequencies(model, top_k=4), frequencies(model))


def test_generate__nothing_is_truncated_by_default() -> None:
    """transformers' own defaults are top_k = 50 and max_length = 20."""
    config = network().generation_config
    assert type(config) is GMGenerationConfig
    assert (config.temperature, config.top_k, config.top_p, config.seed, config.length) == (None,) * 5
    assert (config.num_steps, config.sampler, config.max_new_tokens) == (128, TauLeaping(), 0)
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
def test_generate__logits_processors_come_before_the_warpers(name: str) -> None:
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


def test_generate__stopping_criteria_end_it_with_one_last_step() -> None:
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


def test_generate__stopping_criteria_of_transformers_work() -> None:
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
def test_generate__streamers_get_every_new_draft_and_the_end(name: str) -> None:
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


def test_generate__streamers_get_prompts_with_gaps_whole() -> None:
    streamer = Recorder()
    out = network().generate(torch.tensor([[1, MASK, 4]]), max_new_tokens=2, num_steps=9, seed=1, streamer=streamer)
    assert len(streamer.final) == 1
    assert torch.equal(streamer.final[0], out)
    assert {draft.shape for draft in streamer.drafts} == {(1, 5)}


def test_generate__text_streamers_can_skip_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = torch.tensor([[1, 2, 4]])
    for skip in (False, True):
        streamer = TextStreamer(Letters(), skip_prompt=skip)
        out = network().generate(prompt, max_new_tokens=5, num_steps=4, seed=0, streamer=streamer)
        shown = capsys.readouterr().out.strip()
        assert shown == Letters().decode(out[:, 3:] if skip else out)


def test_generate__streamers_without_drafts_get_the_end() -> None:
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


def test_generate__diffusion_streamer_of_transformers_works(capsys: pytest.CaptureFixture[str]) -> None:
    out = network().generate(length=8, num_steps=8, seed=0, streamer=TextDiffusionStreamer(Letters()))
    shown = capsys.readouterr().out
    assert Letters().decode(out) in shown
    assert "_" in shown  # a draft


# ---- samplers, grids, correctors


CORRECTORS = [DetailedBalance(2), ReMDM()]


@pytest.mark.parametrize("name", ["masked", "mixture", "metric"])
@pytest.mark.parametrize("corrector", CORRECTORS, ids=lambda corrector: corrector.type_name)
def test_generate__correctors_cost_calls_and_keep_prompts(name: str, corrector: Any) -> None:
    model, prompt = network(name), torch.tensor([[1, 2, 4]]).expand(4, 3)
    options: dict = {"max_new_tokens": 5, "num_steps": 8, "seed": 1, "return_dict_in_generate": True}
    if name != "masked" and corrector == ReMDM():
        with pytest.raises(ValueError, match=r"corrector=ReMDM\(eta=0.2\)"):
            model.generate(prompt, corrector=corrector, **options)
        return
    plain, mended = model.generate(prompt, **options), model.generate(prompt, corrector=corrector, **options)
    assert torch.equal(mended.sequences[:, :3], prompt)
    assert name != "masked" or not bool((mended.sequences == MASK).any())
    assert int(mended.jumps.sum()) > int(plain.jumps.sum())
    again = model.generate(prompt, corrector=corrector.to_dict(), **options)
    assert torch.equal(again.sequences, mended.sequences)


@pytest.mark.parametrize("sampler", ["uniformization", "adaptive"])
def test_generate__correctors_act_at_the_grid_of_samplers_with_their_own_times(sampler: str) -> None:
    model, options = network("mixture"), {"batch_size": 4, "num_steps": 6, "seed": 1, "return_dict_in_generate": True}
    plain, mended = (model.generate(sampler=sampler, corrector=c, **options) for c in (None, DetailedBalance(3, 2.0)))
    assert bool((mended.network_calls >= 5 * 3).all())
    assert int(mended.jumps.sum()) > int(plain.jumps.sum())


def test_generate__num_steps_replaces_the_grid_of_the_config() -> None:
    model, times = network("mixture"), []
    model.generation_config = GMGenerationConfig(grid=[0, 0.5, 1])
    model.backbone.register_forward_pre_hook(lambda _, args: times.append(args[1][0].item()))
    model.generate(batch_size=8, num_steps=3, seed=0)
    assert times == pytest.approx([0, 5 / 9, 8 / 9])


def test_generate__samplers_choose_their_own_times_unless_observed() -> None:
    model = network("mixture")
    steps = []
    model.backbone.register_forward_pre_hook(lambda _, args: steps.append(args[1][0].item()))
    options: dict = {"num_steps": 3, "seed": 1, "sampler": Adaptive(max_expected_changes=2.0)}
    model.generate(**options)
    grid, own = set(time_grid(model.path, 3)[1:-1].tolist()), set(steps)
    assert not grid & own
    steps.clear()
    model.generate(**options, stopping_criteria=StoppingCriteriaList([lambda *_: torch.tensor([False])]))
    assert grid <= set(steps)


def test_generate__grid_is_that_of_the_path_or_of_the_user() -> None:
    seen = []
    for name, grid in (("masked", None), ("mixture", None), ("mixture", "linear"), ("mixture", [0, 0.1, 0.7, 1])):
        model, times = network(name), []
        model.backbone.register_forward_pre_hook(lambda _, args, times=times: times.append(args[1][0].item()))
        model.generate(batch_size=8, num_steps=3, grid=grid, seed=0)
        seen.append(times)
    expected = [[0, 1 / 3, 2 / 3], [0, 5 / 9, 8 / 9], [0, 1 / 3, 2 / 3], [0, 0.1, 0.7]]
    for times, those in zip(seen, expected, strict=True):
        assert times == pytest.approx(those)


def test_generate__exact_samplers_report_their_error() -> None:
    options: dict = {"seed": 1, "return_dict_in_generate": True}
    assert network().generate(sampler="first_hitting", **options).error_bound.tolist() == [0]
    bound = network("reversal").generate(sampler=Uniformization(tolerance=0.01), **options).error_bound
    assert 0.009 < float(bound) <= 0.01
    assert network().generate(**options).error_bound is None


def test_generate__another_sampler_replaces_that_of_the_config_and_its_corrector() -> None:
    model = network()
    model.generation_config = GMGenerationConfig(corrector=ReMDM())
    with pytest.raises(ValueError, match=r"corrector=ReMDM.*sampler=Euler"):
        model.generate(sampler="euler", num_steps=2, corrector=ReMDM())
    plain = network().generate(sampler="euler", num_steps=2, seed=0)
    assert torch.equal(model.generate(sampler="euler", num_steps=2, seed=0), plain)


def test_generate__tau_leaping_replaces_an_order_of_the_config() -> None:
    model = network("masked")
    model.generation_config = GMGenerationConfig(sampler=TauLeaping("margin", 0.5), num_steps=4)
    ordered, random = model.generate(seed=0), model.generate(seed=0, sampler="tau_leaping")
    assert torch.equal(random, network("masked").generate(seed=0, num_steps=4))
    assert not torch.equal(ordered, random)
