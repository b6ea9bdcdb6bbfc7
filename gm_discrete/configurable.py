"""Objects that travel inside a JSON config as a plain dict with a `type`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")
IMPORT_IT = " (for a class of your own, import the module that defines it)"
"""The hint of errors about a name that no class has."""


class Configurable:
    """A value that travels as `{"type": type_name, **arguments of its constructor}`.

    A subclass has a `type_name` of its own, and stores each argument of its constructor in an attribute of the same name.

    >>> from gm_discrete.paths.schedules import PowerSchedule, Schedule
    >>> PowerSchedule(3).to_dict()
    {'type': 'power', 'n': 3.0}
    >>> Schedule.from_dict({"type": "power", "n": 3.0})
    PowerSchedule(n=3.0)
    """

    type_name: ClassVar[str] = ""
    argument: ClassVar[str] = "type"
    """What errors call the name of a type: the argument in which users give it."""
    aliases: ClassVar[dict[str, str]] = {}
    """Other names of types."""
    removed_types: ClassVar[dict[str, str]] = {}
    """Types of version 0.1, and what to use in their place."""

    def to_dict(self) -> dict[str, Any]:
        """`{"type": …, argument: value, …}`, of JSON values only.

        Raises:
            TypeError: the class has no `type_name` of its own, or an argument is not stored under its name.
        """
        kind = type(self)
        names = list(inspect.signature(kind).parameters)
        if missing := [name for name in names if not hasattr(self, name)]:
            raise TypeError(
                f"{kind.__name__} takes the argument {missing[0]!r} but has no attribute of that name, from which JSON "
                f"could be written: set self.{missing[0]} in its constructor"
            )
        return {"type": self.own_type(), **{name: _plain(getattr(self, name)) for name in names}}

    @classmethod
    def own_type(cls) -> str:
        """The `type_name` of the class itself, by which `from_dict` finds it.

        Raises:
            TypeError: it has none, or only that of its parent.
        """
        if not (name := vars(cls).get("type_name")):
            raise TypeError(
                f"{cls.__name__} has no type_name of its own, by which JSON names a class: set, for example, "
                f"type_name = {cls.__name__.lower()!r} in its body"
            )
        return name

    @classmethod
    def of(cls, value: str | Mapping[str, Any] | Self) -> Self:
        """The object of that name with default options, or of that JSON form; an object is returned as it is.

        Raises:
            ValueError: the name or an argument does not exist; the message lists those that do.
            TypeError: the value is none of these.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, str | Mapping):
            raise TypeError(f'{cls.argument}={value!r} must be a {cls.__name__}, its name, or {{"type": name, …}}')
        return cls.from_dict({"type": value} if isinstance(value, str) else value)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The object that `to_dict` describes. The type may be left out where there is only one.

        Raises:
            TypeError: `config` is no dict.
            ValueError: no subclass has that `type`, or the arguments are not those of its constructor.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"{cls.argument}={config!r} must be a dict, as {cls.__name__}.to_dict makes it")
        known = {kind.type_name: kind for kind in subclasses(cls) if vars(kind).get("type_name")}
        name = config.get("type", *(known if len(known) == 1 else ()))
        name = cls.aliases.get(name, name) if isinstance(name, str) else name
        if isinstance(name, str) and name in cls.removed_types:
            raise ValueError(f"{cls.argument}={name!r} was removed: use {cls.removed_types[name]}")
        if not isinstance(name, str) or name not in known:
            choice = ", ".join(sorted(known))
            raise ValueError(f"{cls.argument}={name!r} names no {cls.__name__}; choose one of {choice}{IMPORT_IT}")
        kind, arguments = known[name], {key: value for key, value in config.items() if key != "type"}
        accepted = inspect.signature(kind).parameters
        if unknown := arguments.keys() - accepted.keys():
            names = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{kind.__name__} takes no argument {names}; give any of {', '.join(accepted)}")
        needed = [p.name for p in accepted.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if missing := [part for part in needed if part not in arguments]:
            raise ValueError(f"{kind.__name__} needs the argument {', '.join(missing)}, which {dict(config)} lacks")
        return kind(**arguments)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, type(self)) and self.to_dict() == other.to_dict())

    def __hash__(self) -> int:
        return hash(self.type_name)

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{name}={getattr(self, name, '?')!r}" for name in inspect.signature(type(self)).parameters
        )
        return f"{type(self).__name__}({arguments})"


def subclasses(cls: type[T]) -> list[type[T]]:
    """The class and all that inherit from it."""
    return [cls, *(kind for child in cls.__subclasses__() for kind in subclasses(child))]


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
