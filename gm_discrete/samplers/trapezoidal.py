"""The θ-trapezoidal method for discrete states."""

from __future__ import annotations

from typing import ClassVar

from gm_discrete.arguments import number
from gm_discrete.generators.transport import Extrapolated
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import DISCRETE, Chain, Sampler
from gm_discrete.samplers.tau_leaping import TauLeaping


class Trapezoidal(Sampler):
    """Sampler that leaps to the part θ of a step in −log(1 − κ), and then to its end with an extrapolated posterior.

    That is π ∝ [a π_inner − (a − 1) π_t]₊ with a = 1/(2θ(1 − θ)). A step takes two evaluations. Its order is 2 where
    nothing is clipped, which is the rule on masked paths, and 1 elsewhere, with a smaller constant than that of
    tau-leaping. A step that ends at t = 1, which is infinitely long in −log(1 − κ), is that of `TauLeaping`. Hu, Li and Min
    2011; for masked diffusion Ren et al. 2025 (arXiv 2502.00234, algorithm 2).

    Args:
        theta: θ, from 0.001 to 0.999.
    """

    type_name: ClassVar[str] = "trapezoidal"
    states: ClassVar[frozenset[str]] = frozenset({DISCRETE})

    def __init__(self, theta: float = 0.5) -> None:
        self.theta = number("theta", theta, least=1e-3, most=1 - 1e-3)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if "" in chain.arriving:
            return TauLeaping().step(chain, x, t, t_next)
        schedule = chain.schedule()
        left, left_next = schedule.complement(t[""]), schedule.complement(t_next[""])
        inner = schedule.inverse(1 - left * (left_next / left) ** self.theta)
        start = chain.posterior(x, t)
        first = start.over(inner)
        events = chain.events(first.chance)
        chain.count(events.any(1))
        middle = chain.land(x[""], first.kernel, events)
        mid = chain.posterior({"": middle}, {"": inner})
        second = mid.over(t_next[""], Extrapolated(mid.belief, start.belief, 1 / (2 * self.theta * (1 - self.theta))))
        finish = chain.events(second.chance)
        chain.count(finish.any(1))
        chain.calls += finish.any(1) & ~events.any(1)  # the posterior at t is extrapolated from, too
        return {"": chain.land(middle, second.kernel, finish)}
