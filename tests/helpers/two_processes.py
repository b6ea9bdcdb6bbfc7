"""What `test_two_processes.py` starts twice: the same runs as there, each process on its half of the batch."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gm_discrete.training.lock import LOCK, machine, started
from tests.helpers.small_run import LENGTH, STABLE, Interrupt, losses, poison, rows, small_model, small_trainer, weights

RAGGED = (8, 3, 5, 1, 7)
"""Lengths that go round: every batch is padded differently, and the processes hold different numbers of tokens."""
EVEN = (3, 8, 8, 1)
"""Lengths that go round in step with the batches: every process's batch is padded to the same length."""

EQUAL: dict[str, dict[str, Any]] = {
    "packed": {"data": {}, "batch": 4},
    "padded": {"data": {"lengths": EVEN}, "batch": 4, "in_order": True},
    "ragged": {"data": {"lengths": RAGGED, "count": 20}, "batch": 4},
    "accumulated": {"data": {"lengths": EVEN, "count": 32}, "batch": 4, "accumulate": 2, "in_order": True},
    "stream": {"data": {}, "batch": 4, "stream": True},
    "ragged_stream": {"data": {"lengths": RAGGED, "count": 20}, "batch": 4, "stream": True},
    "unscored": {"data": {}, "batch": 4, "in_order": True, "unscored": range(2, 8)},  # half a batch, and a whole one
}
"""Runs that must not depend on the number of processes. `batch` is that of all processes together."""


def run_equal(folder: Path, name: str, world_size: int) -> Any:
    case = EQUAL[name]
    data: Any = rows(**case["data"])
    if unscored := case.get("unscored"):
        labels = [[-100] * LENGTH if i in unscored else row for i, row in enumerate(data["input_ids"])]
        data = data.add_column("labels", labels)
    if case.get("stream"):
        data = data.to_iterable_dataset()
    trainer = small_trainer(
        folder / name,
        data,
        ema=0.9,
        per_device_train_batch_size=case["batch"] // world_size,
        gradient_accumulation_steps=case.get("accumulate", 1),
        train_sampling_strategy="sequential" if case.get("in_order") else "random",
        **STABLE,
    )
    trainer.train()
    return trainer


def main(folder: Path) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    assert max(RAGGED) == LENGTH
    gc.freeze()  # every training run ends with a full collection
    record: dict[str, Any] = {"losses": {}}

    # Seven sequences do not divide by two: none may be counted twice.
    held_out = rows(7, RAGGED, seed=1)
    trainer = small_trainer(folder / "held_out", eval_dataset=held_out, per_device_eval_batch_size=2)
    bound, again = trainer.bound(), trainer.bound()
    record["bound"] = {"num_tokens": bound.num_tokens.tolist(), "nats": bound.nats.tolist()}
    record["bound again"] = {"num_tokens": again.num_tokens.tolist(), "nats": again.nats.tolist()}

    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 2}
    dropout = {"hidden_dropout": 0.2}
    small_trainer(folder / "unbroken", model=small_model(**dropout), ema=0.9, **saving).train()
    try:
        interrupted = small_model(**dropout)
        small_trainer(folder / "resumed", model=interrupted, ema=0.9, callbacks=[Interrupt(after=3)], **saving).train()
    except KeyboardInterrupt:
        torch.distributed.barrier()
    resumed = small_trainer(folder / "resumed", model=small_model(seed=9, **dropout), ema=0.9, **saving)
    resumed.train(resume_from_checkpoint=True)

    held = folder / "held"
    if rank == 0:  # by the process that has started this one
        held.mkdir()
        owner = {**machine(), "pid": os.getppid(), "started": started(os.getppid())}
        (held / LOCK).write_text(json.dumps(owner), encoding="utf-8")
    try:
        small_trainer(held, **saving).train()
    except ValueError as error:
        record["held"] = str(error)

    model = small_model()
    if rank == 1:
        poison(model, call=3, value=float("nan"))
    trainer = small_trainer(folder / "poisoned", model=model, **saving)
    try:
        trainer.train()
    except FloatingPointError as error:
        record["error"] = str(error)
    save_file(weights(model), folder / f"poisoned-{rank}.safetensors")

    for name in EQUAL:
        trainer = run_equal(folder, name, world_size)
        assert trainer.ema is not None
        save_file(weights(trainer.model), folder / f"{name}-{rank}.safetensors")
        save_file(trainer.ema.average, folder / f"{name}-{rank}-average.safetensors")
        record["losses"][name] = losses(trainer)
        (folder / f"record-{rank}.json").write_text(
            json.dumps(record), encoding="utf-8"
        )  # an error in the next run spares this one
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
