"""Models whose weights lie elsewhere, exported models, and models that several threads use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.export import Dim, export

from gm_discrete import GMModel, likelihood_bound
from tests.helpers import continuous, product_models
from tests.helpers.networks import data, network

KINDS: dict[str, Callable[[], GMModel]] = {
    "masked": lambda: network(conv_kernel_size=3),
    "metric": lambda: network("metric"),
    "classes": lambda: network("mixture", num_classes=3),
    "dit": lambda: network(backbone="dit", condition_size=16),
    "blocks": lambda: network(block_size=4),
    "product": lambda: product_models.network("two lines"),
    "images": lambda: continuous.network("flow on images"),
}


def flat(sample: Any) -> Tensor:
    parts = sample.values() if isinstance(sample, dict) else [sample]
    return torch.cat([part.double().flatten() for part in parts])


@pytest.mark.parametrize("kind", KINDS)
def test_generate__offloaded_weights_give_the_same_samples(kind: str, tmp_path: File) -> None:
    """On the disk, and on the CPU with another device to compute on, as `device_map="auto"` places what does not fit."""
    model = KINDS[kind]()
    expected = flat(model.generate(num_steps=3, seed=0))
    model.save_pretrained(tmp_path)
    disk = GMModel.from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "weights")
    assert any(weight.is_meta for weight in disk.parameters())
    assert disk.device == torch.device("cpu")
    offloaded = cpu_offload(KINDS[kind](), execution_device=torch.device("cpu"))
    split = {"backbone": "disk", "heads": "cpu", "path_tables": "cpu"}
    mixed = GMModel.from_pretrained(tmp_path, device_map=split, offload_folder=tmp_path / "weights")
    for one in (disk, offloaded, mixed):
        # Products of matrices may sum in another order where the weights lie elsewhere in memory.
        torch.testing.assert_close(flat(one.generate(num_steps=3, seed=0)), expected, rtol=1e-4, atol=2e-4)


class Exported(nn.Module):
    """The hidden states and logits of a model at a state and time."""

    def __init__(self, model: GMModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        state = {self.model.path.state_name: x}
        return self.model(**state, time=time, attention_mask=mask, return_dict=False)[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"name": "reversal", "conv_kernel_size": 3}, {"backbone": "dit", "condition_size": 16}], ids=str
)
def test_export__batch_and_length_are_free(options: dict[str, Any]) -> None:
    options = {"num_hidden_layers": 1, **options}
    model = Exported(network(**options))
    rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=128)

    def arguments(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, -1] = 0
        return torch.arange(batch * length).view(batch, length) % 10, torch.linspace(0.1, 0.9, batch), mask

    free = ({0: rows, 1: columns}, {0: rows}, {0: rows, 1: columns})
    program = export(model, arguments(3, 7), dynamic_shapes=free, strict=False).module()
    for shape in ((2, 4), (5, 11)):
        for found, expected in zip(program(*arguments(*shape)), model(*arguments(*shape)), strict=True):
            torch.testing.assert_close(found, expected)
    sample = model.model.generate(num_steps=2, seed=0)  # an export leaves the model as it was
    assert torch.equal(sample, network(**options).generate(num_steps=2, seed=0))


@pytest.mark.slow
def test_export__images_of_any_batch() -> None:
    model = Exported(continuous.network("flow on images"))
    x, t, rows = torch.randn(3, *model.model.config.state_shape(1)), torch.full((3,), 0.5), Dim("rows", min=2, max=64)
    program = export(model, (x, t), dynamic_shapes=({0: rows}, {0: rows}), strict=False).module()
    x, t = torch.randn(5, *x.shape[1:]), torch.linspace(0.1, 0.9, 5)
    torch.testing.assert_close(program(x, t), model(x, t))
    assert torch.isfinite(model.model.generate(num_steps=2)).all()


def test_generate__threads_share_the_evaluation_mode() -> None:
    """A call that ends first must not bring dropout back for the others, nor end the training mode of all."""
    model = network(hidden_dropout=0.5, attention_dropout=0.5).train()
    model.heads.eval()
    expected = network().generate(batch_size=2, num_steps=6, seed=0)
    entered, leave, results = threading.Event(), threading.Event(), []

    def pause(ids: Tensor, scores: Tensor) -> Tensor:
        entered.set()
        leave.wait(10)
        return scores

    slow = threading.Thread(
        target=lambda: results.append(model.generate(batch_size=2, num_steps=6, seed=0, logits_processor=[pause]))
    )
    slow.start()
    assert entered.wait(10)
    assert torch.equal(model.generate(batch_size=2, num_steps=6, seed=0), expected)
    likelihood_bound(model, data(), num_samples=1)
    assert not any(module.training for module in model.modules())
    leave.set()
    slow.join()
    assert torch.equal(results[0], expected)
    assert model.training
    assert not model.heads.training  # each module has its own mode again


def test_device__of_a_model_without_hooks_is_found_without_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, offloaded = network(), cpu_offload(network(), execution_device=torch.device("meta"))
    walks: list[nn.Module] = []
    modules = nn.Module.modules
    monkeypatch.setattr(GMModel, "modules", lambda self: walks.append(self) or modules(self))
    assert plain.device.type == "cpu"
    assert walks == []
    assert offloaded.device.type == "meta"
    assert walks == [offloaded]
