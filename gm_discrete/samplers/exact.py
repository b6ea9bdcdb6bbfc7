"""Exact simulation: one candidate event at a time, at its own time in every sequence of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators.kernels import inverse_cdf, require
from gm_discrete.samplers.chain import Chain
from gm_discrete.samplers.steps import tau_leaping

MOST_RINGS = 1e6
"""Per token: rates that need more candidates (positive-part ones in rare states) are better stepped."""


def first_hitting(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Masked tokens one by one: with n left, 1 − κ ← (1 − κ) U^{1/n}, and one of the n, drawn evenly, is revealed.

    Exact, in as many network evaluations as there are masks. Zheng et al. 2024 (arXiv 2409.02908, algorithm 1), here for
    batches whose sequences have different numbers of masks.
    """
    rates = chain.path.rates
    if rates != "masked":
        raise ValueError(f'first_hitting is for masked paths; with rates="{rates}" use "uniformization"')
    chain.error = torch.zeros_like(t)
    return _ring(chain, x, t, t_next)


def uniformization(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, tolerance: float = 1e-3) -> Tensor:
    """Candidate events at the rings of the path's clock, each thinned at its own time.

    With mixture rates a ring draws a token anew from the posterior, at rate 1 per token in −log(1 − κ). A clock with
    infinitely many rings near t = 0 (reversal rates) or t = 1 (all but masks) is cut there, and one leap covers the rest.
    What this costs is bounded in total variation by `tolerance` per sequence and reported as `error_bound`:

        t = 0:  P(Binomial(n, 1 − Σ_x min_z p_ε(x|z)) ≥ 2), as fewer than two tokens that know their z are independent,
        t = 1:  1 − (min_z p_t(z|z))^n, the probability that a token is not yet its data symbol.

    That a token's rate does not exceed the clock's is checked at every ring. Chen and Ying 2024 (arXiv 2402.08095).
    """
    if not 1e-12 <= tolerance < 1:  # below, rounding decides
        raise ValueError(f"tolerance={tolerance} must lie in [1e-12, 1)")
    start, end, error = _cuts(chain, x, t, t_next, tolerance)
    clock = chain.path.dominating_process(x)
    rings = (clock.cumulative_rate(end) - clock.cumulative_rate(start))[:, None] * clock.weight
    if chain.path.rates != "masked" and bool((rings > MOST_RINGS).any()):
        raise ValueError(
            f"the clock of {chain.path!r} rings more than {MOST_RINGS:.0e} times for a token: use other rates"
        )
    if bool((start > t).any()):
        x = tau_leaping(chain, x, t, start)
    x = _ring(chain, x, start, end)
    if bool((end < t_next).any()):
        x = tau_leaping(chain, x, end, t_next)
    chain.error = error if chain.error is None else chain.error + error
    return x


def _ring(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """All candidate events between t and t_next."""
    clock = chain.path.dominating_process(x)
    now, end = clock.cumulative_rate(t), clock.cumulative_rate(t_next)
    first = torch.arange(len(x), device=x.device) * x.shape[1]
    while True:
        weight = clock.weight * chain.free
        total = weight.sum(1)
        waiting = -torch.log1p(-chain.uniform(len(x))) / total
        now = torch.where(total > 0, now + waiting, torch.inf)
        ringing = now < end
        if not bool(ringing.any()):
            return x
        time = torch.where(ringing, clock.time(now), t_next)
        position = inverse_cdf(torch.where(total[:, None] > 0, weight, 1.0), chain.uniform(len(x)))
        generator = chain.jump(x, time)
        chosen = (first + position)[ringing]
        share = (generator.intensity.flatten()[chosen] / weight.flatten()[chosen]) / clock.rate(time)[ringing]
        require((share <= 1 + 1e-9).all(), ValueError, _TOO_SLOW)
        kept = chain.uniform(len(x))[ringing] < share
        chain.calls[ringing] += kept
        events = torch.zeros(x.numel(), dtype=torch.bool, device=x.device).index_put((chosen,), kept).view_as(x)
        x = chain.land(x, generator.kernel, events)
        clock = chain.path.dominating_process(x)


_TOO_SLOW = (
    "a token's rate exceeds that of the path's clock, so that events were missed: `clock` must bound `intensity`"
)


def _cuts(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(start, end, error), [B] each: the times between which the clock is followed, and a bound on what is missed."""
    path, clock, n = chain.path, chain.path.dominating_process(x), chain.free.sum(1)
    start, end, error = t, t_next, torch.zeros_like(t)
    if path.rates == "masked":  # every token rings once
        return start, end, error

    def together(time: Tensor) -> Tensor:
        alone = path.overlap(time)
        return (1 - alone**n - n * (1 - alone) * alone ** (n - 1).clamp(min=0)).clamp(min=0)

    def unfinished(time: Tensor) -> Tensor:
        return 1 - path.purity(time) ** n

    begins, ends = clock.cumulative_rate(t).isinf(), clock.cumulative_rate(t_next).isinf()
    if bool(begins.any()):
        latest = torch.maximum(_bisect(path, lambda time: together(time) <= tolerance / 2, t, -1), t)
        latest = torch.maximum(latest, clock.time(torch.full_like(t, -torch.inf)))  # a clock may begin later
        start = torch.where(begins, torch.minimum(latest, t_next), t)
        error = error + torch.where(start > t, together(start), 0.0)
    if bool(ends.any()):
        earliest = _bisect(path, lambda time: unfinished(time) <= tolerance / 2, t, 1)
        earliest = torch.minimum(earliest, clock.time(torch.full_like(t, torch.inf)))
        end = torch.where(ends, torch.maximum(torch.minimum(earliest, t_next), start), t_next)
        error = error + torch.where(end < t_next, unfinished(end), 0.0)
    return start, end, torch.where(n > 0, error, 0.0)


def _bisect(path: Any, good: Callable[[Tensor], Tensor], like: Tensor, side: int) -> Tensor:
    """The times [B] with logit κ in [−40, 0] or [0, 40] (side −1, 1) nearest to 0 at which `good` holds."""
    schedule, far, near = path.schedule, torch.full_like(like, 40.0 * side), torch.zeros_like(like)
    for _ in range(40):
        middle = (far + near) / 2
        ok = good(schedule.inverse(middle.sigmoid()))
        far, near = torch.where(ok, middle, far), torch.where(ok, near, middle)
    return schedule.inverse(far.sigmoid())
