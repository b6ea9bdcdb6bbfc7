"""The heads of a field of strings: how many edits remain at each place, and which symbols they write."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gm_discrete.nn.head import evaluated
from gm_discrete.nn.readout import HiddenStates, LazyReadout, LogitsProcessor, OnRead
from gm_discrete.paths.schedules import At, TimeLike


class EditReadout(LazyReadout):
    """The outputs "edits" and "tokens" of `EditPath.marginal`, at strings x [B, L].

    The network reads the start of the string, at position 0, and its symbols. One head predicts the symbols that edits
    write: at a symbol from the hidden state h of its position, at the gap after it from h + U h, so that what is written in
    its place and what is written after it differ.

    Args:
        hidden: hidden states of the whole state.
        field: the field's name; t, processor, unconditional, guidance_scale, on_read: see `LazyReadout`. Guidance acts on
            log-rates and on logits: on λ_ins, on the odds of deletion and substitution, and on both distributions.
    """

    def __init__(
        self,
        hidden: HiddenStates,
        field: str,
        t: TimeLike,
        processor: LogitsProcessor | None = None,
        unconditional: HiddenStates | None = None,
        guidance_scale: float = 1.0,
        on_read: OnRead | None = None,
    ) -> None:
        super().__init__(hidden, field, t, processor, None, guidance_scale, on_read)
        self.unconditional = None if unconditional is None else EditReadout(unconditional, field, t)
        strings = self.field.path.strings
        assert strings is not None
        self.string, self.blank = self.x, strings.blank
        self.x = strings.gapped(self.string)
        self.shape, self.size, self.usual = self.x.shape, self.x.shape[1], 2 * (self.field.length + 1)

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        """`"edits"`: the outputs [B, L + 1, n] of all positions, float32. `"tokens"`: logits [n, K] of what an edit writes
        at the entries `where`, all by default: −∞ for symbols that are never written and, at a symbol, for that symbol."""
        if head == "edits":
            return self._edits()
        if head not in self.field.heads:
            raise ValueError(f"head={head!r} is unknown; this model has {', '.join(map(repr, self.field.heads))}")
        where = torch.arange(self.x.numel(), device=self.x.device) if where is None else where
        rows, sequence = self._raw("tokens", where), where // self.size
        symbols = self.x.flatten()[where, None]  # the blank at gaps
        for symbol in (self.blank, *self.field.excluded):
            symbols = nn.functional.pad(symbols, (0, 1), value=symbol)
        rows = rows.scatter(1, symbols, -torch.inf)
        if self.processor is not None:
            more = {"time": (self.t.t if isinstance(self.t, At) else self.t)[sequence], "position": where}
            rows = self.processor(self.string[sequence], rows, **more)  # pyright: ignore[reportArgumentType]
        if self.on_read is not None:
            self.on_read(rows, sequence)
        return rows

    def _edits(self) -> Tensor:
        layer = self.hidden.network.heads[f"{self.prefix}edits"]
        raw = layer(self.hidden.final()).to(self.x.device, torch.float32)
        return raw if self.unconditional is None else self.unconditional._edits().lerp(raw, self.scale)

    def _final(self, where: Tensor) -> Tensor:
        """Final hidden states [n, D] of entries, h + U h at gaps."""
        sequence, (start, _), total = where // self.size, self.hidden.layout[0][self.name], self.hidden.layout[1]
        position = sequence * total + start + where % self.size // 2
        states = self.hidden.final().flatten(0, 1)[position]
        gap = evaluated(self.hidden.network.heads[f"{self.prefix}gap"], states)
        return states + torch.where((where % 2 == 1)[:, None], gap, 0)
