"""`EMACallback`: the recursion, where averages are used, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gm_discrete import GMModel
from gm_discrete.training import EMACallback
from tests.helpers.small_run import Interrupt, Recorder, checkpoint, rows, small_model, small_trainer, weights


def test_ema__recursion(tmp_path: Path) -> None:
    """θ̄ ← d θ̄ + (1 − d) θ with d = min(decay, (1 + n)/(10 + n)) after step n = 1, 2, …, from the initial weights."""
    model, recorder = small_model(), Recorder()
    expected = {name: weight.double() for name, weight in weights(model).items()}
    trainer = small_trainer(tmp_path, model=model, callbacks=[recorder], ema=0.2)
    trainer.train()
    assert len(recorder.weights) == 4
    for decay, current in zip((2 / 11, 0.2, 0.2, 0.2), recorder.weights, strict=True):
        expected = {name: decay * average + (1 - decay) * current[name] for name, average in expected.items()}
    assert trainer.ema is not None
    average = {name: value.double() for name, value in trainer.ema.average.items()}
    torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)  # four roundings to float32 of weights below 2
    assert not torch.equal(trainer.ema.average["heads.tokens.weight"], model.heads.tokens.weight)


def test_ema__applied_swaps_weights_and_restores_them() -> None:
    model, callback = small_model(), EMACallback(0.9)
    callback.on_train_begin(None, None, None, model=model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    own = weights(model)

    def look_and_fail() -> None:
        with callback.applied(model):
            torch.testing.assert_close(weights(model), callback.average, rtol=0, atol=0)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        look_and_fail()
    torch.testing.assert_close(weights(model), own, rtol=0, atol=0)


def test_ema__without_averages_applied_does_nothing() -> None:
    model = small_model()
    own = weights(model)
    with EMACallback(0.9).applied(model):
        torch.testing.assert_close(weights(model), own, rtol=0, atol=0)


def test_ema__frozen_weights_are_not_averaged(tmp_path: Path) -> None:
    model = small_model()
    model.backbone.embed_tokens.requires_grad_(False)
    trainer = small_trainer(tmp_path, model=model, ema=0.9)
    trainer.train()
    assert trainer.ema is not None
    assert set(weights(model)) - set(trainer.ema.average) == {"backbone.embed_tokens.weight"}


def test_ema__evaluation_and_publication_use_the_averages(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, ema=0.9, eval_dataset=rows(8, seed=1))
    trainer.train()
    own, averaged = weights(trainer.model), trainer.bound()
    trainer.save_model(str(tmp_path / "model"))
    torch.testing.assert_close(weights(trainer.model), own, rtol=0, atol=0)

    assert trainer.ema is not None
    published = load_file(tmp_path / "model" / "model.safetensors")
    torch.testing.assert_close(published, trainer.ema.average, rtol=0, atol=0)
    for state, same in ((published, True), (own, False)):
        model = small_model()
        model.load_state_dict(state)
        bound = small_trainer(tmp_path, model=model, eval_dataset=rows(8, seed=1)).bound()
        assert torch.equal(bound.nats, averaged.nats) == same


@pytest.mark.slow
def test_ema__averages_are_saved_and_resumed(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "ema": 0.9}
    unbroken = small_trainer(tmp_path / "unbroken", **saving)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path / "resumed", callbacks=[Interrupt(after=2)], **saving).train()
    saved = load_file(checkpoint(tmp_path / "resumed", 2) / "ema-0.safetensors")
    own = load_file(checkpoint(tmp_path / "resumed", 2) / "model.safetensors")
    assert not torch.equal(saved["heads.tokens.weight"], own["heads.tokens.weight"])
    resumed = small_trainer(tmp_path / "resumed", model=small_model(seed=9), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.ema is not None
    assert unbroken.ema is not None
    torch.testing.assert_close(resumed.ema.average, unbroken.ema.average, rtol=0, atol=0)


@pytest.mark.slow
def test_ema__the_best_model_comes_with_its_averages(tmp_path: Path) -> None:
    """A learning rate so high that the bound only gets worse: the best weights are those of the first evaluation."""
    trainer = small_trainer(
        tmp_path, ema=0.2, eval_dataset=rows(8, seed=1), learning_rate=3.0, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    bounds = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(bounds) < bounds[-1]
    assert trainer.evaluate()["eval_loss"] == min(bounds)
    trainer.save_model(str(tmp_path / "model"))
    best = GMModel.from_pretrained(tmp_path / "model")
    assert small_trainer(tmp_path, model=best, eval_dataset=rows(8, seed=1)).evaluate()["eval_loss"] == min(bounds)


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5, float("nan")])
def test_ema__a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay="):
        EMACallback(decay)
