"""Attention masks of the numbers of documents, in the form that each implementation of attention takes.

`attention_mask` [B, L] is 0 where padded, and positions with different positive numbers are of different documents. A
position attends to those with its own number. So a padded one attends to padding, which nothing else reads, and no softmax
is over nothing. Values are not read on the host, which would stall a GPU and cannot be captured in a CUDA graph; flash
attention is the exception, see `variable_lengths`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.utils.generic import is_flash_attention_requested

from gm_discrete.generators.rows import require
from gm_discrete.nn.config import GMConfig

PLAIN = ("sdpa", "eager")
"""Implementations whose mask is a tensor, made by operations of the device alone."""

STEPS = 0.7548776662466927, 0.5698402909980532, 618.034
"""1/p and 1/p² with p³ = p + 1, whose multiples, modulo 1, fill the unit square most evenly (Roberts' R₂ sequence), and a
number that moves them far between one share and the next."""

AttentionMask: TypeAlias = Tensor | BlockMask | Mapping[str, Any] | None
"""What the implementation takes as a mask, or its arguments for sequences of different lengths; `None`: no mask."""


def bidirectional_mask(config: GMConfig, hidden: Tensor, documents: Tensor) -> AttentionMask:
    """The mask by which a position attends to all of its document.

    Args:
        hidden: [B, L, D], of the type of the scores.
        documents: numbers of documents [B, L], 0 where padded.
    """
    name, documents = config._attn_implementation or "sdpa", documents.to(hidden.device)
    if is_flash_attention_requested(requested_attention_implementation=name):
        return variable_lengths(documents)
    if name not in PLAIN:
        return create_bidirectional_mask(
            config, hidden, None, and_mask_function=lambda b, _, q, k: documents[b, q] == documents[b, k]
        )
    same = same_document(documents, documents)
    return same if name == "sdpa" else additive(same, hidden.dtype)


def local_masks(config: PreTrainedConfig, hidden: Tensor, documents: Tensor) -> dict[str, AttentionMask]:
    """By kind of layer, the masks of an encoder of transformers some of whose layers attend to neighbours alone.

    Args:
        config: of the encoder; hidden, documents: as in `bidirectional_mask`.
    """
    name, documents = config._attn_implementation or "sdpa", documents.to(hidden.device)
    if name not in PLAIN:

        def same(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return documents[b, query] == documents[b, key]

        return {
            "full_attention": create_bidirectional_mask(config, hidden, None, and_mask_function=same),
            "sliding_attention": create_bidirectional_sliding_window_mask(config, hidden, None, and_mask_function=same),
        }
    place = torch.arange(hidden.shape[1], device=hidden.device)
    everywhere = same_document(documents, documents)
    near = everywhere & ((place[:, None] - place).abs() <= config.sliding_window)
    masks = {"full_attention": everywhere, "sliding_attention": near}
    return {kind: mask if name == "sdpa" else additive(mask, hidden.dtype) for kind, mask in masks.items()}


def partly_causal_mask(config: GMConfig, hidden: Tensor, documents: Tensor | None, ahead: float) -> Tensor:
    """The mask with which a position attends to those before it and to a share of those after it.

    It depends on positions and share alone: processes that train together have the same, and so does a resumed run.

    Args:
        hidden, documents: as in `bidirectional_mask`.
        ahead: the share. Each one has pairs of positions of its own.

    Raises:
        ValueError: the attention implementation takes no mask of this form.
    """
    name = config._attn_implementation or "sdpa"
    if name not in PLAIN:
        raise ValueError(
            f"attn_implementation={name!r} has no mask for attention to a share of the later positions, ahead={ahead}: "
            "load the model with 'sdpa' or 'eager' to go from causal to bidirectional attention"
        )
    place = torch.arange(hidden.shape[1], device=hidden.device)
    row, column = STEPS[0] * place.float()[:, None], STEPS[1] * place.float()
    among = (row + column + STEPS[2] * ahead) % 1 < ahead
    visible = ((place[:, None] >= place) | among)[None, None]
    if documents is not None:
        visible = visible & same_document(documents, documents)
    return visible if name == "sdpa" else additive(visible, hidden.dtype)


def same_document(query: Tensor, key: Tensor) -> Tensor:
    """Whether the numbers of documents [B, Q] and [B, keys] are equal, bool [B, 1, Q, keys]."""
    return query[:, None, :, None] == key[:, None, None, :]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a type: 0 where `visible`, and its least number elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, zero, torch.finfo(dtype).min)


def variable_lengths(documents: Tensor) -> dict[str, Any]:
    """Arguments of flash attention, which takes the batch as one sequence of parts: documents, and padding between them.

    Their number has to be known on the host: this waits for the device once per call of the backbone.

    Raises:
        ValueError: (on a GPU an error of the device) a document is in two parts, with others or padding between them.
    """
    length, documents = documents.shape[1], documents.long()
    begins = documents != F.pad(documents[:, :-1], (1, 0), value=-1)
    ordered = documents.sort(dim=1).values
    kinds = ordered != F.pad(ordered[:, :-1], (1, 0), value=-1)
    whole = ((begins & (documents != 0)).sum(1) == (kinds & (ordered != 0)).sum(1)).all()
    require(
        whole,
        ValueError,
        "attention_mask has a document in several parts, which flash attention does not take: let the positions of a "
        "document follow each other, or use attn_implementation='sdpa'",
    )
    starts = begins.flatten().nonzero().squeeze(1)
    ends = F.pad(starts, (0, 1), value=documents.numel()).int()
    return {
        "attention_mask": None,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": length,
        "max_length_k": length,
    }


def neighbours(size: int, documents: Tensor | None, position: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """1 where the position at each of the offsets −r … r is of the same field and document, else 0: [size, B or 1, L, 1].

    Args:
        size: of the neighbourhood, 2 r + 1.
        documents: numbers of documents [B, L], 0 where padded.
        position: the place of each position within its field [L], if there are several.
    """
    radius, near = size // 2, None
    if documents is not None:
        near = _around(documents, radius) == documents
    if position is not None:  # the end of a field is next to the beginning of another
        offset = torch.arange(-radius, radius + 1, device=position.device)[:, None]
        follows = (_around(position, radius) == position + offset)[:, None]
        near = follows if near is None else near & follows
    return None if near is None else near[..., None].to(dtype)


def _around(values: Tensor, radius: int) -> Tensor:
    """The value at each of the offsets −r … r from every place of the last dimension: [2 r + 1, …].

    Beyond the ends it is 0, which does not matter: the states that are mixed are 0 there, too.
    """
    length, padded = values.shape[-1], F.pad(values, (radius, radius))
    return torch.stack([padded[..., j : j + length] for j in range(2 * radius + 1)])
