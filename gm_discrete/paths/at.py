"""Times together with the values that a schedule has there, so that one step of training or sampling computes each once."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from gm_discrete.paths.schedules import AT_REST, AffineSchedule, Schedule

LEAST_SLOPE = 1e-6
"""Where noise does not yet fall (σ' = 0) a jump would land anywhere; ζ is held finite there, λ stays what it is."""


class At:
    """Times t [B]; subclasses add values of a schedule, each computed once.

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
        return type(self)(self.t[index])


TimeLike = Tensor | At
"""Times [B], or what `Path.at` makes of them."""


def as_tensor(t: TimeLike) -> Tensor:
    """The times [B] themselves."""
    return t.t if isinstance(t, At) else t


class ScheduleAt(At):
    """Times t [B] with κ, 1 − κ, κ' and the hazard κ'/(1 − κ) of a `Schedule`, each [B] in float64, on first access."""

    def __init__(self, schedule: Schedule, t: Tensor, values: dict[str, Tensor] | None = None) -> None:
        super().__init__(t)
        self.schedule = schedule
        self._values = values or {}

    def __getitem__(self, index: Tensor) -> ScheduleAt:
        return ScheduleAt(self.schedule, self.t[index], self._rows(index))

    @property
    def kappa(self) -> Tensor:
        return self._value("kappa")

    @property
    def complement(self) -> Tensor:
        return self._value("complement")

    @property
    def derivative(self) -> Tensor:
        return self._value("derivative")

    @property
    def hazard(self) -> Tensor:
        return self._value("hazard")

    def _rows(self, index: Tensor) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self._values.items()}

    def _value(self, name: str) -> Tensor:
        if name not in self._values:  # not a cached_property, whose lock torch.compile cannot trace
            self._values[name] = getattr(self.schedule, name)(self.t)
        return self._values[name]


class KappaAt(ScheduleAt):
    """Times at which generators are per unit of κ instead of per unit of time: κ' is 1, and the hazard 1/(1 − κ).

    So κ' cancels in closed form, also where it is 0.
    """

    def __getitem__(self, index: Tensor) -> KappaAt:
        return KappaAt(self.schedule, self.t[index], self._rows(index))

    @property
    def derivative(self) -> Tensor:
        return torch.ones_like(self.complement)

    @property
    def hazard(self) -> Tensor:
        return 1 / self.complement


class AffineAt(At):
    """Times t [B] with α, σ, α' and σ' of an `AffineSchedule`, each [B] in float64."""

    def __init__(
        self, schedule: AffineSchedule, t: Tensor, values: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    ) -> None:
        super().__init__(t)
        self.schedule = schedule
        if values is None:
            time = t.double()
            values = (
                schedule.alpha(time),
                schedule.sigma(time),
                schedule.alpha_derivative(time),
                schedule.sigma_derivative(time),
            )
        self.alpha, self.sigma, self.alpha_slope, self.sigma_slope = values
        self._shaped: dict[tuple[int, torch.dtype], AffineAt] = {}

    def __getitem__(self, index: Tensor) -> AffineAt:
        values = (self.alpha[index], self.sigma[index], self.alpha_slope[index], self.sigma_slope[index])
        return AffineAt(self.schedule, self.t[index], values)

    def shaped(self, x: Tensor) -> AffineAt:
        """The same, with values of the shape [B, 1, …] and the precision of a state x [B, …], to act on it."""
        key = x.dim(), x.dtype
        if key not in self._shaped:
            shape = -1, *[1] * (x.dim() - 1)
            alpha, sigma = self.alpha.to(x.dtype).view(shape), self.sigma.to(x.dtype).view(shape)
            slopes = self.alpha_slope.to(x.dtype).view(shape), self.sigma_slope.to(x.dtype).view(shape)
            self._shaped[key] = AffineAt(self.schedule, self.t, (alpha, sigma, *slopes))
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
