"""Euler steps: jumps at the rates of the point t."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gm_discrete.generators import over
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import EVERY_SHAPE, STRINGS, Chain, Sampler, discrete
from gm_discrete.samplers.tau_leaping import TauLeaping, leap


class Euler(Sampler):
    """Sampler that jumps with probability min(1, λ(x, t)(t_next − t)), at the rates of the point t.

    Rates are not integrable at t = 1, and some are infinite at t = 0, where no Euler step converges: a step that ends or
    starts there is that of `TauLeaping`, and so are all steps of continuous fields. It is no better than `TauLeaping` on
    any path that we measured, and is here for comparison, and for generators that have only rates.
    """

    type_name: ClassVar[str] = "euler"
    states: ClassVar[frozenset[str]] = EVERY_SHAPE | {STRINGS}

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if all(x[name].is_floating_point() or name in chain.arriving for name in x):
            return TauLeaping().step(chain, x, t, t_next)
        generators = chain.generators(x, t)
        y: dict[str, Tensor] = {}
        for name, state in x.items():
            generator, chance, now, then = generators[name], None, t[name], t_next[name]
            if name not in chain.moving:
                y[name] = state
                continue
            if state.is_floating_point():
                generator = over(generator, then)
            elif name in chain.arriving or bool(discrete(generator).intensity.isinf().any()):
                made = discrete(generator).posterior is not None  # else the process is evaluated again
                generator = over(generator, then) if made else chain.generators(x, t, t_next)[name]
            else:
                chance = (discrete(generator).intensity * (then - now)[:, None]).clamp(max=1)
            y[name] = leap(chain, name, state, generator, now, then, chance)
        return y
