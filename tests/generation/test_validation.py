"""The table of what fits what: each cell is tried with a small model; and errors that name the argument and the value."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from gm_discrete import (
    Adaptive,
    AllowedTokens,
    Blocks,
    ClassifierGuidance,
    DetailedBalance,
    DormandPrince,
    GMConfig,
    GMModel,
    MaskedPath,
    MixturePath,
    ProductPath,
    ReMDM,
    TauLeaping,
    UniformPath,
)
from gm_discrete.generation.request import logger
from gm_discrete.generation.validation import (
    BLOCKS,
    COLUMNS,
    IMAGES,
    NAMES,
    OPTIONS,
    ORDERED,
    PATHS,
    Option,
    column_of,
    markdown,
)
from gm_discrete.samplers import Sampler, samplers_for
from tests.helpers import continuous, product_models, string_models
from tests.helpers.networks import DISCRETE, K, causal, network, suits, untrained
from tests.helpers.networks import PATHS as NETWORKS

SLOW = {"sampler=uniformization", "sampler=dopri5", "uniformization", "dopri5"}
TOKEN_NETWORKS = {"masked": "masked", "reversal": "reversal", "mixture": "mixture", "kinetic": "metric"}


def certain(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), dtype=torch.float64)


def model_for(option: Option, path: str, images: bool) -> GMModel:
    """A model of the path that has whatever the option needs."""
    classes = {"num_classes": 2} if option.name in ("class_labels", "guidance_scale") else {}
    if path == "product":
        return product_models.network("two lines", **classes)
    if path == "strings":
        return string_models.network(**classes)
    if path == "continuous":
        return continuous.network("flow on images" if images else "flow", **classes)
    if images:
        kind = MaskedPath(3) if path == "masked" else UniformPath(3)
        return untrained(kind, image_shape=[1, 2, 2], **classes)
    if option.name == "x_0" and path == "mixture":
        return untrained(MixturePath(K, coupled=True))
    if option.name == "use_cache" and path == "masked":
        return causal(**classes)
    return network(TOKEN_NETWORKS[path], **classes)


def arguments(option: Option, path: str, images: bool) -> dict[str, Any]:
    """A value of the option, and the arguments that it needs where it fits."""
    fits = path in option.columns and (IMAGES in option.columns or not images)
    prompt = torch.ones(1, 4, dtype=torch.long)
    values: dict[str, Any] = {
        "input_ids": prompt, "max_new_tokens": 2, "length": 3, "max_length": 3, "do_sample": False, "temperature": 0.5,
        "top_k": 2, "top_p": 0.5,
        "attention_mask": {"over": torch.ones(1, 4)} if path == "product" else torch.ones(1, 4),
        "given": {"over": [[1, None, 2, 3]]} if path == "product" else torch.full((1, 5, 2), math.nan),
        "x_0": torch.zeros(1, 5, 2) if path == "continuous" else torch.zeros(1, 4, dtype=torch.long),
        "bad_words_ids": [[1, 2]], "logits_processor": [lambda ids, scores: scores],
        "stopping_criteria": [lambda ids, scores: torch.tensor([False])], "streamer": Silent(),
        "output_trajectory": True, "class_labels": [1], "guidance_scale": 2.0, "guidance": ClassifierGuidance(certain),
        "generators": {"size": {"flow": 1.0}} if path == "product" else {"flow": 1.0},
        "corrector=DetailedBalance": DetailedBalance(), "corrector=ReMDM": ReMDM(), "blocks": Blocks(2),
        "blocks=Blocks(cache='prefix' or 'dual')": Blocks(2, "dual"), "use_cache": True, "eos_token_id": 1,
        "pad_token_id": 1, "compile": True,
    }  # fmt: skip
    values["start_from"] = {"over": [[1, 2, 3, 2]]} if path == "product" else values["x_0"]
    if images and path == "continuous":
        values |= dict.fromkeys(("x_0", "start_from"), torch.zeros(1, 3, 4, 6))
        values["given"] = torch.full((1, 3, 4, 6), math.nan)
    if option.name.startswith("sampler="):
        short = {"length": 2} if path == "kinetic" else {}  # uniformization has many candidate events there
        return {"sampler": sampler_of(option.name.removeprefix("sampler=")), **short}
    found = {option.name.partition("=")[0]: values[option.name]}
    if option.name in ("max_new_tokens", "attention_mask") and path != "product" and fits:
        found["input_ids"] = prompt
    if path == "strings" and option.name == "sampler=uniformization":
        found["max_length"] = 3
    if option.name == "guidance_scale":
        found["class_labels"] = [1]
    if option.name == "output_trajectory":
        found["return_dict_in_generate"] = True
    if option.name == "eos_token_id" and fits:
        found["blocks"] = Blocks(2)
    return found


def sampler_of(column: str) -> Sampler:
    coarse = {ORDERED: TauLeaping("confidence"), "dopri5": DormandPrince(0.1), "adaptive": Adaptive(5.0, 0.5)}
    return coarse.get(column) or Sampler.of(column)


class Silent:
    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


def cells() -> list[Any]:
    """(option, path, column): each path column by itself, the others on every path that they can be tried on."""
    found = []
    for option in OPTIONS:
        found += [(option, path, path) for path in PATHS]
        found += [(option, path, IMAGES) for path in ("masked", "reversal", "continuous") if path in option.columns]
        found += [(option, "masked", BLOCKS)] if "masked" in option.columns else []
        for column in NAMES:
            paths = [path for path in PATHS if path in option.columns and path in SAMPLER_ROWS[column].columns]
            if not option.name.startswith("sampler=") and column != "dopri5":
                found += [(option, path, column) for path in paths[:1]]
    return [
        pytest.param(
            option, path, column, id=f"{option.name}-{path}-{column}",
            marks=pytest.mark.slow if {option.name, column} & SLOW else (),
        )
        for option, path, column in found
    ]  # fmt: skip


SAMPLER_ROWS = {name: next(option for option in OPTIONS if option.name == f"sampler={name}") for name in NAMES}


@pytest.mark.parametrize(("option", "path", "column"), cells())
def test_options__fit_where_the_table_says_so(
    option: Option, path: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ✓ runs, and every – is refused by an error that names the option.

    Layers are traced on every path, and nothing is translated to C++: tests/nn/test_compiled.py does that. They are the
    same for every sampler.
    """
    compile_layers = GMModel.compile_layers
    traced = partial(compile_layers, backend="eager") if column not in NAMES else nullcontext
    monkeypatch.setattr(GMModel, "compile_layers", lambda model: traced(model))
    images = column == IMAGES
    model, given = model_for(option, path, images), arguments(option, path, images)
    call = {"num_steps": 1, "seed": 0, **given}
    if column in NAMES and column != option.name.removeprefix("sampler="):
        call["sampler"] = sampler_of(column)
    if column == BLOCKS and "blocks" not in call and model.config.block_size is None:
        call["blocks"] = Blocks(2)
    if path in option.columns and column in option.columns:
        assert model.generate(**call) is not None
        return
    with pytest.raises(ValueError, match=rf"^{option.name.partition('=')[0]}"):
        model.generate(**call)


def test_options__every_cell_is_tried() -> None:
    """What the walk leaves out: dopri5, which is for flows, and cells that no path can reach."""
    tried = {(cell.values[0].name, cell.values[2]) for cell in cells()}
    for option in OPTIONS:
        for column in COLUMNS:
            reachable = column in PATHS or any(path in option.columns for path in ("masked", "continuous"))
            if column not in NAMES and reachable and (column != BLOCKS or "masked" in option.columns):
                assert (option.name, column) in tried


def test_validation__writes_the_table_as_markdown() -> None:
    """Which the program prints: tests/test_documentation.py starts it."""
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(OPTIONS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 4}
    assert next(line for line in lines if "guidance_scale" in line).startswith("| guidance_scale | ✓ |")


@pytest.mark.parametrize("name", NETWORKS)
def test_sampler_rows__are_the_samplers_that_fit_the_path(name: str) -> None:
    path = NETWORKS[name]
    fitting = {sampler for sampler in DISCRETE if suits(name, sampler)}
    assert set(samplers_for(path)) == fitting
    rows = {name for name, row in SAMPLER_ROWS.items() if column_of(path) in row.columns}
    assert rows - {ORDERED} == fitting
    assert (ORDERED in rows) == (path.rates == "masked")


# ---- errors name argument, value and what fits


@pytest.mark.parametrize("name", [name for name in NETWORKS if suits(name, "tau_leaping")])
@pytest.mark.parametrize("sampler", ["heun", "dopri5", "first_hitting", "entropy_bounded"])
def test_generate__samplers_of_other_states_are_refused_with_those_that_fit(name: str, sampler: str) -> None:
    if sampler in samplers_for(NETWORKS[name]):
        return
    with pytest.raises(ValueError, match=f"sampler=.*choose one of {', '.join(samplers_for(NETWORKS[name]))}"):
        network(name).generate(sampler=sampler)


@pytest.mark.parametrize("sampler", ["trapezoidal", "first_hitting", "uniformization", "entropy_bounded"])
def test_generate__discrete_samplers_are_refused_for_continuous_states(sampler: str) -> None:
    fitting = ", ".join(samplers_for(continuous.network("flow").path))
    with pytest.raises(ValueError, match=f"sampler=.*GaussianPath.*choose one of {fitting}"):
        continuous.network("flow").generate(sampler=sampler)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("name", ["reversal", "mixture", "prior", "metric"])
def test_generate__orders_are_refused_without_masks(name: str, order: str) -> None:
    with pytest.raises(ValueError, match=f"sampler=TauLeaping.order='{order}'"):
        network(name).generate(sampler=TauLeaping(order))
    network(name).generate(sampler=TauLeaping("random"), num_steps=1)


@pytest.mark.parametrize(
    ("name", "settings", "options", "found"),
    [
        ("masked", {"time_conditioning": True}, {"blocks": Blocks(4)}, r"blocks=Blocks\(length=4.*time_conditioning=False"),
        ("masked", {"block_size": 4}, {"blocks": Blocks(3)}, r"blocks=Blocks\(length=3.*block_size=4"),
        ("masked", {}, {"use_cache": True}, "use_cache=True needs block_size"),
        ("masked", {}, {"blocks": Blocks(4, cache="exact")}, "use_cache=True needs block_size"),
        ("masked", {"block_size": 4, "num_classes": 2},
         {"use_cache": True, "class_labels": [0], "guidance_scale": 2.0}, "use_cache=True.*guidance_scale"),
        ("masked", {}, {"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ("masked", {}, {"class_labels": [0]}, "class_labels.* needs num_classes"),
        ("mixture", {}, {"guidance": ClassifierGuidance(certain)}, "guidance.*Bayes' rule"),
        ("masked", {}, {"guidance": ClassifierGuidance(certain), "sampler": "adaptive"}, "guidance.*sampler=Adaptive"),
        ("masked", {}, {"guidance": ClassifierGuidance(certain), "blocks": Blocks(4)}, "guidance.*blocks=Blocks"),
        ("masked", {}, {"guidance": ClassifierGuidance(certain), "corrector": ReMDM()}, "guidance.*corrector"),
        ("masked", {}, {"sampler": TauLeaping("margin"), "corrector": ReMDM()}, "corrector=ReMDM.*order='margin'"),
        ("masked", {}, {"sampler": "entropy_bounded", "corrector": DetailedBalance()},
         "corrector=DetailedBalance.*EntropyBounded"),
        ("masked", {}, {"sampler": "euler", "corrector": ReMDM()}, "corrector=ReMDM.*sampler=Euler"),
        ("masked", {}, {"bad_words_ids": [[99]]}, r"bad_words_ids=\[\[99\]\].*vocab_size=11"),
        ("masked", {}, {"bad_words_ids": [[k] for k in range(10)]}, "bad_words_ids=.*leaves no token"),
        ("masked", {}, {"blocks": Blocks(4), "eos_token_id": 99}, "eos_token_id=99"),
        ("masked", {}, {"blocks": Blocks(4), "eos_token_id": "a"}, "eos_token_id='a'"),
        ("masked", {}, {"pad_token_id": 11}, "pad_token_id=11"),
        ("masked", {}, {"eos_token_id": 3}, "eos_token_id=3 needs blocks.*blocks"),
        ("reversal", {}, {"eos_token_id": 3}, "eos_token_id=3 cannot be used with UniformPath.*MaskedPath"),
        ("masked", {}, {"given": {}}, "given.*input_ids"),
        ("masked", {}, {"x_0": [[1, 2]]}, "x_0"),
        ("masked", {}, {"max_new_tokens": 4}, "max_new_tokens=4 needs input_ids"),
        ("masked", {}, {"attention_mask": torch.ones(1, 3)}, "attention_mask needs input_ids"),
        ("masked", {}, {"batch_size": 0}, "batch_size=0"),
        ("masked", {}, {"batch_size": -2}, "batch_size=-2"),
        ("masked", {}, {"input_ids": torch.tensor([[1, 2]]), "batch_size": 2}, "input_ids has 1, batch_size has 2"),
        ("masked", {}, {"input_ids": torch.tensor([[1, 2]]), "length": 2}, "length=2.*input_ids"),
        ("masked", {}, {"input_ids": torch.tensor([[1, K]])}, "input_ids.*11"),
        ("masked", {}, {"input_ids": torch.tensor([1, 2])}, "input_ids"),
        ("masked", {}, {"input_ids": torch.tensor([[0.5]])}, "input_ids"),
        ("masked", {}, {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 3)},
         r"attention_mask.*\(1, 3\).*\(1, 2\)"),
        ("masked", {}, {"length": {"a": 3}}, "length names a"),
    ],
)  # fmt: skip
def test_generate__arguments_that_do_not_fit_are_named(name: str, settings: dict, options: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        network(name, **settings).generate(**options)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("flow", {"input_ids": torch.zeros(1, 5).long()}, "input_ids.*continuous"),
        ("flow", {"attention_mask": torch.ones(1, 5)}, "attention_mask.*continuous"),
        ("flow", {"batch_size": 0}, "batch_size=0"),
        ("flow", {"x_0": torch.zeros(2, 5, 2), "batch_size": 3}, "x_0 has 2, batch_size has 3"),
        ("flow", {"x_0": torch.zeros(2, 5, 3)}, r"x_0 has shape \(2, 5, 3\); the model takes \[B, 5, 2\]"),
        ("flow", {"x_0": torch.zeros(2, 5)}, r"x_0 has shape \(2, 5\)"),
        ("flow", {"x_0": [1.0]}, r"x_0.*tensor.*\[1.0\]"),
        ("flow on images", {"x_0": torch.zeros(2, 3, 4, 4)}, r"x_0 has shape .*; the model takes \[B, 3, 4, 6\]"),
        ("flow on images", {"length": 5}, "length=5.*image_shape"),
        ("masked", {"length": 5}, "length=5.*image_shape"),
        ("flow", {"class_labels": [0]}, "class_labels.*num_classes"),
        ("flow", {"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ("flow", {"generators": {"jump": 1.0}}, "landing, rate"),
        ("flow", {"generators": {"flow": 0.5}}, "weights"),
        ("masked", {"generators": {"jump": 1.0}}, "generators.*discrete states only jump"),
        ("flow", {"temperature": 0.5}, "temperature=0.5.*continuous"),
        ("flow", {"top_k": 2}, "top_k=2.*continuous"),
        ("flow", {"top_p": 0.5}, "top_p=0.5.*continuous"),
        ("flow", {"max_new_tokens": 5}, "max_new_tokens=5.*continuous"),
        ("flow", {"eos_token_id": 4}, "eos_token_id=4.*continuous"),
        ("flow", {"pad_token_id": 4}, "pad_token_id=4.*continuous"),
    ],
)
def test_generate__arguments_that_do_not_fit_the_state_are_named(
    name: str, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        continuous.network(name).generate(**options)


def test_generate__prompts_that_are_no_tensors_are_named() -> None:
    for prompt in ("text", [[1, 2]]):
        with pytest.raises(TypeError, match=f"input_ids is a {type(prompt).__name__}"):
            network().generate(prompt)  # type: ignore[arg-type]


def test_generate__several_products_of_options_are_checked_before_anything_runs() -> None:
    def never(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise AssertionError("something ran")

    path = ProductPath(a=MaskedPath(3), b=MaskedPath(4))
    model = GMModel(GMConfig(path=path, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    for options in (
        {"guidance": ClassifierGuidance(never)},
        {"logits_processor": [AllowedTokens(torch.ones(3, 4, dtype=torch.bool))]},
        {"corrector": ReMDM()},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*product"):
            model.generate(length=3, **options)


def test_generate__warns_of_a_prompt_that_leaves_nothing_to_fill(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning_once.cache_clear()
    model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    prompt = torch.tensor([[0, 1, 2]])
    model.generate(prompt, max_new_tokens=1, num_steps=2)
    model.generate(torch.tensor([[0, 4, 2]]), num_steps=2)
    assert "nothing to fill" not in caplog.text
    assert model.generate(prompt, num_steps=2).tolist() == prompt.tolist()
    assert "nothing to fill: give max_new_tokens, or mask tokens" in caplog.text
