"""What `test_image_training.py` starts under torchrun: the same runs as there, each process on its half of the batch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.small_images import picture_trainer, pictures
from tests.helpers.small_run import STABLE, losses, weights

NAMES = ("flow and jump", "masked")


def run_equal(folder: Path, name: str, world_size: int) -> Any:
    """Four steps on batches of four, with classes, some of which are left out."""
    trainer = picture_trainer(
        folder / name, name, ema=0.9, per_device_train_batch_size=4 // world_size, eval_dataset=pictures(6, seed=1),
        per_device_eval_batch_size=1, **STABLE,
    )  # fmt: skip
    trainer.train()
    return trainer


def main(folder: Path) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    for name in NAMES:
        trainer = run_equal(folder, name, world_size)
        record[name] = {"losses": losses(trainer), "metrics": [trainer.evaluate(), trainer.evaluate()]}
        save_file(weights(trainer.model), folder / f"{name}-{rank}.safetensors")
        (folder / f"record-{rank}.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
