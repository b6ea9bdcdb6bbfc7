"""The modules of a model: its backbone, and a head for each quantity that the generators of its fields are made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from gm_discrete.nn.backbone import Backbone
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.field import Field
from gm_discrete.nn.language_models import language_model_class, parts
from gm_discrete.nn.layers import zero_linear
from gm_discrete.nn.names import module_name
from gm_discrete.nn.transformers_backbone import TransformersBackbone


def network_of(
    config: GMConfig, fields: Mapping[str, Field]
) -> tuple[Backbone | DiT | TransformersBackbone, nn.ModuleDict]:
    """(backbone, heads) of a config. The heads are named `name`, or `field:name` if there are several fields.

    Raises:
        ValueError: the config's backbone is no language model of text.
    """
    if isinstance(config.backbone, dict):
        network = config.network_config()
        network._attn_implementation = config._attn_implementation
        base, transform, head = parts(language_model_class(network)(network))
        if not config.tie_word_embeddings:
            vars(head)["starts_at_zero"] = True
            nn.init.zeros_(head.weight)
        heads = nn.ModuleDict({"tokens": head, **edit_heads(fields[""], config.hidden_size)})
        return TransformersBackbone(config, base, transform), heads
    backbone = DiT(config) if config.backbone == "dit" else Backbone(config)
    linear = nn.Linear if config.tie_word_embeddings else zero_linear
    heads = {
        f"{module_name(name)}:{part}" if name else part: linear(
            config.hidden_size, field.slots * size, bias=config.backbone == "dit"
        )
        for name, field in fields.items()
        for part, size in field.heads.items()
    }
    for name, field in fields.items():
        heads |= edit_heads(field, config.hidden_size, f"{module_name(name)}:" if name else "")
    return backbone, nn.ModuleDict(heads)


def edit_heads(field: Field, hidden_size: int, prefix: str = "") -> dict[str, nn.Module]:
    """The heads that a field of strings has beside that of its symbols, by name; none for other fields.

    `edits` predicts how many edits remain at a position, `gap` the difference of the hidden state of the gap after it.
    """
    if field.path.strings is None:
        return {}
    return {
        f"{prefix}edits": zero_linear(hidden_size, field.heads["edits"]),
        f"{prefix}gap": zero_linear(hidden_size, hidden_size, bias=False),
    }
