"""Validators of single arguments, for `huggingface_hub.dataclasses.validated_field`: type and range in one.

Each takes a value, and raises an error that ends the sentence "name=value must be …".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

Validator = Callable[[Any], None]


def whole(least: int) -> Validator:
    """An integer ≥ `least`."""

    def check(value: Any) -> None:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"an integer ≥ {least}")
        if value < least:
            raise ValueError(f"an integer ≥ {least}")

    return check


def positive(value: Any) -> None:
    """A finite number > 0."""
    _number(value, "a finite number > 0")
    if not 0 < value < math.inf:
        raise ValueError("a finite number > 0")


def weight(value: Any) -> None:
    """A finite number ≥ 0."""
    _number(value, "a finite number ≥ 0")
    if not 0 <= value < math.inf:
        raise ValueError("a finite number ≥ 0")


def probability(value: Any) -> None:
    """A number in [0, 1): of something that does not happen always."""
    _number(value, "a number in [0, 1)")
    if not 0 <= value < 1:
        raise ValueError("a number in [0, 1)")


def flag(value: Any) -> None:
    """A truth value."""
    if not isinstance(value, bool):
        raise TypeError("True or False")


def precision(value: Any) -> None:
    """A type of floating-point numbers, or its name in torch."""
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError("a torch.dtype of real numbers or its name, such as 'bfloat16'")


def choice(*names: str) -> Validator:
    """One of the names."""

    def check(value: Any) -> None:
        if value not in names:
            raise ValueError(" or ".join(map(repr, names)))

    return check


def optional(validator: Validator) -> Validator:
    """`None`, or what the validator allows."""

    def check(value: Any) -> None:
        if value is not None:
            try:
                validator(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}, or None") from None

    return check


def list_of(validator: Validator, length: int | None = None) -> Validator:
    """A list of what the validator allows, of that length."""

    def check(value: Any) -> None:
        size = "" if length is None else f" of {length}"
        if not isinstance(value, Sequence) or isinstance(value, str) or length not in (None, len(value)):
            raise ValueError(f"a list{size}")
        for part in value:
            try:
                validator(part)
            except (TypeError, ValueError) as error:
                raise type(error)(f"a list{size}, each {error}") from None

    return check


def image(value: Any) -> None:
    """[C, H, W]."""
    try:
        list_of(whole(1), 3)(value)
    except (TypeError, ValueError):
        raise ValueError("[C, H, W], three integers ≥ 1") from None


def weights_of(*names: str) -> Validator:
    """A dict of finite weights ≥ 0 of some of the names."""

    def check(value: Any) -> None:
        expected = f"weights ≥ 0 of {', '.join(names) or 'no part'}"
        if not isinstance(value, Mapping) or value.keys() - set(names):
            raise ValueError(expected)
        for part in value.values():
            try:
                weight(part)
            except (TypeError, ValueError) as error:
                raise type(error)(expected) from None

    return check


def mapping(value: Any) -> None:
    """A dict whose keys are strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError("a dict with names as keys")


def validate(name: str, value: Any, *validators: Validator) -> None:
    """
    Raises:
        TypeError, ValueError: the value is not what the validators allow; the message names it.
    """
    for validator in validators:
        try:
            validator(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={value!r} must be {error}") from None


def _number(value: Any, expected: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(expected)
