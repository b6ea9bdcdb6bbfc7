"""Steps whose length follows from the state, for every sequence of the batch on its own, before anything is drawn.

A step that is drawn again because it moved too much would change the distribution: the fraction of tokens revealed by
t = 1/2 then falls from 0.50 to 0.42.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators import Posterior
from gm_discrete.generators.kernels import Kernel
from gm_discrete.paths.edits import EditPosterior
from gm_discrete.paths.schedules import Schedule
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import EVERY_SHAPE, STRINGS, Chain, Sampler, discrete, leaving, needs_network, posterior
from gm_discrete.samplers.edits import edit, possible
from gm_discrete.samplers.euclidean import advance, pace, update_rows

SURVEY = 32
"""In longer sequences the number of unsettled tokens is estimated from so many positions, drawn at random."""

FEWEST_STEPS = 64
"""A sequence of few tokens takes about this many steps by default: M = 1 alone would move four of them in eight steps, with
a total variation of 0.09 to 0.14 on the chains of benchmarks/chains.py."""

LEAST_NOISE = 1e-9
"""At 1 − κ = 1e-9 a sequence of 10⁶ tokens still has noise with probability 0.001: the last step may take it all."""


@dataclass
class TokenMemory:
    """E [B], how many tokens of a field were unsettled when they were last counted."""

    unsettled: Tensor | None = None


class Adaptive(Sampler):
    """Sampler whose steps have the length that the most careful field of a sequence allows; one evaluation a step.

    Discrete fields, counted together, propose P = min(1, M/√(n E)), κ ← κ + P (1 − κ), where E = Σ_i (1 − π_i(x^i)) of n
    free tokens are unsettled. P E ≤ M tokens change in a step, and fewer as the sequence settles, so that n tokens take
    about 2 n/M steps. Among the rules P ∝ E^−γ, γ = 1/2 had the least error at equal calls.

    The error of a step comes from tokens that move together: a share (M/n)² of all pairs. So M = 1 has a small error in a
    sequence of many tokens and a large one in a sequence of few. By default M is therefore n/32 for n < 32, which makes 64
    steps.

    On masked paths E is the number of masks. On other paths it is computed from the network output where an event is
    likelier than none, or a continuous field moves. Otherwise the last value is used, at first n; if there is an event all
    the same, E is computed for the next step. This costs an evaluation only where a likely event does not happen.

    Of strings E is the expected number of edits that remain, which the network predicts, and n the greatest E so far.

    Continuous fields propose a step whose error is about `tolerance` (see `samplers.euclidean.pace`).

    Args:
        max_expected_changes: M, tokens of a sequence that change per step, on average; by default 1, and n/32 where fewer
            than 32 tokens are free.
        tolerance: error of a step of continuous fields, relative to the size of the state.

    >>> import torch
    >>> from gm_discrete import Adaptive, ExactModel, MaskedPath, simulate
    >>> process = ExactModel(MaskedPath(3), torch.zeros(1, 32, dtype=torch.long))
    >>> x_0 = process.path.prior((2, 32))
    >>> run = simulate(process, x_0, [0.0, 1.0], sampler=Adaptive(max_expected_changes=4), return_info=True)
    >>> bool((run.x == 0).all()), bool((run.network_calls < 32).all())
    (True, True)
    """

    type_name: ClassVar[str] = "adaptive"
    states: ClassVar[frozenset[str]] = EVERY_SHAPE | {STRINGS}
    chooses_times = True

    def __init__(self, max_expected_changes: float | None = None, tolerance: float = 0.002) -> None:
        self.max_expected_changes = None
        if max_expected_changes is not None:  # shorter steps would be lost in the rounding of the time
            self.max_expected_changes = number("max_expected_changes", max_expected_changes, least=1e-4)
        self.tolerance = number("tolerance", tolerance, least=1e-12)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        if chain.path.strings is not None:
            return {"": self._edited(chain, x[""], t[""], t_next[""])}
        start, end = (next(iter(times.values())) for times in (t, t_next))
        if not all(torch.equal(t[name], start) and torch.equal(t_next[name], end) for name in x):
            raise ValueError(
                "sampler='adaptive' moves all fields at one time: give one grid in place of one for each field"
            )
        now, names = start, [name for name in x if name in chain.moving]
        state, leapt = dict(x), torch.zeros_like(start, dtype=torch.bool)
        while names and bool((active := now < end).any()):
            # Sequences that have arrived wait for the others, at a time at which every generator is finite.
            at = torch.where(active, now, start)
            generators = chain.generators(state, dict.fromkeys(state, at))
            numbers = [name for name in names if state[name].is_floating_point()]
            until = torch.where(active, end, at)
            for name in numbers:
                chain.count(chain.movable(name) & active)
                reach = pace(chain, name, state[name], generators[name], at, until, self.tolerance, leapt)
                until = torch.where(chain.movable(name), torch.minimum(until, reach), until)
            tokens = {name: posterior(discrete(generators[name])) for name in names if name not in numbers}
            moved: dict[str, Tensor] = {}
            if tokens:
                leap = _Leap(chain, state, tokens, at, until)
                until = leap.pace(self.max_expected_changes, numbers)
                moved = leap.land(until)
            for name in numbers:
                moved[name] = advance(chain, name, state[name], generators[name], at, until)
            changes = [(moved[name] != state[name]).any(1) for name in tokens]
            if changes:
                leapt = torch.where(active, torch.stack(changes).any(0), leapt)
            state = {**state, **moved}
            now = torch.where(active, until, now)
        return state

    def _edited(self, chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Strings at t_next. In place of n there is the greatest E so far, as the number of symbols is not known before."""
        if "" not in chain.moving:
            return x
        memory, most = chain.remember("", TokenMemory), self.max_expected_changes
        while bool((t < t_next).any()):
            left = cast(EditPosterior, posterior(discrete(chain.generators({"": x}, {"": t})[""])))
            number = possible(chain, "", x, left.number, left.path.strings).sum(1)
            memory.unsettled = number if memory.unsettled is None else torch.maximum(memory.unsettled, number)
            n = memory.unsettled
            part = (n * 2 / FEWEST_STEPS).clamp(max=1) if most is None else torch.full_like(n, most)
            part = (part / (n * number).sqrt()).nan_to_num(1.0).clamp(max=1)
            until = torch.where(t < t_next, _after(chain.schedule(), t, t_next, part), t)
            x, t = edit(chain, "", x, left.over(until), active=chain.movable("") & (t < t_next)), until
        return x


class _Leap:
    """The discrete fields of a state in one step.

    Args:
        posteriors: by field, at the times t [B].
        end: [B], where the step ends at the latest; sequences that wait have t = end.
    """

    def __init__(self, chain: Chain, x: State, posteriors: Mapping[str, Posterior], t: Tensor, end: Tensor) -> None:
        self.chain, self.posteriors, self.t, self.end = chain, posteriors, t, end
        self.x = {name: x[name] for name in posteriors}
        self.active = t < end
        self.positions = {name: chain.free[name] & (found.over(end).chance > 0) for name, found in posteriors.items()}
        self.likely = torch.zeros_like(self.active)  # sequences whose network output the step will probably need
        self.read = torch.zeros_like(self.active)

    def pace(self, max_expected_changes: float | None, numbers: Sequence[str]) -> Tensor:
        """The end of the step, [B].

        Args:
            max_expected_changes: M; by default 1, or less for few tokens.
            numbers: continuous fields, for which the network is evaluated in any case.
        """
        chain, n = self.chain, torch.zeros_like(self.t)
        for name in self.x:
            tokens = chain.free[name].sum(1).double()
            memory = chain.remember(name, TokenMemory)
            memory.unsettled = tokens if memory.unsettled is None else memory.unsettled
            n = n + tokens
        most = (n * 2 / FEWEST_STEPS).clamp(max=1) if max_expected_changes is None else max_expected_changes

        def until() -> Tensor:
            part = (most / (n * self.unsettled()).sqrt()).nan_to_num(1.0).clamp(max=1)  # all of it where all is settled
            ends = [_after(chain.schedule(name), self.t, self.end, part) for name in self.x]
            return torch.stack(ends).amin(0)

        first, events, open_ = until(), torch.zeros_like(self.t), torch.zeros_like(self.active)
        for name, found in self.posteriors.items():
            events = events + (found.over(first).chance * self.positions[name]).sum(1)
            open_ |= needs_network(found.belief, self.x[name], self.positions[name]).any(1)
        self.likely = (events > math.log(2)) | ~open_  # an event is likelier than none, or masks are counted
        for name in numbers:
            self.likely |= chain.movable(name)
        self.look(self.likely & self.active)
        return until()

    def unsettled(self) -> Tensor:
        """E, [B], of all fields, as it was last computed."""
        total = torch.zeros_like(self.t)
        for name, positions in self.positions.items():
            last = self.chain.remember(name, TokenMemory).unsettled
            total = total if last is None else total + torch.where(positions.any(1), last, 0.0)
        return total

    def look(self, sequences: Tensor) -> None:
        """Computes E of these sequences from the present state."""
        for name, found in self.posteriors.items():
            memory, positions = self.chain.remember(name, TokenMemory), self.positions[name]
            wanted = positions & sequences[:, None]
            unsettled, read = _unsettled(found.belief, self.x[name], wanted, self.chain)
            memory.unsettled = update_rows(memory.unsettled, unsettled, wanted.any(1))
            self.read |= read

    def land(self, until: Tensor) -> dict[str, Tensor]:
        """The fields after the step to the times `until` [B]."""
        chain = self.chain
        jumps = {name: found.over(until) for name, found in self.posteriors.items()}
        events = {name: chain.events(jump.chance, name) for name, jump in jumps.items()}
        moving = torch.stack([event.any(1) for event in events.values()]).any(0)
        read = self.read
        self.look(moving & ~self.likely)  # for the next step: the network is evaluated for the landing anyway
        chain.count(read | moving)
        return {name: chain.land(self.x[name], jumps[name].kernel, events[name]) for name in jumps}


def _unsettled(belief: Kernel, x: Tensor, positions: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """(E = Σ_i (1 − π_i(x^i)) over the positions, [B]; which sequences the network was evaluated for)."""
    surveyed = positions
    if x.shape[1] > SURVEY:
        lot = chain.uniform(*x.shape).masked_fill(~positions, -1)
        surveyed = positions & (lot >= lot.topk(SURVEY, 1).values[:, -1:])
    leave, read = leaving(belief, x, surveyed)
    return leave.sum(1) * positions.sum(1) / surveyed.sum(1).clamp(min=1), read


def _after(schedule: Schedule, t: Tensor, t_next: Tensor, part: Tensor) -> Tensor:
    """The time at which 1 − κ has fallen by `part` of itself, or `t_next` if that comes first."""
    left = schedule.complement(t) * (1 - part).clamp(min=0)
    # Where nothing but rounding is left of the noise, the step would not move: it is the last one.
    until = torch.where(left > LEAST_NOISE, schedule.inverse(1 - left), 1.0)
    return torch.where(until > t, torch.minimum(until, t_next), t_next)
