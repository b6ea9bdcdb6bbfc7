"""Reads a published checkpoint without running code from it: tensors by name, averaged tensors, settings."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gm_discrete.convert.archive import Archive
from gm_discrete.convert.pickles import Unread, within
from gm_discrete.convert.sources import Folder, line
from gm_discrete.convert.tokenizers import KeptTokenizer

logger = logging.getLogger(__name__)

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
        config: of the folder, or the unread one that Lightning keeps in its checkpoints; empty if there is none.
        folder: the folder that it was read from; `None` if the source was a single file.
        tokenizer: the one that Lightning keeps in its checkpoints.
    """

    state: dict[str, Tensor]
    shadow: list[Tensor] | None = None
    config: object = None
    folder: Folder | None = None
    tokenizer: KeptTokenizer | None = None


def read(source: Path | Folder) -> Checkpoint:
    """A checkpoint from a weights file or a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, cannot be read without running code from it, or holds no DiT.
    """
    folder = source if isinstance(source, Folder) else None
    files = [source] if isinstance(source, Path) else source.weights()
    content: Mapping[Any, Any]
    content, tensor = _load(files[0])
    if len(files) > 1:  # shards, which hold nothing but tensors
        parts = [(content, tensor), *map(_load, files[1:])]
        content = {name: find(value) for part, find in parts for name, value in part.items()}
        tensor = _as_tensor
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
    average = within(content, "ema", "shadow_params") if container is not None else None
    shadow = [tensor(value) for value in average] if isinstance(average, list) else None
    hyper = content.get("hyper_parameters")
    kept = within(hyper, "tokenizer")
    return Checkpoint(
        state=_without_prefix(content if container is None else content[container], tensor, files[0]),
        shadow=None if shadow is None else [value for value in shadow if value is not None],
        config=(folder.config() if folder is not None else None) or within(hyper, "config"),
        folder=folder,
        tokenizer=None if kept is None else KeptTokenizer.unread(kept),
    )


def _as_tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _load(file: Path) -> tuple[Mapping[Any, Any], Callable[[object], Tensor | None]]:
    """The content of a file, and the function that gives the tensor of one of its values (`None` if that is no tensor)."""
    if not file.stat().st_size:
        raise ValueError(f"source={str(file)!r} is empty")
    if file.suffix == ".safetensors":
        try:
            return load_file(file), _as_tensor
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"source={str(file)!r} is no safetensors file: {line(error)}") from error
    if zipfile.is_zipfile(file):
        archive = Archive(file)
        content = archive.content()
        if not isinstance(content, Mapping):
            found = type(content).__name__ if not isinstance(content, Unread) else "object of a class"
            raise ValueError(f"source={str(file)!r} holds a {found}; expected a dict of tensors by name")
        return content, archive.tensor
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds
        raise ValueError(
            f"source={str(file)!r} is no checkpoint, is damaged, or is of torch < 1.6 and holds more than tensors. "
            "If you trust it, load it with the code that it came from, and save what is needed: "
            f"torch.save({{'state_dict': c['state_dict'], 'ema': c.get('ema')}}, …). ({line(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"source={str(file)!r} holds a {type(content).__name__}; expected a dict of tensors by name")
    return content, _as_tensor


def _without_prefix(
    tensors: Mapping[Any, Any], tensor: Callable[[object], Tensor | None], file: Path
) -> dict[str, Tensor]:
    """The tensors of the one DiT among them, under names without "backbone.", "module." and the like."""
    kept = {name: value for name, value in tensors.items() if not str(name).startswith(ELSEWHERE)}
    if others := sorted(map(str, tensors.keys() - kept.keys())):
        logger.info("left out, because they are not the network: %s", ", ".join(others))
    prefixes = [str(name).removesuffix(ROOT) for name in kept if str(name).endswith(ROOT)]
    if len(prefixes) != 1:
        raise ValueError(
            f"source={str(file)!r} has no known layout: looked for one tensor named …{ROOT} (as in MDLM, SEDD and Duo), at "
            f"the top or in {' or '.join(CONTAINERS)}; found {len(prefixes)} among {_some(list(tensors))}"
        )
    prefix = prefixes[0]
    if strangers := [name for name in kept if not isinstance(name, str) or not name.startswith(prefix)]:
        raise ValueError(f"source={str(file)!r} holds unexpected tensors beside {prefix}…: {_some(strangers)}")
    found = {name: tensor(value) for name, value in kept.items()}
    if nothing := [name for name, value in found.items() if value is None]:
        raise ValueError(f"source={str(file)!r} holds values that are no tensors among the network's: {_some(nothing)}")
    return {name.removeprefix(prefix): value for name, value in found.items() if value is not None}


def _some(names: list[Any]) -> str:
    return ", ".join(str(name)[:80] for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
