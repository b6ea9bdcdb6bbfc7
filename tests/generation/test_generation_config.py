"""`GMGenerationConfig`: what it stores, refuses and writes, and the files of version 0.1 that it loads."""

import json
import math
import re
from pathlib import Path as File
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from gm_discrete import (
    Adaptive,
    Blocks,
    DetailedBalance,
    DormandPrince,
    EntropyBounded,
    Euler,
    GMGenerationConfig,
    GMModel,
    Heun,
    ReMDM,
    TauLeaping,
    Uniformization,
)
from gm_discrete.generation.names import RENAMED
from tests.helpers import continuous
from tests.helpers.networks import causal, network


def test_generation_config__replaces_that_of_the_model_and_arguments_go_first() -> None:
    model = network()
    config = GMGenerationConfig(num_steps=3, length=5, seed=1)
    assert torch.equal(model.generate(generation_config=config), model.generate(num_steps=3, length=5, seed=1))
    assert model.generate(generation_config=config, length=7).shape == (1, 7)
    assert (config.length, model.generation_config.num_steps) == (5, 128)  # neither is written to
    model.generation_config.length = 4
    assert model.generate(num_steps=2).shape == (1, 4)


def test_generation_config__is_saved_and_loaded_with_the_model(tmp_path: File) -> None:
    model = network()
    model.generation_config = GMGenerationConfig(
        num_steps=9, sampler=Adaptive(max_expected_changes=3.0), grid=[0, 0.5, 1], corrector=DetailedBalance(2),
        temperature=0.7, top_k=3, top_p=0.9, seed=4,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    names = ("num_steps", "sampler", "temperature", "top_k", "top_p", "seed", "max_new_tokens", "grid", "corrector")
    names += ("blocks",)
    assert type(again.generation_config) is GMGenerationConfig
    for name in names:
        assert getattr(again.generation_config, name) == getattr(model.generation_config, name)
    assert torch.equal(again.generate(batch_size=2), model.generate(batch_size=2))
    assert GMGenerationConfig.from_pretrained(tmp_path).num_steps == 9


def test_generation_config__is_the_default_without_file(tmp_path: File) -> None:
    network().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert GMModel.from_pretrained(tmp_path).generation_config.num_steps == 128


@pytest.mark.parametrize("content", ["", '{"num_steps": ', "[]", "5"])
def test_generation_config__a_damaged_file_is_named(tmp_path: File, content: str) -> None:
    network().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{tmp_path}/generation_config\.json is damaged"):
        GMModel.from_pretrained(tmp_path)


def test_generation_config__saves_generators_and_guidance(tmp_path: Any) -> None:
    model = continuous.classy("jump")
    model.generation_config = GMGenerationConfig(
        num_steps=4, guidance_scale=2.0, generators={"flow": [1.0, 0.0], "jump": [0, 1]}
    )
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    assert again.generation_config.guidance_scale == 2.0
    sample = again.generate(class_labels=continuous.CLASSES, seed=1)
    assert torch.equal(model.generate(class_labels=continuous.CLASSES, seed=1), sample)
    plain = model.generate(class_labels=continuous.CLASSES, seed=1, generation_config=GMGenerationConfig(num_steps=4))
    assert not torch.equal(plain, sample)


def test_generation_config__of_other_models_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="GMGenerationConfig"):
        network().generate(generation_config=GenerationConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": Adaptive(max_expected_changes=3.0)},
        {"sampler": TauLeaping("margin", 0.5), "num_steps": 7},
        {"sampler": EntropyBounded(0.5), "blocks": Blocks(4)},
        {"sampler": DormandPrince(1e-4), "generators": {"flow": 1.0}},
        {"corrector": ReMDM(0.1), "grid": [0.0, 0.5, 1.0]},
        {"corrector": DetailedBalance(3, 0.2), "grid": "linear"},
        {"blocks": Blocks(8, cache="exact"), "eos_token_id": [3, 4], "temperature": [1.0, 0.5]},
        {"blocks": Blocks(2, "exact"), "use_cache": False},
        {"use_cache": False},
        {"length": {"pitch": 4}, "seed": 3, "bad_words_ids": [[1, 2], [3]]},
    ],
    ids=str,
)
def test_generation_config__round_trips_through_json(options: dict[str, Any], tmp_path: File) -> None:
    config = GMGenerationConfig(**options)
    config.save_pretrained(tmp_path)
    again = GMGenerationConfig.from_pretrained(tmp_path)
    assert again == config
    for name, value in options.items():
        assert getattr(again, name) == value
    assert GMGenerationConfig.from_dict(json.loads(config.to_json_string())) == config


def test_generation_config__names_are_short_for_samplers_with_defaults() -> None:
    assert GMGenerationConfig(sampler="adaptive").sampler == Adaptive()
    assert GMGenerationConfig(sampler={"type": "adaptive", "tolerance": 0.1}).sampler == Adaptive(tolerance=0.1)
    config = GMGenerationConfig.from_dict({"sampler": "heun"}, sampler="euler", blocks={"type": "blocks", "length": 3})
    assert (config.sampler, config.blocks) == (Euler(), Blocks(3))
    model = network()
    model.generation_config.sampler = "first_hitting"  # type: ignore[assignment]
    assert model.generate(return_dict_in_generate=True).error_bound.tolist() == [0.0]


def test_generation_config__use_cache_is_short_for_blocks_with_a_cache() -> None:
    for options, expected in (
        ({}, Blocks(4)),
        ({"use_cache": True}, Blocks(4, "exact")),
        ({"use_cache": False}, Blocks(4)),
        ({"blocks": Blocks(4, "exact")}, Blocks(4, "exact")),
        ({"blocks": Blocks(4, "exact"), "use_cache": False}, Blocks(4)),
    ):
        assert GMGenerationConfig(**options).blocks_for(4) == expected
    assert GMGenerationConfig().blocks_for(None) is None
    cached = GMGenerationConfig(use_cache=True)
    assert cached.updated({"blocks": Blocks(4)}).blocks_for(4) == Blocks(4)
    assert causal().generate(num_steps=1, generation_config=cached).shape == (1, 12)


def test_generation_config__attributes_of_the_user_are_no_options() -> None:
    config = GMGenerationConfig(num_steps=2)
    config.note = "mine"  # type: ignore[attr-defined]
    assert network().generate(generation_config=config).shape == (1, 12)


# ---- files of version 0.1, as it wrote them (transformers' own keys left out)

OLD = {"guidance": "normalized", "max_new_tokens": 0, "num_steps": 128, "output_trajectory": False,
       "return_dict_in_generate": False, "sampler": "tau_leaping", "use_cache": False}  # fmt: skip
KEPT = {
    "bad_words_ids": [[1, 2]],
    "grid": [0.0, 0.5, 1.0],
    "seed": 3,
    "temperature": [1.0, 0.5],
    "top_k": 5,
    "top_p": 0.9,
}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, {}),
        ({"sampler": "adaptive", "max_expected_changes": 2.0, "tolerance": 0.01}, {"sampler": Adaptive(2.0, 0.01)}),
        ({"block_length": 32, "eos_token_id": 3, "pad_token_id": 0},
         {"blocks": Blocks(32), "eos_token_id": 3, "pad_token_id": 0}),
        ({"block_length": 8, "use_cache": True}, {"blocks": Blocks(8), "use_cache": True}),
        ({"use_cache": True}, {"use_cache": True}),
        ({"num_steps": 16, "order": "confidence", "order_temperature": 0.5},
         {"num_steps": 16, "sampler": TauLeaping("confidence", 0.5)}),
        ({"order": "random", "sampler": "euler"}, {"sampler": Euler()}),
        ({"entropy_bound": 0.5, "order": "margin", "sampler": "entropy_bounded"},
         {"sampler": EntropyBounded(0.5, "margin")}),
        ({"sampler": "uniformization", "tolerance": 1e-4}, {"sampler": Uniformization(1e-4)}),
        ({"sampler": "dopri5", "tolerance": 1e-5, "generators": {"flow": 0.5, "jump": 0.5}},
         {"sampler": DormandPrince(1e-5), "generators": {"flow": 0.5, "jump": 0.5}}),
        ({"sampler": "ancestral"}, {"sampler": TauLeaping()}),
        ({"sampler": "heun"}, {"sampler": Heun()}),
        ({"corrector": {"strength": 0.5, "sweeps": 2, "type": "detailed_balance"}}, {"corrector": DetailedBalance(2, 0.5)}),
        ({"corrector": {"eta": 0.1, "type": "remdm"}}, {"corrector": ReMDM(0.1)}),
        ({"guidance_scale": 2.0}, {"guidance_scale": 2.0}),
        (KEPT, KEPT),
        # what does not exist any more is replaced by what comes closest
        ({"sampler": "step_doubling"}, {"sampler": Adaptive()}),
        ({"sampler": "step_doubling", "tolerance": 0.1}, {"sampler": Adaptive()}),
        ({"sampler": "stratified_hazard"}, {"sampler": TauLeaping()}),
        ({"corrector": {"b": 0.5, "type": "backward_noise"}}, {}),
        ({"corrector": {"eta": 0.5, "type": "eta_noise"}}, {}),
        ({"guidance": "raw", "guidance_scale": 2.0}, {"guidance_scale": 2.0}),
        ({"grid": "logarithmic"}, {"grid": "quadratic"}),
    ],
    ids=str,
)  # fmt: skip
def test_generation_config__loads_files_of_version_0_1(
    written: dict[str, Any], expected: dict[str, Any], tmp_path: File
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(OLD | written), encoding="utf-8")
    assert GMGenerationConfig.from_pretrained(tmp_path) == GMGenerationConfig(**expected)
    model = network()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(OLD | written), encoding="utf-8")
    assert GMModel.from_pretrained(tmp_path / "model").generation_config == GMGenerationConfig(**expected)


FOLDERS = sorted(folder for folder in (File(__file__).parents[1] / "data_0_1").iterdir() if folder.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_generation_config__of_a_model_of_version_0_1_generates(folder: File) -> None:
    model = GMModel.from_pretrained(folder)
    written = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert model.generation_config.num_steps == written["num_steps"]
    assert model.generation_config.sampler.type_name == written["sampler"]
    options: dict[str, Any] = {} if model.config.image_shape else {"length": 3}
    options |= {"class_labels": [0]} if model.config.num_classes else {}
    assert model.generate(seed=0, **options) is not None


# ---- errors


@pytest.mark.parametrize(("name", "cure"), RENAMED.items())
def test_generate__names_the_new_form_of_an_option_of_version_0_1(name: str, cure: str) -> None:
    for call in (network().generate, GMGenerationConfig):
        with pytest.raises(TypeError) as error:
            call(**{name: 1})  # type: ignore[operator]
        assert name in str(error.value)
        assert cure in str(error.value)


@pytest.mark.parametrize("guidance", ["raw", "normalized"])
def test_generate__guidance_takes_no_string(guidance: Any) -> None:
    with pytest.raises(TypeError, match=f"guidance='{guidance}'.*ClassifierGuidance"):
        network(num_classes=2).generate(class_labels=[0], guidance_scale=2.0, guidance=guidance)
    with pytest.raises(TypeError, match="guidance_scale"):
        GMGenerationConfig(guidance=guidance)


def test_generate__unknown_arguments_are_refused() -> None:
    for call in (network().generate, GMGenerationConfig):
        with pytest.raises(TypeError, match="num_beams"):
            call(num_beams=4)  # type: ignore[operator]


def test_generate__has_at_most_22_arguments() -> None:
    import inspect

    parameters = inspect.signature(GMModel.generate).parameters.values()
    assert sum(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters) - 1 <= 22  # without self


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 2.5}, "num_steps=2.5"),
        ({"num_steps": True}, "num_steps=True"),
        ({"sampler": "magic"}, "sampler='magic'.*tau_leaping"),
        ({"sampler": "step_doubling"}, "sampler='step_doubling'"),
        ({"sampler": "stratified_hazard"}, "sampler='stratified_hazard'"),
        ({"grid": "cubic"}, "grid='cubic'.*linear, quadratic"),
        ({"grid": "logarithmic"}, "grid='logarithmic'.*geometric"),
        ({"grid": 5}, "grid=5"),
        ({"grid": [0.5, 1.0]}, r"grid=\[0.5, 1.0\]"),
        ({"grid": [0.0, 0.5, 0.5, 1.0]}, "grid="),
        ({"corrector": {"type": "magic"}}, "corrector='magic'"),
        ({"blocks": {"type": "magic"}}, "blocks='magic'"),
        ({"do_sample": False, "temperature": 0.5}, "do_sample=False and temperature=0.5"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=True and temperature=0.0"),
        ({"do_sample": 0}, "do_sample=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 5, "length": 4}, "max_length=5 and length=4"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": (1.0, -0.5)}, r"temperature=\(1.0, -0.5\)"),
        ({"temperature": (1.0, 0.5, 0.2)}, r"temperature=\(1.0, 0.5, 0.2\)"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"top_p": "0.9"}, "top_p='0.9'"),
        ({"guidance_scale": "a"}, "guidance_scale='a'"),
        ({"eos_token_id": "x"}, "eos_token_id='x'"),
        ({"eos_token_id": [3, -1]}, r"eos_token_id=\[3, -1\]"),
        ({"pad_token_id": 0.5}, "pad_token_id=0.5"),
        ({"length": 0}, "length=0"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"seed": -3}, "seed=-3"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids=\[\[\]\]"),
        ({"bad_words_ids": [5, 6]}, r"bad_words_ids=\[5, 6\]"),
    ],
)
def test_generate__arguments_out_of_range_are_named(options: dict[str, Any], found: str) -> None:
    for call in (network().generate, GMGenerationConfig):
        with pytest.raises(ValueError, match=found):
            call(**options)  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": "3"}, {"batch_size": 2.5}, {"stopping_criteria": 3}, {"logits_processor": 3}, {"logits_processor": [3]}],
    ids=str,
)  # fmt: skip
def test_generate__arguments_of_the_call_are_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}={value!r}")):
        network().generate(**options)


def test_generation_config__dicts_are_checked() -> None:
    with pytest.raises(ValueError, match=r"corrector=.x."):
        GMGenerationConfig.from_dict({"corrector": "x"})


@pytest.mark.parametrize(
    "options",
    [
        {"corrector": 32}, {"blocks": 32}, {"sampler": 5}, {"use_cache": "yes"}, {"return_dict_in_generate": 3},
        {"generators": 3},
    ],
    ids=str,
)  # fmt: skip
def test_generate__objects_of_another_type_are_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    for call in (network().generate, GMGenerationConfig):
        with pytest.raises((TypeError, ValueError), match=f"{name}={value!r}"):
            call(**options)  # type: ignore[operator]


@pytest.mark.parametrize("options", [{"length": 0}, {"length": True}, {"length": 4, "cache": "both"}], ids=str)
def test_blocks__check_their_arguments(options: dict[str, Any]) -> None:
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Blocks(**options)


def test_blocks__are_the_only_type_that_from_dict_knows() -> None:
    assert Blocks.from_dict({"length": 2}) == GMGenerationConfig(blocks={"length": 2}).blocks == Blocks(2)
    with pytest.raises(ValueError, match="blocks='magic'"):
        Blocks.from_dict({"type": "magic", "length": 2})
    with pytest.raises(ValueError, match="lengths; give any of length, cache"):
        Blocks.from_dict({"lengths": 2})
