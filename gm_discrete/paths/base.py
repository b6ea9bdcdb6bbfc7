"""Probability paths: how a data point is noised, and which generators turn that noise back into data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gm_discrete.arguments import readable
from gm_discrete.configurable import Configurable
from gm_discrete.generators import Generator
from gm_discrete.generators.kernels import Readout
from gm_discrete.generators.rows import require
from gm_discrete.generators.spaces import NUMBERS, Space, entries
from gm_discrete.generators.strings import Strings
from gm_discrete.paths.schedules import At, TimeLike


class Path(Configurable, ABC):
    """A conditional probability path p_t(·|z), from the prior at t = 0 to the data point z at t = 1.

    The marginal path is p_t = E_z p_t(·|z). Averaging a generator of p_t(·|z) over the posterior of z given x yields a
    generator of p_t (Generator Matching, proposition 1); with a network's output in place of the posterior, it is the
    prediction. Times may be tensors [B] or `path.at(t)`, whose values of the schedule several calls then share.
    """

    argument: ClassVar[str] = "path"

    default_divergence: str | Mapping[str, str]
    """The loss used by default; by part where generators are superposed."""
    state_name = "input_ids"
    """Name of the noisy state in batches and as an argument of `GMModel.forward`."""
    latest = 1.0
    """Training times are drawn from [0, latest]."""
    spacing: str
    """Default spacing of a time grid (see `samplers.time_grid`)."""
    stop = 0.0
    """ε: the last sampling step goes from t = 1 − ε to the data. Positive for Euclidean paths, whose generators diverge at
    t = 1; 0 for discrete ones."""

    is_discrete: bool
    """Whether states are symbols (long) or numbers (floating point). Undefined for a `ProductPath`, which may hold both."""
    rates = ""
    """Which of the jump generators of a discrete path is used, such as `"masked"`; empty for all other paths."""
    excluded: tuple[int, ...] = ()
    """Symbols that never occur in data."""
    space: Space = NUMBERS
    """In which continuous states move: it says what one entry of a state is."""
    coupled = False
    """Whether every example comes with its own x_0."""
    independent_times = False
    """Whether every field of a state has a time of its own."""

    @property
    def is_masked(self) -> bool:
        """Whether noise replaces tokens by a mask token (`MaskedPath`)."""
        return False

    @property
    def strings(self) -> Strings | None:
        """How strings of any length are laid out in the state's tensor, if states are strings (`EditPath`)."""
        return None

    # Fields, entries and times

    def as_state(self, values: Tensor, name: str) -> Tensor:
        """The state of what a user passes, which may have another form: rotations may be matrices.

        Raises:
            ValueError: the values have no such form; the message begins with `name`.
        """
        return values

    @property
    def fields(self) -> Mapping[str, Path]:
        """The path of each field of a state; a path of a single field is `{"": self}`."""
        return {"": self}

    def times(self, t: Tensor) -> dict[str, Tensor]:
        """The time [B] of each field, for times t [B] (or [B, M] of a `ProductPath` with independent times)."""
        return {"": t}

    def joined(self, times: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `times`."""
        return times[""]

    def at(self, t: TimeLike, per_kappa: bool = False) -> At:
        """The times t [B] with the values of the path's schedule there, each computed once.

        Args:
            per_kappa: whether generators at these times are per unit of κ instead of per unit of time, as losses compare
                them. Only mixture paths, where κ' cancels in closed form, heed it.
        """
        return t if isinstance(t, At) else At(t)

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """The time at which the fraction u in [0, 1] of the path is passed; float64."""

    # Distributions

    @abstractmethod
    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """x_0 ~ p_0 of the given shape [B, …]."""

    @abstractmethod
    def sample(
        self,
        z: Tensor,
        t: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        *,
        check: bool = True,
    ) -> Tensor:
        """x_t ~ p_t(·|z) for data z [B, …] at times t [B].

        Args:
            x_0: sources, for coupled paths only.
            check: whether to check the arguments; callers that have done so pass False.
        """

    # Generators

    @abstractmethod
    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Generator:
        """The target: the generator of p_t(·|z) at x, in closed form. With `t_next`, that of the step [t, t_next]."""

    @abstractmethod
    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Generator:
        """The prediction: the generator of p_t at x, from the output of a network (or of an exact posterior)."""

    # Networks and losses

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, int]:
        """Outputs that a network must have, by name: how many numbers per token, or per coordinate of a Euclidean state."""

    @abstractmethod
    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        """Units [B], by part of the generator, in which it is of order 1 at all times; divergences are taken in them."""

    @abstractmethod
    def loss_mask(self, labels: Tensor) -> Tensor:
        """bool, of the labels' shape: True where the loss counts, False where labels are marked as unscored."""

    @abstractmethod
    def mask_labels(self, z: Tensor, scored: Tensor) -> Tensor:
        """Labels: the data z, with the unscored positions marked."""

    def fill_unscored(self, x: Tensor) -> Tensor:
        """Valid placeholder data made of the state x, for the positions that the loss leaves out."""
        return x

    def compared(self, x: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        """The state as the entries that generators move, and which of these a loss compares.

        Args:
            scored: bool of x's shape.
        """
        return x, entries(scored, self.space)

    def number(self, z: Tensor, scored: Tensor) -> Tensor:
        """How many entries of the data z are scored: what a loss is divided by."""
        return entries(scored, self.space).sum()

    # Tables, which are too large for JSON

    def tables(self) -> dict[str, Tensor]:
        """Large tensors that define the path beside `to_dict`, such as the embeddings of a `MetricPath`; mostly none.

        `to_dict` holds only their shapes. Whoever stores the path stores these too, and passes them to `load_tables`.
        """
        return {}

    def table_shapes(self) -> dict[str, list[int]]:
        """The shape of each of `tables()`, known before `load_tables` too."""
        return {}

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Sets the tables of a path that was built from its `to_dict`.

        Raises:
            ValueError: names or shapes are not those of `table_shapes()`.
        """
        expected, found = self.table_shapes(), {name: list(table.shape) for name, table in tables.items()}
        if found != expected:
            raise ValueError(f"tables={found} must have the names and shapes {expected}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Path) or not super().__eq__(other):
            return False
        mine, others = self.tables(), other.tables()
        return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)

    __hash__ = Configurable.__hash__

    # Checks

    @abstractmethod
    def check(self, state: Tensor, t: TimeLike, name: str) -> None:
        """
        Raises:
            ValueError: the state or the times do not fit this path; the message begins with `name`.
        """

    def check_pair(self, z: Tensor, x: Tensor, t: TimeLike, names: tuple[str, str] = ("z", "x")) -> None:
        """
        Raises:
            ValueError: data z or state x do not fit this path, or differ in shape; the message begins with their name.
        """
        self.check(x, t, names[1])
        if z.shape != x.shape:
            raise ValueError(f"{names[0]} has shape {tuple(z.shape)}, {names[1]} has {tuple(x.shape)}; they must agree")
        self.check(z, t, names[0])

    def check_source(self, x_0: Tensor | None, z: Tensor, t: Tensor) -> None:
        """
        Raises:
            ValueError: x_0 is missing for a coupled path or not of z's shape, or is given for another path.
        """
        if not self.coupled:
            if x_0 is not None:
                raise ValueError("x_0 is given, but the path is not coupled: make it MixturePath(…, coupled=True)")
            return
        if not isinstance(x_0, Tensor) or x_0.shape != z.shape:
            found = f"shape {tuple(x_0.shape)}" if isinstance(x_0, Tensor) else "nothing" if x_0 is None else repr(x_0)
            raise ValueError(f"a coupled path needs x_0, the sources, of z's shape {tuple(z.shape)}; got {found}")
        self.check(x_0, t, "x_0")


def uniform(shape: Sequence[int], rng: torch.Generator | None, device: torch.device | str | None) -> Tensor:
    """Float64 uniforms in [0, 1), drawn on the generator's device, where they stay without a `device`."""
    source = rng.device if rng else device or "cpu"
    return torch.rand(tuple(shape), generator=rng, device=source, dtype=torch.float64).to(device or source)


def different_sizes(state: Mapping[str, Tensor], name: str) -> ValueError:
    """The error for a state whose fields have different batch sizes; `name` is what messages call it."""
    sizes = ", ".join(f"{field} {len(x)}" for field, x in state.items())
    return ValueError(f"{name} has fields of different batch sizes, {sizes}; give as many rows of each")


def check_times(t: TimeLike, state: Tensor, t_next: TimeLike | None = None) -> None:
    """
    Raises:
        ValueError: t is not floating-point of shape [B] within [0, 1], or t_next not the like, or before t.
    """
    if t_next is not None:
        check_times(t_next, state)
    t = t.t if isinstance(t, At) else t
    end = t_next.t if isinstance(t_next, At) else t_next
    if not isinstance(t, Tensor) or t.shape != state.shape[:1]:
        found = tuple(t.shape) if isinstance(t, Tensor) else t
        raise ValueError(f"t must have shape [B] = [{state.shape[0]}], got {found}")
    if not t.is_floating_point():
        raise ValueError(f"t must be floating-point, got {t.dtype}")
    if torch.compiler.is_compiling():
        return
    if not readable(t):
        require(((t >= 0) & (t <= 1)).all(), ValueError, "times must lie in [0, 1]")
    elif t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1] (0: prior, 1: data), got t={t.min():.6g} to {t.max():.6g}")
    if end is None:
        return
    if not readable(t):
        require((end >= t).all(), ValueError, "t_next must not be before t")
    elif not bool((end >= t).all()):
        raise ValueError(f"t_next={float(end[end < t][0]):.6g} must not be before t={float(t[end < t][0]):.6g}")
