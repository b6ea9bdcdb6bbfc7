"""Exact simulation: one candidate event at a time, at its own time in every sequence of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators.kernels import require
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import DISCRETE, STRINGS, Chain, Sampler
from gm_discrete.samplers.edits import edits_one_by_one
from gm_discrete.samplers.tau_leaping import TauLeaping

MOST_CANDIDATES = 1e6
"""Candidate events per token: rates that need more of them are better simulated in steps."""


class FirstHitting(Sampler):
    """Sampler that reveals masks one by one: with n left, 1 − κ ← (1 − κ) U^{1/n} and one of them, drawn evenly.

    Exact, in as many network evaluations as there are masks. Zheng et al. 2024 (arXiv 2409.02908, algorithm 1), here for
    batches whose sequences have different numbers of masks.
    """

    type_name: ClassVar[str] = "first_hitting"
    chooses_times = True
    states: ClassVar[frozenset[str]] = frozenset({DISCRETE})
    rates: ClassVar[tuple[str, ...] | None] = ("masked",)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        chain.error = torch.zeros_like(t[""])
        return {"": candidates_one_by_one(chain, x[""], t[""], t_next[""])}


class Uniformization(Sampler):
    """Sampler that accepts or rejects each candidate event of the path's dominating Poisson process at its own time.

    With mixture rates an event draws a token anew from the posterior, at rate 1 per token in −log(1 − κ). Where the process
    has infinitely many events near t = 0 (reversal rates) or t = 1 (all but masked paths) it is cut, and one leap covers the
    rest. This costs at most `tolerance` in total variation per sequence, which is reported as `error_bound`:

        t = 0:  P(Binomial(n, 1 − Σ_x min_z p_ε(x|z)) ≥ 2), as tokens are independent unless two of them depend on z,
        t = 1:  1 − (min_z p_t(z|z))^n, the probability that a token is not yet its data symbol.

    For strings see `samplers.edits.edits_one_by_one`. They are cut at t = 1 alone, where an edit remains with a probability
    of 2 M (1 − κ) at most, M = `max_length`, as source and data together have no more than 2 M symbols.

    That a token's rate does not exceed that of its candidates is checked at every event. Chen and Ying 2024
    (arXiv 2402.08095).

    Args:
        tolerance: total variation that may be cut off, in [1e-12, 1).
    """

    type_name: ClassVar[str] = "uniformization"
    chooses_times = True
    states: ClassVar[frozenset[str]] = frozenset({DISCRETE, STRINGS})

    def __init__(self, tolerance: float = 1e-3) -> None:
        self.tolerance = number("tolerance", tolerance, least=1e-12, below=1)  # below, rounding decides

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        path: Any = chain.path
        state, now, end = x[""], t[""], t_next[""]
        if path.strings is not None:
            return {"": self._edited(chain, state, now, end)}
        start, stop, error = _cuts(chain, state, now, end, self.tolerance)
        process = path.dominating_process(state)
        number = (process.cumulative_rate(stop) - process.cumulative_rate(start))[:, None] * process.weight
        if path.rates != "masked" and bool((number > MOST_CANDIDATES).any()):
            raise ValueError(
                f"sampler='uniformization' needs more than {MOST_CANDIDATES:.0e} candidate events for a token of {path!r}; "
                "choose other rates, or sampler='tau_leaping'"
            )
        if bool((start > now).any()):
            state = TauLeaping().step(chain, {"": state}, t, {"": start})[""]
        state = candidates_one_by_one(chain, state, start, stop)
        if bool((stop < end).any()):
            state = TauLeaping().step(chain, {"": state}, {"": stop}, t_next)[""]
        chain.error = error if chain.error is None else chain.error + error
        return {"": state}

    def _edited(self, chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Strings at t_next."""
        schedule, most = chain.schedule(), chain.max_length
        if "" not in chain.moving:
            return x
        if most is None:
            raise ValueError(
                "max_length is missing: sampler='uniformization' needs a bound on the number of edits, and so on the length "
                "of strings; give simulate(…, max_length=…)"
            )
        last = schedule.inverse((1 - self.tolerance / (2 * most.to(t.dtype))).clamp(min=0))
        stop = torch.where(t_next < 1, t_next, torch.maximum(last, t))
        x = edits_one_by_one(chain, "", x, t, stop)
        error = 2 * most * torch.where(stop < t_next, schedule.complement(stop), 0.0)
        chain.error = error if chain.error is None else chain.error + error
        return TauLeaping().step(chain, {"": x}, {"": stop}, {"": t_next})[""] if bool((stop < t_next).any()) else x


def candidates_one_by_one(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """All candidate events between t and t_next. A round, in which a sequence has one at most, waits for the device once."""
    path: Any = chain.path
    process = path.dominating_process(x)
    now, end = process.cumulative_rate(t), process.cumulative_rate(t_next)
    first = torch.arange(len(x), device=x.device) * x.shape[1]
    # Where all candidates are accepted the network is evaluated for them at once; else only for those that are.
    certain = path.rates in ("masked", "mixture")
    while True:
        weight = process.weight * chain.free[""]
        total = weight.sum(1)
        waiting = -torch.log1p(-chain.uniform(len(x))) / total
        now = torch.where(total > 0, now + waiting, torch.inf)
        going = now < end
        rows = [row for row, goes in enumerate(going.tolist()) if goes]
        if not rows:
            return x
        time = torch.where(going, process.time(now), t_next)
        target = torch.minimum(chain.uniform(len(x)) * total, torch.nextafter(total, torch.zeros_like(total)))
        position = torch.searchsorted(weight.cumsum(1), target[:, None], right=True).clamp(max=x.shape[1] - 1)
        jump = chain.jump({"": x}, {"": time})
        share = jump.intensity.gather(1, position) / weight.gather(1, position) / process.rate(time)[:, None]
        require((~going[:, None] | (share <= 1 + 1e-9)).all(), ValueError, _TOO_SLOW)
        kept = going & (chain.uniform(len(x)) < share.squeeze(1))
        chain.count(kept)
        if not certain:
            rows = [row for row, keeps in enumerate(kept.tolist()) if keeps]
        x = chain.land_at(x, jump.kernel, first + position.squeeze(1), rows, kept)
        process = path.dominating_process(x)


_TOO_SLOW = (
    "a token's rate exceeds that of its candidate events, so that events were missed: `dominating_process` of the path must "
    "bound `intensity`"
)


def _cuts(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """(start, end, error), [B] each: the times between which events are simulated, and a bound on what is missed."""
    path: Any = chain.path
    process, n = path.dominating_process(x), chain.free[""].sum(1)
    start, end, error = t, t_next, torch.zeros_like(t)
    if path.rates == "masked":  # every token has one event
        return start, end, error

    def together(time: Tensor) -> Tensor:
        alone = path.overlap(time)
        return (1 - alone**n - n * (1 - alone) * alone ** (n - 1).clamp(min=0)).clamp(min=0)

    def unfinished(time: Tensor) -> Tensor:
        return 1 - path.purity(time) ** n

    begins, ends = process.cumulative_rate(t).isinf(), process.cumulative_rate(t_next).isinf()
    if bool(begins.any()):
        latest = torch.maximum(_bisect(path, lambda time: together(time) <= tolerance / 2, t, -1), t)
        latest = torch.maximum(latest, process.time(torch.full_like(t, -torch.inf)))  # a process may begin later
        start = torch.where(begins, torch.minimum(latest, t_next), t)
        error = error + torch.where(start > t, together(start), 0.0)
    if bool(ends.any()):
        earliest = _bisect(path, lambda time: unfinished(time) <= tolerance / 2, t, 1)
        earliest = torch.minimum(earliest, process.time(torch.full_like(t, torch.inf)))
        end = torch.where(ends, torch.maximum(torch.minimum(earliest, t_next), start), t_next)
        error = error + torch.where(end < t_next, unfinished(end), 0.0)
    return start, end, torch.where(n > 0, error, 0.0)


def _bisect(path: Any, good: Callable[[Tensor], Tensor], t: Tensor, side: int) -> Tensor:
    """The times [B] like t with logit κ in [−40, 0] or [0, 40] (side −1, 1) nearest to 0 at which `good` holds."""
    schedule, far, near = path.schedule, torch.full_like(t, 40.0 * side), torch.zeros_like(t)
    for _ in range(40):
        middle = (far + near) / 2
        ok = good(schedule.inverse(middle.sigmoid()))
        far, near = torch.where(ok, middle, far), torch.where(ok, near, middle)
    return schedule.inverse(far.sigmoid())
