"""Moves of continuous fields, for any superposition of flows, diffusions and jumps.

Velocities and squared noises add up with their weights, and lead from x by the exponential map of the field's space (for
numbers x + u, for rotations a geodesic). A jump of weight w happens with probability 1 − (1 − P)^w of the interval's own P,
and overrides what the drift did to its entry. In a step that ends at t = 1 the path lets the one
generator act that leads to the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Factor, Flow, Jump, over, terms
from gm_discrete.generators.rows import NOT_FINITE, require
from gm_discrete.generators.spaces import NUMBERS, Space, entries, spread
from gm_discrete.samplers.base import Chain

PRIOR_ENTRIES = 16
"""Weight of the prior value 1 in the estimate of a growth power (see `_growth`), in entries: p = (n p̂ + 16 · 1)/(n + 16).

With one or two entries a sequence and smooth data p = 1 leaves no larger an error than a fit to the whole batch, and p = p̂
up to twice as large a one. With nearly discrete data and many entries p = p̂ leaves half of the error of p = 1."""

PRIOR_SLOPE = 4.0
"""Change of the drift in unit time of the one entry that `pace` adds to those of a sequence as a prior, so that sequences of
few entries take steps of moderate length where their drift happens not to change."""


@dataclass
class JumpMemory:
    """The last step's jump rates [B, …], the time [B] at which they held, and the entries that did not jump."""

    rate: Tensor | None = None
    time: Tensor | None = None
    stayed: Tensor | None = None


def euler_maruyama(chain: Chain, name: str, x: Tensor, generator: Factor, t: Tensor, t_next: Tensor) -> Tensor:
    """x + Δ Σ w b + √(Δ Σ w g²) ξ, and then the jumps: one evaluation, of first order.

    Drifts are those of the whole interval with the posterior frozen at t: for a flow with CondOT it is the Euler step, with
    other schedules DDIM's (arXiv 2010.02502). Jump rates grow as in the step before (see `_growth`), and a jump lands where
    the path is at t_next.
    """
    chain.count(chain.movable(name) & (t < t_next))
    return moved(chain, name, x, generator, drift(generator, x, mean=True), t, t_next)


def predicted(
    chain: Chain, name: str, x: Tensor, generator: Factor, t: Tensor, t_next: Tensor
) -> tuple[Tensor, Tensor | float]:
    """The first half of a Heun step: x + Δ b(t) + noise, without jumps; and the noise."""
    chain.count(chain.movable(name) & (t < t_next))
    step, noise = broadcast(t_next - t, x), _noise(chain, generator, x, t_next - t)
    noise = 0.0 if noise is None else noise
    y = torch.where(chain.free[name], space_of(generator).move(x, step * drift(generator, x) + noise), x)
    require(y.isfinite().all(), FloatingPointError, NOT_FINITE.format("drift"))
    return y, noise


def corrected(
    chain: Chain,
    name: str,
    x: Tensor,
    first: Factor,
    middle: Tensor,
    second: Factor,
    noise: Tensor | float,
    t: Tensor,
    t_next: Tensor,
) -> Tensor:
    """The second half: x + Δ (b(t) + b(t_next))/2 + the same noise, and the jumps of the first generator.

    Args:
        middle: the state that the first half led to, at which `second` is.

    The noise is not the mean of both ends: where it depends on x, that would add a drift.
    """
    chain.count(chain.movable(name) & (t < t_next))
    space = space_of(first)
    both = drift(first, x) + space.transported(drift(second, middle), middle, x)
    y = space.move(x, broadcast(t_next - t, x) / 2 * both + noise)
    return _jumped(chain, name, x, y, first, t, t_next)


def moved(chain: Chain, name: str, x: Tensor, generator: Factor, drift: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The step of the interval that the generator was made for, with this drift."""
    u, noise = broadcast(t_next - t, x) * drift, _noise(chain, generator, x, t_next - t)
    y = space_of(generator).move(x, u if noise is None else u + noise)
    return _jumped(chain, name, x, y, generator, t, t_next)


def drift(generator: Factor, x: Tensor, mean: bool = False) -> Tensor:
    """Σ w b of the flows and diffusions, at the point t or in the mean of the interval."""
    total = torch.zeros_like(x)
    for weight, part in terms(generator):
        if isinstance(part, Flow | Diffusion):
            point = part.velocity if isinstance(part, Flow) else part.drift
            value = part.mean if mean and part.mean is not None else point
            if value is not None:
                total = total + broadcast(weight, x) * value
    return total


def _noise(chain: Chain, generator: Factor, x: Tensor, step: Tensor) -> Tensor | None:
    """√(Δ Σ w g²) ξ of the diffusions; `None` without any."""
    found = [(broadcast(weight, x), part) for weight, part in terms(generator) if isinstance(part, Diffusion)]
    if not found:
        return None
    variance = torch.stack([(weight * part.scale**2).expand(x.shape) for weight, part in found]).sum(0)
    return space_of(generator).tangent(x, (broadcast(step, x) * variance).sqrt() * chain.normal(x))


def space_of(generator: Factor) -> Space:
    """The space of the states; that of a flow or a diffusion, if there is one, has the ends of an interval."""
    parts = [part for _, part in terms(generator)]
    return next((part.space for part in parts if not isinstance(part, Jump)), parts[0].space) or NUMBERS


def jump_rate(generator: Factor, x: Tensor) -> Tensor:
    """Σ w λ of the jumps, of each entry."""
    jumps = [(weight, part.intensity.to(x.dtype)) for weight, part in terms(generator) if isinstance(part, Jump)]
    if not jumps:
        return torch.zeros_like(entries(x, space_of(generator)))
    return torch.stack([broadcast(weight, rate) * rate for weight, rate in jumps]).sum(0)


def jump_weight(generator: Factor, t: Tensor) -> Tensor:
    """Σ w of the jumps, [B] like t."""
    weights = [weight for weight, part in terms(generator) if isinstance(part, Jump)]
    return sum((torch.as_tensor(weight).to(t).expand(t.shape) for weight in weights), torch.zeros_like(t))


def jump_length(generator: Factor, t: Tensor) -> Tensor:
    """The length of the longest of the generator's jumps, [B] like t; 0 without any."""
    lengths = [part.length for _, part in terms(generator) if isinstance(part, Jump) and part.length is not None]
    return torch.stack([length.to(t).expand(t.shape) for length in lengths]).amax(0) if lengths else 0 * t


def _jumped(chain: Chain, name: str, x: Tensor, y: Tensor, generator: Factor, t: Tensor, t_next: Tensor) -> Tensor:
    """The state y to which drifts led, but where entries jump the landing instead; what may not move is x."""
    free = chain.free[name] & broadcast((t < t_next).to(x.dtype), x).bool()
    state = torch.where(free, y, x)
    jumps = [(weight, part) for weight, part in terms(generator) if isinstance(part, Jump)]
    require(state.isfinite().all(), FloatingPointError, NOT_FINITE.format("drift"))
    if not jumps:
        return state
    memory, rate = chain.remember(name, JumpMemory), jump_rate(generator, x)
    free = stayed = entries(free, space_of(generator))
    duration = _growth(memory, rate, t, t_next)
    for weight, part in jumps:
        chance = part.chance.double()
        if part.guessed and duration is not None:
            grown = -torch.expm1(-part.intensity.double() * duration)
            chance = torch.where(duration.isnan(), chance, grown)
        chance = 1 - (1 - chance).clamp(min=0) ** broadcast(weight, chance)  # rounding may lead above 1
        require(~(free & chance.isnan()).any(), FloatingPointError, NOT_FINITE.format("rate of jumps"))
        if part.joint:
            events = free & broadcast((chain.uniform(len(x)) < chance.flatten(1)[:, 0]).to(x.dtype), x).bool()
        else:
            events = (chain.uniform(*free.shape) < chance) & free
        state, stayed = chain.land(state, part.kernel, events), stayed & ~events
    going = t < t_next  # a sequence that waits for the others keeps its memory
    memory.rate = update_rows(memory.rate, rate, going)
    memory.time = update_rows(memory.time, t, going)
    memory.stayed = update_rows(memory.stayed, stayed, going)
    require(state.isfinite().all(), FloatingPointError, NOT_FINITE.format("landing of a jump"))
    return state


def _growth(memory: JumpMemory, rate: Tensor, t: Tensor, t_next: Tensor) -> Tensor | None:
    """∫ ((1 − t)/(1 − s))^p ds over [t, t_next], [B, …]: the effective duration of a step in which rates grow with power p.

    p is a shrinkage estimate. The fit p̂ is the power with which the rates of a sequence grew over the last step, summed
    over its n entries that did not jump: 3 where z is known and the state is far from it, 1 where z is as uncertain as x is
    noisy. With few entries p̂ is mostly chance, so that p = (n p̂ + 16 · 1)/(n + 16) draws it towards 1. NaN in the first
    step and the last.
    """
    if memory.rate is None or memory.stayed is None or memory.time is None:
        return None
    before = (memory.rate * memory.stayed).flatten(1).sum(1, dtype=torch.float64)
    ratio = (rate * memory.stayed).flatten(1).sum(1, dtype=torch.float64) / before
    fitted = (ratio.log() / ((1 - memory.time) / (1 - t)).log()).nan_to_num(nan=1.0, neginf=0.0, posinf=3.0).clamp(0, 3)
    n = memory.stayed.flatten(1).sum(1)
    p = (n * fitted + PRIOR_ENTRIES) / (n + PRIOR_ENTRIES)
    left, power = (1 - t_next) / (1 - t), 1 - p
    part = torch.where(power.abs() < 1e-6, -left.log(), (1 - left**power) / power)  # which is 0/0 at p = 1
    duration = torch.where(t_next < 1, (1 - t) * part, torch.nan)
    return broadcast(duration, rate.double())


def update_rows(old: Tensor | None, new: Tensor, rows: Tensor) -> Tensor:
    """The new values [B, …] in these rows (bool [B]), the old ones in the others."""
    return new if old is None else torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def broadcast(value: Tensor | float, x: Tensor) -> Tensor:
    """Values [B], shaped to act on x [B, …]."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value if value.dim() == 0 else spread(value, x)


# Steps whose length follows from how fast the generator changes


@dataclass
class PaceMemory:
    """What `pace` keeps of the last step: state, drift and rate [B, …] at its start, its length, and the drift's slope.

    A row of `taken` is 0 where no step was taken yet, and one of `curved` is false where there is no slope yet.
    """

    step: Tensor | None = None
    taken: Tensor | None = None
    state: Tensor | None = None
    drift: Tensor | None = None
    rate: Tensor | None = None
    slope: Tensor | None = None
    curved: Tensor | None = None


def pace(
    chain: Chain,
    name: str,
    x: Tensor,
    generator: Factor,
    t: Tensor,
    t_next: Tensor,
    tolerance: float,
    restarted: Tensor,
) -> Tensor:
    """The end [B] of the next step of a sequence, such that its error, relative to the size of the state, is `tolerance`.

    Drifts are extrapolated from the step before (Adams–Bashforth, of second order), jumps are those of `TauLeaping`. For
    a step Δ, by means over the free entries of the sequence,

        e = ½ Δ rms |Δ(Σ w b)| / rms |x|                           the drift's change,
        j = ½ Δ (mean |Δ(Σ w λ)| + Δ mean (Σ w λ)²) ℓ / rms |x|    the rate's, and second jumps, which find no room,

    with ℓ the length of a jump. The next step is such that e^(3/2), what the second order leaves of e, and j together are
    about the tolerance. Steps are never drawn again, which would change the distribution.

    Args:
        generator: at the point t.
        restarted: bool [B], sequences in which another field has jumped, so that the step before says nothing: their step
            is as short as a first one.
    """
    stop = chain.path.fields[name].stop or 0.005  # no step leads over 1 − stop, but from there to 1
    memory, free, going = chain.remember(name, PaceMemory), chain.free[name], t < t_next
    b, rate, space = drift(generator, x), jump_rate(generator, x), space_of(generator)
    if (
        memory.step is None
        or memory.taken is None
        or memory.drift is None
        or memory.rate is None
        or memory.state is None
    ):
        memory.step = torch.full_like(t, tolerance**0.5)
        memory.taken, memory.curved = torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)
        memory.slope = torch.zeros_like(x)
    else:
        usable = (memory.taken > 0) & ~restarted
        taken = torch.where(usable, memory.taken, 1.0)
        slope = (b - space.transported(memory.drift, memory.state, x)) / broadcast(taken, x)
        free = entries(free, space)  # a rotation counts once
        count = free.flatten(1).sum(1).clamp(min=1)

        def total(values: Tensor) -> Tensor:
            return (spread(free, values) * values).flatten(1).sum(1)

        # Means over few entries are mostly chance: a prior entry of size 1, slope `PRIOR_SLOPE`, rate 1/(1 − t) is added.
        prior_rate = jump_weight(generator, t) / (1 - t)
        size = ((total(x.square()) + 1) / (count + 1)).sqrt()
        bent = ((total(slope.square()) + PRIOR_SLOPE**2) / (count + 1)).sqrt()
        changed = total((rate - memory.rate).abs()) / taken + total(rate.square()) + 2 * prior_rate.to(size) ** 2
        length = jump_length(generator, size)
        needed = (bent / tolerance ** (2 / 3) + changed / (count + 1) * length / tolerance) / size
        step = torch.minimum(torch.maximum((needed.double() / 2).rsqrt(), memory.step / 2), memory.step * 2)
        first = memory.step.clamp(max=tolerance**0.5)
        memory.step = torch.where(restarted, first, update_rows(memory.step, step, usable & going))
        memory.slope, memory.curved = slope, usable
    memory.drift, memory.rate = update_rows(memory.drift, b, going), update_rows(memory.rate, rate, going)
    memory.state = update_rows(memory.state, x, going)
    reach = t + memory.step
    return torch.where((reach < 1) & (t < 1 - stop), reach.clamp(max=1 - stop), 1.0).minimum(t_next)


def advance(chain: Chain, name: str, x: Tensor, generator: Factor, t: Tensor, until: Tensor) -> Tensor:
    """The step to the times `until` [B], which may come before those that `pace` proposed."""
    memory, step = chain.remember(name, PaceMemory), over(generator, until)
    b = drift(step, x, mean=True)
    if memory.slope is not None and memory.drift is not None and memory.curved is not None:
        ahead = memory.drift + broadcast((until - t) / 2, x) * memory.slope
        curved = memory.curved & (until < 1)
        b = torch.where(curved.view(-1, *[1] * (x.dim() - 1)), ahead, b)
    memory.taken = update_rows(memory.taken, until - t, t < until)
    return moved(chain, name, x, step, b, t, until)
