"""Where the files of a published checkpoint lie: a single file, a folder, a training run's folder, or a model of the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoints-meta/checkpoint.pth",  # a run of SEDD
    "checkpoints/last.ckpt",  # a run of MDLM or Duo
    "checkpoints/best.ckpt",
)
"""Files of a folder that hold or list weights, the preferred ones first."""

ENDINGS = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Folder:
    """A folder that holds a checkpoint. Links in it that lead out of it are refused.

    Args:
        path: the folder; if it is itself a link, that is followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        cache = self.path.parent.parent  # in the cache of the hub a snapshot consists of links to ../../blobs
        in_cache = self.path.parent.name == "snapshots" and (cache / "blobs").is_dir()
        self.bounds = cache if in_cache else self.path

    def file(self, name: str) -> Path | None:
        """The file of that name, if there is one.

        Raises:
            ValueError: it is a link that leads out of the folder.
        """
        file = self.path / name
        if not os.path.lexists(file):
            return None
        target = file.resolve()
        if not target.is_relative_to(self.bounds):
            raise ValueError(f"source={str(self.path)!r} has a link that leads out of it: {name} is {target}; copy it")
        return file if target.is_file() else None

    def weights(self) -> list[Path]:
        """The files that hold its weights: one, or the shards that an index lists.

        Raises:
            FileNotFoundError: there are none, or a shard is missing.
            ValueError: an index is none, or there are several candidates.
        """
        found = next((file for name in WEIGHTS if (file := self.file(name))), None)
        if found is None:
            names = sorted(entry.name for entry in self.path.iterdir() if entry.name.endswith(ENDINGS))
            if len(names) > 1:
                raise ValueError(f"source={str(self.path)!r} has several weights files: {', '.join(names)}; give one")
            found = self.file(names[0]) if names else None
        if found is None:
            raise FileNotFoundError(
                f"source={str(self.path)!r} is a folder without {', '.join(WEIGHTS)} or another weights file"
            )
        return [found] if found.suffix != ".json" else self._shards(found)

    def _shards(self, index: Path) -> list[Path]:
        places = read_settings(index).get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, Mapping) else []
        if not names:
            raise ValueError(f"{index} is no index of weights: it has no weight_map of tensors to files")
        shards = []
        for name in names:
            if Path(name).name != name or not name.endswith(ENDINGS):
                raise ValueError(f"{index} names {name!r}; expected weights files beside it")
            if (file := self.file(name)) is None:
                raise FileNotFoundError(f"source={str(self.path)!r} lacks {name}, which {index.name} names")
            shards.append(file)
        return shards

    def config(self) -> dict[str, Any]:
        """The content of config.json, or of the config of a training run; empty if there is none."""
        file = self.file("config.json") or self.file(".hydra/config.yaml")
        return {} if file is None else read_settings(file)


def opened(source: str | Path) -> Path | Folder:
    """The file or folder that a user names; a model of the hub is downloaded, unless it is in the cache.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return path
    if os.path.lexists(path) or not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"source={str(source)!r} is neither a file nor a folder, nor the id of a model on the hub"
        )
    folder = _downloaded(str(source), "*.safetensors")
    try:
        folder.weights()
    except FileNotFoundError:
        folder = _downloaded(str(source), *(f"*{ending}" for ending in ENDINGS[1:]))
    return folder


def _downloaded(source: str, *weights: str) -> Folder:
    """A snapshot of a model of the hub, without its code; that in the cache if the hub cannot be reached."""
    try:
        return Folder(
            Path(snapshot_download(source, allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", *weights]))
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"source={source!r} is neither a file nor a folder, and the Hugging Face hub does not have it: {line(error)}"
        ) from error


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a file of JSON, or of YAML by its ending.

    Raises:
        ValueError: it is no object of settings.
    """
    parse, form = (yaml.safe_load, "YAML") if file.suffix == ".yaml" else (json.loads, "JSON")
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no {form}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected an object of settings")
    return content


def line(error: Exception) -> str:
    """The message of an error, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
