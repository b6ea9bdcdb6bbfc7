"""The `Process` protocol, and how states are packed into dicts of fields.

Inside the library every state is a dict of fields, and a state of one field is `{"": x}`. Tensors are packed into such
dicts, and unpacked, only at the entry points: `GMModel.forward` and `generate`, `simulate`, `conditional_loss` and the
likelihoods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gm_discrete.generators import Factor, Generator, Product
from gm_discrete.paths.base import Path, different_sizes

State = Mapping[str, Tensor]
"""A state [B, …] of each field, by name."""
Times = Mapping[str, Tensor]
"""The time [B] of each field, by name."""

T = TypeVar("T")


class Process(Protocol):
    """A probability path and the generator of a process with its distributions: a network, an exact posterior, or your own.

    `generator(x, t, t_next=None, **conditioning)` returns the generator at the state x and the times t [B], or that of the
    step from t to t_next. For a `ProductPath` x is a dict of fields; for all other paths it is a tensor.

    >>> import torch
    >>> from gm_discrete import MaskedPath, simulate
    >>> class Guess:
    ...     path = MaskedPath(3)
    ...     def generator(self, x, t, t_next=None):
    ...         logits = torch.tensor([0.9, 0.1, 0.0]).log().expand(*x.shape, 3)
    ...         return self.path.marginal(logits, x, t, t_next)
    >>> x = simulate(Guess(), Guess.path.prior((2, 4)), torch.linspace(0, 1, 5))
    >>> bool((x < 2).all())
    True
    """

    @property
    def path(self) -> Path: ...

    @property
    def generator(self) -> Callable[..., Generator]: ...


_EVALUATED: WeakKeyDictionary[nn.Module, tuple[int, Sequence[nn.Module]]] = WeakKeyDictionary()
"""How many callers evaluate a network now, and which of its modules train again after the last of them."""
_LOCK = Lock()


@contextmanager
def evaluation_mode(process: object) -> Iterator[None]:
    """Within this context a network is in evaluation mode, also while other threads enter and leave theirs."""
    if not isinstance(process, nn.Module):
        yield
        return
    with _LOCK:
        callers, training = _EVALUATED.get(process, (0, ()))
        training = training or [module for module in process.modules() if module.training]
        for module in training:
            module.training = False
        _EVALUATED[process] = callers + 1, training
    try:
        yield
    finally:
        with _LOCK:
            callers, training = _EVALUATED.pop(process)
            if callers > 1:
                _EVALUATED[process] = callers - 1, training
            for module in training if callers == 1 else ():
                module.training = True


def pack(value: T | Mapping[str, T]) -> Mapping[str, T]:
    """A value per field: a dict stays as it is, anything else belongs to the only field, `{"": value}`."""
    return value if isinstance(value, Mapping) else {"": value}


def pack_state(path: Path, value: Tensor | State, name: str) -> State:
    """A state by field, in the form that the paths work with: rotation matrices become quaternions.

    Args:
        name: of the argument, for messages.
    """
    found = pack(value)
    if all(own.space.entry_dims == 0 for own in path.fields.values()):
        return found
    own = path.fields
    return {
        field: own[field].as_state(x, f"{name}[{field!r}]" if field else name) if field in own else x
        for field, x in found.items()
    }


def unpack(state: Mapping[str, T]) -> T | Mapping[str, T]:
    """The inverse of `pack`: the value of the only field if there is just one, else the dict."""
    return state.get("", state)


def check_call(process: Process, state: Tensor | State, name: str, conditioning: Mapping[str, Any]) -> None:
    """Checks a state and the keywords that go to `process.generator` with it, once, before a process is run.

    A process may have a method `check(x, name, **conditioning)`, as networks have, which checks shapes, classes and device.
    For any other process the path checks the state, and the names of the keywords are compared with those that the generator
    takes.

    Args:
        name: of the state, for messages.

    Raises:
        TypeError: the generator takes no such keyword.
        ValueError: the state or a keyword does not fit the process.
    """
    if (check := getattr(process, "check", None)) is not None:
        check(state, name, **conditioning)
        return
    parameters = inspect.signature(process.generator).parameters
    unknown = conditioning.keys() - parameters.keys()
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(
            f"the generator of {type(process).__name__} takes no {', '.join(sorted(unknown))}; leave it out"
        )
    check_state(getattr(process, "path", None), state, name)


def check_state(path: Path | None, state: Tensor | State, name: str) -> None:
    """
    Raises:
        ValueError: it is no state of the path.
    """
    fields = pack(state)
    for field, x in fields.items():
        where = f"{name}[{field!r}]" if field else name
        if not isinstance(x, Tensor) or x.dim() < 2 or (x.dim() > 2 and not x.is_floating_point()):
            found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise ValueError(f"{where} must be a long tensor [B, L] or a floating-point tensor [B, …]; got {found}")
    first, *others = fields.values()
    if any(x.shape[0] != first.shape[0] for x in others):
        raise different_sizes(fields, name)
    if path is None:
        return
    if fields.keys() != path.fields.keys():
        expected, found = (
            "a tensor" if "" in names else f"a dict of {', '.join(names)}" for names in (path.fields, fields)
        )
        raise ValueError(f"{name} must be {expected} for {path!r}; got {found}")
    for field, own in path.fields.items():
        x = fields[field]
        own.check(x, torch.zeros(len(x), device=x.device), f"{name}[{field!r}]" if field else name)


def factors(generator: Generator) -> Mapping[str, Factor]:
    """The generator of each field."""
    return generator.factors if isinstance(generator, Product) else {"": generator}
