"""The network of a model: its backbone and heads, and what they need to know about the fields of a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gm_discrete.nn.backbone import Backbone
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.dit import DiT
from gm_discrete.paths import EuclideanPath, Path
from gm_discrete.process import State


@dataclass(frozen=True)
class Network:
    """A view of a model's two modules, without the Hugging Face class around them.

    It owns nothing: the parameters stay those of the model, `backbone.*` and `heads.*`.

    Attributes:
        config: of the model.
        path: its probability path.
        backbone: state → hidden states [B, positions, D].
        heads: final hidden states → numbers for each entry, by `name` or `field:name`.
        whole_batches: whether every evaluation runs all sequences and as many chunks as all entries would need. Processes
            that share the weights (FSDP) must make the same calls, whatever each of them needs.
    """

    config: GMConfig
    path: Path
    backbone: Backbone | DiT
    heads: nn.ModuleDict
    whole_batches: bool = False

    def hidden(
        self,
        x: State,
        t: Tensor | None,
        attention_mask: State | None = None,
        class_labels: Tensor | None = None,
        clean: State | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Hidden states [B, positions, D] after the last attention, of the states x at the times t [B] (or [B, M]).

        Continuous fields enter the backbone normalised to unit size. `clean` and `cache` serve block-causal attention (see
        `Backbone`).
        """
        if t is not None:
            times = self.path.times(t)
            x = {
                name: x[name] if path.is_discrete else cast(EuclideanPath, path).normalized(x[name], times[name])
                for name, path in self.path.fields.items()
            }
        return self.backbone(x, t, attention_mask, class_labels, clean, cache)

    def finish(
        self, hidden: Tensor, t: Tensor | None, class_labels: Tensor | None = None, sequence: Tensor | None = None
    ) -> Tensor:
        """Final hidden states: of all positions [B, positions, D], or of rows [n, D] of the sequences [n]."""
        return self.backbone.finish(hidden, t, class_labels, sequence)

    def head(self, field: str, name: str) -> nn.Module:
        """The layer that maps final hidden states to the numbers of each entry of a position."""
        return self.heads[f"{field}:{name}" if field else name]

    def spans(self, x: State) -> dict[str, tuple[int, int]]:
        """First position and number of positions of each field. Groups of fields follow one another."""
        fields, found, start = self.config.state_fields, {}, 0
        for group in self.config.groups:
            length = fields[group[0]].positions(x[group[0]])
            found |= dict.fromkeys(group, (start, length))
            start += length
        return found

    @property
    def dtype(self) -> torch.dtype:
        return next(self.backbone.parameters()).dtype


def by_row(value: Mapping[str, Tensor] | None, rows: Tensor | slice) -> dict[str, Tensor] | None:
    """The given rows of every field."""
    return None if value is None else {name: tensor[rows] for name, tensor in value.items()}
