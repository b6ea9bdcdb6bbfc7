"""Errors for names of version 0.1, which name what takes their place."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches


def missing_name(module: str, name: str, renamed: Mapping[str, str]) -> Exception:
    """The error that the `__getattr__` of a package raises for a name that it lacks.

    An `AttributeError`, as `hasattr` expects. In `from package import name`, which would replace its message by one of its
    own, an `ImportError`.

    Args:
        renamed: what to use in place of each old name.
    """
    if name not in renamed:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    importing = "importlib" in sys._getframe(2).f_code.co_filename
    kind = ImportError if importing else AttributeError
    return kind(f"{module}.{name} was renamed or removed: use {renamed[name]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that does not exist: the known ones that it resembles, if there are any."""
    found = get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def refuse_unknown(options: Collection[str], where: str, renamed: Mapping[str, str], known: Iterable[str] = ()) -> None:
    """
    Args:
        options: names of arguments that do not exist.
        where: what they were given to.
        renamed: how arguments of version 0.1, or of transformers, are given here.
        known: names that exist, of which the error suggests the nearest ones.

    Raises:
        TypeError: there are any; the message names the new form.
    """
    for name in options:
        if name in renamed:
            raise TypeError(f"{where} takes no argument {name}: use {renamed[name]}")
    for name in sorted(options):
        raise TypeError(f"{where} takes no argument {name}{nearest(name, known)}")
