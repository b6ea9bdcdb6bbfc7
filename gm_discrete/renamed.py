"""Errors for names of version 0.1, which name what takes their place."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping


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


def refuse_unknown(options: Collection[str], where: str, renamed: Mapping[str, str]) -> None:
    """
    Args:
        options: names of arguments that do not exist.
        where: what they were given to.
        renamed: how arguments of version 0.1 are given now.

    Raises:
        TypeError: there are any; the message names the new form.
    """
    for name in options:
        if name in renamed:
            raise TypeError(f"{where} takes no argument {name}, as version 0.1 did; it is now given as {renamed[name]}")
    if options:
        raise TypeError(f"{where} takes no argument {', '.join(sorted(options))}")
