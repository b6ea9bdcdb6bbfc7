"""The arguments of `gm-discrete serve`."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import fields

from gm_discrete.arguments import check_folder
from gm_discrete.serving.settings import Settings

KEY = "GM_DISCRETE_API_KEY"
"""The environment variable of the key."""
HELP = {
    "host": "address to listen at; 0.0.0.0 for all",
    "port": "0 takes a free one",
    "max_length": "positions of a sequence at most, prompt included; by default what the model is made for",
    "max_batch": "sequences of one call of the model, and of one request",
    "max_queue": "sequences that wait at most; requests beyond get 503",
    "max_choices": "the greatest n",
    "max_steps": "the greatest num_steps",
    "max_body": "bytes of a request at most",
    "timeout": "seconds until a request ends with 504",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command to its parser."""
    parser.add_argument("model", help="folder with a model and its tokenizer, or a name on the hub")
    parser.add_argument("--name", help="of the model, as clients ask for it; by default that of the folder")
    parser.add_argument("--device", help="such as cuda; by default the first GPU, or else the CPU")
    parser.add_argument("--dtype", help="of the weights, such as bfloat16; by default that of the files")
    parser.add_argument(
        "--api-key", help=f"that clients must send; better set {KEY}, as processes show their arguments"
    )
    for setting in fields(Settings):
        if setting.name in HELP:
            kind = int if setting.default is None else type(setting.default)
            option = f"--{setting.name.replace('_', '-')}"
            parser.add_argument(option, type=kind, default=setting.default, help=HELP[setting.name])
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="what is logged"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the server that the arguments describe, until it is stopped.

    Raises:
        ImportError: FastAPI or uvicorn is not installed.
        ValueError, OSError: an argument is wrong, or the folder is none of a model.
    """
    check_folder(args.model)
    from gm_discrete.serving.server import serve

    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s: %(message)s")
    given = {name: getattr(args, name) for name in HELP}
    key = args.api_key if args.api_key is not None else os.environ.get(KEY, "").strip() or None
    settings = Settings(api_key=key, **given)
    serve(args.model, settings, args.name, device=args.device, dtype=args.dtype, log_level=args.log_level)
