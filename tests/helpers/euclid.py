"""Distributions of numbers to hold against the library: quadrature, the Kolmogorov–Smirnov test, Gaussian mixtures in
closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gm_discrete.generators import Generator, Jump, Superposition
from gm_discrete.generators.kernels import Kernel
from gm_discrete.paths.affine import AffineSchedule, CondOTSchedule, TrigonometricSchedule


class BentSchedule(AffineSchedule):
    """A schedule of a user's own, who gives no derivatives: α = t + b t(1 − t), σ = (1 − t)(1 + b t)."""

    type_name = "bent"

    def __init__(self, bend: float = 0.5) -> None:
        self.bend = bend

    def alpha(self, t: Tensor) -> Tensor:
        return t + self.bend * t * (1 - t)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - t) * (1 + self.bend * t)


SCHEDULES: list[AffineSchedule] = [CondOTSchedule(), TrigonometricSchedule(), BentSchedule()]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def filled(n: int, value: float) -> Tensor:
    """n states of one number each, [n, 1]."""
    return torch.full((n, 1), value, dtype=torch.float64)


def panels(breaks: Sequence[float], nodes: int = 60) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights between all breaks, in order."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    ends = torch.tensor(sorted(set(breaks)), dtype=torch.float64)
    half = ends.diff()[:, None] / 2
    return (ends[:-1, None] + half * (node + 1)).flatten(), (half * weight).flatten()


def normal_cdf(w: Tensor) -> Tensor:
    return torch.special.ndtr(w)


def normal_density(w: Tensor) -> Tensor:
    return torch.exp(-w * w / 2) / math.sqrt(2 * math.pi)


def kolmogorov(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(D, p-value) of the Kolmogorov–Smirnov test; the p-value by the limit distribution with Stephens' correction
    (1970)."""
    x = x.double().flatten().sort().values
    n, at = len(x), cdf(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    d = float(torch.maximum((steps[1:] - at).max(), (at - steps[:-1]).max()))
    k = torch.arange(1, 101, dtype=torch.float64)
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * d
    series = (-1) ** (k - 1) * torch.exp(-2 * (k * scaled) ** 2)
    return d, 1.0 if scaled < 0.3 else min(1.0, max(0.0, float(2 * series.sum())))


def noise_of_ks(n: int) -> float:
    """D that a sample of its own distribution exceeds once in 10⁴ times: 2 e^{−2 n D²} = 10⁻⁴."""
    return math.sqrt(math.log(2e4) / (2 * n))


class Mixture:
    """Data Σ_k w_k N(m_k, s_k²) of a number, and its distribution on a Gaussian path."""

    def __init__(self, means: Sequence[float], stds: Sequence[float], law: Sequence[float]) -> None:
        self.means, self.stds, self.law = numbers(*means), numbers(*stds), numbers(*law)

    def spread(self, schedule: AffineSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = schedule.alpha(t)
        return alpha * self.means, ((alpha * self.stds) ** 2 + schedule.sigma(t) ** 2).sqrt()

    def density(self, schedule: AffineSchedule, t: Tensor, x: Tensor) -> Tensor:
        center, std = self.spread(schedule, t)
        return (self.law * normal_density((x[..., None] - center) / std) / std).sum(-1)

    def cdf(self, schedule: AffineSchedule, t: float) -> Callable[[Tensor], Tensor]:
        center, std = self.spread(schedule, numbers(t))
        return lambda x: (self.law * normal_cdf((x.double()[..., None] - center) / std)).sum(-1)


def density_slope(density: Callable[[Tensor], Tensor], t: float | Tensor) -> tuple[Tensor, Tensor]:
    """(p_t, ∂_t p_t) by forward differentiation: exact to rounding. Several times have a dimension of their own."""
    time = torch.as_tensor(t, dtype=torch.float64)
    return torch.func.jvp(density, (time,), (torch.ones_like(time),))


def conditional_density(schedule: AffineSchedule, z: float, x: Tensor) -> Callable[[Tensor], Tensor]:
    """t → N(x; α z, σ²), written from the definition."""

    def density(t: Tensor) -> Tensor:
        sigma = schedule.sigma(t)
        return normal_density((x - schedule.alpha(t) * z) / sigma) / sigma

    return density


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.sin(1.3 * x + 0.4).sum(1),
    lambda x: torch.exp(-((x - 0.3) ** 2)).sum(1),
    lambda x: (x / (1 + x * x)).sum(1),
]
"""Smooth and bounded, states [B, d] → [B]."""


class Finer:
    """A kernel whose quadrature takes more nodes than it takes by itself; it finds them once for all functions."""

    def __init__(self, kernel: Any, number: int | None) -> None:
        self.kernel, self.number = kernel, number
        self.found: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    def nodes(self, where: Tensor) -> tuple[Tensor, Tensor]:
        for known, nodes in self.found:
            if torch.equal(known, where):
                return nodes
        number = () if self.number is None else (self.number,)
        self.found.append((where, self.kernel.nodes(where, *number)))
        return self.found[-1][1]


def finer(generator: Any, number: int | None = None) -> Any:
    """The generator, with jumps whose `action` takes so many nodes (by default its own number), found once."""
    if isinstance(generator, Superposition):
        parts: dict[str, Generator] = {name: finer(part, number) for name, part in generator.parts.items()}
        return Superposition(parts, generator.weights)
    if isinstance(generator, Jump):
        kernel: Any = Finer(generator.kernel, number)
        return replace(generator, kernel=kernel)
    return generator


class Model:
    """A path and what stands for its posterior: (x, t, t_next) → generator."""

    def __init__(self, path: Any, generator: Callable[[Tensor, Tensor, Tensor | None], Any]) -> None:
        self.path, self.make, self.calls = path, generator, 0

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Any:
        self.calls += 1
        return self.make(x, t, t_next)


class Fresh(Kernel):
    """Landings on given draws, one of a state's shape for each state: all coordinates of a state from the same draw."""

    def __init__(self, draw: Callable[[torch.Generator | None], Tensor], shape: torch.Size) -> None:
        self.draw, self.shape, self.vocab_size = draw, shape, 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        return self.draw(rng).flatten()[where]

    def log_probs(self, where: Tensor) -> Tensor:
        raise NotImplementedError
