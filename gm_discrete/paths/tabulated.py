"""A dominating process whose rate is a table over time, for paths that have none in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.generators import DominatingProcess
from gm_discrete.paths.schedules import Schedule

GREATEST_LOGIT = 20.0
"""The table covers logit κ ∈ [−20, 20]: at κ = 2e-9 a sequence of 10⁴ tokens is still noise, at 1 − 2e-9 it is data."""


class RateTable(NamedTuple):
    """A rate that is constant between successive times, and its integral.

    Attributes:
        times: increasing, [n].
        cumulative: the integral of the rate up to each time, [n].
        rates: between the times, [n − 1].
    """

    times: Tensor
    cumulative: Tensor
    rates: Tensor

    @classmethod
    def of(cls, greatest_rate: Callable[[Tensor], Tensor], schedule: Schedule, device: torch.device) -> RateTable:
        """A table of a bound on the rates at times [n]; its times are evenly spaced in logit κ."""
        logit = torch.linspace(-GREATEST_LOGIT, GREATEST_LOGIT, 801, dtype=torch.float64, device=device)
        times = schedule.inverse(logit.sigmoid())
        rates = torch.cat([greatest_rate(part) for part in times.split(8)])
        # Between two nodes rates may exceed both, and near them where a probability is still taken for rounding; simulation
        # checks at every candidate event that 1.25 was enough.
        around = F.max_pool1d(rates[None], 7, stride=1, padding=3)[0]
        rates = 1.25 * torch.maximum(around[:-1], around[1:])
        return cls(times, F.pad((rates * times.diff()).cumsum(0), (1, 0)), rates)

    def process(self, x: Tensor) -> DominatingProcess:
        """Candidate events at this rate for every token of x."""
        times, cumulative, rates = self

        def integral(t: Tensor) -> Tensor:
            inside = _interpolated(t, times, cumulative)
            return torch.where(t < times[0], -torch.inf, torch.where(t > times[-1], torch.inf, inside))

        return DominatingProcess(
            torch.ones(x.shape, dtype=torch.float64, device=x.device),
            integral,
            lambda value: _interpolated(value, cumulative, times),
            lambda t: rates[(torch.searchsorted(times, t) - 1).clamp(0, len(rates) - 1)],
        )


def _interpolated(value: Tensor, nodes: Tensor, heights: Tensor) -> Tensor:
    """Piecewise linear interpolation; constant outside of the nodes."""
    i = torch.searchsorted(nodes, value).clamp(1, len(nodes) - 1)
    part = ((value - nodes[i - 1]) / (nodes[i] - nodes[i - 1])).clamp(0, 1)
    return heights[i - 1] + part * (heights[i] - heights[i - 1])
