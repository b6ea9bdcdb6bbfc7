"""Weights in safetensors files, which are renamed and copied without being loaded: in memory is a piece of one tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights by their names in safetensors files; others are those of quantized weights."""

LENGTH, HEADER_LIMIT = 8, 100_000_000
"""Bytes of the number that such a file begins with, that of the bytes of its header; and the most of these."""

PIECE = 2**23
"""Bytes that are copied at once, a multiple of all sizes of numbers."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Weight:
    """A tensor in a safetensors file.

    Attributes:
        dtype: its name in the file.
        start, size: in bytes; `start` counts from the begin of the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def copy(self, target: BinaryIO) -> None:
        """
        Raises:
            ValueError: the weight holds NaN or infinity, or the file ends within it.
        """
        with self.file.open("rb") as source:
            source.seek(self.start)
            left = self.size
            while left:
                piece = bytearray(source.read(min(left, PIECE)))
                if not piece or len(piece) % DTYPES[self.dtype].itemsize:
                    raise ValueError(f"source={str(self.file)!r} is truncated: it ends within {self.name}")
                if not bool(torch.frombuffer(piece, dtype=DTYPES[self.dtype]).isfinite().all()):
                    raise ValueError(f"{self.name} of source={str(self.file)!r} holds NaN or infinity")
                target.write(piece)
                left -= len(piece)


def weights_in(file: Path) -> list[Weight]:
    """The weights of a safetensors file, in the order in which they lie in it.

    Raises:
        ValueError: it is none, it is truncated, or it holds quantized weights.
    """
    place, size = f"source={str(file)!r}", file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH), "little")
        if size < LENGTH or length > HEADER_LIMIT:
            raise ValueError(f"{place} is no safetensors file")
        text = opened.read(length)
    if len(text) < length:
        raise ValueError(f"{place} is truncated: it holds {size} bytes, and its header alone has {length}")
    try:
        header: Mapping[str, Mapping[str, object]] = json.loads(text)
        found = [
            _weight(file, name, entry, LENGTH + length) for name, entry in header.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place} is no safetensors file: its header is damaged") from error
    found.sort(key=lambda weight: weight.start)
    end = LENGTH + length
    for weight in found:
        if weight.dtype not in DTYPES:
            raise ValueError(f"{weight.name} of {place} is of {weight.dtype}: quantized weights cannot be converted")
        if weight.start != end or weight.size != math.prod(weight.shape) * DTYPES[weight.dtype].itemsize:
            raise ValueError(f"{place} is no safetensors file: {weight.name} does not lie where its header has it")
        end += weight.size
    if size < end:
        raise ValueError(f"{place} is truncated: it holds {size} bytes, and its header describes {end}")
    return found


def _weight(file: Path, name: str, entry: Mapping[str, object], begin: int) -> Weight:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if 0 <= start <= stop:
            return Weight(file, name, dtype, tuple(map(int, shape)), begin + start, stop - start)
    raise ValueError(name)


def write_shard(file: Path, weights: Mapping[str, Weight]) -> None:
    """A safetensors file of these weights, under new names.

    Raises:
        ValueError: one of them holds NaN or infinity.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in weights.items():
        header[name] = {"dtype": weight.dtype, "shape": weight.shape, "data_offsets": [end, end + weight.size]}
        end += weight.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH)  # tensors begin at a multiple of 8
    with file.open("wb") as target:
        target.write(len(text).to_bytes(LENGTH, "little") + text)
        for weight in weights.values():
            weight.copy(target)


def shard_names(number: int) -> list[str]:
    """The names of the files of a model in that many shards."""
    if number == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{number:05}.safetensors" for i in range(1, number + 1)]


def write_index(folder: Path, shards: Iterable[tuple[str, Mapping[str, Weight]]]) -> None:
    """The list of which weight is in which shard."""
    listed = list(shards)
    index = {
        "metadata": {"total_size": sum(weight.size for _, weights in listed for weight in weights.values())},
        "weight_map": {name: file for file, weights in listed for name in sorted(weights)},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
