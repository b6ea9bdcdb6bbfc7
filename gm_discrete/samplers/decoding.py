"""Decoding orders of masked models: which positions a step reveals, when it is not left to chance.

On a masked path the masks of a sequence are revealed in random order, all orders being equally likely. A sampler that
reveals first what the network is surest of does not sample the model distribution: its samples have no likelihood and are
less varied, but if the network is better at some orders than at others they may well be better text. (Orders that depend on
the state alone, `margin` and `entropy`, preserve the distribution where one symbol at a time is drawn from the conditionals
of one joint distribution; those of a network are conditionals of none. `confidence`, which depends on the symbol that was
drawn, never does.) Each order scores the masked positions, and those of highest score are revealed first:

    confidence   π_i(y_i) of the symbol y_i that was drawn there              Chang et al. 2022 (arXiv 2202.04200)
    margin       π_i's highest probability minus its second highest           Kim et al. 2025 (arXiv 2502.06768)
    entropy      −H(π_i)                                                      Ben-Hamu et al. 2025 (arXiv 2505.24857)

π_i is the prediction before temperature, top_k and top_p; the symbol is drawn after them. So the scores also tell positions
apart where the most likely symbols are taken (temperature 0), as in LLaDA (Nie et al. 2025, arXiv 2502.09992).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Drawn:
    """What was drawn at the masked positions of a step, each [B, L].

    Attributes:
        masks: bool, the positions; elsewhere the others hold 0, 0, −∞ and 0.
        symbol: long, the symbol; probability: that of the symbol; score: by which positions are ordered; entropy: of the
            prediction, in nats. All three are those of the prediction before temperature, top_k and top_p.
    """

    masks: Tensor
    symbol: Tensor
    probability: Tensor
    score: Tensor
    entropy: Tensor


class EntropyBounded(Sampler):
    """Sampler that reveals, in a chosen order, as many masks as Σ_i H(π_i) − max_i H(π_i) ≤ ε allows, and at least one.

    Positions that are revealed at once are drawn as if independent. This costs KL(joint ‖ Π_i π_i) = Σ_i H(π_i) − H, with
    H ≥ max_i H(π_i) the entropy of their joint distribution under the network: ε bounds it in every step, and the number of
    steps follows from the text. (Entropies, like scores, are those before temperature, top_k and top_p.) The time advances
    with the part that is revealed, κ ← κ + (1 − κ) n/m. Choosing the positions does not preserve the model distribution.
    Ben-Hamu et al. 2025 (arXiv 2505.24857).

    Args:
        entropy_bound: ε, in nats.
        order: in which positions are revealed.
    """

    type_name: ClassVar[str] = "entropy_bounded"
    chooses_times = True
    sharpens = True
    states: ClassVar[frozenset[str]] = frozenset({DISCRETE})
    rates: ClassVar[tuple[str, ...] | None] = ("masked",)

    def __init__(self, entropy_bound: float = 0.1, order: str = "entropy") -> None:
        check_order(order)
        self.entropy_bound, self.order = number("entropy_bound", entropy_bound, above=0, cure=", in nats"), order

    @property
    def keeps_distribution(self) -> bool:
        return False

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        return {"": reveal_chosen(chain, x, t, t_next, self.order, self._choose)}

    def _choose(self, drawn: Drawn) -> Tensor:
        at = place(drawn.score)
        sorted_ = torch.zeros_like(drawn.entropy).scatter(1, at, drawn.entropy)
        cost = sorted_.cumsum(1) - sorted_.cummax(1).values
        return (cost <= self.entropy_bound).gather(1, at)


def reveal_chosen(
    chain: Chain, x: State, t: Times, t_next: Times, order: str, choose: Callable[[Drawn], Tensor]
) -> Tensor:
    """Reveals what is chosen of the masks, again and again, until the time of each sequence has reached t_next.

    The time that a sequence has reached is kept from one step to the next.
    """
    reached = chain.remember("", Reached)
    now = t[""] if reached.time is None else torch.maximum(t[""], reached.time)
    state, reached.time = reveal_until(chain, x[""], now, t_next[""], order, choose)
    return state


def reveal_until(
    chain: Chain, state: Tensor, now: Tensor, end: Tensor, order: str, choose: Callable[[Drawn], Tensor]
) -> tuple[Tensor, Tensor]:
    """(the state, the times [B] that its sequences have reached) after revealing what is chosen until these are ≥ `end`.

    The time advances with the part n of the m masks that is revealed, κ ← κ + (1 − κ) n/m. A sequence without masks costs no
    network call.

    Args:
        state: [B, L]; now, end: times [B].
        choose: what was drawn → which of the masks are revealed, bool [B, L].
    """
    while True:
        jump = chain.jump({"": state}, {"": now}, {"": torch.ones_like(now)})
        masks = chain.free[""] & (jump.chance > 0) & (now < end)[:, None]
        going, where = masks.any(1), positions_of(masks)
        if len(where) == 0:
            return state, now
        drawn = draw(chain, jump, masks, where, now, order)
        chosen = masks & choose(drawn)
        chain.count(going)
        state = chain.jumped(state, torch.where(chosen, drawn.symbol, state))
        left = chain.schedule().complement(now) * (1 - chosen.sum(1) / masks.sum(1).clamp(min=1))
        then = chain.schedule().inverse(1 - left)
        then = torch.where(
            left > 0, then.clamp(max=1 - 2.0**-50), then
        )  # below 1 in float64, too, while masks are left
        now = torch.where(going, then, now)


def reveal_scheduled(
    chain: Chain, x: State, t: Times, t_next: Times, order: str, order_temperature: tuple[float, float]
) -> Tensor:
    """Reveals ⌊m P + u⌋ of the m masks of a sequence, those of highest score; P is the path's (κ_s − κ_t)/(1 − κ_t).

    With one uniform u for each sequence the number has the mean m P of the path, and hardly any variance. To the scores,
    Gumbel noise is added, of a scale that goes evenly in κ from the first `order_temperature` at κ = 0 to the second at 1.
    """
    jump, state = chain.jump(x, t, t_next), x[""]
    masks = chain.free[""] & (jump.chance > 0)
    count = ((jump.chance * masks).sum(1) + chain.uniform(len(state))).floor()
    masks = masks & (count > 0)[:, None]
    drawn = draw(chain, jump, masks, positions_of(masks), t[""], order)
    score, (start, end) = drawn.score, order_temperature
    if start or end:
        left = chain.schedule().complement(t[""])[:, None]
        heat = start * left + end * (1 - left)
        score = score - heat * torch.log(-torch.log1p(-chain.uniform(*state.shape)))
    chain.count(count > 0)
    return chain.jumped(state, torch.where(masks & (place(score) < count[:, None]), drawn.symbol, state))


def check_order(order: str) -> None:
    """
    Raises:
        ValueError: there is no such order.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")


def check_heat(order_temperature: float | Sequence[float]) -> tuple[float, float]:
    """The scales of the noise on the scores at κ = 0 and at κ = 1, of the first alone or of both.

    Raises:
        TypeError, ValueError: they are no numbers ≥ 0, or more than two.
    """
    pair = list(order_temperature) if isinstance(order_temperature, Sequence) else [order_temperature, 0.0]
    if isinstance(order_temperature, str) or len(pair) != 2:
        raise ValueError(f"order_temperature={order_temperature!r} must be a number ≥ 0, or a pair of them")
    start, end = (number("order_temperature", part, least=0, most=1e30) for part in pair)
    return start, end


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


def draw(chain: Chain, jump: Jump, masks: Tensor, where: Tensor, t: Tensor, order: str) -> Drawn:
    """A symbol for each of the masks, bool [B, L], which are the positions `where` [n] of the flattened state.

    Args:
        t: times [B].
    """
    shape, entries = masks.shape, masks.numel()
    noise = chain.uniform(entries)
    lot = chain.uniform(entries) if order == "random" else noise
    found = noise.new_zeros(4, entries)  # symbol, probability, score, entropy
    found[2].fill_(-torch.inf)
    if len(where):

        def read(chunk: Tensor) -> Tensor:
            rows = jump.kernel.log_probs(chunk)
            sharp = rows if chain.sharpen is None else chain.sharpen(rows, t[chunk // shape[1]]).log_softmax(1)
            symbols = inverse_cdf(sharp.exp(), noise[chunk])
            score = lot[chunk] if order == "random" else SCORES[order](rows, symbols)
            columns = symbols, SCORES["confidence"](rows, symbols), score, entropy(rows)
            return torch.stack([column.double() for column in columns], 1)

        found.index_copy_(1, where, map_rows(read, jump.kernel.prepare(where)).T)
    symbol, probability, score, uncertain = found.view(4, *shape).unbind()
    return Drawn(masks, symbol.long(), probability, score, uncertain)


def place(score: Tensor) -> Tensor:
    """The place of each position [B, L] when those of its row are sorted by falling score, from 0."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
