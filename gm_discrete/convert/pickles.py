"""The pickled object that a file of `torch.save` holds, read without running anything that the file names.

A pickle is a program for a stack machine: some of its instructions look up a function by name and call it. `unpickled` runs
it on Python's own machine, of which only the instructions that handle numbers, strings and containers are kept. A name
becomes a `Name`, which is never looked up, and a call becomes an `Unread` that holds the function's name and arguments,
unless it makes an ordered dict or bytes. So the machine holds nothing that could be called.

The machine in C will not do: whatever its subclass, it takes functions from the extension registry of `copyreg` without
asking, hashes any key, and makes room for as many values as a file of a few bytes claims.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Name(NamedTuple):
    """A class or function that the file names."""

    module: str
    name: str


class Items(dict[Any, Any]):
    """A dict that leaves out keys other than plain values and tuples of them: of others the hash may never end."""

    def __setitem__(self, key: object, value: object) -> None:
        if all(part is None or type(part) in PLAIN for part in (key if type(key) is tuple else (key,))):
            super().__setitem__(key, value)


PLAIN = (str, bytes, int, float, bool)


@dataclass(eq=False)
class Unread:
    """An object that only code of its class could make: what it would be made of.

    Attributes:
        function: what would be called: in a well-formed file a `Name`.
        arguments: of the call.
        state: what would be given to `__setstate__`, if anything.
        items: by key, if it is a kind of dict. Elements, if it is a kind of list, are not needed.
    """

    function: object
    arguments: object
    state: object = None
    items: Items = field(default_factory=Items)

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def extend(self, elements: object) -> None:
        pass

    append = extend


def unpickled(program: bytes) -> object:
    """The object that a pickle describes (protocols 0 to 5).

    Raises:
        ValueError: an instruction is refused. Damaged programs raise other errors, too.
    """
    return Machine(io.BytesIO(program), encoding="latin1").load()


KEPT = """
    PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST
    APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL INST OBJ BINPERSID
"""
"""Instructions of Python's machine, which call nothing but methods of `Machine`, `append`, `extend` and `[]=`."""

INSTEAD = {"EMPTY_SET": "EMPTY_LIST", "FROZENSET": "LIST", "ADDITEMS": "APPENDS", "BYTEARRAY8": "BINBYTES8"}
"""A set's members would have to be hashed; the room for a bytearray is made before its bytes are there."""

OURS = "REDUCE NEWOBJ NEWOBJ_EX BUILD EMPTY_DICT DICT"


class Machine(pickle._Unpickler):
    """The stack machine of `pickle`, of which every value is inert."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]  # takes the values after the last mark

    def find_class(self, module: str, name: str) -> Name:
        return Name(module, name)

    def persistent_load(self, pid: object) -> object:
        """The place of what `torch.save` keeps outside the pickle: storages, as ("storage", kind, key, device, size)."""
        match pid:
            case ("storage", _, _, _, _):
                return pid
        raise ValueError(f"a {type(pid).__name__} in place of a storage")

    def _instantiate(self, function: object, arguments: list[Any]) -> None:
        self.stack.append(Unread(function, tuple(arguments)))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = made(self.stack[-1], arguments)

    load_newobj = load_reduce

    def load_newobj_ex(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Unread(self.stack[-1], (arguments, keywords))

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Unread):  # a dict's attributes, such as `_metadata` of a state dict, are not needed
            built.state = state

    def load_empty_dict(self) -> None:
        self.stack.append(Items())

    def load_dict(self) -> None:
        values, items = self.pop_mark(), Items()
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[key] = value
        self.stack.append(items)

    def refuse(self) -> None:
        raise ValueError("an instruction of pickle that torch.save does not use")


def _code(name: str) -> int:
    return getattr(pickle, name)[0]


_DISPATCH: dict[int, Any] = {
    **dict.fromkeys(range(256), Machine.refuse),
    **{_code(name): pickle._Unpickler.dispatch[_code(name)] for name in KEPT.split()},
    **{_code(name): pickle._Unpickler.dispatch[_code(other)] for name, other in INSTEAD.items()},
    **{_code(name): getattr(Machine, f"load_{name.lower()}") for name in OURS.split()},
}
Machine.dispatch = _DISPATCH


def made(function: object, arguments: object) -> object:
    """A dict or bytes, if that is what the call makes; a parameter's tensor; else an `Unread`."""
    match function, arguments:
        case ("torch._utils", "_rebuild_parameter"), (Unread(("torch._utils", "_rebuild_tensor_v2")) as tensor, *_):
            return tensor
        case ("collections", "OrderedDict"), ():
            return Items()
        case ("_codecs", "encode"), (str(text), "latin1"):  # how protocol 2 writes bytes
            return text.encode("latin1")
    return Unread(function, arguments)


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
    content = attributes.get("_content")  # of OmegaConf's DictConfig
    return content if isinstance(value, Unread) and isinstance(content, Mapping) else attributes
