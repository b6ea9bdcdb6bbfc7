"""The `Process` protocol, and how states are packed into dicts of fields.

Inside the library every state is a dict of fields, and a state of one field is `{"": x}`. Tensors are packed into such
dicts, and unpacked, only at the entry points: `GMModel.forward` and `generate`, `simulate`, `conditional_loss` and the
likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from gm_discrete.generators import Factor, Generator, Product
from gm_discrete.paths.base import Path

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


def unpack(state: Mapping[str, T]) -> T | Mapping[str, T]:
    """The inverse of `pack`: the value of the only field if there is just one, else the dict."""
    return state.get("", state)


def factors(generator: Generator) -> Mapping[str, Factor]:
    """The generator of each field."""
    return generator.factors if isinstance(generator, Product) else {"": generator}
