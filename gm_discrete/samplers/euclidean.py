"""Steps of Euclidean states, for any superposition of flows, diffusions and jumps.

Velocities and squared noises add up with their weights; a jump of weight w happens with probability 1 − (1 − P)^w of the
interval's own P, and overrides what the drift did to its coordinate. A step that ends at t = 1 is left to the path, which
gives it to the generator that knows how to finish.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Flow, Generator, Jump, Superposition, terms
from gm_discrete.samplers.chain import Chain


def euler_maruyama(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x + Δ Σ w b + √(Δ Σ w g²) ξ, and then the jumps: one evaluation, of first order.

    Drifts and jump probabilities are those of the whole interval with the belief frozen at t, and a jump lands where the
    path is at t_next: for a flow with CondOT it is the Euler step, with other schedules DDIM's (arXiv 2010.02502).
    """
    chain.calls += 1
    return _step(chain, x, chain.generator(x, t, t_next), t_next - t)


def heun(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Drifts by the mean of both ends (second order), jumps as in `tau_leaping`: two evaluations.

    With jumps this is the "mixed" method of Generator Matching. The last step, to t = 1, is that of `tau_leaping`.
    """
    if bool((t_next >= 1).any()):
        return euler_maruyama(chain, x, t, t_next)
    first = chain.generator(x, t, t_next)
    step = _like(t_next - t, x)
    drift = _drift(first, x)
    variance, bounds = _noise(first, x)
    noise = None if variance is None else chain.normal(x)
    tried = x + step * drift
    if variance is not None and noise is not None:
        tried = tried + (step * variance).sqrt() * noise
    second = chain.generator(_within(tried, bounds), t_next)
    chain.calls += 2
    moved = x + step / 2 * (drift + _drift(second, x))
    later, _ = _noise(second, x)
    if variance is not None and later is not None and noise is not None:
        moved = moved + (step * (variance + later) / 2).sqrt() * noise
    return _jumped(chain, x, _within(moved, bounds), first)


def dopri5(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    """A pure flow by the Dormand–Prince pair with step control (package torchdiffeq), to t = 1 − ε, and one step more.

    ε is the path's `stop`. The whole batch is one system; its evaluations count for every state.

    Raises:
        TypeError: the generator is more than a flow.
        ImportError: torchdiffeq is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError("dopri5 needs the package torchdiffeq: pip install gm_discrete[ode]") from error
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    start, end = float(t[0]), float(t_next[0])
    until = min(end, 1 - getattr(getattr(chain.model, "path", None), "stop", 0.005)) if end >= 1 else end

    def velocity(time: Tensor, state: Tensor) -> Tensor:
        generator = chain.generator(state, time.clamp(max=until).expand(len(x)).double())
        if any(not isinstance(part, Flow) and bool(torch.as_tensor(w).any()) for w, part in terms(generator)):
            raise TypeError("dopri5 solves flows only; the generator also jumps or diffuses: use heun or adaptive")
        chain.calls += 1
        return torch.where(chain.free, _drift(generator, x), 0.0)

    if start < until:
        times = torch.tensor([start, until], dtype=torch.float64, device=x.device)
        # A step that led beyond the end would ask for times that no path has.
        options = {"step_t": times[1:]}
        solution: Any = odeint(velocity, x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
        x = solution[-1].to(x.dtype)
    return x if until == end else euler_maruyama(chain, x, torch.full_like(t, max(start, until)), t_next)


def controlled(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, tolerance: float) -> Tensor:
    """Steps of `tau_leaping` of a length at which the generator changes little: one evaluation each, for every kind.

    The local error of a step of length Δ is ½ Δ² dL/dt: ½ Δ |ΔL| where both ends were evaluated anyway, with

        |ΔL| = rms Δ(Σ w b) + (1 − t) · mean |Δ(Σ w λ)|        (a jump is about 1 − t long)

    over the entries of a state. The next step is longer by √(tolerance / error), within [½, 2]. Each state of the batch goes
    at its own pace; nothing is ever drawn again, which would change the law.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    stop = getattr(getattr(chain.model, "path", None), "stop", 0.005)
    memory = chain.memory
    step = memory.get("step", torch.full_like(t, FIRST_STEP))
    begin = t
    while bool((t < t_next).any()):
        active = t < t_next
        generator = chain.generator(x, torch.where(active, t, begin))  # those that have arrived are not looked at
        if not isinstance(generator, Superposition) or generator.over is None:
            raise TypeError("adaptive steps need generators made by a path: path.marginal(readout, x, t, t_next)")
        chain.calls += active
        drift, rate = _drift(generator, x), _rate(generator, x)
        if "drift" in memory:
            change = (drift - memory["drift"]).flatten(1).square().mean(1).sqrt()
            change = change + (rate - memory["rate"]).flatten(1).abs().mean(1) * (1 - t)
            error = memory["taken"] * change.double() / 2
            better = step * (tolerance / error.clamp(min=1e-12)).sqrt().clamp(0.5, 2.0)
            step = torch.where(active, better, step)
        until = torch.where(t < 1 - stop, torch.minimum(t + step, torch.full_like(t, 1 - stop)), 1.0)
        until = torch.maximum(torch.minimum(until, t_next), t)
        memory |= {"drift": drift, "rate": rate, "taken": until - t}
        moved = _step(chain, x, generator.over(torch.where(active, until, begin)), until - t)
        x, t = torch.where(_like(active, x).bool(), moved, x), until
    memory["step"] = step
    return x


FIRST_STEP = 0.02
"""Of a controlled run; the next ones may be twice as long each."""


def _step(chain: Chain, x: Tensor, generator: Generator, duration: Tensor) -> Tensor:
    """The step of the interval that the generator was asked for."""
    step = _like(duration, x)
    variance, bounds = _noise(generator, x)
    moved = x + step * _drift(generator, x, mean=True)
    if variance is not None:
        moved = moved + (step * variance).sqrt() * chain.normal(x)
    return _jumped(chain, x, _within(moved, bounds), generator)


def _drift(generator: Generator, x: Tensor, mean: bool = False) -> Tensor:
    """Σ w b of the flows and diffusions, at the point or in the mean of the interval."""
    total = torch.zeros_like(x)
    for weight, part in terms(generator):
        if isinstance(part, Flow | Diffusion):
            point = part.velocity if isinstance(part, Flow) else part.drift
            value = part.mean if mean and part.mean is not None else point
            if value is not None:
                total = total + _like(weight, x) * value
    return total


def _noise(generator: Generator, x: Tensor) -> tuple[Tensor | None, tuple[float, float] | None]:
    """(Σ w g² of the diffusions, the bounds at which they are reflected); (None, None) without any."""
    found = [(_like(weight, x), part) for weight, part in terms(generator) if isinstance(part, Diffusion)]
    if not found:
        return None, None
    bounds = next((part.bounds for _, part in found if part.bounds is not None), None)
    return torch.stack([(weight * part.scale**2).expand(x.shape) for weight, part in found]).sum(0), bounds


def _rate(generator: Generator, x: Tensor) -> Tensor:
    """Σ w λ of the jumps."""
    rates = [_like(weight, x) * part.intensity for weight, part in terms(generator) if isinstance(part, Jump)]
    return torch.stack(rates).sum(0) if rates else torch.zeros_like(x)


def _jumped(chain: Chain, x: Tensor, moved: Tensor, generator: Generator) -> Tensor:
    """The moved state, with the entries that jump at the landings instead; what is not free stays as it was."""
    state = torch.where(chain.free, moved, x)
    for weight, part in terms(generator):
        if isinstance(part, Jump):
            chance = 1 - (1 - part.chance.double()) ** _like(weight, x).double()
            if part.joint:
                events = chain.free & _like(chain.uniform(len(x)) < chance.flatten(1)[:, 0], x).bool()
            else:
                events = chain.events(chance)
            state = chain.land(state, part.kernel, events)
    return state


def _within(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Reflected at the bounds, if there are any."""
    if bounds is None:
        return x
    low, width = bounds[0], bounds[1] - bounds[0]
    folded = torch.remainder(x - low, 2 * width)
    return low + torch.minimum(folded, 2 * width - folded)


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    """Values [B], shaped to act on x [B, …]."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value if value.dim() == 0 else value.view(-1, *[1] * (x.dim() - 1))
