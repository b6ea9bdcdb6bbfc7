"""The noise of a step is a function of the seed, the step and the micro-step, and of nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from gm_discrete import UniformTimeSampler
from tests.helpers.small_run import (
    LENGTH,
    TOKENIZER,
    Interrupt,
    Recorder,
    losses,
    record_inputs,
    rows,
    small_model,
    small_trainer,
    weights,
)

SAME = Dataset.from_dict({"input_ids": [[0, 1, 2, 3] * (LENGTH // 4)] * 32})
"""Rows that are all alike, so that two noisy states differ by their noise alone."""


def draws(folder: Path, count: int = 4, **arguments: object) -> list[tuple[Tensor, Tensor]]:
    """(x, t) of the first calls."""
    model = small_model()
    calls = record_inputs(model)
    small_trainer(folder, SAME, model, max_steps=-(-count // 2), gradient_accumulation_steps=2, **arguments).train()
    return [(call["input_ids"], call["time"]) for call in calls[:count]]


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_noise__every_step_and_micro_step_has_its_own(tmp_path: Path) -> None:
    first, again, other = (draws(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert all(map(same, first, again))
    assert not any(map(same, first, other))
    assert not any(same(first[i], first[j]) for i in range(4) for j in range(i))


def test_noise__does_not_depend_on_weights_and_dropout(tmp_path: Path) -> None:
    model = small_model(seed=5, hidden_dropout=0.5)
    calls = record_inputs(model)
    small_trainer(tmp_path, SAME, model, max_steps=2, gradient_accumulation_steps=2).train()
    assert all(map(same, [(call["input_ids"], call["time"]) for call in calls], draws(tmp_path)))


def test_noise__of_an_interrupted_step_is_drawn_again(tmp_path: Path) -> None:
    model, saving = small_model(), {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    calls = record_inputs(model)
    trainer = small_trainer(tmp_path, SAME, model, callbacks=[Interrupt(after=1)], **saving)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.pop_callback(Interrupt)
    trainer.train(resume_from_checkpoint=True)
    _, second, second_again = ((call["input_ids"], call["time"]) for call in calls)
    assert same(second, second_again)


def test_noise__consumes_no_global_random_state(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    trainer._prepare_inputs(batch)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_noise__times_are_stratified(tmp_path: Path) -> None:
    """One κ in each of B equal parts of (0, 1); by default one logit κ in each of B equal parts of a normal distribution."""
    for arguments, quantile in (
        ({"time_sampler": UniformTimeSampler()}, lambda t: t),
        ({}, lambda t: torch.special.ndtr(t.logit())),
    ):
        for _, t in draws(tmp_path, per_device_train_batch_size=16, **arguments):
            assert (quantile(t) * 16).floor().long().sort().values.tolist() == list(range(16))


def test_noise__only_data_is_noised(tmp_path: Path) -> None:
    model = small_model()
    calls = record_inputs(model)
    data = rows(16, lengths=(8, 3, 5, 1))
    small_trainer(tmp_path, data, model).train()
    for call in calls:
        padded = call["attention_mask"] == 0
        assert padded.any()
        assert bool((call["input_ids"][padded] == TOKENIZER.pad_token_id).all())
        assert bool((call["labels"][padded] == -100).all())
        noised = call["input_ids"] != call["labels"]
        assert bool((call["input_ids"][noised & ~padded] == TOKENIZER.mask_token_id).all())


def test_trainer__dataloader_workers_change_nothing(tmp_path: Path) -> None:
    trainers = [small_trainer(tmp_path, rows(24), dataloader_num_workers=workers) for workers in (0, 2)]
    for trainer in trainers:
        trainer.train()
    assert losses(trainers[0]) == losses(trainers[1])
    torch.testing.assert_close(weights(trainers[0].model), weights(trainers[1].model), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [(8,), (8, 3, 5, 1, 7)])
def test_trainer__accumulated_gradient_is_that_of_the_whole_batch(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """∇ of (Σ over all scored positions)/(their number), however the rows, padded or not, are cut into micro-batches."""
    model, recorder = small_model(), Recorder()
    start, calls = weights(model), record_inputs(model)
    arguments = {"max_steps": 1, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0}
    trainer = small_trainer(tmp_path, rows(12, lengths), model, callbacks=[recorder], **arguments)
    trainer.train()

    model.load_state_dict(start)
    for call in calls:
        call.setdefault("attention_mask", torch.ones_like(call["input_ids"]))
    parts = [[row for call in calls for row in call[name]] for name in ("input_ids", "attention_mask", "labels")]
    x, mask, labels = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=fill)
        for part, fill in zip(parts, (TOKENIZER.pad_token_id, 0, -100), strict=True)
    )
    model.zero_grad()
    loss = model(input_ids=x, attention_mask=mask, labels=labels, time=torch.cat([call["time"] for call in calls])).loss
    loss.backward()
    assert losses(trainer) == pytest.approx([loss.item()], rel=1e-5)  # float32 sums in another order
    whole = {name: weight.grad for name, weight in model.named_parameters()}
    torch.testing.assert_close(recorder.gradients[0], whole, rtol=1e-4, atol=1e-6)
