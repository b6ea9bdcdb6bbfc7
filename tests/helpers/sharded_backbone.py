"""What `test_backbone_training.py` starts twice: networks of transformers, spread over two processes by FSDP 2."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch

from gm_discrete import UniformPath
from gm_discrete.training import CausalAnnealing
from tests.helpers.backbones import to_train
from tests.helpers.sharded_training import LAUNCH, RAGGED, shard_although_on_cpu
from tests.helpers.small_run import STABLE, TOKENIZER, losses, rows, small_trainer

CASES: dict[str, dict[str, Any]] = {
    "annealed": {"name": "llama"},
    "encoder with time": {"name": "bert", "path": UniformPath(len(TOKENIZER))},
}


def trainer(folder: Path, case: str, batch: int) -> Any:
    callbacks: Any = [CausalAnnealing(2)] if case == "annealed" else []
    return small_trainer(
        folder, rows(16, RAGGED), to_train(**CASES[case]), eval_dataset=rows(6, RAGGED, seed=1), ema=0.9, max_steps=3,
        per_device_train_batch_size=batch, callbacks=callbacks, gradient_checkpointing=case == "annealed", **STABLE,
    )  # fmt: skip


def main(folder: Path) -> None:
    os.environ.update(LAUNCH)
    del os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"]  # the layers are those that the network names
    torch.set_num_threads(1)
    gc.freeze()
    shard_although_on_cpu()
    record: dict[str, Any] = {}
    for case in CASES:
        run = trainer(folder / case, case, 2)
        run.train()
        own, every = (
            sum(n) for n in zip(*((w.to_local().numel(), w.numel()) for w in run.model.parameters()), strict=True)
        )
        layers = [type(layer).__name__ for layer in run.model.backbone.layers]
        record[case] = {
            "layers": layers,
            "losses": losses(run),
            "share": own / every,
            "bits": run.bound().bits_per_token,
        }
        run.save_model(str(folder / case / "published"))
    (folder / f"record-{os.environ['RANK']}.json").write_text(json.dumps(record), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
