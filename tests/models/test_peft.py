"""PEFT and quantisation reach every layer: nothing is decided by the class of a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gm_discrete import GMModel
from gm_discrete.nn.embeddings import precision_of
from tests.helpers import continuous, product_models
from tests.helpers.networks import MASK, network

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "dit": {"backbone": "dit", "condition_size": 16},
    "classes": {"name": "mixture", "num_classes": 2},
}
WISHES: dict[str, dict[str, Any]] = {
    "embed_tokens": {"target_modules": ["embed_tokens"]},
    "all-linear": {"target_modules": "all-linear"},
    "features": {"target_modules": ["qkv"], "task_type": "FEATURE_EXTRACTION"},
    "causal": {"target_modules": ["qkv"], "task_type": "CAUSAL_LM"},
    "embeddings to save": {"target_modules": ["qkv"], "modules_to_save": ["embed_tokens"]},
    "head to save": {"target_modules": ["qkv"], "modules_to_save": ["heads.tokens"]},
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("name", MODELS)
def test_peft__trains_and_generates(name: str, wish: str) -> None:
    model = get_peft_model(network(**MODELS[name]), LoraConfig(**WISHES[wish]))
    x, t = torch.tensor([[1, 2, MASK]]), torch.tensor([0.5])
    plain = network(**MODELS[name])(input_ids=x, time=t)
    output = model(input_ids=x, time=t)
    torch.testing.assert_close(output.logits, plain.logits)  # an adapter starts at the identity
    model(input_ids=x, time=t, labels=torch.tensor([[1, 2, 3]])).loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in trained)
    assert model.generate(input_ids=x, max_new_tokens=2, num_steps=2).shape == (1, 5)


@pytest.mark.parametrize("options", [{"target_modules": "all-linear"}, WISHES["embeddings to save"]], ids=str)
def test_peft__reaches_models_of_other_states(options: dict[str, Any]) -> None:
    model = get_peft_model(product_models.network("two lines"), LoraConfig(**options))
    assert model.generate(num_steps=2)["size"].shape == (1, 3, 1)
    flow = get_peft_model(continuous.network("flow"), LoraConfig(**options))
    assert flow.generate(num_steps=2).shape == (1, 5, 2)


def every_kind() -> list[Any]:
    found = [pytest.param(network(**options), id=name) for name, options in MODELS.items()]
    others = {"product": product_models.network("two lines"), "images": continuous.network("flow on images")}
    return [*found, *(pytest.param(model, id=name) for name, model in others.items())]


class Integers(nn.Module):
    """A linear layer of int8 weights, as quantisers put in the place of `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = float(layer.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype.is_floating_point
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("model", every_kind())
def test_linear_layers__are_plain_and_can_be_quantised(model: GMModel) -> None:
    """Quantisers replace layers whose class is `nn.Linear`, and leave its subclasses in floating point."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert {type(layer) for layer in linear.values()} == {nn.Linear}
    before = model.generate(num_steps=3, seed=0)
    for name, layer in linear.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Integers(layer))
    after = model.generate(num_steps=3, seed=0)
    assert type(after) is type(before)
    assert not [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_precision__of_a_quantised_layer_is_float32() -> None:
    layer = nn.Linear(2, 2)
    assert precision_of(layer.bfloat16()) == torch.bfloat16
    assert precision_of(Integers(layer.float())) == torch.float32  # type: ignore[arg-type]
