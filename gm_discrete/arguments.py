"""Kinds of arguments: numbers within a range, one of several names, lists of them, yes or no.

Each takes the name of an argument and its value, and returns the value in plain Python. Errors read "name=value must be …".
With limits that are fixed by `functools.partial` it is another kind, such as `size` or `weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Kind = Callable[..., Any]
"""(name, value) → the value, or an error that names the argument; limits are further arguments."""

READABLE = {"cpu"}
"""Devices whose values are there as soon as an operation returns. Reading those of another one waits for all its work."""

LARGEST = 2**24
"""The largest size of a vocabulary, of bins or of channels: a float64 table of so many numbers takes 128 MiB."""


def readable(tensor: Tensor) -> bool:
    """Whether values can be read without waiting for a device: on a CPU, and not while a graph is compiled or exported,
    which reading would break in two.

    >>> readable(torch.zeros(2)), readable(torch.zeros(2, device="meta"))
    (True, False)
    """
    return tensor.device.type in READABLE and not torch.compiler.is_compiling()


def number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    cure: str = "",
) -> float:
    """The value as a finite float.

    Args:
        name: of the argument.
        least, most: the ends of its range; above, below: ends that do not belong to it.
        cure: what the message ends with.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or out of its range.

    >>> number("stop", 0.25, above=0, below=0.5)
    0.25
    """
    plain, expected = _plain(value), f"a finite number{_range(least, above, most, below)}{cure}"
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be {expected}")
    try:
        found = float(plain)
    except OverflowError:  # an integer beyond 1e308
        found = math.inf
    if not (math.isfinite(found) and least <= found <= most and above < found < below):
        raise ValueError(f"{name}={plain} must be {expected}")
    return found


def whole(name: str, value: object, least: int, most: float = LARGEST, cure: str = "") -> int:
    """The value as an integer between `least` and `most`, ends included.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of its range.

    >>> whole("vocab_size", 28, least=2)
    28
    """
    plain = _plain(value)
    expected = f"an integer ≥ {least}{cure}" if most == math.inf else f"an integer from {least} to {most}{cure}"
    if not isinstance(plain, Integral) or isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be {expected}")
    if not least <= int(plain) <= most:
        raise ValueError(f"{name}={plain} must be {expected}")
    return int(plain)


size = partial(whole, least=1, most=math.inf)
"""A number of things of which there is at least one."""
count = partial(whole, least=0, most=math.inf)
"""A number of things of which there may be none."""
positive = partial(number, above=0)
weight = partial(number, least=0)
probability = partial(number, least=0, below=1)
"""Of something that does not happen always."""


def flag(name: str, value: object) -> bool:
    """The value, which must be True or False.

    Raises:
        TypeError: it is neither.
    """
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return plain


def choice(name: str, value: object, options: Collection[str]) -> str:
    """The value, which must be one of the options.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in options:
        names = [repr(option) for option in options]
        raise ValueError(f"{name}={value!r} must be {', '.join(names[:-1])}{' or ' if names[1:] else ''}{names[-1]}")
    return value


def listed(name: str, value: object) -> list[Any]:
    """The value as a list of plain Python objects; a tensor or an array may be given as well.

    Raises:
        TypeError: it is a string, a dict, or cannot be listed.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise TypeError(f"{name} is on the device meta, and has no values")
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        raise TypeError(f"{name}={value!r} must be a list")
    return list(value)


def list_of(name: str, value: object, of: Kind, length: int | None = None) -> list[Any]:
    """The value as a list whose members are of one kind.

    Args:
        of: the kind of the members.
        length: of the list; any by default.

    Raises:
        TypeError: it is no list.
        ValueError: it has another length.
    """
    found = listed(name, value)
    if length not in (None, len(found)):
        raise ValueError(f"{name}={value!r} must be a list of {length}")
    return [of(f"{name}[{i}]", part) for i, part in enumerate(found)]


def numbers(name: str, values: object, *, least: float = -math.inf, most: float = math.inf) -> list[float]:
    """The values as finite floats.

    Raises:
        TypeError: they are no list of numbers.
        ValueError: one is not finite, or out of its range.
    """
    return list_of(name, values, partial(number, least=least, most=most))


def image(name: str, value: object) -> list[int]:
    """The value as [C, H, W].

    Raises:
        ValueError: it is none.
    """
    try:
        return list_of(name, value, size, 3)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be [C, H, W], three integers ≥ 1") from None


def mapping(name: str, value: object) -> Mapping[str, Any]:
    """The value, a dict whose keys are strings.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name}={value!r} must be a dict with names as keys")
    return value


def weights(name: str, value: object, parts: Collection[str]) -> dict[str, float]:
    """The value as a dict of weights ≥ 0 of some of the parts.

    Raises:
        ValueError: it is none.
    """
    try:
        if not isinstance(value, Mapping) or value.keys() - set(parts):
            raise TypeError
        return {part: weight(part, one) for part, one in value.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be weights ≥ 0 of {', '.join(parts) or 'no part'}") from None


def precision(name: str, value: object) -> object:
    """The value, a type of floating-point numbers or its name in torch.

    Raises:
        ValueError: it is neither.
    """
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{name}={value!r} must be a torch.dtype of real numbers or its name, such as 'bfloat16'")
    return value


def optional(name: str, value: object, kind: Kind) -> Any:
    """`None`, or a value of the kind.

    Raises:
        TypeError, ValueError: it is neither.
    """
    try:
        return None if value is None else kind(name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}, or None") from None


def _plain(value: object) -> Any:
    """A number out of a tensor or an array of one; anything else as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        return value if isinstance(value, Tensor) and value.is_meta else value.item()
    return value


def _range(least: float, above: float, most: float, below: float) -> str:
    ends = (("≥", least), (">", above), ("≤", most), ("<", below))
    return " and".join(f" {sign} {end:g}" for sign, end in ends if math.isfinite(end))


def check_folder(name: str) -> None:
    """Checks that a model may be there, before anything asks the hub for it, which takes long.

    Raises:
        FileNotFoundError: the name looks like a folder, and there is none.
        ValueError: the folder holds no model, or an adapter.
    """
    folder = Path(name)
    if not folder.is_dir():
        if (
            name.count("/") != 1 or folder.parent.exists() or name.startswith((".", "/", "~"))
        ):  # else: a name on the hub
            raise FileNotFoundError(
                f"MODEL {name!r} is no folder; give the folder that a training run or convert wrote"
            )
    elif not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"MODEL {name!r} holds an adapter; merge it into its model with gm_discrete.training.load_adapter"
            )
        raise ValueError(f"MODEL {name!r} holds no config.json, and so no model; training writes it when it ends")
