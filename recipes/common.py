"""Shared by the recipes: arguments from YAML and the command line, resuming, the curve of a training run."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from gm_discrete import LogitNormalTimeSampler, UniformTimeSampler
from gm_discrete.command.texts import TRACEBACK, one_line
from gm_discrete.json_text import json_text
from gm_discrete.renamed import nearest
from gm_discrete.samplers import Sampler
from gm_discrete.training import EMACallback, GMTrainer, MuonAdamW, last_complete_checkpoint, locked, published
from gm_discrete.training.checkpoints import check_new, checkpoints, is_unfinished
from recipes.options import json_option

LOADERS = 4
"""Processes that make batches while a GPU computes; on a CPU they would take the cores of the training."""


GOES_ON = "the same command resumes from the last checkpoint"


class OptimizerOptions(Protocol):
    """The arguments for the optimizer and the evaluation, which all recipes have."""

    muon: bool
    muon_learning_rate: float
    muon_momentum: float
    ema_decay: float
    num_eval_samples: int


def run_script(main: Callable[[], object]) -> None:
    """Runs the `main` of a recipe as a program: an error of its arguments or files is one line, with exit status 2.

    With the environment variable `GM_DISCRETE_TRACEBACK`, which `gm-discrete --traceback train` sets, the traceback is
    printed in its place. Ctrl-C ends it with one line, too, which says how the run goes on (`running`).
    """
    try:
        main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end the end of the program with a traceback
        sys.exit(f"\nstopped; {' '.join(getattr(stop, '__notes__', ()))}".rstrip("; "))
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def print_anywhere() -> None:
    """Makes `print` write ? in place of characters that the terminal or the log does not have; it would end the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def parse_arguments(classes: tuple[type, ...], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fills dataclasses from `--config FILE.yaml` and the command line; the command line has precedence.

    As the first step of a recipe it also calls `print_anywhere`.

    Args:
        classes: dataclasses of arguments, `TrainingArguments` among them.
        argv: the command line; by default `sys.argv`.

    Raises:
        ValueError: the file or the command line holds an argument that no class has, or one that recipes do not use.
        OSError: there is no such file.
    """
    print_anywhere()
    argv = list(sys.argv[1:] if argv is None else argv)
    settings: dict[str, Any] = {}
    if "--config" in argv:
        at = argv.index("--config")
        settings = yaml.safe_load(Path(argv[at + 1]).read_text(encoding="utf-8")) or {}
        settings.pop("recipe", None)  # which `gm-discrete train` reads
        del argv[at : at + 2]
    parser = HfArgumentParser(classes)  # pyright: ignore[reportArgumentType]
    known = {action.dest for action in parser._actions}
    if "use_cpu" in known:  # TrainingArguments would otherwise require a GPU for bf16
        device = torch.accelerator.current_accelerator(check_available=True)
        settings.setdefault("use_cpu", device is None or device.type == "mps")  # MPS has no float64
        is_stream = settings.get("streaming") or any(word.startswith("--streaming") for word in argv)
        if not settings["use_cpu"] and not is_stream:  # several workers would give a stream another order
            settings.setdefault("dataloader_num_workers", min(LOADERS, (os.cpu_count() or 1) - 1))
    if "output_dir" in known:
        settings.setdefault("output_dir", "runs/unnamed")
    if unknown := settings.keys() - known:
        raise ValueError(f"the config holds unknown arguments: {', '.join(sorted(unknown))}")
    parser.set_defaults(**settings)
    for action in parser._actions:
        action.required = action.required and action.dest not in settings
    *parsed, words = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    for word in words:
        option = word.partition("=")[0]
        if not option.startswith("-"):
            raise ValueError(f"{word!r} belongs to no option; a file of data is given as --data {word}")
        names = [name for name in parser._option_string_actions if "-" not in name[2:]]
        raise ValueError(f"there is no option {option}{nearest(option, names)}")
    if checkpoint := next(
        (part.resume_from_checkpoint for part in parsed if isinstance(part, TrainingArguments)), None
    ):
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} is not an argument of recipes: they resume from the last complete "
            "checkpoint in output_dir. To go back to an earlier one, delete the later ones"
        )
    for part in parsed:
        if isinstance(part, TrainingArguments) and part.dataloader_num_workers:
            part.dataloader_persistent_workers = True  # they are not started anew in each epoch
    return tuple(parsed)


@contextmanager
def running(training: TrainingArguments) -> Iterator[None]:
    """Within this context no other run may use the output folder; an interrupt notes how the run goes on."""
    with locked(str(training.output_dir)):
        try:
            yield
        except KeyboardInterrupt as stop:
            is_new = all(map(is_unfinished, checkpoints(str(training.output_dir))))
            stop.add_note("no checkpoint yet: the same command begins anew" if is_new else GOES_ON)
            raise


def check_run(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes the settings of a run to `run.json`; if the run has a checkpoint, checks that they have not changed.

    Raises:
        ValueError: a setting differs from that of the checkpoint, `run.json` is damaged, or no checkpoint is complete.
    """
    record = folder / "run.json"
    current = json.loads(json.dumps(settings, default=str))
    if last_complete_checkpoint(folder) is None:
        check_new(folder)
    elif record.exists():
        before = _settings(record)
        for name in sorted(before.keys() & current.keys()):
            if before[name] != current[name]:
                raise ValueError(
                    f"{folder} holds a run that was started with {name}={before[name]!r}, now it is {current[name]!r}: "
                    "give the first to resume it, or choose another output_dir"
                )
    write_json(record, current)


def _settings(record: Path) -> dict[str, object]:
    """
    Raises:
        ValueError: the file is not what `check_run` writes.
    """
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
    except ValueError:
        pass
    raise ValueError(
        f"{record} is damaged, so that the settings of the run cannot be compared with those that are given now; delete the "
        "file if they are the same, and start the run again"
    )


def weight_settings(options: object, training: TrainingArguments, display: set[str]) -> dict[str, object]:
    """The settings that the weights depend on, except for the number of steps; a resumed run must not change them.

    Args:
        options: the arguments of a recipe.
        display: names of those that the weights do not depend on; `license` is always one.
    """
    settings = {name: value for name, value in vars(options).items() if name not in {*display, "license"}}
    names = ("seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")
    settings |= {name: getattr(training, name) for name in (*names, "max_grad_norm", "bf16", "fp16")}
    settings["global_batch_size"] = (
        training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    return settings


def time_sampler(times: str, mean: float = 0.0, std: float = 1.0) -> LogitNormalTimeSampler | UniformTimeSampler:
    """The distribution of training times: "logit_normal", with `mean` and `std` of logit κ(t), or "uniform"."""
    if times not in ("logit_normal", "uniform"):
        raise ValueError(f"times={times!r} must be logit_normal or uniform")
    return LogitNormalTimeSampler(mean, std) if times == "logit_normal" else UniformTimeSampler()


def parse_sampler(sampler: str) -> Sampler:
    """A sampler by name, such as "tau_leaping", or from JSON, {"type": "adaptive", "max_expected_changes": 2}."""
    return Sampler.of(json_option("sampler", sampler))


def trainer_options(options: OptimizerOptions, training: TrainingArguments) -> dict[str, Any]:
    """The arguments of `GMTrainer` for the optimizer, the average of the weights and the evaluation."""
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


def train(trainer: GMTrainer) -> None:
    """Trains from the last complete checkpoint, or from the start if there is none."""
    last = last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if last:
        print_once(trainer.args, f"resumed from {last}")
    trainer.train(resume_from_checkpoint=last)


def model_card(
    trainer: GMTrainer, data: str | None, backbone: str | None = None, *, license: str | None = None
) -> None:
    """Writes the model card, with the names of the data and of the pretrained model; of a path the last part."""
    names = [name and (Path(name).name if Path(name).exists() else name) for name in (data, backbone)]
    trainer.create_model_card(dataset=names[0], finetuned_from=names[1], license=license)


def print_once(training: TrainingArguments, text: str) -> None:
    """Prints on the first process only."""
    if training.process_index == 0:
        print(text, flush=True)


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file, with null for NaN; it is replaced as a whole, never left half written."""
    with published(file.parent) as draft:
        (draft / file.name).write_text(json_text(content, indent=1) + "\n", encoding="utf-8")


def plot_curve(history: list[dict[str, float]], unit: str, path: Path) -> None:
    """Draws the training loss and the held-out bound against the optimizer step. The file is replaced as a whole.

    Args:
        history: the log of the trainer.
        unit: of the bound, which is drawn in bits per unit; an empty string draws matching losses instead.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure  # an extra, of which training has no need

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bits = 1 / torch.log(torch.tensor(2.0)).item()
    training_curve = ("loss", "training loss (at the training times)", bits if unit else 1.0)
    held_out = ("eval_bits_per_token", "held-out bound") if unit else ("eval_loss", "held-out loss (at uniform times)")
    for name, label, factor in (training_curve, (*held_out, 1.0)):
        points = [(entry["step"], entry[name] * factor) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), "o-" if name.startswith("eval") else "-", markersize=4, label=label)
    axes.set(xlabel="optimizer step", ylabel=f"bits per {unit}" if unit else "matching loss")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    with published(path.parent) as draft:
        figure.savefig(draft / path.name, dpi=120)
