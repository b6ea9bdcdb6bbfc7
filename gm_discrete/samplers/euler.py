"""Euler steps: jumps at the rates of the point t."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gm_discrete.generators import Factor, Jump, over
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import Chain, Sampler, discrete
from gm_discrete.samplers.tau_leaping import TauLeaping, leap


class Euler(Sampler):
    """Jumps with probability min(1, λ(x, t)(t_next − t)) at the rates of the point t.

    Rates are not integrable at t = 1, and some are infinite at t = 0, where no Euler step converges: a step that ends or
    starts there is that of `TauLeaping`, and so are all steps of continuous fields. It is no better than `TauLeaping` on any
    path that we measured, and is here for comparison, and for generators that know only their rates.
    """

    type_name: ClassVar[str] = "euler"

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if all(x[name].is_floating_point() or bool((t_next[name] >= 1).any()) for name in x):
            return TauLeaping().step(chain, x, t, t_next)
        generators = chain.generators(x, t)
        y: dict[str, Tensor] = {}
        for name, state in x.items():
            generator = generators[name]
            if not chain.moves(name, t[name], t_next[name]):
                y[name] = state
            elif state.is_floating_point():
                y[name] = leap(chain, name, state, over(generator, t_next[name]), t[name], t_next[name])
            elif bool((t_next[name] >= 1).any()) or bool(discrete(generator).intensity.isinf().any()):
                whole = self._interval(chain, x, t, t_next, name, discrete(generator))
                y[name] = leap(chain, name, state, whole, t[name], t_next[name])
            else:
                jump = discrete(generator)
                events = chain.events((jump.intensity * (t_next[name] - t[name])[:, None]).clamp(max=1), name)
                chain.count_events(jump, events)
                y[name] = chain.land(state, jump.kernel, events)
        return y

    def _interval(self, chain: Chain, x: State, t: Times, t_next: Times, name: str, jump: Jump) -> Factor:
        """The generator of the whole step; the process is evaluated again if no path made the jump."""
        return chain.generators(x, t, t_next)[name] if jump.posterior is None else over(jump, t_next[name])
