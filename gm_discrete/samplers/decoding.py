"""Decoding orders of masked models: which positions a step reveals, when it is not left to chance.

On a masked path the masks of a sequence are revealed in random order, all orders being equally likely. A sampler that
reveals first what the network is surest of does not sample the model distribution: its samples have no likelihood and are
less varied, but if the network is better at some orders than at others they may well be better text. (Orders that depend on
the state alone, `margin` and `entropy`, preserve the distribution where one symbol at a time is drawn from the conditionals
of one joint distribution; those of a network are conditionals of none. `confidence`, which depends on the symbol that was
drawn, never does.) Each order scores the masked positions, and those of highest score are revealed first:

    confidence   π_i(y_i) of the symbol y_i ~ π_i that was drawn there        Chang et al. 2022 (arXiv 2202.04200)
    margin       π_i's highest probability minus its second highest           Kim et al. 2025 (arXiv 2502.06768)
    entropy      −H(π_i)                                                      Ben-Hamu et al. 2025 (arXiv 2505.24857)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import inverse_cdf, map_rows
from gm_discrete.paths.base import Path
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import DISCRETE, Chain, Sampler, positions_of

Score = Callable[[Tensor, Tensor], Tensor]
SCORES: dict[str, Score] = {
    "confidence": lambda rows, drawn: rows.gather(1, drawn[:, None]).squeeze(1).exp(),
    "margin": lambda rows, drawn: -rows.topk(2).values.exp().diff().squeeze(1),
    "entropy": lambda rows, drawn: -entropy(rows),
}
"""By name: (log π [n, K], drawn symbols [n]) → scores [n]."""
ORDERS = ("random", *SCORES)


@dataclass
class Reached:
    """The time [B] that each sequence has reached, which may lie beyond the end of the last step."""

    time: Tensor | None = None


class EntropyBounded(Sampler):
    """Sampler that reveals, in a chosen order, as many masks as Σ_i H(π_i) − max_i H(π_i) ≤ ε allows, and at least one.

    Positions that are revealed at once are drawn as if independent. This costs KL(joint ‖ Π_i π_i) = Σ_i H(π_i) − H, with
    H ≥ max_i H(π_i) the entropy of their joint distribution under the network: ε bounds it in every step, and the number of
    steps follows from the text. The time advances with the part that is revealed, κ ← κ + (1 − κ) n/m. Choosing the
    positions does not preserve the model distribution. Ben-Hamu et al. 2025 (arXiv 2505.24857).

    Args:
        entropy_bound: ε, in nats.
        order: in which positions are revealed.
    """

    type_name: ClassVar[str] = "entropy_bounded"
    chooses_times: ClassVar[bool] = True
    states: ClassVar[frozenset[str]] = frozenset({DISCRETE})
    rates: ClassVar[tuple[str, ...] | None] = ("masked",)

    def __init__(self, entropy_bound: float = 0.1, order: str = "entropy") -> None:
        check_order(order)
        self.entropy_bound, self.order = number("entropy_bound", entropy_bound, above=0, cure=", in nats"), order

    @property
    def keeps_distribution(self) -> bool:
        return False

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        reached = chain.remember("", Reached)
        now = t[""] if reached.time is None else torch.maximum(t[""], reached.time)
        state = x[""]
        while True:
            jump = chain.jump({"": state}, {"": now}, {"": torch.ones_like(now)})
            masks = chain.free[""] & (jump.chance > 0) & (now < t_next[""])[:, None]
            going, where = masks.any(1), positions_of(masks)
            if len(where) == 0:
                return {"": state}
            drawn, score, uncertain = draw(chain, jump, where, self.order)
            at = place(score)
            sorted_ = torch.zeros_like(uncertain).scatter(1, at, uncertain)
            cost = sorted_.cumsum(1) - sorted_.cummax(1).values
            chosen = masks & (cost <= self.entropy_bound).gather(1, at)
            chain.count(going)
            state = chain.jumped(state, torch.where(chosen, drawn, state))
            left = chain.schedule().complement(now) * (1 - chosen.sum(1) / masks.sum(1).clamp(min=1))
            now = torch.where(going, chain.schedule().inverse(1 - left), now)
            reached.time = now


def reveal(chain: Chain, x: State, t: Times, t_next: Times, order: str, order_temperature: float) -> Tensor:
    """Reveals ⌊m P + u⌋ of the m masks of a sequence, those of highest score; P is the path's (κ_s − κ_t)/(1 − κ_t).

    With one uniform u for each sequence the number has the mean m P of the path, and hardly any variance. To the scores,
    Gumbel noise of scale `order_temperature` · (1 − κ_t) is added: none in the end, and without limit a random order.
    """
    jump, state = chain.jump(x, t, t_next), x[""]
    masks = chain.free[""] & (jump.chance > 0)
    count = ((jump.chance * masks).sum(1) + chain.uniform(len(state))).floor()
    drawn, score, _ = draw(chain, jump, positions_of(masks & (count > 0)[:, None]), order)
    if order_temperature:
        heat = order_temperature * chain.schedule().complement(t[""])[:, None]
        score = score - heat * torch.log(-torch.log1p(-chain.uniform(*state.shape)))
    chain.count(count > 0)
    return chain.jumped(state, torch.where(masks & (place(score) < count[:, None]), drawn, state))


def check_order(order: str) -> None:
    """
    Raises:
        ValueError: there is no such order.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")


def check_masked(path: Path, order: str) -> None:
    """
    Raises:
        ValueError: the path has no masks to choose from.
    """
    if path.rates != "masked":
        raise ValueError(f"order={order!r} chooses which masks are revealed, and {path!r} has none; use order='random'")


def entropy(rows: Tensor) -> Tensor:
    """H(π) = −Σ_y π(y) log π(y) of log π [n, K], in nats."""
    return torch.special.entr(rows.exp()).sum(1)


def draw(chain: Chain, jump: Jump, where: Tensor, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """A symbol, a score and an entropy for each of the positions [n], as [B, L]; elsewhere 0, −∞ and 0."""
    shape = jump.chance.shape
    noise = chain.uniform(shape.numel())
    lot = chain.uniform(shape.numel()) if order == "random" else noise
    drawn = torch.zeros(shape.numel(), dtype=torch.long, device=where.device)
    score, uncertain = torch.full_like(noise, -torch.inf), torch.zeros_like(noise)
    if len(where):

        def read(chunk: Tensor) -> Tensor:
            rows = jump.kernel.log_probs(chunk)
            symbols = inverse_cdf(rows.exp(), noise[chunk])
            rank = lot[chunk] if order == "random" else SCORES[order](rows, symbols)
            return torch.stack([symbols.double(), rank.double(), entropy(rows).double()], 1)

        symbols, scores, entropies = map_rows(read, jump.kernel.prepare(where)).unbind(1)
        drawn[where], score[where], uncertain[where] = symbols.long(), scores, entropies
    return drawn.view(shape), score.view(shape), uncertain.view(shape)


def place(score: Tensor) -> Tensor:
    """The place of each position [B, L] when those of its row are sorted by falling score, from 0."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
