"""The pickled object that a file of `torch.save` holds, read without running anything that the file names.

A pickle is a program for a stack machine: some of its instructions look up a function by name and call it. `unpickled` runs
such a program with plain containers and tensors alone. A name becomes a `Name`, which is never looked up, and a call becomes
an `Unread` that holds the function's name and arguments, unless it makes one of the few things that are made here: the place
of a tensor, an ordered dict, or bytes. So the machine holds nothing that could be called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Name(NamedTuple):
    """A class or function that the file names."""

    module: str
    name: str


@dataclass(eq=False)
class Unread:
    """An object that only code of its class could make: what it would be made of.

    Attributes:
        function: what would be called: in a well-formed file a `Name`.
        arguments: of the call.
        state: what would be given to `__setstate__`, if anything.
        items: by key, if it is a kind of dict.
    """

    function: object
    arguments: object
    state: object = None
    items: dict[Any, Any] = field(default_factory=dict)


class StoredTensor(NamedTuple):
    """Where the archive holds a tensor; its fields are as in the file, and unchecked."""

    storage: object
    offset: object
    shape: object
    strides: object


class Storage(NamedTuple):
    """A run of numbers in the archive, under the name "data/KEY"."""

    kind: object
    key: object


def unpickled(program: bytes) -> object:
    """The object that a pickle describes (protocols 0 to 5).

    Raises:
        ValueError: an instruction is unknown or refused. Damaged programs raise other built-in errors, too.
    """
    machine = Machine()
    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if name == "STOP":
            return machine.stack.pop()
        if name in CONSTANTS:
            machine.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            machine.stack.append(EMPTY[name]())
        elif name in LITERALS:
            machine.stack.append(argument)
        elif name not in NOTHING:
            method = getattr(machine, f"do_{name}", None)
            if method is None:
                raise ValueError(f"the pickle instruction {name} is not used by torch.save")
            method(argument)
    raise ValueError("the pickle has no end")


NOTHING = ("PROTO", "FRAME")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}  # a set's members would have to be hashed
LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
)  # fmt: skip


class Machine:
    """The stack machine of `pickle`, of which every value is inert."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list[Any]:
        """Takes the values after the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def do_MARK(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_POP(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def do_POP_MARK(self, _: object) -> None:
        self.marked()

    def do_DUP(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    # Memory

    def do_PUT(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_BINPUT = do_LONG_BINPUT = do_PUT

    def do_MEMOIZE(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_GET(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_BINGET = do_LONG_BINGET = do_GET

    # Containers

    def do_TUPLE(self, _: object) -> None:
        values = self.marked()
        self.stack.append(tuple(values))

    def do_TUPLE1(self, _: object) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def do_TUPLE2(self, _: object) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def do_TUPLE3(self, _: object) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def do_LIST(self, _: object) -> None:
        values = self.marked()
        self.stack.append(values)

    do_FROZENSET = do_LIST

    def do_DICT(self, _: object) -> None:
        values = self.marked()
        self.stack.append({})
        self._set(values)

    def do_APPEND(self, _: object) -> None:
        value = self.stack.pop()
        self._extend([value])

    def do_APPENDS(self, _: object) -> None:
        self._extend(self.marked())

    do_ADDITEMS = do_APPENDS

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # the elements of unread objects are not needed
            self.stack[-1].extend(values)

    def do_SETITEM(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_SETITEMS(self, _: object) -> None:
        self._set(self.marked())

    def _set(self, values: list[Any]) -> None:
        into = self.stack[-1]
        items = into.items if isinstance(into, Unread) else into
        if not isinstance(items, dict):
            raise ValueError(f"a {type(into).__name__} has no items")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if _is_plain(key) or (type(key) is tuple and all(map(_is_plain, key))):  # others cannot all be hashed
                items[key] = value

    # Names and calls

    def do_GLOBAL(self, name: str) -> None:
        module, _, name = name.partition(" ")
        self.stack.append(Name(module, name))

    def do_STACK_GLOBAL(self, _: object) -> None:
        module, name = self.stack[-2:]
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no string")
        self.stack[-2:] = [Name(module, name)]

    def do_INST(self, name: str) -> None:
        values = self.marked()
        self.do_GLOBAL(name)
        self.stack[-1] = Unread(self.stack[-1], tuple(values))

    def do_OBJ(self, _: object) -> None:
        function, *values = self.marked()
        self.stack.append(Unread(function, tuple(values)))

    def do_NEWOBJ_EX(self, _: object) -> None:
        self.stack[-3:] = [Unread(self.stack[-3], (self.stack[-2], self.stack[-1]))]

    def do_REDUCE(self, _: object) -> None:
        self.stack[-2:] = [made(self.stack[-2], self.stack[-1])]

    do_NEWOBJ = do_REDUCE

    def do_BUILD(self, _: object) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Unread):  # a dict's attributes, such as `_metadata` of a state dict, are not needed
            built.state = state

    def do_BINPERSID(self, _: object) -> None:
        """What `torch.save` keeps outside the pickle: storages."""
        match self.stack[-1]:
            case ("storage", kind, key, _, _):
                self.stack[-1] = Storage(kind, key)
            case other:
                raise ValueError(f"a {type(other).__name__} in place of a storage")


def made(function: object, arguments: object) -> object:
    """A tensor, dict or bytes, if that is what the call makes; else an `Unread`."""
    match function, arguments:
        case ("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, *_):
            return StoredTensor(storage, offset, shape, strides)
        case ("torch._utils", "_rebuild_parameter"), (StoredTensor() as tensor, *_):
            return tensor
        case ("collections", "OrderedDict"), ():
            return {}
        case ("_codecs", "encode"), (str(text), "latin1"):  # how protocol 2 writes bytes
            return text.encode("latin1")
    return Unread(function, arguments)


def _is_plain(value: object) -> bool:
    return value is None or type(value) in (str, bytes, int, float, bool)


def within(value: object, *names: str) -> object:
    """The value under these names in a dict, or in an unread config or other object; `None` if there is none.

    >>> within({"model": {"n_heads": 12}}, "model", "n_heads")
    12
    """
    for name in names:
        value = _attributes(value).get(name)
    attributes = _attributes(value)
    return attributes["_val"] if isinstance(value, Unread) and "_val" in attributes else value  # OmegaConf's AnyNode


def _attributes(value: object) -> Mapping[Any, Any]:
    attributes = (value.items or value.state) if isinstance(value, Unread) else value
    if not isinstance(attributes, Mapping):
        return {}
    content = attributes.get("_content")
    return (
        content if isinstance(value, Unread) and isinstance(content, Mapping) else attributes
    )  # OmegaConf's DictConfig
