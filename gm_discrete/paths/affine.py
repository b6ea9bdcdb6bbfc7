"""Schedules α, σ of Gaussian paths, x_t = α z + σ ε, and their values at given times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.paths.schedules import At, TimeLike

LEAST_SLOPE = 1e-6
"""Where noise does not yet fall (σ' = 0) a jump would land anywhere; ζ is held finite there, λ stays what it is."""

AT_REST = 1e-9
"""Least speed of an affine schedule, in 1/time: slower motion is below the rounding of float32."""


@dataclass(frozen=True)
class AffineAt(At):
    """Times t [B] with α, σ, α' and σ' of an `AffineSchedule`, each [B] in float64."""

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor
    sigma_slope: Tensor
    _shaped: dict[tuple[int, torch.dtype], AffineAt] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, index: Tensor) -> AffineAt:
        """The times t[index], [n]."""
        return AffineAt(
            *(value[index] for value in (self.t, self.alpha, self.sigma, self.alpha_slope, self.sigma_slope))
        )

    def shaped(self, x: Tensor) -> AffineAt:
        """The same, with values of the shape [B, 1, …] and the precision of a state x [B, …], to act on it."""
        key = x.dim(), x.dtype
        if key not in self._shaped:
            values = (self.alpha, self.sigma, self.alpha_slope, self.sigma_slope)
            self._shaped[key] = AffineAt(self.t, *(v.to(x.dtype).view(-1, *[1] * (x.dim() - 1)) for v in values))
        return self._shaped[key]

    @property
    def speed(self) -> Tensor:
        """max(α', −σ'); above 0 also where a schedule is at rest, and nothing moves."""
        return torch.maximum(self.alpha_slope, -self.sigma_slope).clamp(min=AT_REST)

    @property
    def ratio(self) -> Tensor:
        """ζ/z = −α'/σ'."""
        return self.alpha_slope / (-self.sigma_slope).clamp(min=LEAST_SLOPE)

    @property
    def rise(self) -> Tensor:
        """α'/speed."""
        return self.alpha_slope / self.speed

    @property
    def fall(self) -> Tensor:
        """−σ'/speed."""
        return -self.sigma_slope / self.speed


class AffineSchedule(Configurable, ABC):
    """α(t) and σ(t) of x_t = α z + σ ε: α from 0 to 1, σ decreasing from 1 to 0. Times and values are float64.

    A subclass needs `alpha` and `sigma`; their derivatives follow by automatic differentiation.

    >>> from gm_discrete import TrigonometricSchedule
    >>> schedule, t = TrigonometricSchedule(), torch.tensor(0.5, dtype=torch.float64)
    >>> schedule.alpha(t), schedule.sigma(t)
    (tensor(0.7071, dtype=torch.float64), tensor(0.7071, dtype=torch.float64))
    """

    argument: ClassVar[str] = "schedule"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), the factor of the noise."""

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """α'(t)."""
        return _derivative(self.alpha, t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        """σ'(t)."""
        return _derivative(self.sigma, t)

    def speed(self, t: Tensor) -> Tensor:
        """max(α', −σ'); above 0 also where a schedule is at rest, and nothing moves."""
        return self.at(t).speed

    def at(self, t: TimeLike) -> AffineAt:
        """The values at the times t."""
        if isinstance(t, AffineAt):
            return t
        t = t.t if isinstance(t, At) else t
        time = t.double()
        return AffineAt(t, self.alpha(time), self.sigma(time), self.alpha_derivative(time), self.sigma_derivative(time))

    def growth(self, t: Tensor, t_next: Tensor) -> Tensor:
        """∫ f(s) ds / f(t) over [t, t_next] for f = speed/σ³: the duration of the interval at the jump rate of its start.

        At a fixed x the rate of jumping away grows like f. By Gauss–Legendre quadrature; infinite if the interval ends
        where σ = 0.
        """
        nodes, masses = torch.tensor((NODES + 1) / 2, device=t.device), torch.tensor(MASSES / 2, device=t.device)
        times = t[..., None] + (t_next - t)[..., None] * nodes
        sigma, now = self.sigma(times), self.sigma(t)
        values = self.speed(times) / self.speed(t)[..., None] * (now[..., None] / sigma) ** 3
        whole = (t_next - t) * (values * masses).sum(-1)
        return torch.where(self.sigma(t_next) > 0, whole, torch.inf)


class CondOTSchedule(AffineSchedule):
    """α = t, σ = 1 − t: straight lines from noise to data (conditional optimal transport, rectified flow).

    >>> schedule, t = CondOTSchedule(), torch.tensor([0.25])
    >>> schedule.alpha(t), schedule.sigma(t)
    (tensor([0.2500]), tensor([0.7500]))
    """

    type_name = "condot"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def growth(self, t: Tensor, t_next: Tensor) -> Tensor:
        return (1 - t) / 2 * (((1 - t) / (1 - t_next)) ** 2 - 1)


class TrigonometricSchedule(AffineSchedule):
    """α = sin(πt/2), σ = cos(πt/2): keeps the variance of data of variance 1."""

    type_name = "trigonometric"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin((1 - t) * (math.pi / 2))

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return torch.sin((1 - t) * (math.pi / 2)) * (math.pi / 2)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2)) * (-math.pi / 2)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    t = t.contiguous()  # an expanded time cannot carry a tangent
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


NODES, MASSES = np.polynomial.legendre.leggauss(24)
"""Nodes and weights of the Gauss–Legendre rule on [−1, 1]; 24 leave 1e-9 of a step in which 1 − t falls to a tenth."""
