"""Models and tokenizers by folder or name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_discrete.arguments import check_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gm_discrete.models import GMConfig, GMModel

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments MODEL and --device."""
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or its name on the hub")
    parser.add_argument("--device", help="such as cpu or cuda:0; by default an accelerator if there is one")


def load_config(name: str) -> GMConfig:
    """The config of a model.

    Raises:
        ValueError: it is not that of a `GMModel`.
    """
    check_folder(name)
    from transformers import PreTrainedConfig

    from gm_discrete.models import GMConfig

    kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind != GMConfig.model_type:
        raise ValueError(
            f"MODEL {name!r} is a {kind} model, and not one of gm_discrete; gm-discrete convert reads LLaDA, Dream, SDAR, "
            "MDLM, SEDD and Duo, and GMModel.from_backbone takes language models"
        )
    return GMConfig.from_pretrained(name)


def load_model(name: str, device: str | None = None) -> GMModel:
    """The model in evaluation mode, on the device; progress bars of loading are off."""
    load_config(name)
    import torch
    from transformers.utils import logging

    from gm_discrete.models import GMModel

    logging.disable_progress_bar()
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None or found.type == "mps" else str(found)  # MPS has no float64
    try:
        return GMModel.from_pretrained(name).to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise ValueError(f"MODEL {name!r} cannot be loaded on {device}: {error}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none.
    """
    from gm_discrete.data import load_tokenizer

    if Path(name).is_dir() and not has_tokenizer(name):
        raise ValueError(f"MODEL {name!r} holds no tokenizer; save the one that it was trained with in this folder")
    return load_tokenizer(name)


def has_tokenizer(folder: str) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((Path(folder) / file).is_file() for file in TOKENIZER_FILES)


def write_text(text: str, output: str | None) -> None:
    """Writes to a file, or to the terminal with ? in place of characters that it does not have."""
    if output is not None:
        Path(output).write_text(text, encoding="utf-8")
        return
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    stream.write(text)
    stream.flush()
