"""Validators of single arguments, for `huggingface_hub.dataclasses.validated_field`: type and range in one.

Each takes a value, and raises an error that ends the sentence "name=value must be …".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real

import torch

Validator = Callable[[object], None]


def whole(least: int) -> Validator:
    """An integer ≥ `least`."""

    def check(value: object) -> None:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"an integer ≥ {least}")
        if value < least:
            raise ValueError(f"an integer ≥ {least}")

    return check


def positive(value: object) -> None:
    """A finite number > 0."""
    _number(value, lambda number: 0 < number < math.inf, "a finite number > 0")


def weight(value: object) -> None:
    """A finite number ≥ 0."""
    _number(value, lambda number: 0 <= number < math.inf, "a finite number ≥ 0")


def probability(value: object) -> None:
    """A number in [0, 1): of something that does not happen always."""
    _number(value, lambda number: 0 <= number < 1, "a number in [0, 1)")


def flag(value: object) -> None:
    """A truth value."""
    if not isinstance(value, bool):
        raise TypeError("True or False")


def precision(value: object) -> None:
    """A type of floating-point numbers, or its name in torch."""
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError("a torch.dtype of real numbers or its name, such as 'bfloat16'")


def choice(*names: str) -> Validator:
    """One of the names."""

    def check(value: object) -> None:
        if value not in names:
            raise ValueError(" or ".join(map(repr, names)))

    return check


def optional(validator: Validator) -> Validator:
    """`None`, or what the validator allows."""

    def check(value: object) -> None:
        if value is not None:
            try:
                validator(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}, or None") from None

    return check


def list_of(validator: Validator, length: int | None = None) -> Validator:
    """A list of what the validator allows, of that length."""

    def check(value: object) -> None:
        size = "" if length is None else f" of {length}"
        if not isinstance(value, Sequence) or isinstance(value, str) or length not in (None, len(value)):
            raise ValueError(f"a list{size}")
        for part in value:
            try:
                validator(part)
            except (TypeError, ValueError) as error:
                raise type(error)(f"a list{size}, each {error}") from None

    return check


def image(value: object) -> None:
    """[C, H, W]."""
    try:
        list_of(whole(1), 3)(value)
    except (TypeError, ValueError):
        raise ValueError("[C, H, W], three integers ≥ 1") from None


def weights_of(*names: str) -> Validator:
    """A dict of finite weights ≥ 0 of some of the names."""

    def check(value: object) -> None:
        expected = f"weights ≥ 0 of {', '.join(names) or 'no part'}"
        if not isinstance(value, Mapping) or value.keys() - set(names):
            raise ValueError(expected)
        for part in value.values():
            try:
                weight(part)
            except (TypeError, ValueError) as error:
                raise type(error)(expected) from None

    return check


def mapping(value: object) -> None:
    """A dict whose keys are strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError("a dict with names as keys")


def validate(name: str, value: object, *validators: Validator) -> None:
    """
    Raises:
        TypeError, ValueError: the value is not what the validators allow; the message names it.
    """
    for validator in validators:
        try:
            validator(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={value!r} must be {error}") from None


def _number(value: object, allowed: Callable[[float], bool], expected: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(expected)
    if not allowed(float(value)):
        raise ValueError(expected)
