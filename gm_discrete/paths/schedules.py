"""Schedules κ: [0, 1] → [0, 1], increasing, with κ(0) = 0 (prior) and κ(1) = 1 (data), and their values at given times.

Everything is computed in float64 from κ and its complement 1 − κ. Each schedule computes the complement in a form that
keeps its relative precision near t = 1, where the hazard κ'/(1 − κ) diverges.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from gm_discrete.arguments import number, readable
from gm_discrete.configurable import Configurable

_float64 = partial(torch.as_tensor, dtype=torch.float64)

ENDS = 1e-6
"""How far κ(0) may be from 0, and κ(1) from 1."""


@dataclass(frozen=True)
class At:
    """Times t [B]; subclasses hold the values of a schedule there, so that a step computes each once.

    `Path.at(t)` makes one. Every method of a path that takes times takes it in their place.

    >>> from gm_discrete import MaskedPath
    >>> now = MaskedPath(5).at(torch.tensor([0.25, 0.5]))
    >>> now.kappa
    tensor([0.2500, 0.5000], dtype=torch.float64)
    >>> now[torch.tensor([1, 1, 0])].t
    tensor([0.5000, 0.5000, 0.2500])
    """

    t: Tensor

    def __getitem__(self, index: Tensor) -> At:
        """The times t[index], [n]."""
        return At(self.t[index])


@dataclass(frozen=True)
class ScheduleAt(At):
    """Times t [B] with κ, 1 − κ, κ' and the hazard κ'/(1 − κ) of a `Schedule` there, each [B] in float64.

    Attributes:
        per_kappa: whether rates count per unit of κ instead of per unit of time: κ' is 1 then, and the hazard 1/(1 − κ).
    """

    kappa: Tensor
    complement: Tensor
    derivative: Tensor
    hazard: Tensor
    per_kappa: bool = False

    def __getitem__(self, index: Tensor) -> ScheduleAt:
        t, kappa, complement = self.t[index], self.kappa[index], self.complement[index]
        return ScheduleAt(t, kappa, complement, self.derivative[index], self.hazard[index], self.per_kappa)


TimeLike = Tensor | At
"""Times [B], or what `Path.at` makes of them."""


class Schedule(Configurable, ABC):
    """κ(t) with its complement, derivative and inverse; times and values are float64 tensors of any shape.

    >>> from gm_discrete import CosineSchedule
    >>> schedule = CosineSchedule()
    >>> schedule.kappa(0.5), schedule.hazard(0.5)
    (tensor(0.2929, dtype=torch.float64), tensor(1.5708, dtype=torch.float64))
    >>> schedule.jump_probability(0.5, 1.0)
    tensor(1., dtype=torch.float64)
    """

    argument: ClassVar[str] = "schedule"

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

    def check_ends(self) -> Self:
        """The schedule itself. Paths that are mixtures of noise and data check theirs when they are built.

        Raises:
            ValueError: κ(0) is not 0 or κ(1) is not 1, within 10⁻⁶.
        """
        with torch.device("cpu"):  # whatever the default is, as where a model is made on "meta"
            ends = self.kappa(torch.tensor([0.0, 1.0], dtype=torch.float64))
        for t, value in enumerate(ends.tolist() if readable(ends) else ()):
            if not abs(value - t) <= ENDS:
                raise ValueError(
                    f"schedule={self!r} has κ({t}) = {value:.6g}; it must be {t}, as samples start from pure noise at "
                    "κ = 0 and end as data at κ = 1: rescale it, as (κ(t) − κ(0)) / (κ(1) − κ(0)); MDLM's log-linear "
                    "noise is LinearSchedule()"
                )
        return self

    def at(self, t: TimeLike, per_kappa: bool = False) -> ScheduleAt:
        """The values at the times t; with `per_kappa` of rates per unit of κ, so that κ' cancels also where it is 0."""
        if isinstance(t, ScheduleAt):
            return t
        t = t.t if isinstance(t, At) else t
        kappa, complement = self.kappa(t), self.complement(t)
        if per_kappa:
            return ScheduleAt(t, kappa, complement, torch.ones_like(complement), 1 / complement, per_kappa)
        return ScheduleAt(t, kappa, complement, self.derivative(t), self.hazard(t))


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
    """κ = tⁿ with n from 0.05 to 10⁴. With less the times of a small κ underflow to 0, with more those of a large κ round
    to 1."""

    type_name = "power"

    def __init__(self, n: float = 2.0) -> None:
        self.n = number("n", n, least=0.05, most=1e4)

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
    """κ = (1 − e^(−ct)) / (1 − e^(−c)), fast first, slow at the end; c from 10⁻⁶, which is linear, to 10⁶."""

    type_name = "exponential"

    def __init__(self, c: float = 1.0) -> None:
        self.c = number("c", c, least=1e-6, most=1e6)

    @property
    def _scale(self) -> float:
        return -math.expm1(-self.c)

    def kappa(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(-self.c * _float64(t)) / self._scale

    def complement(self, t: Tensor | float) -> Tensor:
        return torch.exp(-self.c * _float64(t)) * self._left(t) / self._scale

    def _left(self, t: Tensor | float) -> Tensor:
        """1 − e^(−c(1 − t)); what is left once e^(−ct) has cancelled, which underflows where c t is large."""
        return -torch.expm1(-self.c * (1 - _float64(t)))

    def hazard(self, t: Tensor | float) -> Tensor:
        return self.c / self._left(t)

    def jump_probability(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        jump = (torch.expm1(-self.c * (t_next - t)) / torch.expm1(-self.c * (1 - t))).clamp(0, 1)
        return torch.where(t_next > t, torch.where(t_next < 1, jump, 1.0), 0.0)

    def derivative(self, t: Tensor | float) -> Tensor:
        return self.c * torch.exp(-self.c * _float64(t)) / self._scale

    def increment(self, t: Tensor | float, t_next: Tensor | float) -> Tensor:
        t, t_next = _float64(t), _float64(t_next)
        return torch.exp(-self.c * t) * -torch.expm1(-self.c * (t_next - t)) / self._scale

    def _inverse(self, kappa: Tensor) -> Tensor:
        late = torch.log(1 - kappa + kappa * math.exp(-self.c))
        return -torch.where(kappa * self._scale < 0.5, torch.log1p(-kappa * self._scale), late) / self.c
