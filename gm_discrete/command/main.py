"""`gm-discrete COMMAND`: each command is a module with `add_arguments(parser)` and `run(options)`, imported when it is used.

`gm-discrete --help` does not import transformers, which takes seconds. For the same reason the modules of the commands
import what they need in `run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gm_discrete.command.texts import TRACEBACK, HelpFormatter, Parser, one_line

COMMANDS = {
    "train": ("gm_discrete.command.train", "train a model with one of the recipes"),
    "generate": ("gm_discrete.command.generate", "print or write samples of a model"),
    "score": ("gm_discrete.command.score", "the likelihood of text, or of rows of a table, under a model"),
    "info": ("gm_discrete.command.info", "what a model folder holds, without loading the weights"),
    "convert": ("gm_discrete.convert.cli", "turn a published checkpoint into a model folder"),
    "serve": ("gm_discrete.serving.command", "answer requests over HTTP, with a page to try the model"),
    "recipes": ("gm_discrete.command.recipes", "list the configs, or copy the recipes to change them"),
}
"""Name → module, and a line of help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command with the arguments of the command line; an error is one line, with exit status 2."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    run, command, traceback = (vars(options).pop(name) for name in ("run", "command", "traceback"))
    if traceback:
        os.environ[TRACEBACK] = "1"  # for a recipe, which takes the place of this process
    try:
        run(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError):  # what reads the output has ended, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if traceback:
            raise
        command.exit(2, f"{command.prog}: error: {one_line(error)}\n")
    except KeyboardInterrupt:
        sys.exit(130)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command, with the function that runs it as `run`, and its parser as `command`."""
    parser = Parser(
        "gm-discrete",
        description="Discrete diffusion, flows and jumps of sequences: train, sample and score generator matching models.",
        epilog="gm-discrete COMMAND --help describes the options of a command.",
    )
    version = import_module("gm_discrete").__version__
    parser.add_argument("--version", action="version", version=f"gm_discrete {version}", help="print the version")
    parser.add_argument("--traceback", action="store_true", help="print where an error comes from, for bug reports")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=HelpFormatter
        )
        if name == chosen:
            try:
                implementation = import_module(module)
            except ImportError as error:  # a package of an extra
                command.exit(2, f"{command.prog}: error: {one_line(error)}\n")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run, command=command)
    if not arguments:
        parser.exit(2, parser.format_help())
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.command.error(f"unknown arguments: {' '.join(unknown)}")
    return options
