"""Objects that travel inside a JSON config as a plain dict with a `type`."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


class Configurable:
    """A value rebuilt from `{"type": name, **arguments of its constructor}`.

    A subclass names itself with `type_name`; its constructor's arguments are read back from attributes of the same name.
    """

    type_name: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """`{"type": …, argument: value, …}`, made of JSON values only."""
        arguments = {name: _plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}
        return {"type": self.type_name, **arguments}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """The object that `to_dict` described.

        Raises:
            ValueError: no subclass has that `type`, or the arguments are not those of its constructor.
        """
        known = {kind.type_name: kind for kind in subclasses(cls) if vars(kind).get("type_name")}
        name = config.get("type")
        if name not in known:
            raise ValueError(f"type={name!r} names no {cls.__name__}; known: {', '.join(sorted(known))}")
        kind, arguments = known[name], {key: value for key, value in config.items() if key != "type"}
        unknown = arguments.keys() - inspect.signature(kind).parameters.keys()
        if unknown:
            raise ValueError(f"{kind.__name__} takes no argument {', '.join(sorted(unknown))}")
        return kind(**arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.type_name)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)
        return f"{type(self).__name__}({arguments})"


def subclasses(cls: type[T]) -> list[type[T]]:
    """The class and all that inherit from it."""
    return [cls, *(kind for child in cls.__subclasses__() for kind in subclasses(child))]


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
