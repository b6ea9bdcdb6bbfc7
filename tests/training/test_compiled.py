"""Training with compiled layers: the losses, checkpoints and metrics of the uncompiled run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gm_discrete import GMModel
from gm_discrete.training import GMTrainer
from tests.helpers.small_run import STABLE, losses, rows, small_model, small_trainer, weights

BACKEND = {"torch_compile": True, "torch_compile_backend": "eager"}
"""Graphs are made, and run as they are."""


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(folder: Path, **options: Any) -> GMTrainer:
    """Two epochs of 4, 4 and 2 examples, with an evaluation and a checkpoint after the third of six steps."""
    return small_trainer(
        folder, rows(10), small_model(), eval_dataset=rows(7, seed=1), ema=0.9, num_eval_samples=2,
        **{
            "max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3,
            **STABLE, **options,
        },
    )  # fmt: skip


def metrics(trainer: GMTrainer) -> list[float]:
    bits = [entry["eval_bits_per_token"] for entry in trainer.state.log_history if "eval_bits_per_token" in entry]
    return losses(trainer) + bits


@pytest.mark.slow
def test_torch_compile__gives_the_losses_and_metrics_of_the_uncompiled_run_and_resumes(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    plain.train()
    compiled = run(tmp_path / "compiled", **BACKEND)
    compiled.train()
    assert metrics(compiled) == pytest.approx(metrics(plain), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 4  # two kinds of layer, in training and in inference
    assert not counters["graph_break"]
    assert type(compiled.model_wrapped) is GMModel  # nothing around it, so that files have the same names
    resumed = run(tmp_path / "compiled", **BACKEND, max_steps=7)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
    compiled.save_model(str(tmp_path / "final"))
    again = weights(GMModel.from_pretrained(tmp_path / "final"))
    for name, weight in weights(plain.model).items():
        assert again[name].shape == weight.shape


def compiled_options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of all calls of `compile_layers` from now on."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(GMModel, "compile_layers", lambda _, **options: found.append(options))
    return found


def test_torch_compile__takes_backend_and_mode_of_each_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiled_options(monkeypatch)
    small_trainer(tmp_path)
    assert found == []
    small_trainer(tmp_path, torch_compile=True)
    small_trainer(tmp_path, torch_compile=True, torch_compile_mode="max-autotune-no-cudagraphs")
    small_trainer(tmp_path, torch_compile_backend="aot_eager")
    small_trainer(tmp_path)
    assert [options["backend"] for options in found] == ["inductor", "inductor", "aot_eager"]
    assert found[1]["mode"] == "max-autotune-no-cudagraphs"


@pytest.mark.parametrize("regional", ["true", "false"])
def test_torch_compile__follows_accelerate_launch(
    regional: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --dynamo_backend … --dynamo_use_regional_compilation` sets these variables."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)
    found = compiled_options(monkeypatch)
    trainer = small_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert [options["backend"] for options in found] == ["aot_eager"]
    assert type(trainer.model_wrapped) is GMModel
