"""Backbones of transformers under gradient checkpointing, in half precision, compiled, replayed and exported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.export import Dim, export

from gm_discrete import GMModel, UniformPath, conditional_loss
from gm_discrete.nn import replay
from tests.helpers.backbones import ARCHITECTURES, FEW, MASK, V, data, network, raw_logits
from tests.helpers.networks import rng
from tests.nn.test_masks import NoReading
from tests.nn.test_replay import Recorder

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
PADDED = torch.tensor([[1] * 10, [0] * 3 + [1] * 7, [1] * 4 + [2] * 4 + [0] * 2])
UNIFORM = UniformPath(V, special_token_ids=(MASK,))


def loss_and_gradients(model: Any, mask: torch.Tensor | None = PADDED, rows: int = 3) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss = conditional_loss(model, data(rows), mask, rng=rng(1))
    loss.backward()
    return loss.item(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def assert_equal(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
@every_architecture
def test_backbone__reads_no_values(name: str) -> None:
    """Which would stall a GPU, and cannot be captured in a CUDA graph."""
    model, t = network(name), torch.full((3,), 0.5)
    with NoReading():
        model.backbone({"": data()}, t)
        model.backbone({"": data()}, t, {"": PADDED})


# ---- Gradient checkpointing and half precision


@pytest.mark.parametrize(
    ("name", "path"), [*((name, "masked") for name in ARCHITECTURES), *((name, UNIFORM) for name in FEW)], ids=str
)
def test_gradient_checkpointing__changes_no_gradient(name: str, path: Any) -> None:
    model = network(name, path=path).train()
    plain = loss_and_gradients(model)
    calls: list[Any] = []
    model.backbone.layers[0].register_forward_hook(lambda *_: calls.append(None))
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert_equal(loss_and_gradients(model), plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("shift", [True, False])
def test_gradient_checkpointing__of_blocks_changes_no_gradient(shift: bool) -> None:
    model = network("qwen3", block_size=4, shift=shift).train()
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable()
    assert_equal(loss_and_gradients(model), plain)


@pytest.mark.parametrize(
    ("name", "implementation"), [*((name, "sdpa") for name in ARCHITECTURES), *((name, "eager") for name in FEW)]
)
def test_autocast__is_close_to_float32(name: str, implementation: str) -> None:
    model = network(name, attn_implementation=implementation)
    plain, gradients = loss_and_gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        half, found = loss_and_gradients(model)
    assert half == pytest.approx(plain, rel=0.1)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    one, other = (torch.cat([g[key].flatten() for key in gradients]) for g in (gradients, found))
    assert float(torch.cosine_similarity(one, other, 0)) > 0.9


@torch.no_grad()
@every_architecture
def test_model__in_bfloat16_is_close_to_float32(name: str) -> None:
    model, x = network(name, path=UNIFORM), data()
    plain = raw_logits(model, x, PADDED)[PADDED.bool()]
    found = raw_logits(model.bfloat16(), x, PADDED)[PADDED.bool()]
    assert float((found - plain).norm() / plain.norm()) < 0.1


# ---- Compiled


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_compile_layers__computes_the_same_and_compiles_nothing_for_other_batches(name: str) -> None:
    plain = network(name)
    model = copy.deepcopy(plain)
    model.compile_layers(backend="eager", fullgraph=True)
    for rows in (3, 2):
        assert_equal(loss_and_gradients(model, None, rows), loss_and_gradients(plain, None, rows))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1  # of three layers
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_equal(loss_and_gradients(model, None, 5), loss_and_gradients(plain, None, 5))
    masks = PADDED.repeat(2, 1)
    for rows in (3, 2, 5):
        assert_equal(loss_and_gradients(model, masks[:rows], rows), loss_and_gradients(plain, masks[:rows], rows))
    assert counters["stats"]["unique_graphs"] <= 2 * graphs
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
def test_compile_layers__works_with_gradient_checkpointing() -> None:
    plain = network("llama").train()
    model = copy.deepcopy(plain)
    model.gradient_checkpointing_enable()
    model.compile_layers(backend="aot_eager", fullgraph=True)
    assert_equal(loss_and_gradients(model), loss_and_gradients(plain), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
def test_compile_layers__generates_the_same_by_blocks_with_a_cache() -> None:
    model = network("qwen3", block_size=4, changes={"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    options: dict[str, Any] = {"max_new_tokens": 4, "num_steps": 2, "seed": 0, "use_cache": True}
    plain = model.generate(data(2, 5), **options)
    model.compile_layers(backend="eager", fullgraph=True)
    assert torch.equal(model.generate(data(2, 5), **options), plain)
    graphs = counters["stats"]["unique_graphs"]
    assert torch.equal(model.generate(data(2, 5), **options), plain)
    assert counters["stats"]["unique_graphs"] == graphs


# ---- Replayed


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(GMModel, "compile_layers", lambda _: None)  # `make_fx` does not trace compiled layers
    monkeypatch.setitem(replay.RECORDERS, "cpu", (found, found.pool))
    return found


PROMPTS: dict[str, Any] = {"attention_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "decoder": ("llama", {}, {"batch_size": 5, "length": 10, "num_steps": 8}),
    "encoder": ("modernbert", {}, {"input_ids": data(3, 5), **PROMPTS, "max_new_tokens": 4, "num_steps": 6}),
    "time": ("esm", {"path": UNIFORM}, {"input_ids": data(3, 5), **PROMPTS, "max_new_tokens": 4, "num_steps": 6}),
    "cache": (
        "qwen3", {"block_size": 4},
        {"input_ids": data(3, 5), **PROMPTS, "max_new_tokens": 7, "num_steps": 4, "use_cache": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_generate__replayed_samples_are_those_of_plain_calls(case: str, recorder: Recorder) -> None:
    name, made, options = CASES[case]
    model = network(name, **made)
    plain = model.generate(**options, seed=0)
    for _ in range(2):
        assert torch.equal(model.generate(**options, seed=0, compile=True), plain)
    assert recorder.replayed


# ---- Exported


class Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=x, attention_mask=mask, return_dict=False)[0]


@pytest.mark.slow
def test_export__batch_and_length_are_free() -> None:
    model = Logits(network("llama"))
    rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=4, max=30)
    free = ({0: rows, 1: columns}, {0: rows, 1: columns})
    program = export(model, (data(), PADDED), dynamic_shapes=free, strict=False).module()
    x, mask = data(5, 7), torch.tensor([[1] * 4 + [2] * 2 + [0]] * 5)
    torch.testing.assert_close(program(x, mask), model(x, mask))
