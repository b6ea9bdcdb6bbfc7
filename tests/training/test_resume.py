"""Stopped and resumed is unbroken, bit for bit: weights, optimizer, average, schedule and random state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from gm_discrete import UniformPath
from gm_discrete.data import pack
from tests.helpers.small_run import (
    LENGTH,
    TOKENIZER,
    Interrupt,
    checkpoint,
    losses,
    small_model,
    small_trainer,
    weights,
)

pytestmark = pytest.mark.slow
SAVING = {"save_strategy": "steps", "max_steps": 8}


def stream(shuffled: bool = False, repeats: int = 24) -> Any:
    texts = Dataset.from_dict({"text": ["abcd", "dacbab", "ccdab", "a"] * repeats}).to_iterable_dataset()
    packed = pack(texts, TOKENIZER, LENGTH)
    return packed.shuffle(seed=3, buffer_size=8) if shuffled else packed


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"model": {"hidden_dropout": 0.2, "attention_dropout": 0.2}},
    "dropout at the end of an epoch": {"model": {"hidden_dropout": 0.2}, "save_steps": 4},
    "average": {"ema": 0.9},
    "muon": {"muon": True, "ema": 0.9},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "uniform path": {"model": {"path": UniformPath(len(TOKENIZER), special_token_ids=TOKENIZER.all_special_ids)}},
    "stream": {"data": stream},
    "shuffled stream": {"data": lambda: stream(shuffled=True), "model": {"hidden_dropout": 0.2}},
    "stream that ends within a step": {"data": lambda: stream(repeats=5), "gradient_accumulation_steps": 2},
    "two workers": {"dataloader_num_workers": 2, "model": {"hidden_dropout": 0.2}},
    "bfloat16": {"bf16": True, "ema": 0.9},
}


def start(folder: Path, case: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    arguments = {"save_steps": 3, **SAVING, **case, **more}
    model, data = small_model(seed=seed, **arguments.pop("model", {})), arguments.pop("data", lambda: None)()
    return small_trainer(folder, data, model, **arguments)


def assert_same_checkpoint(first: Path, second: Path) -> None:
    assert {file.name for file in first.iterdir()} == {file.name for file in second.iterdir()}
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        states = [torch.load(folder / name, weights_only=name != "rng_state.pth") for folder in (first, second)]
        torch.testing.assert_close(*({"state": _plain(state)} for state in states), rtol=0, atol=0)


def _plain(state: Any) -> Any:
    """Nested containers of tensors and numbers, which `assert_close` compares, made of anything."""
    if isinstance(state, dict):
        return {str(key): _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return state if isinstance(state, torch.Tensor | int | float) else torch.tensor(list(repr(state).encode()))


@pytest.mark.parametrize("name", CASES)
def test_resume__is_unbroken(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    unbroken = start(tmp_path / "unbroken", case)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "resumed", case, callbacks=[Interrupt(after=4)]).train()
    resumed = start(tmp_path / "resumed", case, seed=9)  # its own weights must not matter
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(unbroken)
    assert_same_checkpoint(checkpoint(tmp_path / "resumed", 8), checkpoint(tmp_path / "unbroken", 8))


@pytest.mark.parametrize("steps", [8, 7])  # at the end of an epoch of four steps, and within one
def test_resume__of_a_finished_run_changes_nothing(tmp_path: Path, steps: int) -> None:
    case = {"ema": 0.9, "save_steps": 4, "max_steps": steps}
    start(tmp_path, case).train()
    before = {file: file.read_bytes() for file in checkpoint(tmp_path, steps).iterdir()}
    again = start(tmp_path, case, seed=9)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == steps
    assert {file: file.read_bytes() for file in checkpoint(tmp_path, steps).iterdir()} == before
    saved = type(again.model).from_pretrained(checkpoint(tmp_path, steps))
    torch.testing.assert_close(weights(again.model), weights(saved), rtol=0, atol=0)


def test_resume__weights_that_are_shared_are_not_reported_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint holds them once."""
    case = {"model": {"tie_word_embeddings": True}, "save_steps": 1}
    start(tmp_path, case, max_steps=1).train()
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        resumed = start(tmp_path, case, seed=1, max_steps=2)
        resumed.train(resume_from_checkpoint=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert "missing keys" not in caplog.text
    model = resumed._unwrapped
    assert model.heads["tokens"].weight is model.backbone.embed_tokens.weight
