"""Compiled layers: each kind is compiled once, for any batch, and computes what it computes uncompiled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from gm_discrete import GMModel, conditional_loss
from gm_discrete.generation.blocks import Blocks
from tests.helpers import product_models
from tests.helpers.networks import BLOCK, MASK, causal, data, network, rng

TRACED: Any = {"backend": "eager", "fullgraph": True}
"""Graphs are made, and run as they are: an operation that breaks a graph is an error."""


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


MODELS: dict[str, Any] = {
    "masked": network,
    "uniform": lambda: network("reversal", conv_kernel_size=3),
    "dit": lambda: network(backbone="dit", condition_size=16),
    "product": lambda: product_models.network("two lines", conv_kernel_size=3),
}


def batch(name: str, model: GMModel, size: int) -> Any:
    if name == "product":
        return product_models.data(model, size)
    return data(rows=size)


def loss_of(model: GMModel, z: Any, train: bool = True) -> torch.Tensor:
    model.train(train)
    with torch.set_grad_enabled(train):
        return conditional_loss(model, z, rng=rng(1))


@pytest.mark.parametrize(
    "name", [name if name == "masked" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_compile_layers__computes_the_same_and_compiles_nothing_for_other_batches(name: str) -> None:
    plain = MODELS[name]()
    model = copy.deepcopy(plain)
    model.compile_layers(**TRACED)
    for size in (5, 3):
        for part in (plain, model):
            part.zero_grad()
            loss_of(part, batch(name, part, size)).backward()
        for (key, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=key)
        assert graphs() == 3  # blocks, the last block without its feed-forward network, and that network
    loss_of(model, batch(name, model, 4), train=False)
    assert graphs() == 6  # inference
    with torch.compiler.set_stance("fail_on_recompile"):
        for size, train in ((2, True), (7, False), (6, True)):
            z = batch(name, model, size)
            torch.testing.assert_close(loss_of(model, z, train), loss_of(plain, z, train), rtol=1e-5, atol=1e-6)
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compile_layers__of_eight_layers_compiles_what_two_need() -> None:
    model = network("reversal", num_hidden_layers=8, hidden_size=8)
    model.compile_layers(**TRACED)
    loss_of(model, data()).backward()
    assert graphs() == 3


@pytest.mark.slow
def test_compile_layers__another_length_is_compiled_once() -> None:
    model = network(num_hidden_layers=1)
    model.compile_layers(**TRACED)
    for length, count in ((8, 2), (12, 3), (10, 3), (7, 3)):
        loss_of(model, data(length=length)).backward()
        assert graphs() == count  # what follows the last attention has rows as input, not sequences


@pytest.mark.slow
def test_compile_layers__generates_the_same_by_blocks_with_a_cache() -> None:
    model = causal(num_hidden_layers=1)
    prompt = data(rows=2, length=3)
    options: dict[str, Any] = {"max_new_tokens": 6, "num_steps": 2, "seed": 0, "blocks": Blocks(BLOCK, cache="exact")}
    plain = model.generate(prompt, **options)
    model.compile_layers(**TRACED)
    assert torch.equal(model.generate(prompt, **options), plain)
    found = graphs()  # among them those of one sequence, and of the first blocks
    assert torch.equal(model.generate(prompt, **options), plain)
    assert graphs() == found
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compile_layers__by_inductor_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # others would have to import torch
    plain = network("reversal", num_hidden_layers=1)
    model, z = copy.deepcopy(plain), data()
    model.compile_layers(fullgraph=True)
    losses = [loss_of(part, z) for part in (plain, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_compile_layers__leaves_names_copies_and_files_as_they_are(tmp_path: Path) -> None:
    model = network()
    names = list(model.state_dict())
    model.compile_layers(**TRACED)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    x, t = torch.tensor([[1, MASK, 2]]), torch.tensor([0.5])
    copies = [copy.deepcopy(model), GMModel.from_pretrained(tmp_path)]
    layer: Any = model.backbone.layers[-1]
    hidden = torch.randn(3, 32, generator=rng())
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer)).forward(hidden, None), layer.forward(hidden, None))
    answers = [part(input_ids=x, time=t).logits for part in copies]
    assert graphs() == 0  # copies are not compiled
    for answer in answers:
        torch.testing.assert_close(answer, model(input_ids=x, time=t).logits)
    assert graphs() > 0


@pytest.mark.slow
def test_compile_layers__works_with_adapters() -> None:
    model, z = get_peft_model(network("reversal", num_hidden_layers=1), LoraConfig(target_modules="all-linear")), data()
    plain = conditional_loss(model.get_base_model(), z, rng=rng(1)).item()
    model.get_base_model().compile_layers(**TRACED)
    loss = conditional_loss(model.get_base_model(), z, rng=rng(1))
    loss.backward()
    assert loss.item() == pytest.approx(plain, rel=1e-5)
    assert graphs() == 2


@pytest.mark.slow
def test_compile_layers__works_with_gradient_checkpointing() -> None:
    plain = network("reversal", num_hidden_layers=1)
    model, z = copy.deepcopy(plain), data()
    model.gradient_checkpointing_enable()
    model.compile_layers(**TRACED | {"backend": "aot_eager"})
    for part in (plain, model):
        loss_of(part, z).backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    assert graphs() == 2
