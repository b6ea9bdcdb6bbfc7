"""What recipes share: arguments from YAML and the command line, and the curve of a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from gm_discrete.training import EMACallback, GMTrainer, MuonAdamW, last_complete_checkpoint

matplotlib.use("Agg")
from matplotlib import pyplot


def parse_arguments(classes: tuple[Any, ...], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Dataclasses filled from `--config FILE.yaml`, with any argument of the command line going first.

    Raises:
        ValueError: the file holds an argument that no class has.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    settings: dict[str, Any] = {}
    if "--config" in argv:
        at = argv.index("--config")
        file = Path(argv[at + 1])
        settings = yaml.safe_load(file.read_text()) or {}
        del argv[at : at + 2]
    parser = HfArgumentParser(classes)
    known = {action.dest for action in parser._actions}
    if "use_cpu" in known:  # or TrainingArguments would look for a GPU's bf16
        device = torch.accelerator.current_accelerator(check_available=True)
        settings.setdefault("use_cpu", device is None or device.type == "mps")  # which knows no float64
    if "output_dir" in known:
        settings.setdefault("output_dir", "runs/unnamed")
    if unknown := settings.keys() - known:
        raise ValueError(f"the config holds unknown arguments: {', '.join(sorted(unknown))}")
    parser.set_defaults(**settings)
    for action in parser._actions:
        action.required = action.required and action.dest not in settings
    return parser.parse_args_into_dataclasses(argv)


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings of a run in `run.json`; a run that goes on must have those it was started with.

    Raises:
        ValueError: a setting is another one.
    """
    record = folder / "run.json"
    settings = json.loads(json.dumps(settings, default=str))
    if last_complete_checkpoint(folder) and record.exists():
        before = json.loads(record.read_text())
        for name in sorted(before.keys() & settings.keys()):
            if before[name] != settings[name]:
                raise ValueError(
                    f"{folder} holds a run that was started with {name}={before[name]!r}, now it is {settings[name]!r}: "
                    "go on with the first, or choose another output_dir"
                )
    write_json(record, settings)


def settings_of_run(options: Any, training: TrainingArguments, shown: set[str]) -> dict[str, Any]:
    """What a run that goes on may not change: all that its weights depend on, but for the number of steps."""
    settings = {name: value for name, value in vars(options).items() if name not in shown}
    names = ("seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")
    settings |= {name: getattr(training, name) for name in (*names, "max_grad_norm", "bf16", "fp16")}
    settings["global_batch_size"] = (
        training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    return settings


def trainer_options(options: Any, training: TrainingArguments) -> dict[str, Any]:
    """What a `GMTrainer` is told of a recipe's `muon`, `ema_decay` and `num_eval_samples`."""
    muon = {
        "lr": options.muon_learning_rate,
        "momentum": options.muon_momentum,
        "adamw_lr": training.learning_rate,
        "adamw_betas": (training.adam_beta1, training.adam_beta2),
        "weight_decay": training.weight_decay,
    }
    return {
        "num_eval_samples": options.num_eval_samples,
        "callbacks": [EMACallback(options.ema_decay)] if options.ema_decay else None,
        "optimizer_cls_and_kwargs": (lambda: MuonAdamW, muon) if options.muon else None,
    }


def go_on(trainer: GMTrainer) -> None:
    """Trains from the last complete checkpoint, or from the start."""
    last = last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if last:
        print_once(trainer.args, f"goes on from {last}")
    trainer.train(resume_from_checkpoint=last)


def print_once(training: TrainingArguments, text: str) -> None:
    """Prints on the first process only."""
    if training.process_index == 0:
        print(text, flush=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(file)


def plot_curve(history: list[dict[str, float]], unit: str, path: Path) -> None:
    """Training loss and held-out bound, in bits, against the optimizer step, as a PNG; without a unit the losses."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    held_out = (
        ("eval_bits_per_token", "held-out bound", 1.0) if unit else ("eval_loss", "held-out loss (even times)", 1.0)
    )
    for name, label, factor in (
        ("loss", "training loss (its own law of times)", 1 / torch.log(torch.tensor(2.0)).item() if unit else 1.0),
        held_out,
    ):
        points = [(entry["step"], entry[name] * factor) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), "o-" if name.startswith("eval") else "-", markersize=4, label=label)
    axes.set(xlabel="optimizer step", ylabel=f"bits per {unit}" if unit else "matching loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
