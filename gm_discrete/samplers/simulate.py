"""The loop that all samplers share, and its time grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, cast, overload

import torch
from torch import Tensor

from gm_discrete.arguments import listed, numbers, whole
from gm_discrete.generators.spaces import NUMBERS
from gm_discrete.generators.spaces import whole as whole_entries
from gm_discrete.generators.strings import Tracks
from gm_discrete.paths.base import Path
from gm_discrete.paths.edits import EditPath
from gm_discrete.process import Process, State, check_call, pack, pack_state, unpack
from gm_discrete.samplers.base import Chain, Sampler, Sharpen
from gm_discrete.samplers.correctors import Corrector
from gm_discrete.samplers.edits import entries_free
from gm_discrete.samplers.removed import hint, refuse_old_options

X = TypeVar("X", bound=Tensor | State)
Grid = Tensor | Sequence[float] | Mapping[str, Tensor | Sequence[float]]
AnySampler = str | Mapping[str, Any] | Sampler
AnyCorrector = str | Mapping[str, Any] | Corrector | None
SPACINGS = ("linear", "quadratic", "geometric")


@dataclass(frozen=True)
class Simulation(Generic[X]):
    """What `simulate` returns with `return_info=True`.

    Attributes:
        x: final state, of x_0's kind and shape; strings [B, longest].
        times: the grid [N + 1], or [N + 1, M] of M fields with grids of their own.
        network_calls: [B], evaluations of the network that the sequence needed; none where it had no event.
        jumps: [B], changes of an entry by jumps.
        error_bound: [B], on the total variation between the distribution that was sampled and the model distribution; 0 for
            `FirstHitting`, the part that is cut off for `Uniformization`, `None` for samplers that are not exact.
        states: the states at `save_at`, in its order.
        free: bool by field, the entries that may move; of strings those of the final ones.
    """

    x: X
    times: Tensor
    network_calls: Tensor
    jumps: Tensor
    error_bound: Tensor | None = None
    states: list[X] = field(default_factory=list)
    free: State = field(default_factory=dict)

    def then(self, rest: Simulation[X]) -> Simulation[X]:
        """This simulation and the one that went on from its end, as one."""
        bound = None
        if self.error_bound is not None and rest.error_bound is not None:
            bound = self.error_bound + rest.error_bound
        calls, jumps = self.network_calls + rest.network_calls, self.jumps + rest.jumps
        times = torch.cat([self.times[self.times < rest.times[0]], rest.times])
        return Simulation(rest.x, times, calls, jumps, bound, self.states + rest.states, rest.free)


@overload
def simulate(
    process: Process,
    x_0: X,
    times: Grid,
    rng: torch.Generator | None = None,
    sampler: AnySampler = "tau_leaping",
    fixed: Tensor | State | None = None,
    *,
    return_info: Literal[True],
    **options: Any,
) -> Simulation[X]: ...
@overload
def simulate(
    process: Process,
    x_0: X,
    times: Grid,
    rng: torch.Generator | None = None,
    sampler: AnySampler = "tau_leaping",
    fixed: Tensor | State | None = None,
    *,
    return_info: Literal[False] = False,
    **options: Any,
) -> X: ...
def simulate(
    process: Process,
    x_0: Tensor | State,
    times: Grid,
    rng: torch.Generator | None = None,
    sampler: AnySampler = "tau_leaping",
    fixed: Tensor | State | None = None,
    *,
    corrector: AnyCorrector = None,
    save_at: Sequence[int] = (),
    on_step: Callable[..., bool] | None = None,
    max_length: int | Tensor | None = None,
    return_info: bool = False,
    **conditioning: object,
) -> Any:
    """Simulates a process from the state x_0 at times[0] to times[-1].

    Args:
        process: anything with `.path` and `.generator(x, t, t_next=None, **conditioning)`: a `GMModel`, an exact posterior,
            a class of your own.
        x_0: initial state, long [B, L] of a discrete path, floating-point [B, …] of a continuous one, a dict by field of a
            product; not modified.
        times: increasing grid in [0, 1], [N + 1]; it may start and end anywhere (see `time_grid`). Exact and adaptive
            samplers choose their own times in between, so that [0, 1] will do; a corrector acts at those of the grid. For
            a product with independent times also a dict of grids by field, each of N + 1 times that do not fall.
        rng: source of all noise.
        sampler: `TauLeaping`, `Euler`, `Trapezoidal`, `Heun` on the grid; `FirstHitting`, `Uniformization` (exact);
            `Adaptive`, `EntropyBounded`, `DormandPrince` (their own times); or a `Sampler` of yours. A name such as
            `"adaptive"` is short for one with its defaults.
        fixed: bool, of x_0's shape: entries that stay as they are; of rotations also [B, L]. For a product a dict by field,
            which may leave out some. Of strings [B, L] the symbols that stay: between two of them that follow each other,
            and before one at the start, nothing is inserted; or the entries that stay, [B, 2 (L + 1)].
        corrector: `DetailedBalance` or `ReMDM`; its name `"detailed_balance"` or `"remdm"` is short for one with defaults.
        save_at: indices into `times` at which to keep the state (0 is x_0).
        max_length: symbols that a string has at most, or a long tensor [B] of them, on the way, too: insertions beyond are
            left out.
            `Uniformization` of an `EditPath` needs it.
        on_step: called with (state, time) at every time of the grid; a true answer ends the simulation.
        return_info: also return network calls, jumps, times, error bound and the saved states.
        conditioning: passed on to the generator where it is not `None`.

    Returns:
        The state at the end, of x_0's kind and shape, or a `Simulation`. Strings are as wide as the longest of them.

    Raises:
        ValueError: an argument is out of its range, or the sampler does not fit the path.
        TypeError: an option of a sampler, or an argument that version 0.1 had, is passed to `simulate`.

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
    if corrector is not None:
        sampler = Corrector.of(corrector).corrected(sampler)
    if isinstance(own := getattr(process, "path", None), Path):
        x_0 = unpack(pack_state(own, x_0, "x_0"))
        if own.strings is not None and isinstance(x_0, Tensor) and x_0.dim() == 2:
            x_0, fixed = _packed(cast(EditPath, own), x_0, fixed)
    state = pack(x_0)
    conditioning = {name: value for name, value in conditioning.items() if value is not None}
    check_call(process, x_0, "x_0", conditioning)
    grid, free = _grids(times, state), _free(state, fixed, own.fields if isinstance(own, Path) else {})
    if getattr(process, "path", None) is not None:
        sampler.check(process.path)
    for i in listed("save_at", save_at):
        whole("save_at", i, -len(grid), len(grid) - 1, f", an index into the {len(grid)} times")
    observer = None if on_step is None else lambda x, t: on_step(unpack(x), t)
    most = _limits(max_length, x_0, own)
    run = simulate_state(process, state, grid, rng, sampler, free, observer, save_at, conditioning, None, most)
    unpacked: Any = replace(run, x=unpack(run.x), states=[unpack(saved) for saved in run.states])
    return unpacked if return_info else unpacked.x


@torch.no_grad()
def simulate_state(
    process: Process,
    x_0: State,
    grid: Tensor,
    rng: torch.Generator | None,
    sampler: Sampler,
    free: State,
    on_step: Callable[[State, Any], bool] | None = None,
    save_at: Sequence[int] = (),
    conditioning: Mapping[str, object] | None = None,
    sharpen: Sharpen | None = None,
    max_length: Tensor | None = None,
    tracks: Mapping[str, Tracks] | None = None,
) -> Simulation[State]:
    """`simulate` for states that are dicts of fields, with arguments that are checked already.

    Args:
        grid: float64 [N + 1], or [N + 1, M] with a column for each field.
        free: by field, bool: entries that may move.
        sharpen: temperature, top_k and top_p of a sampler that applies them itself (see `Chain`).
        max_length: [B], symbols that each string has at most.
        tracks: by field, of strings x_0; they move along with the symbols.
    """
    chain = Chain(process, free, rng, conditioning or {}, sharpen, max_length, tracks or {})
    columns = grid.to(chain.calls.device).view(len(grid), -1, 1).expand(-1, -1, len(chain.calls)).contiguous()
    steps = grid.view(len(grid), -1).expand(-1, len(x_0)).tolist()  # on the host
    saved, x = {0: x_0}, x_0
    wanted = [i % len(grid) for i in save_at]
    for i in range(1, len(grid)):
        # Fields with one time share the tensor, so that nobody compares the values.
        t, t_next = (dict(zip(x_0, [*rows] * len(x_0), strict=False)) for rows in columns[i - 1 : i + 1])
        spans = list(zip(x_0, *steps[i - 1 : i + 1], strict=True))
        chain.moving = chain.changeable & {name for name, now, then in spans if now < then}
        chain.arriving = frozenset(name for name, _, then in spans if then >= 1)
        x = sampler.step(chain, x, t, t_next)
        if not isinstance(x, dict) or x.keys() != x_0.keys():
            found = f"fields {list(x)}" if isinstance(x, dict) else type(x).__name__
            raise TypeError(
                f"{type(sampler).__name__}.step must return a dict with the fields {list(x_0)}, got {found}: a state of one "
                'field is {"": x}'
            )
        if i in wanted:
            saved[i] = x
        if on_step is not None and on_step(x, float(grid[i]) if grid.dim() == 1 else grid[i]):
            break
    states = [saved[i] for i in wanted if i in saved]
    return Simulation(x, grid, chain.calls, chain.jumps, chain.error, states, chain.free)


def time_grid(path: Path, num_steps: int, spacing: str | None = None) -> Tensor:
    """The times of a grid of N steps from 0 to 1, float64 [N + 1]. For continuous paths κ is t.

    - `"linear"`: even in κ. The default for masked paths, where every token jumps once, evenly in κ, for metric paths, and
      for continuous paths with a flow.
    - `"quadratic"`: even in √(1 − κ). The default for mixture paths with another prior: tokens are redrawn at rate 1 in
      s = −log(1 − κ), but change ever less, in proportion to 1 − κ: Σ (1 − κ) Δs² is least for Δs ∝ (1 − κ)^−½. Also that
      for paths of your own, whose tokens move at a rate that grows like 1/(1 − κ), too.
    - `"geometric"`: even in −log(1 − κ) as far as 1 − κ = ε, the path's `stop` (0.005 where it has none), and one last step.
      The default for continuous paths that only jump, at a rate that grows without bound.

    Args:
        path: whose schedule places the times.
        num_steps: N.
        spacing: by default that of the path.

    >>> from gm_discrete import MaskedPath, UniformPath, time_grid
    >>> time_grid(MaskedPath(5), 4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> time_grid(UniformPath(5), 4).tolist()
    [0.0, 0.4375, 0.75, 0.9375, 1.0]
    """
    if spacing is None:
        spacing = path.spacing
    if spacing not in SPACINGS:
        raise ValueError(f"spacing={spacing!r} must be one of {', '.join(SPACINGS)}{hint(spacing)}")
    whole("num_steps", num_steps, least=1)
    kappa = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if spacing == "quadratic":
        kappa = kappa * (2 - kappa)
    if spacing == "geometric" and num_steps > 1:
        last = math.log(path.stop or 0.005)
        kappa[1:-1] = -torch.expm1(torch.linspace(0, last, num_steps, dtype=torch.float64))[1:]  # 0 stays 0, not −0
    return path.time(kappa)


def _grids(times: Grid, x_0: State) -> Tensor:
    """The grid as float64 [N + 1], or [N + 1, M] where each field has its own.

    Raises:
        ValueError: the times do not increase within [0, 1], or are grids of other fields.
    """
    own = isinstance(times, Mapping)
    columns = {"": times} if not isinstance(times, Mapping) else times
    if own and columns.keys() != x_0.keys():
        raise ValueError(f"times has grids of {', '.join(columns)}; the fields are {', '.join(x_0)}")
    grids = []
    for name in x_0 if own else columns:
        grids.append(torch.tensor(numbers("times", columns[name]), dtype=torch.float64, device="cpu"))
    for grid in grids:
        if grid.dim() != 1 or len(grid) < 2:
            raise ValueError(f"times must be a grid of at least two times, got shape {tuple(grid.shape)}")
        steps = grid.diff()
        if not (grid[0] >= 0 and grid[-1] <= 1 and bool((steps >= 0 if own else steps > 0).all())):
            raise ValueError(f"times must increase within [0, 1], got {grid.tolist() if len(grid) < 9 else grid}")
    sizes = [len(grid) for grid in grids]
    if len({*sizes}) > 1:
        raise ValueError(f"times has grids of {', '.join(map(str, sizes))} times; they must be equally many")
    return torch.stack(grids, 1) if own else grids[0]


def _packed(path: EditPath, x_0: Tensor, fixed: Any) -> tuple[Tensor, Any]:
    """Strings without blanks in between, and the mask of fixed symbols in the same order.

    Raises:
        ValueError: the entries of strings are fixed that have blanks in between.
    """
    x, strings = path.packed(x_0), path.strings
    if isinstance(fixed, Tensor) and fixed.shape == x_0.shape:
        return x, strings.moved(fixed.bool(), strings.places(x_0), False)[:, : x.shape[1]]
    if isinstance(fixed, Tensor) and fixed.shape == strings.gapped(x_0).shape:
        if not torch.equal(x, x_0[:, : x.shape[1]]):
            raise ValueError("fixed holds entries, and x_0 has blanks before symbols: give strings without them")
        return x, fixed[:, : 2 * (x.shape[1] + 1)]
    return x, fixed


def _limits(max_length: int | Tensor | None, x_0: Tensor | State, path: Path | None) -> Tensor | None:
    """The greatest length of each string, [B].

    Raises:
        ValueError: the states are no strings, or the limits none for them.
    """
    if max_length is None:
        return None
    strings = None if path is None else path.strings
    if strings is None or not isinstance(x_0, Tensor):
        raise ValueError(f"max_length={max_length} limits strings, which {path!r} does not have; leave it out")
    if isinstance(max_length, Tensor):
        if max_length.shape != (len(x_0),) or max_length.dtype != torch.long:
            found = f"{max_length.dtype} of shape {tuple(max_length.shape)}"
            raise ValueError(f"max_length must be an integer or a long tensor [B] of {len(x_0)} integers, got {found}")
        limits = max_length.to(x_0.device)
    else:
        limits = torch.full((len(x_0),), whole("max_length", max_length, least=1), device=x_0.device)
    long = strings.lengths(x_0) > limits
    if bool(long.any()) or bool((limits < 1).any()):
        row = int((long | (limits < 1)).long().argmax())
        raise ValueError(
            f"max_length={int(limits[row])} of row {row} must be at least 1 and the length of x_0, "
            f"{int(strings.lengths(x_0)[row])}"
        )
    return limits


def _free(x_0: State, fixed: Tensor | State | None, fields: Mapping[str, Path]) -> State:
    """bool by field, of the state's shape: the entries that may move."""
    masks = {} if fixed is None else pack(fixed)
    if unknown := masks.keys() - x_0.keys():
        names = (", ".join(sorted(map(str, keys))) or "''" for keys in (unknown, x_0.keys()))
        raise ValueError("fixed has the fields {}, which x_0 lacks: use fields of x_0, {}".format(*names))
    free = {}
    for name, x in x_0.items():
        mask = masks.get(name)
        if not isinstance(mask, Tensor | None):
            raise ValueError(f"fixed must be a tensor of x_0's shape, got {mask!r}")
        if mask is not None and mask.device != x.device:
            raise ValueError(f"fixed is on {mask.device}, x_0 on {x.device}: move one of them by .to(device)")
        if mask is not None:
            mask = whole_entries(mask.bool(), x.shape, fields[name].space if name in fields else NUMBERS)
        strings = fields[name].strings if name in fields else None
        if strings is not None and mask is not None and mask.shape == strings.gapped(x).shape:
            free[name] = ~mask
            continue
        if strings is not None and (mask is None or mask.shape == x.shape):
            free[name] = entries_free(torch.zeros_like(x, dtype=torch.bool) if mask is None else mask, x, strings)
            continue
        if mask is not None and mask.shape != x.shape:
            where = f"fixed[{name!r}]" if name else "fixed"
            raise ValueError(f"{where} has shape {tuple(mask.shape)}; expected that of x_0, {tuple(x.shape)}")
        free[name] = torch.ones_like(x, dtype=torch.bool) if mask is None else ~mask
    return free
