"""Tau-leaping: every field moves once, by the generator at the start of the step.

A step of a discrete field has two stages. First the events: which positions have a candidate jump, a Bernoulli draw whose
probability does not depend on the network. Then, for those positions only, the landing symbol. (Drawing both at once from
one categorical over "stay or move to y" needs probabilities far below the 2⁻²⁴ grid of float32 uniforms and lowers the
entropy of samples.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators import Factor
from gm_discrete.paths.base import Path
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import EVERY_SHAPE, STRINGS, Chain, Sampler, discrete
from gm_discrete.samplers.decoding import (
    SCORES,
    Drawn,
    check_heat,
    check_masked,
    check_order,
    place,
    reveal_chosen,
    reveal_scheduled,
)
from gm_discrete.samplers.edits import edit
from gm_discrete.samplers.euclidean import euler_maruyama


class TauLeaping(Sampler):
    """Sampler that jumps with the exact probability of the interval, (κ_s − κ_t)/(1 − κ_t) for mixture rates, π frozen at t.

    Where the data symbol is certain the step is exact; its error comes only from positions that move together. With the
    reversal rates it is ancestral sampling, x_s ~ E_{z~π} p(x_s|x_t, z) (D3PM, arXiv 2107.03006, equation 4). A continuous
    field moves by Euler–Maruyama steps of its flow and diffusion, and a jump overrides these (see `samplers.euclidean`).

    Args:
        order: which masks of a masked path are revealed first: `"random"`, which samples the model distribution, or
            `"confidence"`, `"margin"` or `"entropy"`, which do not (see `samplers.decoding`).
        order_temperature: scale of the Gumbel noise that is added to the scores of such an order, annealed to 0; a pair goes
            evenly in κ from its first number at κ = 0 to its second at κ = 1.
        threshold: in (0, 1], with an order: every symbol whose probability is at least this is revealed, and where there is
            none the one of highest score (Fast-dLLM, arXiv 2505.22618). As there, the numbers of the schedule count neither
            as a minimum nor as a maximum: a sequence takes as many steps as its text needs, at most one for each mask, and
            none after the last mask. `num_steps` is then of no effect.

    >>> import torch
    >>> from gm_discrete import ExactModel, MaskedPath, TauLeaping, simulate
    >>> process = ExactModel(MaskedPath(4), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    >>> x_0 = process.path.prior((2, 3))
    >>> x = simulate(process, x_0, torch.linspace(0, 1, 33), sampler=TauLeaping(order="confidence"))
    >>> x[:, 1].tolist()
    [1, 1]
    """

    type_name: ClassVar[str] = "tau_leaping"
    states: ClassVar[frozenset[str]] = EVERY_SHAPE | {STRINGS}

    def __init__(
        self,
        order: str = "random",
        order_temperature: float | Sequence[float] = 0.0,
        threshold: float | None = None,
    ) -> None:
        check_order(order)
        self.order, self._heat = order, check_heat(order_temperature)
        self.order_temperature = self._heat[0] if self._heat[1] == 0 else self._heat
        self.threshold = None if threshold is None else number("threshold", threshold, above=0, most=1)
        ordered = f"give order={' or '.join(map(repr, SCORES))} with it"
        if any(self._heat) and order == "random":
            raise ValueError(f"order_temperature={order_temperature} is noise on the scores of an order: {ordered}")
        if threshold is not None and order == "random":
            raise ValueError(f"threshold={threshold} chooses what is revealed by the prediction: {ordered}")
        if threshold is not None and any(self._heat):
            raise ValueError(
                f"threshold={threshold} and order_temperature={order_temperature}: a threshold has no use for noise on the "
                "scores; give one of them"
            )
        self.chooses_times, self.sharpens = threshold is not None, order != "random"

    @property
    def keeps_distribution(self) -> bool:
        return self.order == "random"

    def check(self, path: Path) -> None:
        super().check(path)
        if self.order != "random":
            check_masked(path, self.order)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if self.threshold is not None:
            return {"": reveal_chosen(chain, x, t, t_next, self.order, self._above_threshold)}
        if self.order != "random":
            return {"": reveal_scheduled(chain, x, t, t_next, self.order, self._heat)}
        generators = chain.generators(x, t, t_next)
        return {name: leap(chain, name, x[name], generators[name], t[name], t_next[name]) for name in x}

    def _above_threshold(self, drawn: Drawn) -> Tensor:
        least = 1.0 if self.threshold is None else self.threshold
        return (drawn.probability >= least) | (place(drawn.score) == 0)


def leap(
    chain: Chain, name: str, x: Tensor, generator: Factor, t: Tensor, t_next: Tensor, chance: Tensor | None = None
) -> Tensor:
    """One field after the step that its generator was made for.

    Args:
        chance: the probability of an event at each position of a discrete field; by default that of the interval.
    """
    if name not in chain.moving:
        return x
    if x.is_floating_point():
        return euler_maruyama(chain, name, x, generator, t, t_next)
    jump = discrete(generator)
    if jump.strings is not None:
        return edit(chain, name, x, jump, chance)
    events = chain.events(jump.chance if chance is None else chance, name)
    needed = events.any(1)
    chain.count(needed if jump.read is None else needed | jump.read)  # some processes need the network for the chance
    return chain.land(x, jump.kernel, events)
