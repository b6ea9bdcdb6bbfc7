"""What `test_edit_training.py` starts twice: models of strings, spread over two processes by FSDP 2."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.helpers.chunks import set_chunks
from tests.helpers.sharded_training import LAUNCH, shard_although_on_cpu, watch_sums
from tests.helpers.small_run import STABLE, TOKENIZER, losses
from tests.helpers.small_strings import string_model, string_trainer, words

NAMES = ("empty", "uniform")


def trainer(folder: Path, name: str, batch: int) -> Any:
    model = string_model(name, num_hidden_layers=3)
    return string_trainer(
        folder, name, model, eval_dataset=words(6, 1), ema=0.9, per_device_train_batch_size=batch, **STABLE
    )


def main(folder: Path) -> None:
    os.environ.update(LAUNCH)
    torch.set_num_threads(1)
    gc.freeze()
    shard_although_on_cpu()
    set_chunks(5 * len(TOKENIZER))  # five rows a chunk
    record, sums = dict[str, Any](), watch_sums()
    for name in NAMES:
        sums.clear()
        run = trainer(folder / name, name, 2)
        run.train()
        own, every = (
            sum(n) for n in zip(*((w.to_local().numel(), w.numel()) for w in run.model.parameters()), strict=True)
        )
        record[name] = {"losses": losses(run), "sums": sums.copy(), "share": own / every}
        record[name]["eval_loss"] = run.evaluate()["eval_loss"]
        run.save_model(str(folder / name / "published"))
    (folder / f"record-{os.environ['RANK']}.json").write_text(json.dumps(record), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
