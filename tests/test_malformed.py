"""Malformed arguments of constructors and entry points: an error of the library, or a result that is right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_discrete import (
    Blocks,
    ClassifierGuidance,
    FieldTimeSampler,
    GaussianPath,
    GMConfig,
    GMGenerationConfig,
    GMModel,
    LogitNormalTimeSampler,
    MaskedPath,
    ProductPath,
    UniformPath,
    any_order_bound,
    any_order_likelihood,
    conditional_loss,
    field_likelihood,
    flow_likelihood,
    likelihood_bound,
    simulate,
)
from gm_discrete.configurable import Configurable, subclasses
from tests.helpers.malformed import TENSORS, VALUES, check_finite, check_works, is_ours

Call = Callable[..., Any]

NEEDED: dict[str, dict[str, Any]] = {
    "edits": {"vocab_size": 3},
    "masked": {"vocab_size": 4}, "uniform": {"vocab_size": 3}, "mixture": {"vocab_size": 2, "prior": [0.5, 0.5]},
    "metric": {"vocab_size": 2, "embeddings": [[0.0], [1.0]]}, "product": {"factors": {"a": MaskedPath(3)}},
    "blocks": {"length": 2}, "standard_scaler": {"mean": 0.0, "std": 1.0}, "categories": {"names": ["a", "b"]},
    "quantile_scaler": {"quantiles": [0.0, 1.0, 2.0]},
    "date_part": {"part": "year", "scaler": {"type": "standard_scaler", "mean": 0.0, "std": 1.0}},
}  # fmt: skip
"""By type: valid arguments of what has no default."""
CONSTRUCTORS: list[tuple[Call, dict[str, Any]]] = [
    *(
        (kind, NEEDED.get(kind.type_name, {}))
        for kind in [*subclasses(Configurable), Blocks]
        if vars(kind).get("type_name") and kind.__module__.startswith("gm_discrete.")
    ),
    (LogitNormalTimeSampler, {}), (FieldTimeSampler, {}), (GMGenerationConfig, {}),
    (ClassifierGuidance, {"log_prob": lambda x, t: x.sum(1)}),
]  # fmt: skip
ARGUMENTS = [
    (kind, needed, name)
    for kind, needed in CONSTRUCTORS
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and not name.startswith("_") and name != "transformers_version"
]


def construct(kind: Call, arguments: dict[str, Any]) -> None:
    try:
        made = kind(**arguments)
    except Exception as error:
        if not is_ours(error):
            raise AssertionError(f"{kind.__name__}({arguments}): {type(error).__name__}: {error}") from error
        return
    try:
        check_works(made)
    except Exception as error:
        raise AssertionError(f"accepted, but does not work: {kind.__name__}({arguments})") from error


@settings(max_examples=300)
@given(st.sampled_from(ARGUMENTS), st.sampled_from(VALUES))
def test_constructors__malformed_arguments_are_refused_or_work(
    case: tuple[Call, dict[str, Any], str], value: Any
) -> None:
    kind, needed, name = case
    construct(kind, {**needed, name: value})


@cache
def model(name: str) -> Any:
    torch.manual_seed(0)
    paths = {
        "masked": MaskedPath(5), "uniform": UniformPath(5), "vectors": GaussianPath(),
        "product": ProductPath(a=MaskedPath(4), b=GaussianPath(), independent_times=True),
    }  # fmt: skip
    size: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 3,
    }
    size |= {"fields": {"a": {"length": 3}, "b": {"length": 3}}} if name == "product" else {}
    return GMModel(GMConfig(path=paths[name], num_classes=2 if name == "masked" else 0, **size)).eval()


IDS, HALF, NUMBERS = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.full((2,), 0.5), torch.zeros(2, 3, 1)
FIELDS = {"a": IDS, "b": NUMBERS}
MASK = torch.ones(2, 3, dtype=torch.long)


def entry_points() -> list[tuple[str, Call, dict[str, Any]]]:
    """(name, function, valid arguments), of which any may be replaced."""
    masked, uniform, vectors, product = (model(name) for name in ("masked", "uniform", "vectors", "product"))
    labels = torch.tensor([0, 1])
    tokens = {"attention_mask": MASK, "class_labels": labels}
    return [
        ("forward", masked, {"input_ids": IDS, "time": HALF, "labels": IDS, **tokens}),
        ("forward", uniform, {"input_ids": IDS, "time": HALF, "labels": IDS, "attention_mask": MASK}),
        ("forward", vectors, {"input_values": NUMBERS, "time": HALF, "labels": NUMBERS}),
        ("forward", product, {"fields": FIELDS, "time": HALF, "labels": FIELDS}),
        ("rates", uniform.rates, {"x": IDS, "t": HALF, "attention_mask": MASK}),
        ("generator", masked.generator, {"x": IDS, "t": HALF, "t_next": HALF + 0.1, "guidance_scale": 1.5, **tokens}),
        ("generator", vectors.generator, {"x": NUMBERS, "t": HALF, "t_next": HALF + 0.1}),
        ("simulate", simulate, {"process": masked, "x_0": IDS, "times": [0.0, 0.5, 1.0], "fixed": MASK == 0, "save_at": [0],
                                "sampler": "tau_leaping", "corrector": None, "guidance_scale": 1.5, **tokens}),
        ("simulate", simulate, {"process": vectors, "x_0": NUMBERS, "times": [0.0, 0.5, 1.0], "class_labels": None}),
        ("simulate", simulate, {"process": product, "x_0": FIELDS, "times": [0.0, 0.5, 1.0]}),
        ("likelihood_bound", likelihood_bound, {"model": masked, "z": IDS, "num_samples": 2, "scored": MASK == 1, **tokens}),
        ("likelihood_bound", likelihood_bound, {"model": uniform, "z": IDS, "num_samples": 2, "batch_size": 2,
                                                "class_labels": None, "x_0": None, "estimator": "auto"}),
        ("any_order_likelihood", any_order_likelihood, {"model": masked, "z": IDS, "max_scored": 3, **tokens}),
        ("any_order_bound", any_order_bound, {"model": masked, "z": IDS, "num_orders": 2, "num_samples": 1, **tokens}),
        ("flow_likelihood", flow_likelihood, {"model": vectors, "z": NUMBERS, "num_steps": 2, "class_labels": None}),
        ("field_likelihood", field_likelihood, {"model": product, "z": FIELDS, "num_samples": 1, "num_steps": 2,
                                                "attention_mask": None, "class_labels": None}),
        ("conditional_loss", conditional_loss, {"process": masked, "z": IDS, "scored": MASK == 1, "time_sampler": None,
                                                "divergence": None, "x_0": None, **tokens}),
        ("conditional_loss", conditional_loss, {"process": vectors, "z": NUMBERS, "scored": None}),
        ("generate", masked.generate, {"input_ids": IDS, "attention_mask": MASK, "class_labels": labels, "num_steps": 2,
                                       "guidance_scale": 1.5, "max_new_tokens": 1, "seed": 1, "temperature": 0.9}),
        ("generate", vectors.generate, {"batch_size": 2, "length": 3, "num_steps": 2, "x_0": None,
                                        "given": None, "seed": 1}),
    ]  # fmt: skip


SLOTS = [
    (index, name)
    for index, (_, _, valid) in enumerate(entry_points())
    for name in valid
    if name not in ("model", "process")
]


def call(index: int, name: str, value: Any) -> None:
    label, function, valid = entry_points()[index]
    if label == "generate" and isinstance(value, torch.Tensor) and value.is_meta:
        return  # `generate` moves tensors to the model itself
    arguments = {**valid, name: value}
    torch.manual_seed(0)
    try:
        result = function(**arguments)
    except Exception as error:
        if not is_ours(error):
            raise AssertionError(f"{label}({name}={value!r}): {type(error).__name__}: {error}") from error
        return
    result = getattr(result, "nats", result)
    result = result.intensity if label == "generator" and name != "x" and hasattr(result, "intensity") else result
    try:
        check_finite(result)
    except AssertionError as error:
        raise AssertionError(f"accepted, but not right: {label}({name}={value!r})") from error


@settings(max_examples=300)
@given(st.sampled_from(SLOTS), st.sampled_from(TENSORS))
def test_entry_points__malformed_arguments_are_refused_or_right(slot: tuple[int, str], value: Any) -> None:
    call(*slot, value)
