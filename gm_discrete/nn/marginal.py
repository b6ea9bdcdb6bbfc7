"""The marginal generator of what the heads say, guided towards a class, of all positions or of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.generators import Generator
from gm_discrete.nn.readout import HiddenStates, LazyReadout

if TYPE_CHECKING:
    from gm_discrete.models.modeling import GMModel


def marginal(
    path: Any,
    model: GMModel,
    x: Tensor,
    t: Tensor,
    t_next: Tensor | None,
    reading: HiddenStates,
    without: HiddenStates,
    processor: Any = None,
    guidance_scale: float | None = None,
    window: tuple[int, int] | None = None,
) -> Generator:
    """The marginal generator at x, of what the heads say about the readings' states, guided towards the class.

    Args:
        without: the reading that does not see the class.
        guidance_scale: γ; the heads' outputs are u + γ (c − u).
        window: (start, stop), the positions of the readings' states that are x.
    """
    readout = LazyReadout(
        model,
        reading.x,
        t,
        processor=processor,
        guidance_scale=guidance_scale,
        reading=reading,
        reading_without=without,
    )
    return path.marginal(readout if window is None else Window(readout, *window), x, t, t_next)


class Window:
    """A readout of the positions from `start` to `stop` of longer sequences [B, L], as of states [B, stop − start]."""

    def __init__(self, readout: LazyReadout, start: int, stop: int) -> None:
        self.readout, self.start, self.stop, self.size = readout, start, stop, stop - start

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        if where is None:
            where = torch.arange(len(self.readout.x) * self.size, device=self.readout.x.device)
        return self.readout(head, self._outside(where))

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """As of `LazyReadout`."""
        sizes = [len(chunk) for chunk in self.readout.prepare(self._outside(where))]
        return where.split(sizes)

    def _outside(self, where: Tensor) -> Tensor:
        return outside(where, self.readout.x.shape[1], self.start, self.stop)


def outside(where: Tensor, length: int, start: int, stop: int) -> Tensor:
    """Positions of the flattened states [B, stop − start], as positions of the sequences [B, length] that they are of."""
    return where // (stop - start) * length + start + where % (stop - start)
