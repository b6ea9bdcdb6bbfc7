"""Generators of Markov processes: small immutable values at a state x and a time t.

A generator L acts on a test function f by L f(x) = d/dh E[f(X_{t+h}) | X_t = x] at h = 0 (Generator Matching, ICLR 2025,
section 3). There are few kinds:

    flow           L f = u · ∇f                                  u = velocity
    diffusion      L f = b · ∇f + ½ Σ_i g_i² ∂²f/∂x_i²           b = drift, g = scale
    jump           L f = Σ_y R(y, x) (f(y) − f(x))               R(y, x) = intensity(x) · kernel(y; x)
    superposition  L = Σ_k w_k L_k                               w ≥ 0 of sum 1, where all L_k solve one path
    product        L = Σ_m L^m                                   L^m moves field m alone, and reads all of them

Jumps move one token, or one coordinate, at a time, so that L is the sum over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.generators.kernels import Kernel


@dataclass(frozen=True)
class DominatingProcess:
    """Rings that dominate a jump process: at rate weight · G'(t) at each position, and every jump is at a ring.

    Between two rings of total weight w passes an Exp(w) amount of G, which turns exact simulation into ringing and asking.

    Attributes:
        weight: [B, L], float64, of the state that the clock was made for.
        cumulative_rate: G, increasing, [B] → [B]; may be −∞ at t = 0 and ∞ at t = 1.
        time: its inverse.
        rate: its derivative G', in 1/time.
    """

    weight: Tensor
    cumulative_rate: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]


class Posterior(Protocol):
    """A belief about the data symbols at (x, t), and all that its path makes of it without asking the network again."""

    @property
    def belief(self) -> Kernel:
        """π(z|x)."""
        ...

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        """The generator of the step [t, t_next], of this belief or of another one in its place."""
        ...

    def corrector(self) -> Jump:
        """A generator that leaves p_t invariant: at rate 1, x^i is drawn anew from p_t(·|z), z ~ π."""
        ...


@dataclass(frozen=True)
class Jump:
    """A jump process on sequences of symbols, or on the coordinates of a Euclidean state.

    Attributes:
        intensity: rate of candidate events per position, float64 [B, L], in 1/time. A candidate may land where it stands.
        kernel: where it lands.
        probability: of at least one candidate in the interval that the generator was asked for, float64 [B, L]; `None`
            if it was asked for a point in time.
        posterior: the belief that a path made the generator of; `None` if no path made it.
        joint: whether all entries of a state jump at once, with the probability of the first.
        guessed: whether `probability` rests on a guess of how the intensity of those that stay grows within the interval,
            in place of which a sampler may put what it has seen.
        length: about how far a jump between numbers leads, [B]; what a missed one costs.
        read: which sequences the network was asked about for the probability already, [B]; none if `None`.
    """

    intensity: Tensor
    kernel: Kernel
    probability: Tensor | None = None
    posterior: Posterior | None = None
    joint: bool = False
    guessed: bool = False
    length: Tensor | None = None
    read: Tensor | None = None

    @property
    def chance(self) -> Tensor:
        """`probability`, of a generator that was asked for an interval.

        Raises:
            ValueError: it has none.
        """
        if self.probability is None:
            raise ValueError("the generator ignored t_next: its jump has no interval probability")
        return self.probability

    def rates(self, x: Tensor) -> Tensor:
        """Dense rates R[b, l, y] at which position l of x moves to y, [B, L, K]; on the diagonal minus the row's sum."""
        here = x.unsqueeze(-1)
        idle = self.intensity.unsqueeze(-1) == 0  # an idle position may have no kernel at all
        rates = torch.where(idle, 0.0, self.intensity.unsqueeze(-1) * self.kernel.probs()).scatter(-1, here, 0.0)
        return rates.scatter(-1, here, -rates.sum(-1, keepdim=True))

    def per(self, unit: Tensor) -> Jump:
        """The generator in other units of time, L/unit, for units that broadcast against the intensity."""
        return replace(self, intensity=self.intensity / unit)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) [B] for f: [N, …] → [N]. Evaluates f at every landing of every coordinate: for small state spaces."""
        batch, size = len(x), x[0].numel()
        everywhere = torch.arange(x.numel(), device=x.device)
        landings, weights = self.kernel.nodes(everywhere)  # [B·size, Q]
        idle = self.intensity.flatten()[:, None] == 0  # an idle position may have no kernel at all
        rates = torch.where(idle, 0.0, self.intensity.flatten()[:, None] * weights).view(batch, size, -1)
        neighbours = x.flatten(1)[:, None, None].repeat(1, size, rates.shape[2], 1)
        neighbours[:, torch.arange(size), :, torch.arange(size)] = (
            landings.view(batch, size, -1).transpose(0, 1).to(x.dtype)
        )
        values = f(neighbours.view(-1, *x.shape[1:])).view(batch, size, -1)
        return (rates * (values - f(x).view(batch, 1, 1))).sum((1, 2))


@dataclass(frozen=True)
class Flow:
    """Motion along a velocity.

    Attributes:
        velocity: u, of the state's shape, in 1/time.
        mean: the mean velocity over the interval that the generator was asked for, which carries x to its end with the
            belief about the data frozen; `None` if it was asked for a point in time.
        bounds: (low, high), beyond which it does not lead but for the length of a step, which is reflected there.
    """

    velocity: Tensor
    mean: Tensor | None = None
    bounds: tuple[float, float] | None = None

    def per(self, unit: Tensor) -> Flow:
        """The generator in other units, L/unit."""
        return Flow(self.velocity / unit)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) = u · ∇f(x), [B], for a differentiable f: [B, …] → [B]."""
        return _slope(f, x, self.velocity)


@dataclass(frozen=True)
class Diffusion:
    """Drift and noise.

    Attributes:
        scale: g, in 1/√time; what broadcasts to the state's shape. Of an interval, the root of the mean of g².
        drift: b, of the state's shape, in 1/time; 0 by default.
        mean: the mean drift over the interval that the generator was asked for, as of a `Flow`.
        bounds: (low, high) at which it is reflected, if there are any.
    """

    scale: Tensor
    drift: Tensor | None = None
    mean: Tensor | None = None
    bounds: tuple[float, float] | None = None

    def per(self, unit: Tensor) -> Diffusion:
        """The generator in other units of time, L/unit."""
        drift = None if self.drift is None else self.drift / unit
        return replace(self, scale=self.scale / unit.sqrt(), drift=drift)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) = b · ∇f + ½ Σ g² ∂²f, [B], for a twice differentiable f: [B, …] → [B]."""
        value = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if self.drift is not None:
            value = value + _slope(f, x, self.drift)
        scale = self.scale.expand(x.shape)
        for i in range(x[0].numel()):
            axis = torch.zeros_like(x).flatten(1)
            axis[:, i] = scale.flatten(1)[:, i]
            along = axis.view_as(x)
            value = value + _slope(lambda y, along=along: _slope(f, y, along), x, along) / 2
        return value


@dataclass(frozen=True)
class Superposition:
    """L = Σ_k w_k L_k of generators that solve the same path.

    Attributes:
        parts: the L_k by name, unscaled: what a divergence looks at.
        weights: w_k [B], by the same names.
        over: t_next [B] → the generator of the step [t, t_next], without asking a network again; `None` if no path made it.
    """

    parts: Mapping[str, Factor]
    weights: Mapping[str, Tensor]
    over: Callable[[Tensor], Superposition] | None = None

    def __post_init__(self) -> None:
        if not self.parts or self.parts.keys() != self.weights.keys():
            raise ValueError(f"parts {sorted(self.parts)} and weights {sorted(self.weights)} must have the same names")

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x), [B]."""
        actions = [self.weights[name] * part.action(f, x) for name, part in self.parts.items()]
        return torch.stack(actions).sum(0)


@dataclass(frozen=True)
class Product:
    """L = Σ_m L^m on states of several fields: each L^m moves its own field at a rate that depends on all of them.

    Attributes:
        factors: the L^m by field.
    """

    factors: Mapping[str, Factor]

    def action(self, f: Callable[[Mapping[str, Tensor]], Tensor], x: Mapping[str, Tensor]) -> Tensor:
        """L f(x), [B], for f of a dict of fields. Factors that jump evaluate f at every landing: for small state spaces."""
        total = torch.zeros((), dtype=torch.float64)
        for name, factor in self.factors.items():

            def of_field(y: Tensor, name: str = name) -> Tensor:
                others = {
                    other: state.repeat_interleave(len(y) // len(state), dim=0)
                    for other, state in x.items()
                    if other != name
                }
                return f({**others, name: y})

            total = total + factor.action(of_field, x[name])
        return total


Factor = Jump | Flow | Diffusion | Superposition
"""Of one field."""
Generator = Factor | Product


def over(generator: Factor, t_next: Tensor) -> Factor:
    """The generator of the step [t, t_next] of one that was asked for the point t, without asking a network again.

    Raises:
        TypeError: no path made it.
    """
    if isinstance(generator, Jump) and generator.posterior is not None:
        return generator.posterior.over(t_next)
    if isinstance(generator, Superposition) and generator.over is not None:
        return generator.over(t_next)
    raise TypeError(
        f"a {type(generator).__name__} that no path made has no step of its own: use path.marginal(readout, x, t, t_next)"
    )


def terms(
    generator: Generator, weight: Tensor | float = 1.0
) -> Iterator[tuple[Tensor | float, Jump | Flow | Diffusion]]:
    """(weight, generator) of everything that the generator of one field is the sum of, superpositions of them included."""
    if isinstance(generator, Product):
        raise TypeError("the terms of a product are those of its factors")
    if not isinstance(generator, Superposition):
        yield weight, generator
        return
    for name, part in generator.parts.items():
        yield from terms(part, weight * generator.weights[name])


def _slope(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """∇f(x) · direction, [B]."""
    return torch.func.jvp(f, (x,), (direction.to(x.dtype),))[1]
