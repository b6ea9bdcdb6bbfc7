"""Reads a published checkpoint without running code from it: tensors by name, averaged tensors, settings."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONTAINERS = ("state_dict", "model")
"""Keys under which Lightning (MDLM, Duo) and SEDD's own training keep the network within a checkpoint."""

ROOT = "vocab_embed.embedding"
"""Name of the DiT's first parameter in all families; the text before it is the prefix of all names."""

ELSEWHERE = ("teacher.", "noise.", "ema.")
"""Parts of a training checkpoint that are not the network."""


@dataclass
class Checkpoint:
    """A network's tensors under the names of the original, without prefix.

    Attributes:
        state: by name, in the order of the file.
        shadow: the averaged weights, in the order of the network's parameters; `None` if there are none.
        config: of config.json; empty if there is none.
        folder: the folder that it was read from; `None` if the source was a single file.
    """

    state: dict[str, Tensor]
    shadow: list[Tensor] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def read(source: str | Path) -> Checkpoint:
    """A checkpoint from a weights file, or from a folder with config.json and weights.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read without unpickling code, or holds no DiT.
    """
    source = Path(source)
    folder = source if source.is_dir() else None
    file = source if folder is None else next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None or not file.is_file():
        sought = "neither a file nor a folder" if folder is None else f"a folder without {' or '.join(WEIGHTS)}"
        raise FileNotFoundError(f"source={str(source)!r} is {sought}")
    config = None if folder is None else folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config is not None and config.is_file() else {}
    content = _load(file)
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
    tensors = content if container is None else content[container]
    average = content.get("ema")
    shadow = average.get("shadow_params") if container is not None and isinstance(average, Mapping) else None
    return Checkpoint(_without_prefix(tensors, file), shadow, settings, folder)


def _load(file: Path) -> Mapping[str, Any]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"source={str(file)!r} is no safetensors file: {error}") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"source={str(file)!r} holds more than tensors, or is no checkpoint; reading it could run code from it. "
            "If you trust it, load it with the code that it came from, and save what is needed: "
            f"torch.save({{'state_dict': c['state_dict'], 'ema': c.get('ema')}}, …). ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"source={str(file)!r} holds a {type(content).__name__}; expected a dict of tensors by name")
    return content


def _without_prefix(tensors: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The tensors of the one DiT among them, under names without "backbone.", "module." and the like."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(ELSEWHERE)}
    if others := sorted(tensors.keys() - kept.keys()):
        logger.info("left out, because they are not the network: %s", ", ".join(others))
    prefixes = [name.removesuffix(ROOT) for name in kept if name.endswith(ROOT)]
    if len(prefixes) != 1:
        raise ValueError(
            f"source={str(file)!r} has no known layout: looked for one tensor named …{ROOT} (as in MDLM, SEDD and Duo), at "
            f"the top or in {' or '.join(CONTAINERS)}; found {len(prefixes)} among {_some(list(tensors))}"
        )
    prefix = prefixes[0]
    if strangers := [name for name in kept if not name.startswith(prefix)]:
        raise ValueError(f"source={str(file)!r} holds unexpected tensors beside {prefix}…: {_some(strangers)}")
    if not all(isinstance(tensor, Tensor) for tensor in kept.values()):
        raise ValueError(f"source={str(file)!r} holds values that are no tensors among the network's")
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
