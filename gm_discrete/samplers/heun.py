"""Heun's method: drifts by the mean of both ends of the step."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gm_discrete.process import State, Times
from gm_discrete.samplers.base import CONTINUOUS, PRODUCT, Chain, Sampler
from gm_discrete.samplers.euclidean import corrected, predicted
from gm_discrete.samplers.tau_leaping import TauLeaping, leap


class Heun(Sampler):
    """Sampler of second order for flows and drifts, by the mean of both ends of a step; jumps are those of `TauLeaping`.

    A step takes two evaluations. With jumps this is the "mixed" method of Generator Matching. In a product the second
    evaluation is at the predicted continuous fields and at the discrete ones after their leap. The last step, to t = 1, is
    that of `TauLeaping`.
    """

    type_name: ClassVar[str] = "heun"
    states: ClassVar[frozenset[str]] = frozenset({CONTINUOUS, PRODUCT})

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if chain.arriving & chain.moving:
            return TauLeaping().step(chain, x, t, t_next)
        first = chain.generators(x, t, t_next)
        y: dict[str, Tensor] = {}
        noises: dict[str, Tensor | float] = {}
        for name, state in x.items():
            if state.is_floating_point() and name in chain.moving:
                y[name], noises[name] = predicted(chain, name, state, first[name], t[name], t_next[name])
            else:
                y[name] = leap(chain, name, state, first[name], t[name], t_next[name])
        if noises:
            second = chain.generators(y, t_next)
            for name, noise in noises.items():
                both = x[name], first[name], y[name], second[name], noise
                y[name] = corrected(chain, name, *both, t[name], t_next[name])
        return y
