"""The loop that every sampler shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gm_discrete.samplers.adaptive import adaptive, step_doubling
from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.correctors import Corrector
from gm_discrete.samplers.decoding import check_decoding, entropy_bounded
from gm_discrete.samplers.euclidean import dopri5, heun
from gm_discrete.samplers.exact import first_hitting, uniformization
from gm_discrete.samplers.product import ProductChain, ProductStep, with_options
from gm_discrete.samplers.steps import ancestral, euler, stratified_hazard, tau_leaping, trapezoidal

EUCLIDEAN_STEPS: dict[str, Step] = {
    "tau_leaping": tau_leaping,
    "euler": euler,
    "heun": heun,
    "adaptive": adaptive,
    "dopri5": dopri5,
}
"""By name, of numbers."""
STEPS: dict[str, Step] = {
    "tau_leaping": tau_leaping,
    "euler": euler,
    "ancestral": ancestral,
    "trapezoidal": trapezoidal,
    "first_hitting": first_hitting,
    "uniformization": uniformization,
    "adaptive": adaptive,
    "step_doubling": step_doubling,
    "stratified_hazard": stratified_hazard,
    "entropy_bounded": entropy_bounded,
}
"""By name, of symbols."""
GRID_FREE = ("dopri5", "first_hitting", "uniformization", "adaptive", "step_doubling", "entropy_bounded")
"""Methods that choose their own times between those of the grid, for which [0, 1] is grid enough."""


@dataclass(frozen=True)
class Simulation:
    """What `simulate` returns with `return_info=True`.

    Attributes:
        x: final state, of x_0's shape.
        times: the grid [N + 1], or [N + 1, M] of M fields with grids of their own.
        network_calls: [B], evaluations of the network that the sequence needed; none where it had no event.
        jumps: [B], changes of an entry by jumps.
        error_bound: [B], on the total variation between the law that was sampled and that of the model's process; 0 for
            first hitting, the part that is cut off for uniformization, `None` for methods that are not exact.
        states: the states at `save_at`, in its order.
    """

    x: Any
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
    model: Any,
    x_0: Any,
    times: Any,
    rng: torch.Generator | None = None,
    sampler: str | Step | ProductStep = "tau_leaping",
    fixed: Any = None,
    *,
    corrector: Corrector | None = None,
    max_expected_changes: float | None = None,
    tolerance: float | None = None,
    order: str | None = None,
    order_temperature: float | None = None,
    entropy_bound: float | None = None,
    save_at: Sequence[int] = (),
    on_step: Callable[[Any, Any], bool] | None = None,
    return_info: Literal[False] = False,
    **conditioning: Any,
) -> Any: ...
@overload
def simulate(
    model: Any,
    x_0: Any,
    times: Any,
    rng: torch.Generator | None = None,
    sampler: str | Step | ProductStep = "tau_leaping",
    fixed: Any = None,
    *,
    corrector: Corrector | None = None,
    max_expected_changes: float | None = None,
    tolerance: float | None = None,
    order: str | None = None,
    order_temperature: float | None = None,
    entropy_bound: float | None = None,
    save_at: Sequence[int] = (),
    on_step: Callable[[Any, Any], bool] | None = None,
    return_info: Literal[True],
    **conditioning: Any,
) -> Simulation: ...
@torch.no_grad()
def simulate(
    model: Any,
    x_0: Any,
    times: Any,
    rng: torch.Generator | None = None,
    sampler: str | Step | ProductStep = "tau_leaping",
    fixed: Any = None,
    *,
    corrector: Corrector | None = None,
    max_expected_changes: float | None = None,
    tolerance: float | None = None,
    order: str | None = None,
    order_temperature: float | None = None,
    entropy_bound: float | None = None,
    save_at: Sequence[int] = (),
    on_step: Callable[[Any, Any], bool] | None = None,
    return_info: bool = False,
    **conditioning: Any,
) -> Any:
    """Simulates the process of `model.generator` from the state x_0 at times[0] to times[-1].

    Args:
        model: anything with `.generator(x, t, t_next=None, **conditioning)`; most methods beyond `"tau_leaping"` and
            `"euler"` also need its `.path`.
        x_0: initial state, long [B, L], or floating-point [B, …] of a Euclidean path, or of a product a dict by field; not
            modified.
        times: increasing grid in [0, 1], [N + 1]; it may start and end anywhere (see `time_grid`). Exact and adaptive
            methods choose their own times in between, so that [0, 1] will do; a corrector acts at those of the grid. Of a
            product with independent times also a dict of grids by field, each of N + 1 times that do not fall.
        rng: source of all noise.
        sampler: on the grid: `"tau_leaping"`, `"euler"`, `"ancestral"`, `"trapezoidal"`, `"stratified_hazard"`; exact:
            `"first_hitting"`, `"uniformization"`; of steps that the state decides: `"adaptive"`, `"step_doubling"`,
            `"entropy_bounded"` (which leaves the law). Of
            Euclidean states `"tau_leaping"` (or `"euler"`, the same), `"heun"`, `"adaptive"` and for pure flows
            `"dopri5"`. Of products `"tau_leaping"`, `"euler"`, `"ancestral"`, `"heun"`, `"adaptive"`. Or a step of your own
            (see `samplers.chain.Step` and `samplers.product.ProductStep`).
        fixed: bool, of x_0's shape: entries that stay as they are; of a product by field, those left out being free.
        corrector: `DetailedBalance`, `BackwardNoise`, `EtaNoise` or `ReMDM`.
        max_expected_changes: M, tokens that change per step of `"adaptive"`, on average.
        tolerance: of `"uniformization"` (total variation that may be cut off), of `"step_doubling"` and of Euclidean
            `"adaptive"` steps (error of a step), or of `"dopri5"`.
        order: of `"tau_leaping"` and `"entropy_bounded"` on masked paths: which masks go first, `"random"` (the law of the
            model), `"confidence"`, `"margin"` or `"entropy"`, which leave it (see `samplers.decoding`).
        order_temperature: of `"tau_leaping"` in such an order: noise of its scores, annealed to 0.
        entropy_bound: ε in nats of `"entropy_bounded"`, 0.1 by default.
        save_at: indices into `times` at which to keep the state (0 is x_0).
        on_step: called with (state, time) at every time of the grid; a true answer ends the simulation.
        return_info: also return network calls, jumps, times, error bound and the saved states.
        conditioning: passed on to the generator where it is not `None`.

    Returns:
        The state at the end, of x_0's shape, or a `Simulation`.
    """
    several = isinstance(x_0, Mapping)
    step: Any = make_step(
        sampler, corrector, several=several, max_expected_changes=max_expected_changes, tolerance=tolerance,
        order=order, order_temperature=order_temperature, entropy_bound=entropy_bound,
    )  # fmt: skip
    conditioning = {name: value for name, value in conditioning.items() if value is not None}
    first = next(iter(x_0.values())) if several else x_0
    if several:
        if not isinstance(fixed, Mapping | None):
            raise ValueError(f"fixed must be a dict by field, of {', '.join(x_0)}; got {type(fixed).__name__}")
        free = {name: _free(state, (fixed or {}).get(name), f"[{name!r}]") for name, state in x_0.items()}
        if unknown := (fixed or {}).keys() - x_0.keys():
            raise ValueError(f"fixed names {', '.join(sorted(unknown))}; the fields are {', '.join(x_0)}")
        chain = ProductChain(model, free, rng, conditioning)
    else:
        _check_state(x_0, sampler)
        chain = Chain(model, _free(x_0, fixed), rng, conditioning)
    if several and isinstance(times, Mapping) and times.keys() != x_0.keys():
        raise ValueError(f"times has grids of {', '.join(times)}; the fields are {', '.join(x_0)}")
    grids = {name: _grid(times[name], rising=False) for name in x_0} if isinstance(times, Mapping) and several else None
    if grids and len({len(column) for column in grids.values()}) > 1:
        raise ValueError("the grids of the fields must have equally many times")
    grid = _grid(times) if grids is None else torch.stack(list(grids.values()), 1)
    wanted = set(_indices(save_at, len(grid)))

    def at(i: int) -> Any:
        """The times of all sequences at the i-th of the grid, by field where there are several."""
        column = [
            torch.full((len(first),), s, dtype=torch.float64, device=first.device) for s in grid[i].view(-1).tolist()
        ]
        if not several:
            return column[0]
        return dict(zip(x_0, column if grids else column * len(x_0), strict=True))

    x, now = x_0, at(0)
    saved = {0: x} if 0 in wanted else {}
    for i in range(1, len(grid)):
        then = at(i)
        x, now = step(chain, x, now, then), then
        if i in wanted:
            saved[i] = x
        if on_step is not None and on_step(x, float(grid[i]) if grids is None else grid[i]):
            break
    if not return_info:
        return x
    states = [saved[i] for i in _indices(save_at, len(grid)) if i in saved]
    return Simulation(x, grid, chain.calls, chain.jumps, chain.error, states)


def _check_state(x_0: Any, sampler: Any) -> None:
    if not isinstance(x_0, Tensor) or (x_0.dim() != 2 and not (x_0.is_floating_point() and x_0.dim() > 2)):
        found = tuple(x_0.shape) if isinstance(x_0, Tensor) else repr(x_0)
        raise ValueError(f"x_0 must be a tensor [B, L] of symbols, or of numbers [B, …]; got {found}")
    fitting = EUCLIDEAN_STEPS if x_0.is_floating_point() else STEPS
    if not callable(sampler) and sampler not in fitting:
        kind = "numbers" if x_0.is_floating_point() else "symbols"
        raise ValueError(f"sampler={sampler!r} is not for {kind}; choose one of {', '.join(fitting)}")


def _free(x_0: Tensor, fixed: Tensor | None, name: str = "") -> Tensor:
    if fixed is None:
        return torch.ones_like(x_0, dtype=torch.bool)
    if fixed.shape != x_0.shape:
        raise ValueError(f"fixed{name} has shape {tuple(fixed.shape)}; expected that of x_0, {tuple(x_0.shape)}")
    return ~fixed.bool()


def make_step(
    sampler: str | Step | ProductStep,
    corrector: Corrector | dict[str, Any] | None = None,
    several: bool = False,
    **options: Any,
) -> Any:
    """The step of that name, with those of the options that are not `None`, corrected; of several fields if told so.

    Raises:
        ValueError: there is no such sampler, or it has no such option.
    """
    if several:
        if corrector is not None:
            raise ValueError("correctors are of a single field of symbols; states of several fields have none")
        return with_options(sampler, {name: value for name, value in options.items() if value is not None})  # pyright: ignore
    known = STEPS | EUCLIDEAN_STEPS
    if not callable(sampler) and sampler not in known:
        raise ValueError(f"sampler={sampler!r} is unknown; choose one of {', '.join(known)}")
    step = sampler if callable(sampler) else known[sampler]
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("order") == "random" and step is not entropy_bounded:  # the law, which every sampler follows
        options.pop("order")
    check_decoding(options)
    for name in options:
        if name not in inspect.signature(step).parameters:
            able = [other for other in known if name in inspect.signature(known[other]).parameters]
            raise ValueError(f"{name} is an option of {' and '.join(able)}, not of {sampler!r}")
    if isinstance(corrector, dict):
        corrector = Corrector.from_dict(corrector)
    if not isinstance(corrector, Corrector | None):
        raise TypeError(f"corrector={corrector!r} must be a corrector such as DetailedBalance(), or its dict")
    single: Any = partial(step, **options) if options else step
    if corrector is None:
        return single
    if "order" in options or step is entropy_bounded:
        raise ValueError("a corrector mends what steps do to the law, which decoding orders leave: order='random' fits")
    return corrector.corrected(single)


def _grid(times: Any, rising: bool = True) -> Tensor:
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(f"times must be a grid of at least two times, got shape {tuple(grid.shape)}")
    steps = grid.diff()
    if not (grid[0] >= 0 and grid[-1] <= 1 and bool((steps > 0 if rising else steps >= 0).all())):
        raise ValueError(f"times must increase within [0, 1], got {grid.tolist() if len(grid) < 9 else grid}")
    return grid


def _indices(save_at: Sequence[int], n: int) -> list[int]:
    if not all(-n <= i < n for i in save_at):
        raise ValueError(f"save_at={list(save_at)} must be indices into the {n} times")
    return [i % n for i in save_at]
