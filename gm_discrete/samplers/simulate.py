"""The loop that every fixed-grid sampler shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor

from gm_discrete.samplers.steps import STEPS


@dataclass(frozen=True)
class Simulation:
    """What `simulate` returns with `return_info=True`.

    Attributes:
        x: final state [B, L].
        times: the grid [N + 1].
        network_calls: [B], steps in which the sequence had an event, hence evaluations of its network.
        jumps: [B], positions that changed, summed over the steps.
        states: the states at `save_at`, in its order.
    """

    x: Tensor
    times: Tensor
    network_calls: Tensor
    jumps: Tensor
    states: list[Tensor] = field(default_factory=list)


@overload
def simulate(
    model: Any,
    x_0: Tensor,
    times: Tensor | Sequence[float],
    rng: torch.Generator | None = None,
    method: str = "tau_leaping",
    fixed: Tensor | None = None,
    *,
    save_at: Sequence[int] = (),
    on_step: Callable[[Tensor, float], bool] | None = None,
    return_info: Literal[False] = False,
    **conditioning: Any,
) -> Tensor: ...
@overload
def simulate(
    model: Any,
    x_0: Tensor,
    times: Tensor | Sequence[float],
    rng: torch.Generator | None = None,
    method: str = "tau_leaping",
    fixed: Tensor | None = None,
    *,
    save_at: Sequence[int] = (),
    on_step: Callable[[Tensor, float], bool] | None = None,
    return_info: Literal[True],
    **conditioning: Any,
) -> Simulation: ...
@torch.no_grad()
def simulate(
    model: Any,
    x_0: Tensor,
    times: Tensor | Sequence[float],
    rng: torch.Generator | None = None,
    method: str = "tau_leaping",
    fixed: Tensor | None = None,
    *,
    save_at: Sequence[int] = (),
    on_step: Callable[[Tensor, float], bool] | None = None,
    return_info: bool = False,
    **conditioning: Any,
) -> Tensor | Simulation:
    """Simulates the process of `model.generator` from the state x_0 at times[0] to times[-1].

    Args:
        model: anything with `.generator(x, t, t_next=None, **conditioning)`.
        x_0: initial state, long [B, L]; not modified.
        times: increasing grid in [0, 1], [N + 1]; it may start and end anywhere.
        rng: source of all noise.
        method: `"tau_leaping"`, `"euler"` or `"ancestral"`.
        fixed: bool [B, L], entries that stay as they are.
        save_at: indices into `times` at which to keep the state (0 is x_0).
        on_step: called with (state, time) after every step; a true answer ends the simulation.
        return_info: also return network calls, jumps, times and the saved states.
        conditioning: passed on to the generator where it is not `None`.

    Returns:
        The state at the end [B, L], or a `Simulation`.
    """
    if method not in STEPS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(STEPS)}")
    if not isinstance(x_0, Tensor) or x_0.dim() != 2:
        raise ValueError(f"x_0 must be a tensor [B, L], got {tuple(x_0.shape) if isinstance(x_0, Tensor) else x_0!r}")
    grid = _grid(times)
    wanted = set(_indices(save_at, len(grid)))
    if fixed is not None and fixed.shape != x_0.shape:
        raise ValueError(f"fixed has shape {tuple(fixed.shape)}; expected that of x_0, {tuple(x_0.shape)}")
    free = torch.ones_like(x_0, dtype=torch.bool) if fixed is None else ~fixed.bool()
    conditioning = {name: value for name, value in conditioning.items() if value is not None}
    step, x = STEPS[method], x_0
    calls, jumps = torch.zeros(len(x), dtype=torch.long, device=x.device), torch.zeros_like(x[:, 0])
    saved = {0: x} if 0 in wanted else {}
    for i, (t, t_next) in enumerate(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True), start=1):
        now, then = (torch.full((len(x),), s, dtype=torch.float64, device=x.device) for s in (t, t_next))
        moved, events = step(model, x, now, then, rng, free, conditioning)
        calls += events.any(1)
        jumps += (moved != x).sum(1)
        x = moved
        if i in wanted:
            saved[i] = x
        if on_step is not None and on_step(x, t_next):
            break
    if not return_info:
        return x
    states = [saved[i] for i in _indices(save_at, len(grid)) if i in saved]
    return Simulation(x, grid, calls, jumps, states)


def _grid(times: Tensor | Sequence[float]) -> Tensor:
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(f"times must be a grid of at least two times, got shape {tuple(grid.shape)}")
    if not (grid[0] >= 0 and grid[-1] <= 1 and bool((grid.diff() > 0).all())):
        raise ValueError(f"times must increase within [0, 1], got {grid.tolist() if len(grid) < 9 else grid}")
    return grid


def _indices(save_at: Sequence[int], n: int) -> list[int]:
    if not all(-n <= i < n for i in save_at):
        raise ValueError(f"save_at={list(save_at)} must be indices into the {n} times")
    return [i % n for i in save_at]
