"""What `test_kills.py` starts: recipes/text.py, killed (SIGKILL) at one point after another and started again each time.

Every start is a fork of this process, which imports the recipe once.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open

from gm_discrete.training import EMACallback, GMTrainer, checkpointed, checkpoints, publishing
from recipes import text

Condition = Callable[..., bool]


def always(*arguments: Any, **options: Any) -> bool:
    return True


def at_step(step: int) -> Condition:
    return lambda self, *arguments, **options: self.state.global_step == step


def named(name: str) -> Condition:
    """The first path is a file or a folder of that name, or lies within one, and it exists."""
    return lambda path, *_, **__: name in Path(path).parts and Path(path).exists()


POINTS: dict[str, tuple[Any, str, Condition]] = {
    "before the tokenizer is there": (publishing, "move", named("tokenizer.json")),
    "in the first step": (GMTrainer, "compute_loss", always),
    "within the first checkpoint": (GMTrainer, "_save_optimizer_and_scheduler", always),
    "while the first checkpoint is hashed": (checkpoints, "crc32", named("optimizer.pt")),
    "between two checkpoints": (GMTrainer, "compute_loss", at_step(3)),
    "before the marker": (checkpointed, "mark_complete", named("checkpoint-4")),
    "in rotation, before a file is deleted": (checkpoints, "_remove", named("deleted-checkpoint-2")),
    "in rotation, when a file is deleted": (checkpoints, "_remove", named("deleted-checkpoint-4")),
    "before the average": (EMACallback, "save", named("checkpoint-10")),
    "when the final model is written": (publishing, "move", named("model.safetensors")),
    "when half of the final model has its name": (publishing, "move", named("config.json")),
    "when the pictures are drawn": (text, "plot_trajectory", always),
}
"""Where the runs are killed, in this order: before a call of the function whose arguments fulfil a condition."""


def patch(name: str) -> None:
    owner, attribute, condition = POINTS[name]
    original = getattr(owner, attribute)

    def killed(*arguments: Any, **options: Any) -> Any:
        paths = [part for part in arguments if not isinstance(part, EMACallback)]
        if condition(*paths, **options):
            if name == "in rotation, when a file is deleted":
                next(Path(arguments[0]).glob("*.safetensors")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, attribute, killed)


def start(argv: list[str], point: str | None, log: Path) -> int:
    """Runs the recipe in a fork, and returns its exit code, −9 if it was killed."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        with log.open("a", encoding="utf-8") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
            print(f"\n==== {point}", flush=True)
            if point is not None:
                patch(point)
            text.main(argv)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def check_files(folder: Path) -> None:
    """Every file that has its final name is whole."""
    for file in folder.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            safe_open(file, "pt").keys()
        elif file.suffix in (".png", ".gif"):
            with Image.open(file) as image:
                image.load()


def main(folder: Path, *argv: str) -> None:
    torch.set_num_threads(1)
    log, codes = folder / "log.txt", {}
    codes["unbroken"] = start([*argv, "--output_dir", str(folder / "unbroken")], None, log)
    for point in POINTS:
        codes[point] = start([*argv, "--output_dir", str(folder / "killed")], point, log)
        check_files(folder / "killed")
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")
