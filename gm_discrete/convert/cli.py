"""`python -m gm_discrete.convert SOURCE DESTINATION`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from gm_discrete.convert.conversion import convert
from gm_discrete.convert.languages import LANGUAGES
from gm_discrete.convert.settings import FAMILIES


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `convert` with the arguments of the command line; an error is one line, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m gm_discrete.convert")
    add_arguments(parser)
    try:
        run(parser.parse_args(arguments))
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments to a parser, also to that of `gm-discrete convert`."""
    parser.description = (
        "Turn a published checkpoint of LLaDA, Dream, SDAR, MDLM, SEDD or Duo, or a folder of gm_discrete 0.1, into a "
        "GMModel folder."
    )
    parser.add_argument(
        "source",
        help="weights file, folder with weights or of a training run, or id of a model on the hub",
    )
    parser.add_argument("destination", help="new folder")
    parser.add_argument("--family", choices=(*FAMILIES, *LANGUAGES), help="by default that of config.json")
    parser.add_argument("--num-attention-heads", type=int, help="if config.json and the weights lack it")
    parser.add_argument("--mask-token-id", type=int, help="by default the tokenizer's, or the last symbol")
    parser.add_argument("--length", type=int, help="at which the model was trained; by default config.json's, or 1024")
    parser.add_argument("--block-size", type=int, help="of SDAR, if config.json lacks it")
    parser.add_argument(
        "--time-conditioning",
        action=argparse.BooleanOptionalAction,
        help="whether the time is an input of an MDLM network",
    )
    parser.add_argument("--eps", type=float, help="of the log-linear noise; by default that of the config, or 0.001")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights, if there are any"
    )


def run(options: argparse.Namespace) -> None:
    """Converts, and logs what it does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = vars(options).copy()
    convert(arguments.pop("source"), arguments.pop("destination"), **arguments)
