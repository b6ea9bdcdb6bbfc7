"""Generators of Markov processes: small immutable values at a state x and a time t.

A generator L acts on a test function f by L f(x) = d/dh E[f(X_{t+h}) | X_t = x] at h = 0 (Generator Matching, ICLR 2025,
section 3). There are few kinds:

    flow           L f = u · ∇f                                  u = velocity
    diffusion      L f = b · ∇f + ½ Σ_i g_i² ∂²f/∂x_i²           b = drift, g = scale; for rotations the Laplacian of SO(3)
    jump           L f = Σ_y R(y, x) (f(y) − f(x))               R(y, x) = intensity(x) · kernel(y; x)
    superposition  L = Σ_k w_k L_k                               w ≥ 0 of sum 1, where all L_k solve one path
    product        L = Σ_m L^m                                   L^m moves field m alone, and reads all of them

Jumps move one entry (a token, a number, or a rotation) at a time, so that L is the sum over entries. Those of strings, which
insert, delete and substitute symbols, are jumps of their symbols and gaps (see `generators.strings`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.generators.kernels import Kernel
from gm_discrete.generators.rows import require
from gm_discrete.generators.spaces import NUMBERS, Space
from gm_discrete.generators.strings import Strings


@dataclass(frozen=True)
class DominatingProcess:
    """Poisson process whose rate, weight · G'(t) at each position, is at least the jump rate there: for exact simulation.

    Every jump is one of its events, so that a network is evaluated at these candidate events only, and each is accepted or
    not (thinning). Between two events of total weight w, G grows by an Exp(w) amount.

    Attributes:
        weight: [B, L], float64, at the current state.
        cumulative_rate: G, increasing, [B] → [B]; may be −∞ at t = 0 and ∞ at t = 1.
        time: its inverse.
        rate: its derivative G', in 1/time.
    """

    weight: Tensor
    cumulative_rate: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]


class Posterior(Protocol):
    """The posterior of the data symbols at (x, t), and the generators that its path makes of it without the network."""

    @property
    def belief(self) -> Kernel:
        """π(z|x)."""
        ...

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        """The generator of the step [t, t_next], from this posterior or from `belief` in its place."""
        ...

    def corrector(self) -> Jump:
        """A generator that leaves p_t invariant: at rate 1, x^i is redrawn from p_t(·|z), z ~ π."""
        ...


@dataclass(frozen=True)
class Jump:
    """A jump process on sequences of symbols, on the coordinates of a Euclidean state, or on rotations.

    Attributes:
        intensity: rate of candidate events per entry, float64 [B, L], in 1/time. A candidate may land where it started.
        kernel: where it lands.
        probability: of at least one candidate event in the interval [t, t_next], float64 [B, L]; `None` without `t_next`.
        posterior: the posterior that a path made the generator from; `None` if no path made it.
        joint: whether all entries of a state jump at once, with the probability of the first.
        guessed: whether `probability` assumes how the intensity at a fixed state grows within the interval; a sampler may
            use an estimate of its own instead.
        length: typical distance of a jump between real numbers, [B]; the error that a missed jump causes.
        read: [B], for which sequences computing the probability has evaluated the network already; none if `None`.
        space: of the states, which defines what an entry is; `None`: symbols or numbers.
        strings: of states that are strings [B, L], whose entries [B, 2 (L + 1)] are symbols and gaps; else `None`.

    >>> from gm_discrete.generators.kernels import Dirac
    >>> x = torch.tensor([[0, 1]])
    >>> jump = Jump(intensity=torch.tensor([[2.0, 3.0]]), kernel=Dirac(torch.tensor([[1, 0]]), vocab_size=2))
    >>> jump.rates(x)[0]
    tensor([[-2.,  2.],
            [ 3., -3.]], dtype=torch.float64)
    >>> jump.action(lambda y: y.sum(1).double(), x)
    tensor([-1.], dtype=torch.float64)
    """

    intensity: Tensor
    kernel: Kernel
    probability: Tensor | None = None
    posterior: Posterior | None = None
    joint: bool = False
    guessed: bool = False
    length: Tensor | None = None
    read: Tensor | None = None
    space: Space | None = None
    strings: Strings | None = None

    @property
    def chance(self) -> Tensor:
        """`probability`, which must be there.

        Raises:
            ValueError: the generator has none.
        """
        if self.probability is None:
            raise ValueError(
                "probability=None: a step needs it; let the process's generator(x, t, t_next) pass t_next to its path"
            )
        return self.probability

    def rates(self, x: Tensor) -> Tensor:
        """Dense rates R[b, l, y] at which position l of x moves to y, [B, L, K]; on the diagonal minus the row's sum.

        Of strings [B, L] the positions are the entries of the longest one: [B, 2 (W + 1), K].

        Raises:
            ValueError: they are infinite, as at t = 1, and reversal rates at t = 0.
        """
        require(self.intensity.isfinite().all(), ValueError, _INFINITE)
        here = (x if self.strings is None else self._entries(self.strings, x)).unsqueeze(-1)
        idle = self.intensity.unsqueeze(-1) == 0  # there the kernel may be undefined
        rates = torch.where(idle, 0.0, self.intensity.unsqueeze(-1) * self.kernel.probs()).scatter(-1, here, 0.0)
        return rates.scatter(-1, here, -rates.sum(-1, keepdim=True))

    def _entries(self, strings: Strings, x: Tensor) -> Tensor:
        """The entries that jump, of strings [B, L] that may be followed by more blanks."""
        return strings.gapped(strings.packed(x))[:, : self.intensity.shape[1]]

    def per(self, unit: Tensor) -> Jump:
        """The generator in other units of time, L/unit, for units that broadcast against the intensity."""
        return replace(self, intensity=self.intensity / unit)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) [B] for f: [N, …] → [N]. Evaluates f at every landing of every entry: for small state spaces.

        Strings reach f in tensors [N, 2 (L + 1)], with all blanks after the symbols.
        """
        if (strings := self.strings) is not None:
            entries = replace(self, strings=None)
            return entries.action(lambda y: f(strings.packed(y)), self._entries(strings, x))
        batch, count = len(x), self.intensity[0].numel()
        landings, weights = self.kernel.nodes(
            torch.arange(batch * count, device=x.device)
        )  # [B·count, Q, …], [B·count, Q]
        idle = self.intensity.flatten()[:, None] == 0  # there the kernel may be undefined
        rates = torch.where(idle, 0.0, self.intensity.flatten()[:, None] * weights).view(batch, count, -1)
        landings = landings.view(batch, count, rates.shape[2], -1).to(x.dtype)
        states = x.view(batch, 1, 1, count, -1).repeat(1, count, rates.shape[2], 1, 1)
        states[:, torch.arange(count), :, torch.arange(count)] = landings.transpose(0, 1)
        values = f(states.view(-1, *x.shape[1:])).view(batch, count, -1)
        return (rates * (values - f(x).view(batch, 1, 1))).sum((1, 2))


_INFINITE = (
    "the rates are not finite at this t: all rates are infinite at t = 1, and rates='reversal' at t = 0; give a time inside "
    "of (0, 1), or t_next and read the probabilities of the step"
)


@dataclass(frozen=True)
class Flow:
    """Deterministic motion along a velocity.

    Attributes:
        velocity: u, of the state's shape, in 1/time.
        mean: the mean velocity over the interval [t, t_next] with the posterior of the data frozen, which carries x to the
            end of the interval; `None` without `t_next`.
        space: in which it moves; `None`: numbers.

    >>> x = torch.tensor([[1.0, 2.0]])
    >>> Flow(velocity=-x).action(lambda y: y.square().sum(1), x)
    tensor([-10.])
    """

    velocity: Tensor
    mean: Tensor | None = None
    space: Space | None = None

    def per(self, unit: Tensor) -> Flow:
        """The generator in other units, L/unit."""
        return replace(self, velocity=self.velocity / unit, mean=None)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) = u · ∇f(x), [B], for a differentiable f: [B, …] → [B]."""
        return _slope(f, x, self.velocity)


@dataclass(frozen=True)
class Diffusion:
    """A diffusion: drift and noise.

    Attributes:
        scale: g, in 1/√time; broadcasts to the state's shape. For an interval, the root of the mean of g².
        drift: b, of the state's shape, in 1/time; 0 by default.
        mean: the mean drift over the interval [t, t_next], as for a `Flow`.
        space: in which it moves; `None`: numbers.

    >>> x = torch.tensor([[1.0, 2.0]])
    >>> Diffusion(scale=torch.tensor(2.0)).action(lambda y: y.square().sum(1), x)
    tensor([8.])
    """

    scale: Tensor
    drift: Tensor | None = None
    mean: Tensor | None = None
    space: Space | None = None

    def per(self, unit: Tensor) -> Diffusion:
        """The generator in other units of time, L/unit."""
        drift = None if self.drift is None else self.drift / unit
        return replace(self, scale=self.scale / unit.sqrt(), drift=drift)

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x) = b · ∇f + ½ Σ g² ∂²f, [B], for a twice differentiable f: [B, …] → [B].

        ∂² is taken along geodesics: with an acceleration a it is ∂²f/∂e² + a · ∇f.
        """
        value = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if self.drift is not None:
            value = value + _slope(f, x, self.drift)
        scale = self.scale.expand(x.shape)
        for axis, acceleration in (self.space or NUMBERS).axes(x):
            along = scale * axis
            value = value + _slope(lambda y, along=along: _slope(f, y, along), x, along) / 2
            if acceleration is not None:
                value = value + _slope(f, x, scale**2 * acceleration) / 2
        return value


@dataclass(frozen=True)
class Superposition:
    """L = Σ_k w_k L_k of generators that solve the same path.

    Attributes:
        parts: the L_k by name, unscaled; a loss compares these. They may be made on access (`LazyParts`).
        weights: w_k [B], by the same names.
        over: t_next [B] → the generator of the step [t, t_next], without evaluating a network again; `None` if no path made
            the superposition.
        belief: the posterior of the data at (x, t), of which the parts are means, if a loss may compare that instead.

    >>> x, half = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    >>> both = Superposition(
    ...     {"flow": Flow(-x), "diffusion": Diffusion(torch.tensor(2.0))}, {"flow": half, "diffusion": half}
    ... )
    >>> both.action(lambda y: y.square().sum(1), x)
    tensor([-1.])
    """

    parts: Mapping[str, Factor]
    weights: Mapping[str, Tensor]
    over: Callable[[Tensor], Superposition] | None = None
    belief: Kernel | None = None

    def __post_init__(self) -> None:
        if not self.parts or self.parts.keys() != self.weights.keys():
            raise ValueError(f"parts {sorted(self.parts)} and weights {sorted(self.weights)} must have the same names")

    def action(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """L f(x), [B]."""
        actions = [self.weights[name] * part.action(f, x) for name, part in self.parts.items()]
        return torch.stack(actions).sum(0)


class LazyParts(Mapping[str, "Factor"]):
    """Generators by name, each made on first access, as some take quadrature and a loss needs only few of them.

    Args:
        makers: a function for each name.
        idle: the names of generators whose weight is 0: a loss may compare them, and a sampler leaves them out.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Factor]], idle: Collection[str] = ()) -> None:
        self.makers, self.idle, self._made = makers, idle, dict[str, Factor]()

    def __getitem__(self, name: str) -> Factor:
        if name not in self._made:
            self._made[name] = self.makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Product:
    """L = Σ_m L^m on states of several fields: each L^m moves its own field at a rate that depends on all of them.

    Attributes:
        factors: the L^m by field.

    >>> x = {"a": torch.tensor([[1.0]]), "b": torch.tensor([[2.0]])}
    >>> product = Product({name: Flow(-state) for name, state in x.items()})
    >>> product.action(lambda y: (y["a"] * y["b"]).sum(1).double(), x)
    tensor([-4.], dtype=torch.float64)
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
"""The generator of one field."""
Generator = Factor | Product


def over(generator: Factor, t_next: Tensor) -> Factor:
    """The generator of the step [t, t_next], from the generator at time t, without evaluating a network again.

    Raises:
        TypeError: no path made the generator.
    """
    if isinstance(generator, Jump) and generator.posterior is not None:
        return generator.posterior.over(t_next)
    if isinstance(generator, Superposition) and generator.over is not None:
        return generator.over(t_next)
    raise TypeError(
        f"generator={type(generator).__name__} was not made by a path, and has no step [t, t_next]: make it with "
        "path.marginal(readout, x, t, t_next)"
    )


def terms(
    generator: Generator, weight: Tensor | float = 1.0
) -> Iterator[tuple[Tensor | float, Jump | Flow | Diffusion]]:
    """(weight, generator) for each term of the generator of one field, with nested superpositions expanded."""
    if isinstance(generator, Product):
        raise TypeError("generator is a Product: take the terms of each of its factors")
    if not isinstance(generator, Superposition):
        yield weight, generator
        return
    idle = generator.parts.idle if isinstance(generator.parts, LazyParts) else ()
    for name in generator.parts:
        if name not in idle:
            yield from terms(generator.parts[name], weight * generator.weights[name])


def _slope(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """∇f(x) · direction, [B]."""
    return torch.func.jvp(f, (x,), (direction.to(x.dtype),))[1]
