"""`python -m gm_discrete.convert SOURCE DESTINATION`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from gm_discrete.convert.conversion import FAMILIES, convert


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts a checkpoint as the command line says; an error is one line, and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m gm_discrete.convert",
        description="Turn a published MDLM, SEDD or Duo checkpoint into a GMModel.",
    )
    parser.add_argument("source", help="weights file, or folder with config.json and weights")
    parser.add_argument("destination", help="new folder")
    parser.add_argument("--family", choices=FAMILIES, help="by default what config.json says")
    parser.add_argument("--num-attention-heads", type=int, help="where neither config.json nor the weights tell it")
    parser.add_argument("--mask-token-id", type=int, help="by default the tokenizer's, or the last symbol")
    parser.add_argument("--length", type=int, help="at which the model was trained; by default config.json's, or 1024")
    parser.add_argument(
        "--time-conditioning", action=argparse.BooleanOptionalAction, help="whether an MDLM network was told the time"
    )
    parser.add_argument("--eps", type=float, default=1e-3, help="of the log-linear noise (default: 0.001)")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="take averaged weights where there are any"
    )
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(options.pop("source"), options.pop("destination"), **options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
