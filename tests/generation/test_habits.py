"""What users of transformers' `generate` type first: most likely tokens, the total length, several samples for a prompt."""

from __future__ import annotations

import inspect
import math
from pathlib import Path as File
from typing import Any

import pytest
import torch

from gm_discrete import AllowedTokens, Blocks, GMGenerationConfig, GMModel, ReMDM, TauLeaping, UniformPath
from gm_discrete.generation.names import NEUTRAL, NOT_HERE
from gm_discrete.generation.processors import MostLikely, TemperatureSchedule
from tests.helpers import continuous, product_models
from tests.helpers.networks import MASK, PATHS, K, constant, network, untrained

PROMPT = torch.tensor([[1, 2, 4], [3, MASK, 5]])
every_path = pytest.mark.parametrize("name", ["masked", "reversal", "mixture", "metric"])


def test_generate__has_few_arguments_of_its_own() -> None:
    own = [one for one in inspect.signature(GMModel.generate).parameters.values() if one.kind is not one.VAR_KEYWORD]
    assert len(own) - 1 <= 22  # without self


# ---- most likely tokens


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0}, {"do_sample": False}], ids=str)
@pytest.mark.parametrize(
    "more", [{}, {"sampler": "first_hitting"}, {"sampler": TauLeaping("margin")}, {"corrector": ReMDM()},
             {"blocks": Blocks(3)}, {"top_k": 2}, {"top_p": 0.9}], ids=str,
)  # fmt: skip
def test_generate__most_likely_tokens_are_the_modes_of_the_posterior(options: Any, more: Any) -> None:
    model = constant([0.3, 0.36, 0.34])
    sample = model.generate(batch_size=3, length=8, num_steps=6, **options, **more)
    assert sample.unique().tolist() == [1]


@pytest.mark.parametrize("name", ["reversal", "mixture", "metric"])
def test_generate__most_likely_tokens_of_other_paths(name: str) -> None:
    """Where the head knows one symbol everywhere, a jump lands on it: nothing else is left at the end."""
    model = untrained(PATHS[name])
    hook = torch.zeros(K)
    hook[7] = 0.5
    model.heads["tokens"].register_forward_hook(lambda module, args, output: output + hook)
    drawn = model.generate(batch_size=4, length=20, num_steps=40, seed=0)
    likely = model.generate(batch_size=4, length=20, num_steps=40, seed=0, do_sample=False)
    assert float((drawn == 7).double().mean()) < 0.5
    assert likely.unique().tolist() == [7]


@every_path
def test_generate__without_sampling_a_call_repeats_itself(name: str) -> None:
    model = network(name)
    torch.manual_seed(1)
    first, second = (model.generate(PROMPT, max_new_tokens=6, num_steps=8, do_sample=False) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, model.generate(PROMPT, max_new_tokens=6, num_steps=8, temperature=0, seed=0))


def test_generate__most_likely_tokens_in_several_fields() -> None:
    model = product_models.network("two lines")
    one, two = (model.generate(num_steps=3, do_sample=False)["over"] for _ in range(2))
    assert torch.equal(one, two)


def test_most_likely__is_the_limit_of_low_temperatures() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.2], [-math.inf, 1.0, 1.0]])
    ids = torch.zeros(2, 1, dtype=torch.long)
    assert MostLikely()(ids, scores).softmax(1).tolist() == [[0, 1, 0], [0, 1, 0]]
    time, position = torch.tensor([0.5, 1.0]), torch.arange(2)
    rows = TemperatureSchedule(1.0, 0.0)(ids, scores, time, position)
    torch.testing.assert_close(rows[0], scores[0] / 0.5)
    assert rows[1].softmax(0).tolist() == [0, 1, 0]
    network().generate(num_steps=4, temperature=(1.0, 0.0))


# ---- lengths and numbers of samples


@every_path
def test_generate__max_length_counts_the_prompt(name: str) -> None:
    model = network(name)
    ids = torch.tensor([[1, 2, 4]])
    options: dict = {"num_steps": 4, "seed": 3}
    assert torch.equal(model.generate(ids, max_length=8, **options), model.generate(ids, max_new_tokens=5, **options))
    assert torch.equal(model.generate(max_length=8, **options), model.generate(length=8, **options))
    assert torch.equal(model.generate(ids, max_length=3, **options), ids)
    with pytest.raises(ValueError, match=r"max_length=2 .*3 positions"):
        model.generate(ids, max_length=2)
    with pytest.raises(ValueError, match="max_length=5 and max_new_tokens=2"):
        model.generate(ids, max_length=5, max_new_tokens=2)
    with pytest.raises(ValueError, match="max_length"):
        continuous.network("flow").generate(max_length=5)


def test_generate__a_length_of_the_call_replaces_that_of_the_config() -> None:
    model = network()
    for config, call, expected in (
        ({"max_length": 5}, {"max_new_tokens": 1}, 4), ({"max_new_tokens": 1}, {"max_length": 5}, 5),
    ):  # fmt: skip
        model.generation_config = GMGenerationConfig(num_steps=2, **config)
        assert model.generate(torch.tensor([[1, 2, 4]]), **call).shape == (1, expected)
    model.generation_config = GMGenerationConfig(num_steps=2, max_length=5)
    assert model.generate(length=7).shape == (1, 7)


def test_generate__several_samples_for_each_prompt_and_class() -> None:
    model = network("mixture", num_classes=2)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    options: dict = {"num_steps": 3, "seed": 0, "max_new_tokens": 2}
    found = model.generate(PROMPT, attention_mask=mask, class_labels=[0, 1], num_return_sequences=3, **options)
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = model.generate(PROMPT[rows], attention_mask=mask[rows], class_labels=rows // 1 % 2, **options)
    assert torch.equal(found, expected)
    assert model.generate(batch_size=2, num_return_sequences=3, num_steps=1).shape == (6, 12)
    assert model.generate(class_labels=[0, 1], num_return_sequences=2, num_steps=1).shape == (4, 12)


def test_generate__several_samples_with_observed_values_sources_and_allowed_tokens() -> None:
    allowed = torch.zeros(2, 3, K, dtype=torch.bool)
    allowed[0, :, 1] = allowed[1, :, 2] = True
    found = network().generate(
        batch_size=2, length=3, num_steps=2, num_return_sequences=2, logits_processor=[AllowedTokens(allowed)]
    )
    assert found[:, 0].tolist() == [1, 1, 2, 2]
    given = torch.tensor([[[1.0, math.nan]] * 5, [[2.0, math.nan]] * 5])
    flow = continuous.network("flow").generate(given=given, num_steps=2, num_return_sequences=2)
    assert flow[:, 0, 0].tolist() == [1, 1, 2, 2]
    source = torch.stack([torch.zeros(5, 2), torch.ones(5, 2)])
    model = continuous.network("flow")
    pair = model.generate(x_0=source, num_steps=2, num_return_sequences=2, seed=0)
    torch.testing.assert_close(pair[0], pair[1])
    assert not torch.allclose(pair[1], pair[2])


def test_generation_config__holds_the_options_of_transformers(tmp_path: File) -> None:
    model = network()
    model.generation_config = GMGenerationConfig(do_sample=False, max_length=5, num_return_sequences=2, num_steps=4)
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    prompt = torch.tensor([[1, 2, 4]])
    assert again.generation_config == model.generation_config
    expected = model.generate(prompt)
    assert expected.shape == (2, 5)
    assert torch.equal(again.generate(prompt), expected)
    assert again.generate(prompt, do_sample=True, seed=1).shape == (2, 5)
    again.generation_config = GMGenerationConfig(temperature=0.0, num_steps=4)
    assert torch.equal(again.generate(num_steps=4, seed=0), model.generate(length=12, seed=0, num_return_sequences=1))
    again.generate(do_sample=True, num_steps=1)


# ---- what does not exist here


@pytest.mark.parametrize(
    "name",
    ["num_beams", "stop_strings", "repetition_penalty", "min_new_tokens", "output_scores", "threshold", "alg_temp"],
)
def test_generate__options_that_only_transformers_has_name_their_counterpart(name: str) -> None:
    for call in (network().generate, GMGenerationConfig):
        with pytest.raises(TypeError) as error:
            call(**{name: 2})
        assert name in str(error.value)
        assert f"{name}: use {NOT_HERE[name]}" in str(error.value)


def test_generate__options_of_transformers_that_change_nothing_are_taken() -> None:
    model, neutral = network(), {**dict.fromkeys(NOT_HERE), **NEUTRAL}
    expected = model.generate(num_steps=2, seed=0)
    assert torch.equal(model.generate(num_steps=2, seed=0, **neutral), expected)
    assert GMGenerationConfig(num_steps=2, **neutral) == GMGenerationConfig(num_steps=2)
    with pytest.raises(TypeError, match="num_beams"):
        model.generate(num_steps=2, num_beams=4, min_length=0)


def test_most_likely__of_continuous_states_is_refused() -> None:
    for options in ({"do_sample": False}, {"temperature": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            continuous.network("flow").generate(**options)
    assert continuous.network("flow").generate(do_sample=True, num_steps=1).shape == (1, 5, 2)
    assert untrained(UniformPath(3)).generate(do_sample=True, num_steps=1).shape == (1, 12)
