"""Checks of the arguments that constructors take: numbers within a range, lists of numbers, yes or no."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

LARGEST = 2**24
"""The largest size of a vocabulary, of bins or of channels: a float64 table of so many numbers takes 128 MiB."""


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
    plain = _plain(value)
    if not isinstance(plain, Real) or isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be a number{cure}")
    try:
        found = float(plain)
    except OverflowError:  # an integer beyond 1e308
        found = math.inf
    if not (math.isfinite(found) and least <= found <= most and above < found < below):
        raise ValueError(f"{name}={plain} must be a finite number{_range(least, above, most, below)}{cure}")
    return found


def whole(name: str, value: object, least: int, most: int = LARGEST, cure: str = "") -> int:
    """The value as an integer between `least` and `most`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of its range.

    >>> whole("vocab_size", 28, least=2)
    28
    """
    plain = _plain(value)
    if not isinstance(plain, Integral) or isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be an integer{cure}")
    found = int(plain)
    if not least <= found <= most:
        raise ValueError(f"{name}={found} must be an integer from {least} to {most}{cure}")
    return found


def flag(name: str, value: object) -> bool:
    """The value, which must be True or False.

    Raises:
        TypeError: it is neither.
    """
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return plain


def choice(name: str, value: object, options: Iterable[str]) -> str:
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


def numbers(name: str, values: object, *, least: float = -math.inf, most: float = math.inf) -> list[float]:
    """The values as finite floats.

    Raises:
        TypeError: they are no list of numbers.
        ValueError: one is not finite, or out of its range.
    """
    return [number(f"{name}[{i}]", value, least=least, most=most) for i, value in enumerate(listed(name, values))]


def _plain(value: object) -> Any:
    """A number out of a tensor or an array of one; anything else as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        return value.item()
    return value


def _range(least: float, above: float, most: float, below: float) -> str:
    ends = (("≥", least), (">", above), ("≤", most), ("<", below))
    return " and".join(f" {sign} {end:g}" for sign, end in ends if math.isfinite(end))
