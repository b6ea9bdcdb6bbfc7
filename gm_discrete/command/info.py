"""`gm-discrete info`: what a model folder holds."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_discrete.arguments import check_folder
from gm_discrete.command.models import has_tokenizer, load_config

if TYPE_CHECKING:
    from gm_discrete.models import GMConfig

TABLES = "path_tables."
"""Begin of the names of tensors that belong to the path, and are no parameters."""
ALWAYS = ("sampler", "num_steps")
"""Defaults of `generate` that are shown even if they are those of the library."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Describe a model from its config and the headers of its weights, which are not loaded."
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or its name on the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    check_folder(options.model)
    config = load_config(options.model)
    found = described(options.model, config)
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for name, value in found.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines):
            print(f"{'' if number else name:12}{line}")


def described(model: str, config: GMConfig) -> dict[str, Any]:
    """What is printed, by heading: a line, or several."""
    folder = Path(model)
    found: dict[str, Any] = {"model": model, "path": paths(config), "state": states(config), "network": network(config)}
    found["weights"] = weights(model)
    found["sampler"] = sampler(model)
    if folder.is_dir():
        found["tokenizer"] = tokenizer(folder) if has_tokenizer(model) else "none"
        found["files"] = [
            f"{file.name}  {size(file.stat().st_size)}" for file in sorted(folder.iterdir()) if file.is_file()
        ]
    return found


def paths(config: GMConfig) -> list[str]:
    """The path of each field, with its schedule."""
    fields = config.build_path().fields
    return [f"{name + ': ' if name else ''}{path!r}" for name, path in fields.items()]


def states(config: GMConfig) -> list[str]:
    """The shape and the symbols of each field."""
    lines = []
    for name, field in config.state_fields.items():
        path: Any = field.path
        shape = (
            f"image {list(field.image_shape)}"
            if field.image_shape
            else f"{field.length} position{'s' * (field.length != 1)}"
        )
        kind = f"{path.vocab_size} symbols" if path.is_discrete else "numbers"
        codec = f", {type(field.codec).__name__}" if field.codec is not None else ""
        lines.append(f"{name + ': ' if name else ''}{shape}, {kind}{codec}")
    if config.num_classes:
        lines.append(f"{config.num_classes} classes")
    if config.block_size:
        lines.append(f"blocks of {config.block_size}")
    return lines


def network(config: GMConfig) -> str:
    """The backbone and its sizes."""
    from gm_discrete.models.card import NETWORKS

    backbone = config.backbone
    kind = (
        backbone.get("model_type", "language model")
        if isinstance(backbone, dict)
        else NETWORKS.get(str(backbone), backbone)
    )
    sizes = f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads"
    return f"{kind}: {sizes}{', conditioned on the time' if config.time_conditioning else ''}"


def weights(model: str) -> str:
    """Parameters by type, from the headers of the safetensors files."""
    from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        files = (get_local_safetensors_metadata if Path(model).is_dir() else get_safetensors_metadata)(
            model
        ).files_metadata
    except NotASafetensorsRepoError:
        return "none"
    except SafetensorsParsingError as error:
        raise ValueError(f"the weights of MODEL {model!r} are damaged: {error}") from error
    tensors = [item for file in files.values() for item in file.tensors.items() if not item[0].startswith(TABLES)]
    return counted((tensor.dtype, tensor.shape) for _, tensor in tensors)


def counted(tensors: Iterable[tuple[str, Iterable[int]]]) -> str:
    """The number of parameters, in all and by type."""
    count: Counter[str] = Counter()
    for dtype, shape in tensors:
        count[dtype] += math.prod(shape)
    return f"{count.total():,} parameters ({', '.join(f'{number:,} {dtype}' for dtype, number in count.items())})"


def sampler(model: str) -> str:
    """The defaults of `generate`, those in `ALWAYS` and those that differ from the library's."""
    from gm_discrete.models import GMGenerationConfig

    try:
        config = GMGenerationConfig.from_pretrained(model)
    except OSError:
        config = GMGenerationConfig()
    usual, found = GMGenerationConfig().to_dict(), config.to_dict()
    different = [name for name in found if name in usual and found[name] != usual[name] and name not in ALWAYS]
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in [*ALWAYS, *different])


def tokenizer(folder: Path) -> str:
    """The class of the tokenizer, its size, and its special tokens."""
    from gm_discrete.data import load_tokenizer

    found = load_tokenizer(folder)
    special = ", ".join(f"{token!r} {found.convert_tokens_to_ids(token)}" for token in found.all_special_tokens)
    return f"{type(found).__name__}, {len(found)} tokens ({special})"


def size(count: float) -> str:
    """A number of bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
