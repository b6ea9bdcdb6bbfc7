"""The text of one choice, from unfinished states to the sample."""

from __future__ import annotations

from collections.abc import Sequence

from gm_discrete.serving.planning import Row
from gm_discrete.serving.vocabulary import UNFINISHED, Vocabulary


class Transcript:
    """What has been sent of a choice, and what may be sent next: clients append texts, and nothing is taken back.

    Args:
        row: which part of the sample is the answer.
        stop: texts that end it. What is given does not: they are searched from the end of the prompt on, or from its first
            gap.

    Attributes:
        text: what was sent so far; in the end the whole answer.
        reason: why it ended: "stop" at an end-of-text token or a text of `stop`, and where a string is shorter than it
            could be, "length" where all its positions are filled. `None` before.
        tokens: generated tokens of the answer.
    """

    def __init__(self, vocabulary: Vocabulary, row: Row, stop: Sequence[str]) -> None:
        self.vocabulary, self.row, self.stop = vocabulary, row, stop
        self.text, self.reason = "", None
        self.tokens = 0
        first = row.ids.index(vocabulary.gap) if vocabulary.gap in row.ids else len(row.ids)
        given = vocabulary.decode(row.ids[row.start : first], row.ids[: row.start])
        self._given = len(given.rstrip(UNFINISHED))  # characters before those that are generated

    def settle(self, ids: Sequence[int], settled: int) -> str:
        """More text, of an unfinished state whose first `settled` tokens stay as they are."""
        part = ids[: min(settled, len(ids) - self.row.tail)]
        text, end = self._read(part)
        sure = len(text)
        if end == len(part):  # a character may still lack bytes, and a text of `stop` its end
            sure = max(0, len(text.rstrip(UNFINISHED)) - max((len(one) - 1 for one in self.stop), default=0))
        return self._append(text[: min(sure, self._cut(text))])

    def finish(self, ids: Sequence[int]) -> str:
        """The rest of the text, of the sample; sets `reason` and `tokens`."""
        row = self.row
        answer = ids[: len(ids) - row.tail]
        text, end = self._read(answer)
        self.tokens = end + row.tail - row.prompt
        ended = self._cut(text) < len(text) or end < len(answer) or len(ids) < row.length
        self.reason = "stop" if ended else "length"
        return self._append(text[: self._cut(text)])

    def pieces(self, ids: Sequence[int]) -> list[str | None]:
        """The texts of the tokens of an unfinished state, `None` for masks."""
        answer = ids[: len(ids) - self.row.tail]
        start = self.row.start
        return self.vocabulary.pieces(ids[start : self._end(answer)], ids[:start])

    def outline(self) -> list[str | None]:
        """The same of the state before the first one: what is fixed, and masks."""
        found = self.pieces(self.row.ids)
        return found if self.vocabulary.is_edits else [*found, *[None] * (self.row.length - len(self.row.ids))]

    def _read(self, ids: Sequence[int]) -> tuple[str, int]:
        """(text without regard to `stop`, where its tokens end)."""
        start, end = self.row.start, self._end(ids)
        return self.vocabulary.decode(ids[start:end], ids[:start]), end

    def _cut(self, text: str) -> int:
        """Where the first text of `stop` begins in what is generated; the length if there is none."""
        return min((at for one in self.stop if (at := text.find(one, self._given)) >= 0), default=len(text))

    def _end(self, ids: Sequence[int]) -> int:
        """Where an end-of-text token ends the text; the number of tokens if none does."""
        return next((at for at in range(self.row.fresh, len(ids)) if ids[at] in self.vocabulary.eos), len(ids))

    def _append(self, text: str) -> str:
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += new
        return new
