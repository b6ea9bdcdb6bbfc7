"""What every sampler is (`Sampler`), and the simulation that it takes a step of (`Chain`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gm_discrete.configurable import Configurable, subclasses
from gm_discrete.generators import Factor, Generator, Jump, Posterior
from gm_discrete.generators.kernels import Kernel, map_rows
from gm_discrete.generators.rows import on_device
from gm_discrete.generators.strings import Tracks
from gm_discrete.paths.base import Path
from gm_discrete.paths.schedules import Schedule
from gm_discrete.process import Process, State, Times, factors, unpack
from gm_discrete.samplers.removed import REMOVED

DISCRETE, CONTINUOUS, PRODUCT, STRINGS = "discrete", "continuous", "product", "strings"
EVERY_SHAPE = frozenset({DISCRETE, CONTINUOUS, PRODUCT})
"""All kinds of states whose shape does not change."""

Memory = TypeVar("Memory")
Sharpen = Callable[[Tensor, Tensor], Tensor]
"""(log π [n, K], times [n]) → logits [n, K]."""


def kind_of(path: Path) -> str:
    """`"discrete"`, `"continuous"`, `"product"` or `"strings"`: the kind of a path's states."""
    if "" not in path.fields:
        return PRODUCT
    if path.strings is not None:
        return STRINGS
    return DISCRETE if path.is_discrete else CONTINUOUS


class Sampler(Configurable, ABC):
    """A rule that carries the state from t to t_next. Subclasses are final, and hold nothing but their options.

    In JSON a sampler is `{"type": type_name, **options}`. To write your own, give `step` and, if it does not simulate every
    path, `states` and `rates`.
    """

    argument: ClassVar[str] = "sampler"
    aliases: ClassVar[dict[str, str]] = {"ancestral": "tau_leaping"}  # with the exact probabilities of the interval
    removed_types: ClassVar[dict[str, str]] = REMOVED
    chooses_times: bool = False
    """Whether it chooses its own times between those of the grid, so that [0, 1] is grid enough."""
    sharpens: bool = False
    """Whether it applies temperature, top_k and top_p itself, by `Chain.sharpen`; else the process does."""
    states: ClassVar[frozenset[str]] = EVERY_SHAPE
    """The kinds of states that it can simulate, of "discrete", "continuous", "product" and "strings"."""
    rates: ClassVar[tuple[str, ...] | None] = None
    """The rates of a discrete path that it needs; `None`: any."""

    @property
    def keeps_distribution(self) -> bool:
        """Whether samples follow the model distribution in the limit of small steps; decoding orders do not."""
        return True

    def check(self, path: Path) -> None:
        """
        Raises:
            ValueError: the sampler cannot simulate this path; the message names those that can.
        """
        if reason := self.misfit(path):
            raise ValueError(f"sampler={self.type_name!r} {reason}; choose one of {', '.join(samplers_for(path))}")

    @classmethod
    def misfit(cls, path: Path) -> str | None:
        """Why no sampler of this class can simulate the path; `None` if one can."""
        kind, rates = kind_of(path), path.rates
        if kind not in cls.states:
            return f"does not simulate {kind if kind == STRINGS else f'{kind} states'}"
        if kind == DISCRETE and cls.rates is not None and rates not in cls.rates:
            return f"needs a path with {' or '.join(f'rates={name!r}' for name in cls.rates)}, not rates={rates!r}"
        return None

    @abstractmethod
    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        """The state at t_next of one at t. Every field moves by the generator at the state x, before any has moved.

        Args:
            chain: the simulation: evaluates the process, draws all noise, and counts.
            x: state [B, …] of each field.
            t, t_next: times [B] of each field.
        """


def samplers_for(path: Path) -> tuple[str, ...]:
    """The names of the samplers that can simulate the path, with default options."""
    found = (kind for kind in subclasses(Sampler) if kind.type_name and not kind.misfit(path))
    return tuple(sorted(kind.type_name for kind in found))


@dataclass
class Chain:
    """A simulation in progress: the process, which entries may move, the noise, and what is counted on the way.

    Attributes:
        process: what is simulated.
        free: by field, bool of the state's shape: entries that may move. Of strings bool [B, 2 (L + 1)], of their symbols
            and gaps; it changes with them.
        rng: source of all noise.
        conditioning: keywords that are passed on to `process.generator`.
        sharpen: (log π [n, K], times [n]) → logits [n, K], temperature, top_k and top_p; `None` where there is none, or the
            process applies it (see `Sampler.sharpens`).
        max_length: [B], symbols that each string has at most; `None`: any number.
        tracks: by field, which symbol of a string is which; only of fields that are tracked.
        calls: [B], evaluations of the network that a sequence needed. jumps: [B], changes of an entry by jumps.
        error: [B], a bound on the total variation distance that an exact sampler cuts off; `None` for other samplers.
        changeable: fields with an entry that may move.
        moving: those of them whose time moves in the present step of the grid; arriving: all whose step ends at t = 1. The
            grid tells, so that the host need not wait for the times.
    """

    process: Process
    free: State
    rng: torch.Generator | None = None
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    sharpen: Sharpen | None = None
    max_length: Tensor | None = None
    tracks: Mapping[str, Tracks] = field(default_factory=dict)
    calls: Tensor = field(init=False)
    jumps: Tensor = field(init=False)
    error: Tensor | None = field(init=False, default=None)
    changeable: frozenset[str] = field(init=False)
    moving: frozenset[str] = field(init=False)
    arriving: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        first = next(iter(self.free.values()))
        self.calls = torch.zeros(len(first), dtype=torch.long, device=first.device)
        self.jumps = torch.zeros_like(self.calls)
        self._counted = torch.zeros_like(self.calls, dtype=torch.bool)  # sequences counted in this evaluation
        self._memory: dict[tuple[str, type], Any] = {}
        self._movable = {name: free.flatten(1).any(1) for name, free in self.free.items()}
        self.changeable = frozenset(name for name, rows in self._movable.items() if bool(rows.any()))
        self.moving = self.changeable

    @property
    def path(self) -> Path:
        """The path of the process.

        Raises:
            TypeError: it has none.
        """
        path = getattr(self.process, "path", None)
        if path is None:
            raise TypeError(f"this sampler needs a path; {type(self.process).__name__} has no attribute .path")
        return path

    def schedule(self, name: str = "") -> Schedule:
        """The schedule κ of a discrete field."""
        return self.path.fields[name].schedule  # pyright: ignore[reportAttributeAccessIssue]

    # Evaluating the process

    def generators(self, x: State, t: Times, t_next: Times | None = None) -> Mapping[str, Factor]:
        """The generator of each field at (x, t), or of the step [t, t_next], from one evaluation of the process.

        Raises:
            TypeError: the process has a generator of other fields.
        """
        self._counted, x = torch.zeros_like(self._counted), dict(x)  # a lazy readout keeps the state that it gets
        now, then = (
            times if times is None else times[""] if "" in times else self.path.joined(times) for times in (t, t_next)
        )
        generator = self.process.generator(unpack(x), now, then, **self.conditioning)
        found = factors(generator)
        if found.keys() != x.keys():
            raise TypeError(
                f"x_0 has the fields {', '.join(map(repr, x))}, but process.generator(…) returned a "
                f"{type(generator).__name__} of {', '.join(map(repr, found))}: let both have the same fields"
            )
        return found

    def jump(self, x: State, t: Times, t_next: Times | None = None) -> Jump:
        """The generator of a state with one discrete field."""
        return discrete(self.generators(x, t, t_next)[""])

    def posterior(self, x: State, t: Times) -> Posterior:
        """The posterior of the data at (x, t), for a state with one discrete field."""
        return posterior(self.jump(x, t))

    def count(self, sequences: Tensor) -> None:
        """Counts one network call for these sequences (bool [B]), once for each evaluation of the process."""
        self.calls += sequences & ~self._counted
        self._counted = self._counted | sequences

    # What may move

    def movable(self, name: str) -> Tensor:
        """bool [B]: which sequences have a free entry in the field."""
        return self._movable[name]

    # Noise

    def uniform(self, *shape: int) -> Tensor:
        """Float64 uniforms in [0, 1)."""
        device = self.rng.device if self.rng is not None else self.calls.device
        return torch.rand(shape, generator=self.rng, device=device, dtype=torch.float64).to(self.calls.device)

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers of x's shape and precision."""
        device = self.rng.device if self.rng is not None else x.device
        return torch.randn(x.shape, generator=self.rng, device=device, dtype=x.dtype).to(x.device)

    def events(self, probability: Tensor, name: str = "") -> Tensor:
        """Which free entries of a field have an event, bool of its shape; entries are independent."""
        free = self.free[name]
        return (self.uniform(*free.shape) < probability) & free

    # Jumps

    def land(self, x: Tensor, kernel: Kernel, events: Tensor) -> Tensor:
        """The field's state after jumps at the events, drawn from the kernel there only."""
        where = positions_of(events)
        if len(where) == 0:
            return x
        landings = kernel.sample(self.rng, where).to(x.dtype)  # [n], or [n, 4] rotations
        after = x.reshape(events.numel(), *landings.shape[1:]).index_put((where,), landings).view_as(x)
        if landings.dim() > 1:
            self.jumps += events.flatten(1).sum(1)
            return after
        return self.jumped(x, after)

    def land_at(self, x: Tensor, kernel: Kernel, where: Tensor, rows: Sequence[int], accepted: Tensor) -> Tensor:
        """The field's state after one jump of each of some sequences, where it is accepted.

        Args:
            where: the position [B] of the jump in each sequence; rows: the sequences; accepted: bool [B].
        """
        if not rows:
            return x
        if len(rows) < len(where):
            index = on_device(rows, where.device)
            where, accepted = where[index], accepted[index]
        vars(where)["sequences"] = rows
        here = x.flatten()[where]
        landings = torch.where(accepted, kernel.sample(self.rng, where).to(x.dtype), here)
        return self.jumped(x, x.flatten().index_put((where,), landings).view_as(x))

    def jumped(self, x: Tensor, x_next: Tensor) -> Tensor:
        """`x_next`, after counting the entries in which it differs from x as jumps."""
        self.jumps += (x_next != x).flatten(1).sum(1)
        return x_next

    # Memory

    def remember(self, name: str, kind: type[Memory]) -> Memory:
        """The memory that a method keeps of a field from one step to the next; at first `kind()`."""
        return self._memory.setdefault((name, kind), kind())


def discrete(generator: Generator) -> Jump:
    """The generator of a discrete field, as the jump that it must be.

    Raises:
        TypeError: it is no jump.
    """
    if not isinstance(generator, Jump):
        raise TypeError(
            f"discrete states move by jumps; the generator of the process is a {type(generator).__name__}: give a "
            "floating-point state, or a process with a Jump"
        )
    return generator


def posterior(jump: Jump) -> Posterior:
    """The posterior of the data that a path made the jump of.

    Raises:
        TypeError: no path made it.
    """
    if jump.posterior is None:
        raise TypeError("this sampler needs generators made by a path: path.marginal(readout, x, t, t_next)")
    return jump.posterior


def positions_of(mask: Tensor) -> Tensor:
    """The indices [n] of the true entries of a mask [B, …], in the flattened state.

    The host waits for the device once, to learn their number. It learns at the same time which sequences they belong to, and
    leaves that with them as the attribute `sequences`: a readout that gets these very positions need not wait again.
    """
    counts = mask.flatten(1).sum(1).tolist()
    where = torch.nonzero_static(mask.flatten(), size=sum(counts)).squeeze(1)
    vars(where)["sequences"] = list(compress(range(len(counts)), counts))
    return where


def leaving(kernel: Kernel, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The probability 1 − k(x) of landing elsewhere, [B, L], and the sequences whose network output it takes, [B].

    A masked position always changes when it jumps, so that the network need not be evaluated there.

    Args:
        positions: bool [B, L], where it is wanted; it is 0 elsewhere.
    """
    open_ = needs_network(kernel, x, positions)
    values = (positions & ~open_).double()
    where = positions_of(open_)
    if len(where):
        flat = x.flatten()
        leave = map_rows(lambda rows: kernel.leave(flat[rows], rows), kernel.prepare(where))
        values = values.flatten().index_put((where,), leave).view_as(values)
    return values, open_.any(1)


def needs_network(kernel: Kernel, x: Tensor, positions: Tensor) -> Tensor:
    """The positions, bool [B, L], without those that hold a symbol which no data holds (a mask): those always change."""
    for symbol in getattr(kernel, "excluded", ()):
        positions = positions & (x != symbol)
    return positions
