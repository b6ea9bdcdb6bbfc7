"""Concentrations k(t) of the noise on rotations, from 0 (uniform) at t = 0 to ∞ (the data) at t = 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.configurable import Configurable
from gm_discrete.paths.schedules import At, TimeLike

GREATEST = 1e12
"""At this concentration rotations are 1e-6 from the data, below the rounding of float32."""


@dataclass(frozen=True)
class ConcentrationAt(At):
    """Times t [B] with k and k' = dk/dt there, each [B] in float64."""

    k: Tensor
    slope: Tensor

    @property
    def spread(self) -> Tensor:
        """1/√(1 + k), about the standard deviation of the noise, in half angles."""
        return (1 + self.k).rsqrt()


class Concentration(Configurable, ABC):
    """k(t), increasing from 0 to ∞; times and values are float64."""

    argument: ClassVar[str] = "concentration"

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """k(t); ∞ at t = 1."""

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """k'(t)."""

    def at(self, t: TimeLike) -> ConcentrationAt:
        """The values at the times t."""
        if isinstance(t, ConcentrationAt):
            return t
        t = t.t if isinstance(t, At) else t
        time = t.double()
        k = self.value(time)
        slope = torch.where(k < GREATEST, self.derivative(time), 0.0)
        return ConcentrationAt(t, k.clamp(max=GREATEST), slope.nan_to_num(posinf=0.0))


class OddsConcentration(Concentration):
    """k = (scale · t/(1 − t))²: the noise shrinks like (1 − t)/t, as that of a Gaussian path with CondOT does.

    Args:
        scale: the root of k at t = ½. With 2 half of the noise is gone at t = ½, as on the geodesic path.

    >>> OddsConcentration(2.0).value(torch.tensor([0.0, 0.5], dtype=torch.float64))
    tensor([0., 4.], dtype=torch.float64)
    """

    type_name = "odds"

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = number("scale", scale, least=1e-3, most=1e6)

    def value(self, t: Tensor) -> Tensor:
        return (self.scale * t / (1 - t)).square()

    def derivative(self, t: Tensor) -> Tensor:
        return 2 * self.scale**2 * t / (1 - t) ** 3


class ExponentialConcentration(Concentration):
    """k = (rate + 1)^(power · t) − 1, but at t = 1, which is the data. Source: MultiJump (github.com/jasonkyuyim/multijump).

    Args:
        rate, power: with 200 and 4, as there, k reaches 1.6 · 10⁹.
    """

    type_name = "exponential"

    def __init__(self, rate: float = 200.0, power: float = 4.0) -> None:
        self.rate, self.power = number("rate", rate, least=1e-3), number("power", power, least=1e-3)
        if self.power * math.log1p(self.rate) > math.log(GREATEST):
            raise ValueError(f"rate={rate}, power={power}: (rate + 1)^power must be at most {GREATEST:g}")

    def value(self, t: Tensor) -> Tensor:
        return torch.where(t < 1, torch.expm1(self.power * math.log1p(self.rate) * t), torch.inf)

    def derivative(self, t: Tensor) -> Tensor:
        speed = self.power * math.log1p(self.rate)
        return speed * torch.exp(speed * t)
