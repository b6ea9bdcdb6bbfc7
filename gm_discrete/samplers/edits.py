"""Edits of strings: one step, in which every entry has one edit at most, and exact simulation by thinning.

All edits of a step act on the string at its start. An entry is a symbol or the gap after it (see `generators.strings`), so a
step draws which entries have an edit and what these write, and then removes the blanks: deleted symbols are gone, and
inserted ones stand in their gaps. Which entries may change moves along with the symbols.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.generators import Jump
from gm_discrete.generators.rows import require
from gm_discrete.generators.strings import Strings
from gm_discrete.samplers.base import Chain, discrete


def entries_free(fixed: Tensor, x: Tensor, strings: Strings) -> Tensor:
    """bool [B, 2 (L + 1)]: the entries of packed strings x [B, L] that an edit may change.

    Args:
        fixed: bool [B, L], symbols that stay; nothing is inserted between two of them that follow each other, or before one
            at the start of the string.
    """
    fixed = fixed & (x != strings.blank)
    before = F.pad(fixed, (1, 0), value=True)  # the start of the string stays
    gap = before & F.pad(fixed, (0, 1))
    return ~torch.stack([before, gap], 2).flatten(1)


def edit(
    chain: Chain, name: str, x: Tensor, jump: Jump, chance: Tensor | None = None, active: Tensor | None = None
) -> Tensor:
    """Strings after one edit at most of each entry.

    Args:
        x: strings [B, L], without blanks between symbols.
        chance: the probability of an edit at each entry; by default that of the step that the generator was made for.
        active: bool [B], the strings that need the network's output; by default all that may change.
    """
    strings = jump.strings
    assert strings is not None
    entries = strings.gapped(x)
    events = chain.events(jump.chance if chance is None else chance, name)
    chain.count(chain.movable(name) if active is None else active)
    after = chain.land(entries, jump.kernel, events)
    if chain.max_length is not None:
        gone = ((after == strings.blank) & (entries != strings.blank)).sum(1)  # which make room
        excess = _too_many(chain, entries, events, chain.max_length - strings.lengths(x) + gone)
        chain.jumps -= excess.sum(1)
        after = torch.where(excess, entries, after)
    return _closed(chain, name, after, strings)


def _too_many(chain: Chain, entries: Tensor, events: Tensor, room: Tensor) -> Tensor:
    """Insertions beyond the number [B] that there is room for; those that are made are chosen at random."""
    gap = torch.arange(entries.shape[1], device=entries.device) % 2 == 1
    lot = chain.uniform(*entries.shape).masked_fill(~(events & gap), 2.0)
    rank = lot.argsort(1).argsort(1)
    return events & gap & (rank >= room[:, None])


def _closed(chain: Chain, name: str, entries: Tensor, strings: Strings) -> Tensor:
    """The strings of entries that have changed, and the free entries of these strings in `chain.free`.

    An inserted symbol may change, and so may the gaps on both of its sides, which are the one that it was inserted into. Of
    the gaps on both sides of a deleted symbol the one before it is left.
    """
    free, tracks = chain.free[name], chain.tracks.get(name)
    gap = torch.arange(entries.shape[1], device=entries.device) % 2 == 1
    places, length = strings.places(entries), int(strings.lengths(entries).max()) if entries.numel() else 0
    after = free[:, 1::2].repeat_interleave(2, 1)  # whether the gap after the entry's position is free
    x = strings.moved(entries, places, strings.blank)[:, :length]
    if tracks is not None:
        tracks.move(entries, length)
    symbol = strings.moved(free | gap, places, False)[:, :length]
    after = strings.moved(after, places, False)[:, :length]
    chain.free = {
        **chain.free,
        name: torch.stack([F.pad(symbol, (1, 0)), torch.cat([free[:, 1:2], after], 1)], 2).flatten(1),
    }
    return x


def possible(chain: Chain, name: str, x: Tensor, number: Tensor, strings: Strings) -> Tensor:
    """The expected numbers of edits [B, E] of free entries, the insertions scaled down to those that there is room for."""
    number = torch.where(chain.free[name], number, 0.0)
    if chain.max_length is None:
        return number
    gap = torch.arange(number.shape[1], device=number.device) % 2 == 1
    room = (chain.max_length - strings.lengths(x)).double()
    insertions = (number * gap).sum(1)
    scale = torch.where(insertions > room, room / insertions, 1.0)
    return torch.where(gap, number * scale[:, None], number)


def edits_one_by_one(chain: Chain, name: str, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Strings at t_next < 1, by thinning: exact for a process whose strings never exceed `chain.max_length` symbols.

    With M = max_length, a string of n symbols has at most n edits of symbols and M − n insertions to come; a prediction of
    more insertions is scaled down to M − n, as longer strings are impossible. That holds for the strings on the way, too:
    with optimal alignments some hold symbols of source and data side by side, up to the sum of both lengths.

    So in G = −log(1 − κ) edits come at a rate of M at most, whatever the state and the time: candidate events are a Poisson
    process of rate M, and at each one entry e is edited with probability n(e)/M, n from the network at the candidate's own
    time. A round, in which a sequence has one candidate at most, waits for the device once.
    """
    path: Any = chain.path.fields[name]
    schedule = path.schedule
    assert chain.max_length is not None
    most = chain.max_length.double()
    now, end = -torch.log(schedule.complement(t)), -torch.log(schedule.complement(t_next))
    while True:
        now = now - torch.log1p(-chain.uniform(len(x))) / most
        going = now < end
        if not bool(going.any()):
            return x
        time = torch.where(going, schedule.inverse(-torch.expm1(-now)), t_next)
        jump = discrete(chain.generators({name: x}, {name: time})[name])
        strings: Any = jump.strings
        left = getattr(jump.posterior, "number", None)  # else of a generator that has only rates
        number = jump.intensity / schedule.hazard(time)[:, None] if left is None else left
        number = possible(chain, name, x, number, strings)
        enough = (number.sum(1) <= most * (1 + 1e-9)).all()  # but for the rounding of the sum
        require(
            enough, ValueError, "rates of edits exceed those of their candidates: let a symbol have one edit at most"
        )
        target = (chain.uniform(len(x)) * most)[:, None]
        edge = number.cumsum(1)
        entry = torch.searchsorted(edge, target, right=True)
        chosen = F.one_hot(entry.squeeze(1).clamp(max=number.shape[1] - 1), number.shape[1]).bool()
        events = chosen & (going & (target < edge[:, -1:]).squeeze(1))[:, None]
        chain.count(going)
        x = _closed(chain, name, chain.land(strings.gapped(x), jump.kernel, events), strings)
