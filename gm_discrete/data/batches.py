"""Clean data, loss masks and attention masks of the batches that collators make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gm_discrete.paths import Path
from gm_discrete.process import pack_state


def clean_data(path: Path, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(z, scored): the data of a batch and its loss masks, by field. Entries that are not scored are those of the state."""
    state = pack_state(path, batch[path.state_name], path.state_name)
    labels = pack_state(path, batch["labels"], "labels")
    scored = {name: field.loss_mask(labels[name]) for name, field in path.fields.items()}
    z = {name: torch.where(scored[name], labels[name], state[name]) for name in path.fields}
    if path.strings is not None:
        z[""] = path.strings.without_padding(z[""], batch.get("attention_mask"))
    return z, scored


def attends_to_all(attention_mask: Tensor) -> bool:
    """Whether each row of a mask [B, L] is one document without padding, so that the mask is of no effect."""
    return bool(((attention_mask != 0) & (attention_mask == attention_mask[:, :1])).all())
