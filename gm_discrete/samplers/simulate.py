"""The loop that all samplers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gm_discrete.process import Process, State, pack, unpack
from gm_discrete.samplers.base import Chain, Sampler
from gm_discrete.samplers.correctors import Corrector

OLD_OPTIONS = {
    "method": "sampler='heun'",
    "max_expected_changes": "sampler=Adaptive(max_expected_changes=2.0)",
    "tolerance": "sampler=Adaptive(tolerance=0.001), Uniformization(tolerance=…) or DormandPrince(tolerance=…)",
    "order": "sampler=TauLeaping(order='confidence') or EntropyBounded(order=…)",
    "order_temperature": "sampler=TauLeaping(order='confidence', order_temperature=1.0)",
    "entropy_bound": "sampler=EntropyBounded(entropy_bound=0.1)",
}
"""Options of version 0.1, and how they are given now."""


@dataclass(frozen=True)
class Simulation:
    """What `simulate` returns with `return_info=True`.

    Attributes:
        x: final state, of x_0's kind and shape.
        times: the grid [N + 1], or [N + 1, M] of M fields with grids of their own.
        network_calls: [B], evaluations of the network that the sequence needed; none where it had no event.
        jumps: [B], changes of an entry by jumps.
        error_bound: [B], on the total variation between the distribution that was sampled and the model distribution; 0 for
            `FirstHitting`, the part that is cut off for `Uniformization`, `None` for samplers that are not exact.
        states: the states at `save_at`, in its order.
    """

    x: Tensor | State
    times: Tensor
    network_calls: Tensor
    jumps: Tensor
    error_bound: Tensor | None = None
    states: list[Any] = field(default_factory=list)

    def then(self, rest: Simulation) -> Simulation:
        """This simulation and the one that went on from its end, as one."""
        bound = None
        if self.error_bound is not None and rest.error_bound is not None:
            bound = self.error_bound + rest.error_bound
        calls, jumps = self.network_calls + rest.network_calls, self.jumps + rest.jumps
        times = torch.cat([self.times[self.times < rest.times[0]], rest.times])
        return Simulation(rest.x, times, calls, jumps, bound, self.states + rest.states)


@overload
def simulate(
    process: Process,
    x_0: Tensor,
    times: Tensor | Sequence[float],
    rng: torch.Generator | None = None,
    sampler: str | Mapping[str, Any] | Sampler = "tau_leaping",
    fixed: Tensor | None = None,
    *,
    return_info: Literal[False] = False,
    **options: Any,
) -> Tensor: ...
@overload
def simulate(
    process: Process,
    x_0: State,
    times: Tensor | Sequence[float] | Mapping[str, Any],
    rng: torch.Generator | None = None,
    sampler: str | Mapping[str, Any] | Sampler = "tau_leaping",
    fixed: State | None = None,
    *,
    return_info: Literal[False] = False,
    **options: Any,
) -> State: ...
@overload
def simulate(
    process: Process,
    x_0: Tensor | State,
    times: Tensor | Sequence[float] | Mapping[str, Any],
    rng: torch.Generator | None = None,
    sampler: str | Mapping[str, Any] | Sampler = "tau_leaping",
    fixed: Tensor | State | None = None,
    *,
    return_info: Literal[True],
    **options: Any,
) -> Simulation: ...
def simulate(
    process: Process,
    x_0: Tensor | State,
    times: Tensor | Sequence[float] | Mapping[str, Any],
    rng: torch.Generator | None = None,
    sampler: str | Mapping[str, Any] | Sampler = "tau_leaping",
    fixed: Tensor | State | None = None,
    *,
    corrector: Corrector | Mapping[str, Any] | None = None,
    save_at: Sequence[int] = (),
    on_step: Callable[[Any, Any], bool] | None = None,
    return_info: bool = False,
    **conditioning: Any,
) -> Tensor | State | Simulation:
    """Simulates a process from the state x_0 at times[0] to times[-1].

    Args:
        process: anything with `.path` and `.generator(x, t, t_next=None, **conditioning)`: a `GMModel`, an exact posterior,
            a class of your own.
        x_0: initial state, long [B, L] of a discrete path, floating-point [B, …] of a continuous one, a dict by field of a
            product; not modified.
        times: increasing grid in [0, 1], [N + 1]; it may start and end anywhere (see `time_grid`). Exact and adaptive
            samplers choose their own times in between, so that [0, 1] will do; a corrector acts at those of the grid. Of a
            product with independent times also a dict of grids by field, each of N + 1 times that do not fall.
        rng: source of all noise.
        sampler: `TauLeaping`, `Euler`, `Trapezoidal`, `Heun` on the grid; `FirstHitting`, `Uniformization` (exact);
            `Adaptive`, `EntropyBounded`, `DormandPrince` (their own times); or a `Sampler` of yours. A name such as
            `"adaptive"` is short for one with its defaults.
        fixed: bool, of x_0's shape: entries that stay as they are; of a product by field, those left out being free.
        corrector: `DetailedBalance` or `ReMDM`.
        save_at: indices into `times` at which to keep the state (0 is x_0).
        on_step: called with (state, time) at every time of the grid; a true answer ends the simulation.
        return_info: also return network calls, jumps, times, error bound and the saved states.
        conditioning: passed on to the generator where it is not `None`.

    Returns:
        The state at the end, of x_0's kind and shape, or a `Simulation`.

    Raises:
        ValueError: an argument is out of its range, or the sampler does not fit the path.
        TypeError: an option of a sampler is given to `simulate`.

    >>> import torch
    >>> from gm_discrete import ExactModel, MaskedPath, simulate
    >>> process = ExactModel(MaskedPath(4), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    >>> rng = torch.Generator().manual_seed(0)
    >>> x_0 = process.path.prior((1000, 3), rng)
    >>> run = simulate(process, x_0, [0.0, 1.0], rng, "first_hitting", return_info=True)
    >>> 400 < int((run.x == torch.tensor([0, 1, 2])).all(1).sum()) < 600
    True
    >>> run.network_calls.unique().tolist()
    [3]
    """
    refuse_old_options(conditioning)
    sampler = Sampler.of(sampler)
    if isinstance(corrector, Mapping):
        corrector = Corrector.from_dict(dict(corrector))
    if not isinstance(corrector, Corrector | None):
        raise TypeError(f"corrector={corrector!r} must be a Corrector such as DetailedBalance(), or its JSON form")
    state = pack(x_0)
    _check_state(process, state)
    run = simulate_state(
        process,
        state,
        grid_of(times, state),
        rng,
        sampler,
        _free(state, fixed),
        corrector,
        None if on_step is None else lambda x, t: on_step(unpack(x), t),
        save_at,
        {name: value for name, value in conditioning.items() if value is not None},
    )
    run = replace(run, x=unpack(run.x), states=[unpack(saved) for saved in run.states])  # pyright: ignore[reportArgumentType]
    return run if return_info else run.x


@torch.no_grad()
def simulate_state(
    process: Process,
    x_0: State,
    grid: Tensor,
    rng: torch.Generator | None,
    sampler: Sampler,
    free: State,
    corrector: Corrector | None = None,
    on_step: Callable[[State, Any], bool] | None = None,
    save_at: Sequence[int] = (),
    conditioning: Mapping[str, Any] | None = None,
) -> Simulation:
    """`simulate` for states that are dicts of fields, with arguments that are checked already.

    Args:
        grid: float64 [N + 1], or [N + 1, M] with a column for each field.
        free: by field, bool: entries that may move.
    """
    if corrector is not None:
        sampler = corrector.corrected(sampler)
    if getattr(process, "path", None) is not None:
        sampler.check(process.path)
    chain = Chain(process, free, rng, conditioning or {})
    first = next(iter(x_0.values()))
    wanted = indices(save_at, len(grid))

    def at(i: int) -> dict[str, Tensor]:
        """The times [B] of each field at the i-th time of the grid."""
        columns = [
            torch.full((len(first),), s, dtype=torch.float64, device=first.device) for s in grid[i].view(-1).tolist()
        ]
        return dict(zip(x_0, columns * len(x_0) if grid.dim() == 1 else columns, strict=True))

    x, now = x_0, at(0)
    saved = {0: x} if 0 in wanted else {}
    for i in range(1, len(grid)):
        then = at(i)
        x, now = sampler.step(chain, x, now, then), then
        if i in wanted:
            saved[i] = x
        if on_step is not None and on_step(x, float(grid[i]) if grid.dim() == 1 else grid[i]):
            break
    states = [saved[i] for i in wanted if i in saved]
    return Simulation(x, grid, chain.calls, chain.jumps, chain.error, states)


def refuse_old_options(options: Mapping[str, Any]) -> None:
    """
    Raises:
        TypeError: one of them is an option of a sampler, that has to be given to the sampler itself.
    """
    for name in options:
        if name == "method":
            raise TypeError("method is called sampler: sampler='heun'")
        if name in OLD_OPTIONS:
            kind = OLD_OPTIONS[name].removeprefix("sampler=").split("(")[0]
            raise TypeError(f"{name} is an option of {kind}: {OLD_OPTIONS[name]}")


def grid_of(times: Any, x_0: State) -> Tensor:
    """The grid as float64 [N + 1], or [N + 1, M] where each field has its own.

    Raises:
        ValueError: the times do not increase within [0, 1], or are grids of other fields.
    """
    if not isinstance(times, Mapping):
        return _grid(times)
    if times.keys() != x_0.keys():
        raise ValueError(f"times has grids of {', '.join(times)}; the fields are {', '.join(x_0)}")
    columns = [_grid(times[name], rising=False) for name in x_0]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"times has grids of {', '.join(str(len(c)) for c in columns)} times; they must be equally many"
        )
    return torch.stack(columns, 1)


def _grid(times: Any, rising: bool = True) -> Tensor:
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(f"times must be a grid of at least two times, got shape {tuple(grid.shape)}")
    steps = grid.diff()
    if not (grid[0] >= 0 and grid[-1] <= 1 and bool((steps > 0 if rising else steps >= 0).all())):
        raise ValueError(f"times must increase within [0, 1], got {grid.tolist() if len(grid) < 9 else grid}")
    return grid


def _check_state(process: Process, x_0: State) -> None:
    """
    Raises:
        ValueError: the state is none of the process's path.
    """
    path = getattr(process, "path", None)
    if path is not None and path.fields.keys() != x_0.keys():
        expected, found = (
            "a tensor" if "" in fields else f"a dict of {', '.join(fields)}" for fields in (path.fields, x_0)
        )
        raise ValueError(f"x_0 must be {expected} for {path!r}; got {found}")
    for name, x in x_0.items():
        where = f"x_0[{name!r}]" if name else "x_0"
        if not isinstance(x, Tensor) or x.dim() < 2 or (x.dim() > 2 and not x.is_floating_point()):
            found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise ValueError(f"{where} must be a long tensor [B, L] or a floating-point tensor [B, …]; got {found}")
        if path is not None and path.fields[name].is_discrete == x.is_floating_point():
            kind = "long" if path.fields[name].is_discrete else "floating-point"
            raise ValueError(f"{where} must be a {kind} tensor for {path.fields[name]!r}; got {x.dtype}")


def _free(x_0: State, fixed: Tensor | State | None) -> State:
    masks = {} if fixed is None else pack(fixed)
    if unknown := masks.keys() - x_0.keys():
        names = (", ".join(sorted(map(str, keys))) or "''" for keys in (unknown, x_0.keys()))
        raise ValueError("fixed names {}; the fields are {}".format(*names))
    free = {}
    for name, x in x_0.items():
        mask = masks.get(name)
        if mask is not None and mask.shape != x.shape:
            where = f"fixed[{name!r}]" if name else "fixed"
            raise ValueError(f"{where} has shape {tuple(mask.shape)}; expected that of x_0, {tuple(x.shape)}")
        free[name] = torch.ones_like(x, dtype=torch.bool) if mask is None else ~mask.bool()
    return free


def indices(save_at: Sequence[int], n: int) -> list[int]:
    """The indices, counted from 0.

    Raises:
        ValueError: one of them is out of range.
    """
    if not all(-n <= i < n for i in save_at):
        raise ValueError(f"save_at={list(save_at)} must be indices into the {n} times")
    return [i % n for i in save_at]
