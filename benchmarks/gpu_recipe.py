"""The text recipe for some seconds, for gpu.py."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from recipes.common import parse_arguments
from recipes.datasets.packages import cache_file
from recipes.text import TextArguments, build_trainer, scored

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "recipes" / "configs" / "gcide_text8.yaml"
FIRST = 20
"""Steps before the clock starts: of compiling, and of filling queues."""
QUICK = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "length": 32, "per_device_train_batch_size": 4,
    "max_eval_sequences": 8, "num_eval_samples": 1, "dataloader_num_workers": 0, "logging_steps": 1000,
}  # fmt: skip


class Stopwatch(TrainerCallback):
    """Times the steps after the first ones, and ends training after some seconds."""

    def __init__(self, allowed: float, device: str) -> None:
        self.allowed, self.device = allowed, device
        self.start, self.steps, self.seconds = 0.0, 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == FIRST:
            self.start = self._now()
        elif state.global_step > FIRST and time.perf_counter() - self.start > self.allowed:
            self.steps, self.seconds = state.global_step - FIRST, self._now() - self.start
            control.should_training_stop = True

    def _now(self) -> float:
        """After all that was started on the device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def run_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Trains for `args.recipe_seconds`, then scores the held-out part."""
    compiled = args.device.startswith("cuda")
    with TemporaryDirectory() as folder:
        text, data = text_options(args.text, Path(folder))
        settings: dict[str, Any] = {
            "output_dir": f"{folder}/run", "gradient_accumulation_steps": 1, "warmup_steps": 200, "max_steps": 10**6,
            "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "torch_compile": compiled,
            "per_device_eval_batch_size": 64,
            **data, **(QUICK if args.quick else {}),
        }  # fmt: skip
        argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        options, training = parse_arguments((TextArguments, TrainingArguments), ["--config", str(CONFIG), *argv])
        trainer = build_trainer(options, training)
        watch = Stopwatch(args.recipe_seconds, args.device)
        trainer.add_callback(watch)
        trainer.train()
        metrics = scored(trainer)
    model: Any = trainer.model
    per_step, config = training.per_device_train_batch_size * options.length, model.config
    return {
        "text": text,
        "compiled": compiled,
        "steps": watch.steps,
        "time_s": watch.seconds,
        "tokens_per_s": watch.steps * per_step / watch.seconds,
        "bits_per_character": metrics["bits_per_character"],
        "bits_per_character_stderr": metrics["bits_per_character_stderr"],
        "sizes": {
            "vocab_size": config.vocab_size, "length": options.length, "batch_size": training.per_device_train_batch_size,
            "layers": config.num_hidden_layers, "hidden_size": config.hidden_size, "heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size, "bf16": training.bf16,
        },
    }  # fmt: skip


def bare_arguments(args: argparse.Namespace, recipe: dict[str, Any]) -> argparse.Namespace:
    """The settings of a step at the recipe's sizes, without the recipe."""
    return argparse.Namespace(**{**vars(args), **recipe["sizes"]})


def text_options(file: Path | None, folder: Path) -> tuple[str, dict[str, Any]]:
    """What the text is, and the recipe's arguments for it: gcide if it was downloaded, a file, or this repository."""
    if file is None and cache_file("gcide_text8.txt", None).exists():
        return "gcide", {"data": "gcide"}
    files: Sequence[Path] = [file] if file else sorted([*ROOT.glob("gm_discrete/**/*.py"), *ROOT.glob("docs/**/*.md")])
    text = re.sub(r"[^a-z]+", " ", "\n".join(part.read_text("utf-8", "replace") for part in files).lower())
    lines = [text[start : start + 2**14] for start in range(0, len(text), 2**14)]
    target = folder / "text.txt"
    target.write_text("\n".join(lines), "utf-8")
    name = file.name if file else "the files of this repository"
    return name, {"data": target, "sample_by": "line", "validation_size": 0.05}
