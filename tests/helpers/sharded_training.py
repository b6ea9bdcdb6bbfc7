"""What `test_sharded.py` starts twice: runs whose weights FSDP 2 has spread over two processes."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState

from gm_discrete.nn import readout
from tests.helpers.chunks import set_chunks
from tests.helpers.small_run import STABLE, TOKENIZER, Interrupt, losses, rows, small_model, small_trainer

RAGGED = (8, 3, 5, 1, 7, 8)
SETTINGS: dict[str, Any] = {
    "ema": 0.9, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, **STABLE,
}  # fmt: skip
LAUNCH = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip
"""What `accelerate launch` makes of the flags in the head of openwebtext.yaml."""


def trainer(folder: Path, batch: int, seed: int = 0, **more: Any) -> Any:
    model, held_out = small_model(seed=seed, num_hidden_layers=3, conv_kernel_size=3), rows(6, RAGGED, seed=1)
    arguments = {**SETTINGS, "per_device_train_batch_size": batch, "eval_dataset": held_out, **more}
    return small_trainer(folder, rows(20, RAGGED), model, **arguments)


def bounds(run: Any) -> list[float]:
    return [entry["eval_bits_per_token"] for entry in run.state.log_history if "eval_bits_per_token" in entry]


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return ""


def watch_precision(run: Any) -> set[str]:
    """The types of the times that the model is given and of the losses that it returns, once it has trained."""
    seen: set[str] = set()
    original = run.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        seen.add(f"loss {loss.dtype}")
        return loss

    run.compute_loss = compute_loss
    run.model.register_forward_pre_hook(lambda *args: seen.add(f"time {args[2]['time'].dtype}"), with_kwargs=True)
    return seen


def watch_sums() -> list[str]:
    """The classes of the heads whose losses are summed by the fused operation from now on."""
    seen: list[str] = []
    original = readout.layer_sum

    def layer_sum(layer: Any, *args: Any) -> Any:
        seen.append(type(layer).__name__)
        return original(layer, *args)

    readout.layer_sum = layer_sum
    return seen


def shard_although_on_cpu() -> None:
    """accelerate shards over GPUs only; everything behind that question works with gloo too."""
    original = PartialState.__init__

    def on_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = on_gpus


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    os.environ.update(LAUNCH)
    torch.set_num_threads(1)
    gc.freeze()  # every training run ends with a full collection
    shard_although_on_cpu()
    set_chunks(5 * len(TOKENIZER))  # five rows a chunk

    sums, run = watch_sums(), trainer(folder / "unbroken", 2)
    run.train()
    record: dict[str, Any] = {"losses": losses(run), "bounds": bounds(run), "final": run.bound().nats.tolist()}
    record["sums"] = sums.copy()
    record["shard"] = sum(weight.to_local().numel() for weight in run.model.parameters())
    record["all"] = sum(weight.numel() for weight in run.model.parameters())
    run.save_model(str(folder / "published"))
    record["generate"] = refusal(run.model.generate, length=4)

    try:
        trainer(folder / "resumed", 2, callbacks=[Interrupt(after=3)]).train()
    except KeyboardInterrupt:
        torch.distributed.barrier()
    again = trainer(folder / "resumed", 2, seed=9)
    again.train(resume_from_checkpoint=True)
    record["resumed"] = losses(again)
    record["finished"] = refusal(trainer(folder / "resumed", 2).train, resume_from_checkpoint=True)

    half = trainer(folder / "bfloat16", 2, bf16=True)
    seen = watch_precision(half)
    half.train()
    record["precision"] = sorted(seen)
    record["bfloat16"] = losses(half)
    record["muon"] = refusal(trainer, folder / "muon", 2, muon=True)
    record["eval_on_start"] = refusal(trainer, folder / "first", 2, eval_on_start=True)
    (folder / f"record-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
