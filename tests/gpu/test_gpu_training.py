from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from gm_discrete import GMModel, conditional_loss
from gm_discrete.generators import rows as rows_of
from tests.helpers.networks import data, network, noisy, rng, untrained
from tests.helpers.on_device import Greatest, cosine, waiting, waits
from tests.helpers.small_run import checkpoint, poison, rows, small_model, small_trainer, weights

pytestmark = pytest.mark.gpu
DISCRETE = pytest.mark.parametrize("name", ["masked", "mixture", "reversal"])


def loss_and_gradients(
    model: GMModel, x: Tensor, t: Tensor, z: Tensor, bf16: bool = False
) -> tuple[float, list[Tensor]]:
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        loss = model(input_ids=x.to(device), time=t.to(device), labels=z.to(device)).loss
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=False))


@DISCRETE
def test_loss__on_a_gpu_is_that_of_the_cpu(gpu: str, name: str) -> None:
    model, z = network(name).train(), data(name, rows=16)
    x, t = noisy(model, z)
    expected, gradients = loss_and_gradients(model, x, t, z)
    loss, on_gpu = loss_and_gradients(deepcopy(model).to(gpu), x, t, z)
    assert loss == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(on_gpu, gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@DISCRETE
def test_loss__under_autocast_is_within_rounding(device: str, name: str) -> None:
    model, z = network(name).train().to(device), data(name, rows=16)
    x, t = noisy(model.cpu(), z)
    model.to(device)
    expected, gradients = loss_and_gradients(model, x, t, z)
    loss, rounded = loss_and_gradients(model, x, t, z, bf16=True)
    assert loss == pytest.approx(expected, rel=0.02)
    assert cosine(rounded, gradients) > 0.99


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_loss__never_holds_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch, device: str, name: str) -> None:
    from gm_discrete import MaskedPath, UniformPath

    size, count = 512, 8 * 64
    for constant in ("CPU_ELEMENTS", "ELEMENTS", "MOST_ELEMENTS", "KEPT_ELEMENTS"):
        monkeypatch.setattr(rows_of, constant, 2**14)
    path = MaskedPath(size) if name == "masked" else UniformPath(size, rates="mixture")
    model = untrained(path).train().to(device)
    z = torch.randint(size - 1, (8, 64), generator=rng()).to(device)
    with Greatest() as greatest:
        conditional_loss(model, z, rng=torch.Generator(device).manual_seed(0)).backward()
    assert greatest.elements <= 2**15 < count * size / 4


def test_training_step__waits_for_the_device_once(device: str) -> None:
    model = network("masked").train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    z = data(rows=16).to(device)

    def step(seed: int) -> None:
        conditional_loss(model, z, rng=torch.Generator(device).manual_seed(seed)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(0)
    with waits(device) as found:
        step(1)
    assert len(waiting(found)) <= 1, found


@pytest.mark.parametrize("name", ["masked", "mixture"])
def test_compiled_layers__are_the_layers_on_a_gpu(gpu: str, name: str) -> None:
    model, z = network(name).train().to(gpu), data(name, rows=16)
    x, t = noisy(network(name), z)
    expected, gradients = loss_and_gradients(model, x, t, z)
    model.compile_layers()
    loss, compiled = loss_and_gradients(model, x, t, z)
    torch._dynamo.reset()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert cosine(compiled, gradients) > 1 - 1e-6


class Between(TrainerCallback):
    """Counts the waits between the ends of two steps."""

    def __init__(self, device: str, first: int, last: int) -> None:
        self.device, self.first, self.last = device, first, last
        self.found: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.first:
            self.context = waits(self.device)
            self.found = self.context.__enter__()
        if state.global_step == self.last:
            self.context.__exit__(None, None, None)


def trainer(folder: Path, device: str, **options: Any) -> Any:
    defaults: dict[str, Any] = {"use_cpu": device == "cpu", "logging_steps": 100, "lr_scheduler_type": "constant"}
    return small_trainer(folder, **defaults | options)


def test_trainer__waits_for_a_gpu_once_a_step(gpu: str, tmp_path: Path) -> None:
    between = Between(gpu, 2, 6)
    trainer(tmp_path, gpu, data=rows(64), max_steps=8, callbacks=[between], dataloader_pin_memory=True).train()
    assert len(waiting(between.found)) <= 4, between.found


def test_trainer__a_checkpoint_of_the_device_is_resumed(device: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", device)
    whole.train()
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "parts", device, **options, max_steps=2).train()
    resumed = trainer(tmp_path / "parts", device, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert next(resumed.model.parameters()).device.type == device
    for name, weight in weights(resumed.model).items():
        torch.testing.assert_close(weight, weights(whole.model)[name], rtol=1e-4, atol=1e-5)


def test_trainer__a_loss_that_is_not_finite_stops_before_anything_is_saved(device: str, tmp_path: Path) -> None:
    model = small_model()
    poison(model, 3, float("nan"))
    run = trainer(tmp_path, device, model=model, max_steps=6, save_strategy="steps", save_steps=3)
    with pytest.raises(FloatingPointError):
        run.train()
    assert not checkpoint(tmp_path, 3).exists()
    assert not list(tmp_path.glob("*.safetensors"))
