"""The Dormand–Prince method of ordinary differential equations, for pure flows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators import Flow, terms
from gm_discrete.generators.rows import NOT_FINITE, require
from gm_discrete.generators.spaces import Space
from gm_discrete.paths.base import Path
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import CONTINUOUS, Chain, Sampler
from gm_discrete.samplers.euclidean import broadcast, drift, euler_maruyama, space_of

STAGES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
"""(c, a) of each stage after the first; the last one is the solution of fifth order."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Weights of the stages in the difference of the solutions of fifth and of fourth order."""


class DormandPrince(Sampler):
    """Sampler that solves a pure flow by the Dormand–Prince pair with step control, to t = 1 − ε, and one Euler step more.

    Every sequence has steps of its own. A step is accepted where the root mean square of the estimated error over the
    sequence's entries, relative to tolerance · max(1, |x|), is at most 1. ε is the path's `stop`. Dormand and Prince 1980.

    Args:
        tolerance: relative and absolute.

    Raises:
        TypeError: the generator is more than a flow.
        FloatingPointError: the velocity is not finite, or changes too fast for any step to be accepted.
    """

    type_name: ClassVar[str] = "dopri5"
    chooses_times = True
    states: ClassVar[frozenset[str]] = frozenset({CONTINUOUS})

    def __init__(self, tolerance: float = 1e-5) -> None:
        self.tolerance = number("tolerance", tolerance, least=1e-14)  # below, rounding decides

    @classmethod
    def misfit(cls, path: Path) -> str | None:
        rotations = path.space.entry_dims > 0
        return "does not simulate rotations, as its order holds for numbers" if rotations else super().misfit(path)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        state, now, end = x[""], t[""], t_next[""]
        stop = torch.full_like(end, 1 - (chain.path.stop or 0.005))
        until = torch.where(end >= 1, torch.maximum(stop, now), end)
        state = self.solve(chain, state, now, until)
        if bool((until >= end).all()):
            return {"": state}
        generator = chain.generators({"": state}, {"": until}, t_next)[""]
        return {"": euler_maruyama(chain, "", state, generator, until, end)}

    def solve(self, chain: Chain, x: Tensor, now: Tensor, until: Tensor) -> Tensor:
        """The solution at the times `until` [B] of the flow that starts at (x, now)."""
        free, step = chain.free[""], torch.full_like(now, self.tolerance**0.2 / 2)
        if not bool((now < until).any()):
            return x
        first, space = _velocity(chain, x, now, now < until)
        while bool((active := now < until).any()):
            h = torch.minimum(step, until - now)
            slopes, y = [first], x
            for c, weights in STAGES:
                step_to = broadcast(h, x) * sum(a * slope for a, slope in zip(weights, slopes, strict=True))
                y = space.move(x, step_to)  # a path on an interval has a generator inside of it alone
                slopes.append(_velocity(chain, y, torch.minimum(now + c * h, until), active)[0])
            estimate = broadcast(h, x) * sum(e * slope for e, slope in zip(ERROR, slopes, strict=True))
            relative = estimate / (self.tolerance * torch.maximum(x.abs(), y.abs()).clamp(min=1))
            count = free.flatten(1).sum(1).clamp(min=1)
            ratio = ((free * relative.square()).flatten(1).sum(1) / count).sqrt().double()
            stuck = active & (ratio.isnan() | (now + h <= now))
            if bool(stuck.any()):
                raise FloatingPointError(
                    f"sampler='dopri5' finds no step from t={float(now[stuck][0]):.6g} on with tolerance={self.tolerance}: "
                    "the velocity changes too fast there; use sampler='heun'"
                )
            accepted = active & (ratio <= 1)
            rows = accepted.view(-1, *[1] * (x.dim() - 1))
            x, first = torch.where(rows, y, x), torch.where(rows, slopes[-1], first)
            now = torch.where(accepted, torch.where(h < step, until, now + h), now)
            step = torch.where(active, h * (0.9 * ratio.clamp(min=1e-9) ** -0.2).clamp(0.2, 2), step)
        return x


def _velocity(chain: Chain, x: Tensor, t: Tensor, active: Tensor) -> tuple[Tensor, Space]:
    """The flow at (x, t), 0 at entries that may not move; and the space in which it moves."""
    generator = chain.generators({"": x}, {"": t})[""]
    if any(not isinstance(part, Flow) and bool(torch.as_tensor(w).any()) for w, part in terms(generator)):
        raise TypeError(
            "dopri5 solves flows only; the generator also jumps or diffuses: use sampler='heun' or 'adaptive'"
        )
    chain.count(chain.movable("") & active)
    velocity = torch.where(chain.free[""], drift(generator, x), 0.0)
    require(velocity.isfinite().all(), FloatingPointError, NOT_FINITE.format("velocity"))
    return velocity, space_of(generator)
