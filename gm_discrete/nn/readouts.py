"""The readouts of all fields of a state, which share one evaluation of the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gm_discrete.nn.blocks import BlockCache, WindowCache
from gm_discrete.nn.edit_readout import EditReadout
from gm_discrete.nn.readout import HiddenStates, LazyReadout, LogitsProcessor, Network, OnRead
from gm_discrete.paths.schedules import TimeLike
from gm_discrete.process import State


def readouts(
    network: Network,
    x: State,
    t: Tensor,
    times: Mapping[str, TimeLike],
    processor: LogitsProcessor | None = None,
    guidance_scale: float | None = None,
    *,
    attention_mask: State | None = None,
    class_labels: Tensor | None = None,
    clean: State | None = None,
    cache: BlockCache | None = None,
    window: WindowCache | None = None,
    on_read: OnRead | None = None,
) -> dict[str, LazyReadout]:
    """The readout of each field. They share one evaluation of the backbone, and with guidance one more without the class.

    Args:
        t: times of the network, [B] or [B, M]; times: those of the generators, by field.
        guidance_scale: γ; `None` and 1 are no guidance.
        on_read: observes the posteriors of discrete fields.

    Raises:
        ValueError: there is guidance, but no class.
    """
    hidden, unconditional = HiddenStates(network, x, t, attention_mask, class_labels, clean, cache, window), None
    scale = 1.0 if guidance_scale is None else guidance_scale
    if scale != 1:
        if class_labels is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels to guide towards")
        unconditional = HiddenStates(network, x, t, attention_mask, clean=clean)
    found = {}
    for name in x:
        kind = LazyReadout if network.fields[name].path.strings is None else EditReadout
        found[name] = kind(hidden, name, times[name], processor, unconditional, scale, on_read)
    return found
