"""Schedules κ: [0, 1] → [0, 1], increasing, with κ(0) = 0 (prior) and κ(1) = 1 (data); and α, σ of Gaussian paths.

Everything is computed in float64 from κ and its complement 1 − κ. Each schedule computes the complement in a form that
keeps its relative precision near t = 1, where the hazard κ'/(1 − κ) diverges.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gm_discrete.configurable import Configurable


class Schedule(Configurable, ABC):
    """κ(t) with its complement, derivative and inverse; times and values are float64 tensors of any shape.

    >>> from gm_discrete import CosineSchedule
    >>> schedule = CosineSchedule()
    >>> schedule.kappa(0.5), schedule.hazard(0.5)
    (tensor(0.2929, dtype=torch.float64), tensor(1.5708, dtype=torch.float64))
    >>> schedule.jump_probability(0.5, 1.0)
    tensor(1., dtype=torch.float64)
    """

    @abstractmethod
    def kappa(self, t: Tensor | float) -> Tensor:
        """κ(t)."""

    @abstractmethod
    def complement(self, t: Tensor | float) -> Tensor:
        """1 − κ(t), without cancellation near t = 1."""

    @abstractmethod
    def derivative(self, t: Tensor | float) -> Tensor:
        """κ'(t)."""

    def inverse(self, kappa: Tensor | float) -> Tensor:
        """The time t at which κ(t) = `kappa`; exactly 1 at κ = 1."""
        kappa = _float64(kappa)
        return torch.where(kappa < 1, self._inverse(kappa).clamp(0, 1), 1.0)

    @abstractmethod
    def _inverse(self, kappa: Tensor) -> Tensor: ...

    @abstractmethod
    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        """κ(t_next) − κ(t), without cancellation for t near t_next."""

    def hazard(self, t: Tensor | float) -> Tensor:
        """h(t) = κ'(t) / (1 − κ(t)), in 1/time; infinite at t = 1."""
        return self.derivative(t) / self.complement(t)

    def jump_probability(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        """1 − exp(−∫ h) = (κ(t_next) − κ(t)) / (1 − κ(t)) over [t, t_next]: exact, and 1 when the interval ends at 1."""
        t, t_next = _float64(t), _float64(t_next)
        jump = (self.increment(t, t_next) / self.complement(t)).clamp(0, 1)
        return torch.where(t_next > t, torch.where(t_next < 1, jump, 1.0), 0.0)


class LinearSchedule(Schedule):
    """κ = t, the default.

    >>> LinearSchedule().jump_probability(0.5, 0.75)
    tensor(0.5000, dtype=torch.float64)
    """

    type_name = "linear"

    def kappa(self, t: Tensor | float) -> Tensor:
        return _float64(t)

    def complement(self, t: Tensor | float) -> Tensor:
        return 1 - _float64(t)

    def derivative(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_float64(t))

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        return _float64(t_next) - _float64(t)

    def _inverse(self, kappa: Tensor) -> Tensor:
        return kappa


class PowerSchedule(Schedule):
    """κ = tⁿ, n > 0."""

    type_name = "power"

    def __init__(self, n: float = 2.0) -> None:
        if not n > 0:
            raise ValueError(f"n={n} must be positive")
        self.n = float(n)

    def kappa(self, t: Tensor | float) -> Tensor:
        return _float64(t) ** self.n

    def complement(self, t: Tensor | float) -> Tensor:
        t = _float64(t)
        late = 0 - torch.expm1(self.n * torch.log(t.clamp(min=0.5)))
        return torch.where(t < 0.5, 1 - t**self.n, late)

    def derivative(self, t: Tensor | float) -> Tensor:
        return self.n * _float64(t) ** (self.n - 1)

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        near = t**self.n * torch.expm1(self.n * torch.log1p((t_next - t) / t))
        return torch.where(t_next < 2 * t, near, t_next**self.n - t**self.n)

    def _inverse(self, kappa: Tensor) -> Tensor:
        return kappa ** (1 / self.n)


class CosineSchedule(Schedule):
    """κ = 1 − cos(πt/2), with hazard (π/2) tan(πt/2)

    >>> CosineSchedule().kappa(0.5)
    tensor(0.2929, dtype=torch.float64)
    """

    type_name = "cosine"

    def kappa(self, t: Tensor | float) -> Tensor:
        return 2 * torch.sin(_float64(t) * (math.pi / 4)) ** 2

    def complement(self, t: Tensor | float) -> Tensor:
        return torch.sin((1 - _float64(t)) * (math.pi / 2))

    def derivative(self, t: Tensor | float) -> Tensor:
        return torch.sin(_float64(t) * (math.pi / 2)) * (math.pi / 2)

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        return 2 * torch.sin((t + t_next) * (math.pi / 4)) * torch.sin((t_next - t) * (math.pi / 4))

    def _inverse(self, kappa: Tensor) -> Tensor:
        return torch.asin(torch.sqrt(kappa / 2)) * (4 / math.pi)


class SquaredSineSchedule(Schedule):
    """κ = sin²(πt/2), with hazard π tan(πt/2)."""

    type_name = "squared_sine"

    def kappa(self, t: Tensor | float) -> Tensor:
        return torch.sin(_float64(t) * (math.pi / 2)) ** 2

    def complement(self, t: Tensor | float) -> Tensor:
        return torch.sin((1 - _float64(t)) * (math.pi / 2)) ** 2

    def derivative(self, t: Tensor | float) -> Tensor:
        t = _float64(t)
        return math.pi * torch.sin(t * (math.pi / 2)) * torch.sin((1 - t) * (math.pi / 2))

    def hazard(self, t: Tensor | float) -> Tensor:
        t = _float64(t)
        return math.pi * torch.sin(t * (math.pi / 2)) / torch.sin((1 - t) * (math.pi / 2))

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        late = (1 - t) + (1 - t_next)  # sin(πx/2) = sin(π(2 − x)/2); the smaller argument is the exact one
        return torch.sin(torch.minimum(t + t_next, late) * (math.pi / 2)) * torch.sin((t_next - t) * (math.pi / 2))

    def _inverse(self, kappa: Tensor) -> Tensor:
        return torch.atan2(torch.sqrt(kappa), torch.sqrt(1 - kappa)) * (2 / math.pi)


class ExponentialSchedule(Schedule):
    """κ = (1 − e^(−ct)) / (1 − e^(−c)), c > 0: fast first, slow at the end."""

    type_name = "exponential"

    def __init__(self, c: float = 1.0) -> None:
        if not c > 0:
            raise ValueError(f"c={c} must be positive")
        self.c = float(c)

    @property
    def _scale(self) -> float:
        return -math.expm1(-self.c)

    def kappa(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(-self.c * _float64(t)) / self._scale

    def complement(self, t: Tensor | float) -> Tensor:
        t = _float64(t)
        late = math.exp(-self.c) * torch.expm1(self.c * (1 - t)) / self._scale
        return torch.where(self.kappa(t) < 0.5, 1 - self.kappa(t), late)

    def derivative(self, t: Tensor | float) -> Tensor:
        return self.c * torch.exp(-self.c * _float64(t)) / self._scale

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        return torch.exp(-self.c * t) * -torch.expm1(-self.c * (t_next - t)) / self._scale

    def _inverse(self, kappa: Tensor) -> Tensor:
        late = torch.log(1 - kappa + kappa * math.exp(-self.c))
        return -torch.where(kappa < 0.5, torch.log1p(-kappa * self._scale), late) / self.c


AT_REST = 1e-9
"""Least speed of an affine schedule, in 1/time: slower motion is below the rounding of float32."""


class AffineSchedule(Configurable, ABC):
    """α(t) and σ(t) of x_t = α z + σ ε: α from 0 to 1, σ decreasing from 1 to 0. Times and values are float64.

    A subclass needs `alpha` and `sigma`; their derivatives follow by automatic differentiation.

    >>> from gm_discrete import TrigonometricSchedule
    >>> schedule, t = TrigonometricSchedule(), torch.tensor(0.5, dtype=torch.float64)
    >>> schedule.alpha(t), schedule.sigma(t)
    (tensor(0.7071, dtype=torch.float64), tensor(0.7071, dtype=torch.float64))
    """

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
        return torch.maximum(self.alpha_derivative(t), -self.sigma_derivative(t)).clamp(min=AT_REST)

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


def _float64(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
