"""Steps whose length the state decides, for every sequence of the batch on its own, before anything is drawn.

A step that is drawn again because it moved too much would change the law: the fraction of tokens revealed by t = 1/2 then
falls from 0.50 to 0.42.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gm_discrete.generators import Jump, Posterior
from gm_discrete.generators.kernels import Kernel, map_rows
from gm_discrete.samplers.chain import Chain, leaving, needs_network
from gm_discrete.samplers.euclidean import controlled

SHORTEST = 1e-4
"""Of what is left of 1 − κ, the least part that a doubled step takes."""

SURVEY = 32
"""So many positions tell how many of a longer sequence are unsettled, that the head need not read all in every step."""


def adaptive(
    chain: Chain,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    *,
    max_expected_changes: float = 1.0,
    tolerance: float | None = None,
) -> Tensor:
    """Tau-leaping with P = min(1, M/√(n E)), κ ← κ + P (1 − κ), where E = Σ_i (1 − π_i(x^i)) of n free tokens are unsettled.

    P E ≤ M = `max_expected_changes` tokens change in a step, and fewer as the sequence settles, so that n tokens take about
    2 n/M steps. Of the rules P ∝ E^−γ, γ = 1/2 had the least error at equal calls (`benchmarks/README.md`). Masks are
    counted. Else E is asked of the network where the step will probably need it anyway, and otherwise the last one known
    serves, which is n in the beginning: a step without an event costs next to no evaluations here either.

    Euclidean states take steps whose error is about `tolerance`, 0.002 by default (see `samplers.euclidean.controlled`).
    """
    if x.is_floating_point():
        return controlled(chain, x, t, t_next, 0.002 if tolerance is None else tolerance)
    if tolerance is not None:
        raise ValueError("tolerance is of adaptive steps of numbers; those of symbols have max_expected_changes")
    check_changes(max_expected_changes)
    n = chain.free.sum(1).double()
    unsettled = chain.memory.get("unsettled", n)
    while bool((t < t_next).any()):
        posterior = chain.posterior(x, t)

        def step(unsettled: Tensor, posterior: Posterior = posterior, t: Tensor = t) -> tuple[Tensor, Jump]:
            part = max_expected_changes / (n * unsettled).sqrt()  # ∞ where all is settled
            until = _after(chain, t, t_next, part.clamp(max=1))
            return until, posterior.over(until)

        positions = chain.free & (posterior.over(t_next).chance > 0)
        unsettled = torch.where(positions.any(1), unsettled, 0.0)
        likely = (step(unsettled)[1].chance * positions).sum(1) > math.log(2)  # an event is likelier than none
        likely |= ~needs_network(posterior.belief, x, positions).any(1)
        unsettled, read = _unsettled(posterior.belief, x, positions & likely[:, None], unsettled, chain)
        until, chosen = step(unsettled)
        events = chain.events(chosen.chance)
        late = events.any(1) & ~likely
        unsettled, _ = _unsettled(posterior.belief, x, positions & late[:, None], unsettled, chain)
        chain.calls += read | events.any(1)
        x, t = chain.land(x, chosen.kernel, events), until
    chain.memory["unsettled"] = unsettled
    return x


def _unsettled(belief: Kernel, x: Tensor, positions: Tensor, before: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """(E = Σ_i (1 − π_i(x^i)) over the positions, [B], or `before` where there are none; which sequences were read)."""
    asked = positions
    if x.shape[1] > SURVEY:
        lot = chain.uniform(*x.shape).masked_fill(~positions, -1)
        asked = positions & (lot >= lot.topk(SURVEY, 1).values[:, -1:])
    leave, read = leaving(belief, x, asked)
    share = asked.sum(1) / positions.sum(1)
    return torch.where(asked.any(1), leave.sum(1) / share, before), read


def check_changes(max_expected_changes: float) -> None:
    """
    Raises:
        ValueError: it is not positive.
    """
    if not max_expected_changes > 0:
        raise ValueError(f"max_expected_changes={max_expected_changes} must be positive")


def unsettled_tokens(chain: Chain, x: Tensor, posterior: Posterior, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
    """(n, E) of `adaptive`: how many tokens are free, and how many of them unsettled, [B] each."""
    positions = chain.free & (posterior.over(t_next).chance > 0)
    unsettled, read = _unsettled(posterior.belief, x, positions, torch.zeros_like(t), chain)
    chain.calls += read
    return chain.free.sum(1).double(), unsettled


def pace_of_tokens(
    chain: Chain, n: Tensor, unsettled: Tensor, t: Tensor, t_next: Tensor, max_expected_changes: float
) -> Tensor:
    """The end of the next step of `adaptive`, [B], at one pace for the whole batch, that of its means."""
    part = max_expected_changes / (n * unsettled).mean().sqrt()
    return _after(chain, t, t_next, part.clamp(max=1).expand_as(t))


def step_doubling(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, tolerance: float = 0.02) -> Tensor:
    """Two half steps at a time, in −log(1 − κ), the next of a length set by how much the belief changed between them.

    The error of a step, Σ_i P_½ (1 − π_i(x^i)) TV(π_i(t), π_i(t_½)), is held near `tolerance` by the factor
    0.9 √(tolerance/error) in P, within [0.3, 3]. Not for masking: where nothing moved the error is 0, and the steps grow
    whatever the tolerance.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    if chain.path.rates == "masked":
        raise ValueError('step_doubling sees no error on a masked path where nothing moved: use "adaptive"')
    schedule = chain.path.schedule
    part = chain.memory.get("part", torch.full_like(t, 0.1))
    while bool((t < t_next).any()):
        until = _after(chain, t, t_next, part)
        last = until >= 1
        left, left_next = schedule.complement(t), schedule.complement(until)
        half = schedule.inverse(1 - left * (left_next / left).sqrt())
        active = t < until
        half = torch.where(last | (half <= t) | ~active, until, half)
        start = chain.posterior(x, t)
        first = start.over(half)
        open_ = chain.free & (first.chance > 0) & active[:, None]
        leave, read = leaving(start.belief, x, open_)
        middle = chain.land(x, first.kernel, chain.events(first.chance))
        mid = chain.posterior(middle, half)
        compared = open_ & ~last[:, None]
        passed = 1 - schedule.complement(half) / left
        error = (passed[:, None] * leave * _total_variation(start.belief, mid.belief, compared)).sum(1)
        chain.calls += read.long() + compared.any(1)
        second = mid.over(until)
        x = chain.land(middle, second.kernel, chain.events(second.chance))
        taken = 1 - left_next / left  # less than was asked for where the grid ends the step
        better = (taken * (0.9 * (tolerance / error).sqrt()).clamp(0.3, 3)).clamp(SHORTEST, 1)
        part = torch.where(active & (until < t_next), better, part)
        t = until
    chain.memory["part"] = part
    return x


def _after(chain: Chain, t: Tensor, t_next: Tensor, part: Tensor) -> Tensor:
    """The time at which 1 − κ has fallen by the given part of itself, or `t_next` if that comes first."""
    schedule = chain.path.schedule
    left = schedule.complement(t) * (1 - part).clamp(min=0)
    # Where nothing but rounding is left of the noise, the step would not move: it is the last one.
    until = torch.where(left > LEAST_NOISE, schedule.inverse(1 - left), 1.0)
    return torch.where(until > t, torch.minimum(until, t_next), t_next)


LEAST_NOISE = 1e-9
"""At 1 − κ = 1e-9 a sequence of 10⁶ tokens still has noise with probability 0.001: the last step may take it all."""


def _total_variation(old: Kernel, new: Kernel, positions: Tensor) -> Tensor:
    """½ Σ_y |k_old − k_new| at the positions (bool [B, L]), 0 elsewhere."""
    where = positions.flatten().nonzero().squeeze(1)
    values = torch.zeros(positions.numel(), dtype=torch.float64, device=positions.device)
    if len(where) == 0:
        return values.view(positions.shape)

    def rows(chunk: Tensor) -> Tensor:
        return (old.log_probs(chunk).exp() - new.log_probs(chunk).exp()).abs().sum(1, dtype=torch.float64) / 2

    old.prepare(where)
    return values.index_put((where,), map_rows(rows, new.prepare(where))).view(positions.shape)
