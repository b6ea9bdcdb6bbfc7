"""Steps of Euclidean states, for any superposition of flows, diffusions and jumps.

Velocities and squared noises add up with their weights; a jump of weight w happens with probability 1 − (1 − P)^w of the
interval's own P, and overrides what the drift did to its coordinate. A step that ends at t = 1 is left to the path, which
gives it to the generator that knows how to finish.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Flow, Generator, Jump, over, terms
from gm_discrete.samplers.chain import Chain


def euler_maruyama(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x + Δ Σ w b + √(Δ Σ w g²) ξ, and then the jumps: one evaluation, of first order.

    Drifts are those of the whole interval with the belief frozen at t: for a flow with CondOT it is the Euler step, with
    other schedules DDIM's (arXiv 2010.02502). Rates grow as they were seen to in the step before, in the first step as with
    the belief frozen (see `_grown`), and a jump lands where the path is at t_next.
    """
    chain.calls += 1
    return _step(chain, x, chain.generator(x, t, t_next), t, t_next)


def heun(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Drifts by the mean of both ends (second order), jumps as in `tau_leaping`: two evaluations.

    With jumps this is the "mixed" method of Generator Matching. The last step, to t = 1, is that of `tau_leaping`.
    """
    if bool((t_next >= 1).any()):
        return euler_maruyama(chain, x, t, t_next)
    first = chain.generator(x, t, t_next)
    tried, noise = predicted(chain, x, first, t, t_next)
    chain.calls += 2
    return corrected(chain, x, first, chain.generator(tried, t_next), noise, t, t_next)


def predicted(
    chain: Chain, x: Tensor, generator: Generator, t: Tensor, t_next: Tensor
) -> tuple[Tensor, Tensor | float]:
    """The first half of `heun`: x + Δ b(t) + noise, without jumps, and the noise."""
    step, variance = _like(t_next - t, x), _noise(generator, x)
    noise = 0.0 if variance is None else (step * variance).sqrt() * chain.normal(x)
    return _within(x + step * _drift(generator, x) + noise, _bounds(generator)), noise


def corrected(
    chain: Chain, x: Tensor, first: Generator, second: Generator, noise: Tensor | float, t: Tensor, t_next: Tensor
) -> Tensor:
    """The second half: x + Δ (b(t) + b(t_next))/2 + the same noise, and the jumps of the first generator.

    The noise is not the mean of both ends: where it depends on x, that drifts.
    """
    moved = x + _like(t_next - t, x) / 2 * (_drift(first, x) + _drift(second, x)) + noise
    return _jumped(chain, x, _within(moved, _bounds(first)), first, t, t_next)


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

    bounds: tuple[float, float] | None = None

    def velocity(time: Tensor, state: Tensor) -> Tensor:
        nonlocal bounds
        generator = chain.generator(_within(state, bounds), time.clamp(max=until).expand(len(x)).double())
        bounds = _bounds(generator)
        if any(not isinstance(part, Flow) and bool(torch.as_tensor(w).any()) for w, part in terms(generator)):
            raise TypeError("dopri5 solves flows only; the generator also jumps or diffuses: use heun or adaptive")
        chain.calls += 1
        return torch.where(chain.free, _drift(generator, x), 0.0)

    if start < until:
        times = torch.tensor([start, until], dtype=torch.float64, device=x.device)
        # A step that led beyond the end would ask for times that no path has.
        options = {"step_t": times[1:]}
        solution: Any = odeint(velocity, x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
        # The solution's last value is interpolated, which rounds also what does not move.
        x = torch.where(chain.free, _within(solution[-1].to(x.dtype), bounds), x)
    return x if until == end else euler_maruyama(chain, x, torch.full_like(t, max(start, until)), t_next)


def controlled(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, tolerance: float) -> Tensor:
    """Steps whose length follows from how fast the generator changes: one evaluation each, for every kind.

    Drifts are extrapolated from the step before (Adams–Bashforth, of second order), jumps are those of `tau_leaping`. The
    whole batch goes at one pace, that of its means, in which there is little chance: nothing is ever drawn again, and a
    length that depended on what a state had drawn would change the law. Of a step Δ, relative to the size of the state,

        e = ½ Δ rms |Δ(Σ w b)| / rms |x|                           the drift's change,
        j = ½ Δ (mean |Δ(Σ w λ)| + Δ mean (Σ w λ)²) ℓ / rms |x|    the rate's, and second jumps, which find no room,

    with ℓ the length of a jump. The next step is such that e^(3/2), what the second order leaves of e, and j together are
    about the tolerance.
    """
    while bool((t < t_next).any()):
        generator = chain.generator(x, t)
        chain.calls += 1
        until = pace(chain, x, generator, t, t_next, tolerance)
        x, t = advance(chain, x, generator, t, until), until
    return x


def pace(chain: Chain, x: Tensor, generator: Generator, t: Tensor, t_next: Tensor, tolerance: float) -> Tensor:
    """The end of the next step of `controlled`, [B], from the generator of the point t and what memory holds of the last."""
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    stop = getattr(getattr(chain.model, "path", None), "stop", 0.005)
    memory, free = chain.memory, chain.free
    count = free.sum().clamp(min=1)
    step = memory.get("step", torch.full_like(t, tolerance**0.5))
    drift, rate = _drift(generator, x), _rate(generator, x)
    memory.pop("slope", None)
    if "taken" in memory:
        slope = (drift - memory["drift"]) / _like(memory["taken"], x)
        size = ((free * x).square().sum() / count).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        bent = ((free * slope).square().sum() / count).sqrt()
        changed = (free * (rate - memory["rate"])).abs().sum() / memory["taken"] + (free * rate).square().sum()
        needed = (bent / tolerance ** (2 / 3) + changed / count * _length(generator, x) / tolerance) / size
        step = torch.minimum(torch.maximum((needed.double() / 2).rsqrt(), step / 2), step * 2)
        memory["slope"] = slope
    memory |= {"drift": drift, "rate": rate, "step": step}
    reach = t + step
    return torch.where((reach < 1) & (t < 1 - stop), reach.clamp(max=1 - stop), 1.0).minimum(t_next)


def advance(chain: Chain, x: Tensor, generator: Generator, t: Tensor, until: Tensor) -> Tensor:
    """The step of `controlled` to the given time, which no one need have proposed."""
    memory, taken = chain.memory, until - t
    memory["taken"] = taken
    # The first step knows of none before it; the last, to t = 1, is the path's own.
    straight = "slope" not in memory or bool((until >= 1).any())
    ahead = None if straight else memory["drift"] + _like(taken / 2, x) * memory["slope"]
    return _step(chain, x, over(generator, until), t, until, ahead)  # pyright: ignore[reportArgumentType]


def _step(
    chain: Chain, x: Tensor, generator: Generator, t: Tensor, t_next: Tensor, drift: Tensor | None = None
) -> Tensor:
    """The step of the interval that the generator was asked for, with its mean drift or the given one."""
    step = _like(t_next - t, x)
    variance = _noise(generator, x)
    moved = x + step * (_drift(generator, x, mean=True) if drift is None else drift)
    if variance is not None:
        moved = moved + (step * variance).sqrt() * chain.normal(x)
    return _jumped(chain, x, _within(moved, _bounds(generator)), generator, t, t_next)


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


def _noise(generator: Generator, x: Tensor) -> Tensor | None:
    """Σ w g² of the diffusions; `None` without any."""
    found = [(_like(weight, x), part) for weight, part in terms(generator) if isinstance(part, Diffusion)]
    if not found:
        return None
    return torch.stack([(weight * part.scale**2).expand(x.shape) for weight, part in found]).sum(0)


def _bounds(generator: Generator) -> tuple[float, float] | None:
    """At which flows and diffusions are reflected, if they are."""
    parts = [part for _, part in terms(generator) if isinstance(part, Flow | Diffusion)]
    return next((part.bounds for part in parts if part.bounds is not None), None)


def _rate(generator: Generator, x: Tensor) -> Tensor:
    """Σ w λ of the jumps."""
    rates = [_like(weight, x) * part.intensity for weight, part in terms(generator) if isinstance(part, Jump)]
    return torch.stack(rates).sum(0) if rates else torch.zeros_like(x)


def _length(generator: Generator, x: Tensor) -> Tensor:
    """Of the longest jumps of the generator; 0 without any."""
    lengths = [part.length.max() for _, part in terms(generator) if isinstance(part, Jump) and part.length is not None]
    return torch.stack(lengths).max().to(x.dtype) if lengths else x.new_zeros(())


def _jumped(chain: Chain, x: Tensor, moved: Tensor, generator: Generator, t: Tensor, t_next: Tensor) -> Tensor:
    """The moved state, with the entries that jump at the landings instead; what is not free stays as it was."""
    state, stayed = torch.where(chain.free, moved, x), chain.free
    jumps = [(weight, part) for weight, part in terms(generator) if isinstance(part, Jump)]
    if not jumps:
        return state
    rate = _rate(generator, x)
    duration = _grown(chain, rate, t, t_next)
    for weight, part in jumps:
        chance = part.chance.double()
        if part.guessed and duration is not None:
            chance = -torch.expm1(-part.intensity.double() * duration)
        chance = 1 - (1 - chance) ** _like(weight, x).double()
        if part.joint:
            events = chain.free & _like(chain.uniform(len(x)) < chance.flatten(1)[:, 0], x).bool()
        else:
            events = chain.events(chance)
        state, stayed = chain.land(state, part.kernel, events), stayed & ~events
    chain.memory |= {"rate": rate, "since": t, "stayed": stayed}
    return state


def _grown(chain: Chain, rate: Tensor, t: Tensor, t_next: Tensor) -> Tensor | None:
    """∫ ((1 − t)/(1 − s))^p ds over [t, t_next], p the power with which the rates of those grew that did not jump before.

    With p = 3 grow those of a state far from where it belongs, while z is known; 1/(1 − t) is all that is left of it where
    z is as uncertain as x is noisy. p is found from the sums over the batch; `None` in the first step and the last.
    """
    memory = chain.memory
    if "stayed" not in memory or bool((t_next >= 1).any()):
        return None
    before = (memory["rate"] * memory["stayed"]).sum(dtype=torch.float64)
    ratio = (rate * memory["stayed"]).sum(dtype=torch.float64) / before
    p = (ratio.log() / ((1 - memory["since"]) / (1 - t)).log()).nan_to_num(nan=3.0, neginf=0.0).clamp(0, 3)
    left, power = (1 - t_next) / (1 - t), 1 - p
    part = torch.where(power.abs() < 1e-6, -left.log(), (1 - left**power) / power)  # which is 0/0 at p = 1
    return _like((1 - t) * part, rate.double())


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
