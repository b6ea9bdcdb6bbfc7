"""`gm-discrete train`: `accelerate launch` of the recipe that a config is for."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

from gm_discrete.command.recipes import find_config, recipe_of

DEFAULTS = {"num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
"""What `accelerate launch` would warn of where `accelerate config` was never run. The `bf16` of a config has precedence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "gm-discrete train CONFIG [options]"
    parser.description = "Train the model that a config describes. If it is interrupted, the same command resumes it."
    parser.add_argument(
        "config", metavar="CONFIG", help="name of a config (gm-discrete recipes lists them), or a YAML file"
    )
    parser.add_argument(
        "options",
        nargs=argparse.REMAINDER,
        help="--ARGUMENT VALUE of the recipe or of transformers' TrainingArguments, in place of that of the config "
        "(gm-discrete train CONFIG --help lists them), and options of accelerate launch, such as --num_processes 8",
    )


def run(options: argparse.Namespace) -> None:
    config = find_config(options.config)
    recipe = recipe_of(config)
    launch, others = split(options.options)
    command = [*launch, str(recipe), "--config", str(config), *others]
    print(shlex.join(["accelerate", "launch", *command]), file=sys.stderr, flush=True)
    # In place of this process, so that signals reach the run and its exit status is that of the command.
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *command])


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `accelerate launch`, with defaults where it has none, and those of the recipe.

    Options of both (`--debug`, `--gradient_accumulation_steps`) are those of the recipe.
    """
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command_parser
    from transformers import TrainingArguments

    known: dict[str, argparse.Action] = launch_command_parser()._option_string_actions
    of_recipe = {"help", "config", *TrainingArguments.__dataclass_fields__}
    launch: list[str] = []
    others: list[str] = []
    given: set[str] = set()
    for group in grouped(words):
        name, _, value = group[0].partition("=")
        action = known.get(name) if name.startswith("--") else None
        if action is None or action.dest in of_recipe:
            others += group
            continue
        given.add(action.dest)
        size = 1 if value or action.nargs == 0 else 2
        launch += group[:size]
        others += group[size:]
    if "quiet" not in given:  # else a traceback of the launcher follows the error of the recipe
        launch.append("--quiet")
    if "config_file" not in given and not os.path.isfile(default_config_file):
        launch += list(defaults(given, launch))
    return launch, others


def grouped(words: Sequence[str]) -> Iterator[list[str]]:
    """Options with the words after them, up to the next option."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def defaults(given: set[str], launch: Sequence[str]) -> Iterator[str]:
    """Options in place of the answers that `accelerate config` asks for: all GPUs of this machine, else one process."""
    import torch

    gpus = torch.cuda.device_count()
    processes = gpus if gpus and "cpu" not in given else 1
    if "num_processes" in given:
        words = " ".join(launch).replace("=", " ").replace("num-processes", "num_processes").split()
        processes = int(words[words.index("--num_processes") + 1])
    else:
        yield from ("--num_processes", str(processes))
    for name, value in DEFAULTS.items():
        if name not in given:
            yield from (f"--{name}", value)
    if gpus > 1 and processes > 1 and not given & {"multi_gpu", "cpu", "use_fsdp", "use_deepspeed"}:
        yield "--multi_gpu"
    if not gpus and "num_cpu_threads_per_process" not in given and "OMP_NUM_THREADS" not in os.environ:
        yield from ("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) // processes)))
