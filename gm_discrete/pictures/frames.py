"""The frames of a picture: which token is shown how in each state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.generation.outputs import Trajectory

DOT, BREAK = "·", "↵"
"""Characters shown for a mask, and before a line break."""
NONE = -1
"""In place of the id of a symbol that a string does not hold."""


@dataclass(frozen=True)
class Frame:
    """One state.

    Attributes:
        time: t.
        symbols: ids of the tokens, [L]; `NONE` where a string has no symbol.
        texts: texts shown for them, [L]; a line break follows its sign `BREAK`.
        kinds: keys of `animation.STYLES`, [L]: what the step before this state did.
    """

    time: float
    symbols: list[int]
    texts: list[str]
    kinds: list[str]


class Decoder(Protocol):
    """A tokenizer, as far as pictures need one."""

    mask_token_id: int | None

    def decode(self, token_ids: list[int], /) -> str: ...


def frames_of(trajectory: Trajectory, tokenizer: Decoder, index: int, max_frames: int | None) -> list[Frame]:
    """The frames of one sequence: at most `max_frames` states, evenly spread.

    For strings every symbol that any of them holds has an entry of its own, in the order of the strings.
    """
    count = len(trajectory.states)
    chosen = torch.linspace(0, count - 1, min(count, max_frames or count)).round().long()
    states = trajectory.states[chosen, index].tolist()
    if trajectory.numbers is not None:
        return _frames_of_strings(trajectory, trajectory.numbers, tokenizer, index, chosen)
    times, given = trajectory.times[chosen].tolist(), trajectory.fixed[index].tolist()
    mask = tokenizer.mask_token_id
    glyphs = {symbol: glyph(tokenizer, symbol) for state in states for symbol in state}
    end = [glyphs[symbol] for symbol in states[-1]]
    steady = all(
        symbol == mask or len(glyphs[symbol]) == len(last)
        for state in states
        for symbol, last in zip(state, end, strict=True)
    )
    frames: list[Frame] = []
    for time, before, state in zip(times, [states[0], *states], states, strict=False):
        texts = []
        for symbol, last in zip(state, end, strict=True):
            own = glyphs[symbol] if symbol != mask else DOT * (len(last) if steady else 1)
            texts.append(_laid(own, last if steady else own))
        frames.append(Frame(time, state, texts, list(map(_kind, before, state, given, [mask] * len(state)))))
    return frames


def glyph(tokenizer: Decoder, symbol: int) -> str:
    """The text of a token within a text. Decoding it alone is not enough: some tokenizers then drop the space before it."""
    once, twice = tokenizer.decode([symbol]), tokenizer.decode([symbol, symbol])
    return twice[len(once) :] if twice.startswith(once) and twice.endswith(once) else once


def _laid(text: str, shape: str) -> str:
    """The characters of `text`, its line breaks replaced by signs, with line breaks where `shape` has them."""
    signs = (BREAK if character == "\n" else character for character in text)
    return "".join(sign + "\n" * (place == "\n") for sign, place in zip(signs, shape, strict=True))


def _kind(before: int, after: int, given: bool, mask: int | None) -> str:
    if before == after:
        return "given" if given else "mask" if after == mask else "text"
    return "new" if before == mask else "again" if after == mask else "changed"


def _frames_of_strings(
    trajectory: Trajectory, numbers: Tensor, tokenizer: Decoder, index: int, chosen: Tensor
) -> list[Frame]:
    """Frames of the chosen states of a string."""
    rows = zip(numbers[chosen, index].tolist(), trajectory.states[chosen, index].tolist(), strict=True)
    strings = [{n: symbol for n, symbol in zip(*row, strict=True) if n >= 0} for row in rows]
    glyphs = {symbol: glyph(tokenizer, symbol) for string in strings for symbol in string.values()}
    texts = {symbol: _laid(text, text) for symbol, text in glyphs.items()} | {NONE: ""}
    given = {n for n, fixed in zip(numbers[-1, index].tolist(), trajectory.fixed[index].tolist(), strict=True) if fixed}
    order, frames, before = _common_order([list(string) for string in strings]), [], strings[0]
    for time, string in zip(trajectory.times[chosen].tolist(), strings, strict=True):
        kinds = [_edit(before.get(n, NONE), string.get(n, NONE), n in given) for n in order]
        shown = [(before if kind == "deleted" else string).get(n, NONE) for n, kind in zip(order, kinds, strict=True)]
        symbols = [string.get(n, NONE) for n in order]
        frames.append(Frame(time, symbols, [texts[symbol] for symbol in shown], kinds))
        before = string
    if "deleted" in frames[-1].kinds:  # the last frame shows the last string alone
        kinds = ["absent" if kind == "deleted" else kind for kind in frames[-1].kinds]
        frames.append(replace(frames[-1], texts=[texts[symbol] for symbol in frames[-1].symbols], kinds=kinds))
    return frames


def _common_order(strings: list[list[int]]) -> list[int]:
    """All numbers in an order of which that of each string is a part: symbols never change places."""
    order: list[int] = []
    for string in strings:
        at = 0
        for number in string:
            if number in order:
                at = order.index(number) + 1
            else:
                order.insert(at, number)
                at += 1
    return order


def _edit(before: int, after: int, given: bool) -> str:
    if before == after:
        return "absent" if after == NONE else "given" if given else "text"
    return "inserted" if before == NONE else "deleted" if after == NONE else "substituted"
