"""Little runs of recipes/sft.py; `test_sft.py` starts `main` twice, in processes that train together."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import datasets
from accelerate.state import AcceleratorState

from tests.helpers.chats import chats, tiny_llama, write_rows
from tests.helpers.sharded_training import LAUNCH, shard_although_on_cpu

SIZES = {
    "length": 64, "max_eos": 8, "validation_size": 4, "max_steps": 4, "save_steps": 2, "logging_steps": 1,
    "learning_rate": 0.01, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "num_eval_samples": 1,
    "num_prompts": 1, "answer_length": 6, "num_steps": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "ema_decay": 0.9, "seed": 3, "adam_epsilon": 1e-3, "dataloader_num_workers": 0,
}  # fmt: skip


def sources(folder: Path) -> dict[str, Any]:
    """A language model and conversations."""
    return {"backbone": tiny_llama(folder / "llama"), "data": write_rows(folder / "chats.jsonl", chats(24))}


def words(value: Any) -> list[str]:
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def flags(arguments: dict[str, Any]) -> list[str]:
    return [
        part
        for name, value in arguments.items()
        for part in (f"--{name}", *map(str, value if type(value) is list else [value]))
    ]


def sft(arguments: dict[str, Any]) -> dict[str, Any]:
    return importlib.import_module("recipes.sft").main(flags({**SIZES, **arguments}))


def main(folder: Path) -> None:
    """The run with adapters, with whole weights on each process and with sharded ones."""
    datasets.config.HF_DATASETS_CACHE = folder / f"cache-{os.environ['RANK']}"
    made = {"backbone": folder / "llama", "data": folder / "chats.jsonl"}
    run = {**made, "per_device_train_batch_size": 2, "lora_rank": 2}
    sft({**run, "output_dir": folder / "ddp"})
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(LAUNCH | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"})
    shard_although_on_cpu()
    sft({**run, "output_dir": folder / "fsdp"})
