"""Decoding orders of masked models: which positions a step reveals, when it is not left to chance.

The law of a masked path reveals the masks of a sequence in random order, all orders being equally likely. Whoever reveals
first what the network is surest of leaves that law: what comes out has no likelihood, and is less varied; of a network that
is better at some orders than at others it may well read better. (Orders by the state alone, `margin` and `entropy`, keep
the law where one symbol at a time is drawn from the conditionals of one joint law. Those of a network are of no joint law;
and `confidence`, which looks at what was drawn, leaves it in any case.) Each order scores the masked positions, and those of
highest score go first:

    confidence   π_i(y_i) of the symbol y_i ~ π_i that was drawn there        Chang et al. 2022 (arXiv 2202.04200)
    margin       π_i's highest probability minus its second highest           Kim et al. 2025 (arXiv 2502.06768)
    entropy      −H(π_i)                                                      Ben-Hamu et al. 2025 (arXiv 2505.24857)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import inverse_cdf, map_rows
from gm_discrete.samplers.chain import Chain

Score = Callable[[Tensor, Tensor], Tensor]
SCORES: dict[str, Score] = {
    "confidence": lambda rows, drawn: rows.gather(1, drawn[:, None]).squeeze(1).exp(),
    "margin": lambda rows, drawn: -rows.topk(2).values.exp().diff().squeeze(1),
    "entropy": lambda rows, drawn: -entropy(rows),
}
"""By name: (log π [n, K], drawn symbols [n]) → scores [n]."""
ORDERS = ("random", *SCORES)


def entropy(rows: Tensor) -> Tensor:
    """H(π) = −Σ_y π(y) log π(y) of log π [n, K], in nats."""
    return torch.special.entr(rows.exp()).sum(1)


def ranked(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, order: str, order_temperature: float) -> Tensor:
    """Reveals ⌊m P + u⌋ of the m masks of a sequence, those of highest score; P is the path's (κ_s − κ_t)/(1 − κ_t).

    With one uniform u for each sequence the number has the mean m P of the law, and hardly any variance. To the scores,
    Gumbel noise of scale `order_temperature` · (1 − κ_t) is added: none in the end, and without limit a random order. The
    choice of the positions leaves the model's law.
    """
    jump = masked_jump(chain, x, t, t_next)
    masks = chain.free & (jump.chance > 0)
    count = ((jump.chance * masks).sum(1) + chain.uniform(len(x))).floor()
    drawn, score, _ = draw(chain, jump, masks & (count > 0)[:, None], order)
    if order_temperature:
        heat = order_temperature * chain.path.schedule.complement(t)[:, None]
        score = score - heat * torch.log(-torch.log1p(-chain.uniform(*x.shape)))
    chain.calls += count > 0
    return chain.moved(x, torch.where(masks & (place(score) < count[:, None]), drawn, x))


def entropy_bounded(
    chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, entropy_bound: float = 0.1, order: str = "entropy"
) -> Tensor:
    """Reveals, in the given order, as many positions as Σ_i H(π_i) − max_i H(π_i) ≤ ε allows, and at least one.

    Positions that are revealed at once are drawn as if independent. What this costs is KL(joint ‖ Π_i π_i) = Σ_i H(π_i) − H,
    with H ≥ max_i H(π_i) the entropy of their joint law under the network: ε bounds it in every step, and the number of
    steps follows from the text. The time goes with the part that is revealed, κ ← κ + (1 − κ) n/m. The choice of the
    positions leaves the model's law. Ben-Hamu et al. 2025 (arXiv 2505.24857).
    """
    t = torch.maximum(t, chain.memory.get("reached", t))  # where the last step went beyond its end
    while True:
        jump = masked_jump(chain, x, t, torch.ones_like(t))
        masks = chain.free & (jump.chance > 0) & (t < t_next)[:, None]
        going = masks.any(1)
        if not bool(going.any()):
            return x
        drawn, score, uncertain = draw(chain, jump, masks, order)
        at = place(score)
        sorted_ = torch.zeros_like(uncertain).scatter(1, at, uncertain)
        cost = sorted_.cumsum(1) - sorted_.cummax(1).values
        chosen = masks & (cost <= entropy_bound).gather(1, at)
        chain.calls += going
        x = chain.moved(x, torch.where(chosen, drawn, x))
        schedule = chain.path.schedule
        left = schedule.complement(t) * (1 - chosen.sum(1) / masks.sum(1).clamp(min=1))
        t = torch.where(going, schedule.inverse(1 - left), t)
        chain.memory["reached"] = t


def masked_jump(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Jump:
    """The step's generator.

    Raises:
        ValueError: the path has no masks.
    """
    if chain.path.rates != "masked":
        raise ValueError(
            f'decoding orders say which masks go first; with rates="{chain.path.rates}" tokens move whenever their clocks '
            f'ring, and order="random" fits'
        )
    return chain.jump(x, t, t_next)


def check_decoding(options: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an option of a decoding order is out of its range, or lacks what it goes with.
    """
    order = options.get("order", "random")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")
    if not 0 <= options.get("order_temperature", 0.0) < math.inf:
        raise ValueError(f"order_temperature={options['order_temperature']} must be ≥ 0; 0 is no noise")
    if options.get("order_temperature") and order == "random":
        raise ValueError(
            f"order_temperature={options['order_temperature']} is noise of the scores of an order: give "
            f"order={', '.join(map(repr, SCORES))}, or no temperature"
        )
    if not options.get("entropy_bound", 1.0) > 0:
        raise ValueError(f"entropy_bound={options['entropy_bound']} must be positive, in nats")


def draw(chain: Chain, jump: Jump, masks: Tensor, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """A symbol, a score and an entropy for each of the masks, [B, L]; elsewhere 0, −∞ and 0."""
    where = masks.flatten().nonzero().squeeze(1)
    noise = chain.uniform(masks.numel())
    lot = chain.uniform(masks.numel()) if order == "random" else noise
    drawn = torch.zeros(masks.numel(), dtype=torch.long, device=masks.device)
    score, uncertain = torch.full_like(noise, -torch.inf), torch.zeros_like(noise)
    if len(where):

        def read(chunk: Tensor) -> Tensor:
            rows = jump.kernel.log_probs(chunk)
            symbols = inverse_cdf(rows.exp(), noise[chunk])
            rank = lot[chunk] if order == "random" else SCORES[order](rows, symbols)
            return torch.stack([symbols.double(), rank.double(), entropy(rows).double()], 1)

        symbols, scores, entropies = map_rows(read, jump.kernel.prepare(where)).unbind(1)
        drawn[where], score[where], uncertain[where] = symbols.long(), scores, entropies
    return drawn.view_as(masks), score.view_as(masks), uncertain.view_as(masks)


def place(score: Tensor) -> Tensor:
    """The place of each position [B, L] when those of its row are put in order of falling score, from 0."""
    return score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
