"""The network of a model: its backbone and heads, and the fields of the states that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from gm_discrete.nn.backbone import Backbone
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.field import Field
from gm_discrete.paths import EuclideanPath, Path
from gm_discrete.process import State


@dataclass
class Network:
    """A view of a model's two modules, without the Hugging Face class around them.

    It owns nothing: the parameters stay those of the model, `backbone.*` and `heads.*`.

    Attributes:
        path: the probability path.
        fields: the fields of a state; groups: the names of those that share positions.
        backbone: state → hidden states [B, positions, D]; `backbone.finish` → final hidden states.
        heads: final hidden states → numbers for each entry, by `name` or `field:name`.
        whole_batches: whether every evaluation runs all sequences and as many chunks as all entries would need. Processes
            that share the weights (FSDP) must make the same calls, whatever each of them needs.
    """

    path: Path
    fields: Mapping[str, Field]
    groups: Sequence[Sequence[str]]
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
        normalized = dict(x)
        for name, field in self.fields.items():
            if t is not None and not field.path.is_discrete:
                normalized[name] = cast(EuclideanPath, field.path).normalized(x[name], self.path.times(t)[name])
        return self.backbone(normalized, t, attention_mask, class_labels, clean, cache)

    def head(self, field: str, name: str) -> nn.Module:
        """The layer that maps final hidden states to the numbers of each entry of a position."""
        return self.heads[f"{field}:{name}" if field else name]
