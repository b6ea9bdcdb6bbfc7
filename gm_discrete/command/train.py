"""`gm-discrete train`: `accelerate launch` of the recipe that a config is for."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from gm_discrete.command.recipes import find_config, recipe_of

DEFAULTS = {"num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
"""What `accelerate launch` would warn of where `accelerate config` was never run. The `bf16` of a config has precedence."""
LAUNCHERS = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
"""Options of `accelerate launch` that start several processes."""


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
    launch, others = split(options.options, uses_cpu(config, options.options))
    command = [*launch, str(recipe), "--config", str(config), *others]
    print(shlex.join(["accelerate", "launch", *command]), file=sys.stderr, flush=True)
    program, environment = process(command)
    os.execve(program[0], program, environment)  # in place of this process


def process(command: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """The program that `accelerate launch` with these words comes to, and its environment.

    One process is the recipe itself, so that signals reach it, and its exit status is that of the command: `accelerate
    launch` would be its parent, which ends at a signal and leaves the recipe behind. Several processes have torch's
    launcher, which `accelerate launch` runs in its own process, and which passes signals on.
    """
    from accelerate.commands.config.config_args import SageMakerConfig
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    launch, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(list(command)))
    several = not launch.cpu and any(getattr(launch, name) for name in LAUNCHERS)
    if several or launch.mpirun_hostfile is not None or isinstance(defaults, SageMakerConfig):
        return [sys.executable, "-m", "accelerate.commands.launch", *command], os.environ
    try:
        return prepare_simple_launcher_cmd_env(launch)
    except AssertionError as error:  # several machines without an address
        raise ValueError(str(error)) from error


def uses_cpu(config: Path, words: Sequence[str]) -> bool:
    """Whether the recipe is told to train on the CPU, by `use_cpu` of the words or else of the config."""
    found = bool(yaml.safe_load(config.read_text(encoding="utf-8")).get("use_cpu", False))
    for group in grouped(words):
        name, _, value = " ".join(group).replace("=", " ", 1).partition(" ")
        if name in ("--use_cpu", "--use-cpu"):
            found = value.strip().lower() not in ("false", "f", "no", "n", "0")  # as HfArgumentParser reads it
    return found


def split(words: Sequence[str], on_cpu: bool = False) -> tuple[list[str], list[str]]:
    """The options of `accelerate launch`, with defaults where it has none, and those of the recipe.

    Options of both (`--debug`, `--gradient_accumulation_steps`) are those of the recipe.

    Args:
        on_cpu: whether the recipe trains on the CPU, although the machine may have GPUs.
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
        launch += list(defaults(given, launch, on_cpu))
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


def defaults(given: set[str], launch: Sequence[str], on_cpu: bool = False) -> Iterator[str]:
    """Options in place of the answers that `accelerate config` asks for: all GPUs of each machine, else one process."""
    import torch
    from accelerate.commands.launch import launch_command_parser

    chosen = launch_command_parser().parse_args([*launch, "recipe.py"])
    gpus = 0 if on_cpu or chosen.cpu else torch.cuda.device_count()
    machines = chosen.num_machines or 1
    processes = chosen.num_processes or max(1, gpus) * machines  # accelerate counts those of all machines
    if "num_processes" not in given:
        yield from ("--num_processes", str(processes))
    for name, value in DEFAULTS.items():
        if name not in given:
            yield from (f"--{name}", value)
    if gpus * machines > 1 and processes > 1 and not given & set(LAUNCHERS):
        yield "--multi_gpu"
    if not gpus and "num_cpu_threads_per_process" not in given and "OMP_NUM_THREADS" not in os.environ:
        yield from ("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) * machines // processes)))
