"""Euler steps: jumps at the rates of the point t."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gm_discrete.generators import Factor, over
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
        return {name: _moved(chain, name, x[name], generators[name], t[name], t_next[name]) for name in x}


def _moved(chain: Chain, name: str, x: Tensor, generator: Factor, t: Tensor, t_next: Tensor) -> Tensor:
    if not chain.moves(name, t, t_next):
        return x
    if x.is_floating_point():
        return leap(chain, name, x, over(generator, t_next), t, t_next)
    jump = discrete(generator)
    if bool((t_next >= 1).any()) or bool(jump.intensity.isinf().any()):
        return leap(chain, name, x, over(generator, t_next), t, t_next)
    events = chain.events((jump.intensity * (t_next - t)[:, None]).clamp(max=1), name)
    chain.count_events(jump, events)
    return chain.land(x, jump.kernel, events)
