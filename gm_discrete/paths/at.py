"""Times together with the values that a schedule has there, so that one step of training or sampling computes each once."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from gm_discrete.paths.schedules import AT_REST, AffineSchedule, Schedule

LEAST_SLOPE = 1e-6
"""Where noise does not yet fall (σ' = 0) a jump would land anywhere; ζ is held finite there, λ stays what it is."""


class At:
    """Times t [B]; subclasses add values of a schedule, each computed on first access.

    `Path.at(t)` makes one. Every method of a path that takes times takes it in their place.

    >>> from gm_discrete import MaskedPath
    >>> path = MaskedPath(5)
    >>> now = path.at(torch.tensor([0.25, 0.5]))
    >>> now.kappa
    tensor([0.2500, 0.5000], dtype=torch.float64)
    >>> now[torch.tensor([1, 1, 0])].t
    tensor([0.5000, 0.5000, 0.2500])
    """

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __getitem__(self, index: Tensor) -> Self:
        """The times t[index], [n], with the values that are computed already."""
        return self._mapped(lambda value: value[index])

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed = copy(self)
        changed.__dict__ = {
            name: function(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return changed


TimeLike = Tensor | At
"""Times [B], or what `Path.at` makes of them."""


def as_tensor(t: TimeLike) -> Tensor:
    """The times [B] themselves."""
    return t.t if isinstance(t, At) else t


class ScheduleAt(At):
    """Times t [B] with κ, 1 − κ, κ' and the hazard κ'/(1 − κ) of a `Schedule`, each [B] in float64."""

    def __init__(self, schedule: Schedule, t: Tensor) -> None:
        super().__init__(t)
        self.schedule = schedule

    @cached_property
    def kappa(self) -> Tensor:
        return self.schedule.kappa(self.t)

    @cached_property
    def complement(self) -> Tensor:
        return self.schedule.complement(self.t)

    @cached_property
    def derivative(self) -> Tensor:
        return self.schedule.derivative(self.t)

    @cached_property
    def hazard(self) -> Tensor:
        return self.schedule.hazard(self.t)


class KappaAt(ScheduleAt):
    """Times at which generators are per unit of κ instead of per unit of time: κ' is 1, and the hazard 1/(1 − κ).

    So κ' cancels in closed form, also where it is 0.
    """

    @cached_property
    def derivative(self) -> Tensor:
        return torch.ones_like(self.complement)

    @cached_property
    def hazard(self) -> Tensor:
        return 1 / self.complement


class AffineAt(At):
    """Times t [B] with α, σ, α' and σ' of an `AffineSchedule`, each [B] in float64."""

    def __init__(self, schedule: AffineSchedule, t: Tensor) -> None:
        super().__init__(t)
        self.schedule = schedule
        self._shaped: dict[tuple[int, torch.dtype], AffineAt] = {}
        time = t.double()
        self.alpha, self.sigma = schedule.alpha(time), schedule.sigma(time)
        self.alpha_slope, self.sigma_slope = schedule.alpha_derivative(time), schedule.sigma_derivative(time)

    def shaped(self, x: Tensor) -> AffineAt:
        """The same, with values of the shape [B, 1, …] and the precision of a state x [B, …], to act on it."""
        key = x.dim(), x.dtype
        if key not in self._shaped:
            shape = -1, *[1] * (x.dim() - 1)
            self._shaped[key] = self._mapped(lambda value: value.to(x.dtype).view(shape))
        return self._shaped[key]

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed = super()._mapped(function)
        changed._shaped = {}
        return changed

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
