"""The transformer: noisy state → hidden states [B, positions, D], with attention in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gm_discrete.nn.blocks import BlockCache, append, block_attention, window_attention
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.embeddings import FieldsEmbedding, TimeEmbedding, embedding, places
from gm_discrete.nn.frames import FrameAttention, Frames, frames_of
from gm_discrete.nn.layers import RMSNorm, rotary_embedding, rotate, zero_linear
from gm_discrete.nn.masks import AttentionMask, bidirectional_mask, neighbours
from gm_discrete.process import State


class Backbone(nn.Module):
    """Embedding and blocks, up to the last attention. What follows it works on each position by itself, and is `finish`.

    So the last feed-forward network, like the head, runs only at the positions whose output is needed.
    """

    logit_map = None  # nothing follows the head

    @property
    def no_window(self) -> str | None:
        """Why the positions around a block cannot be cached; `None` if they can."""
        size = self.config.conv_kernel_size
        return f"conv_kernel_size={size} mixes hidden states of a block with those around it" if size else None

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.config = config
        fields = config.state_fields
        self.field = fields.get("")  # the only one, if there is just one
        # A single field has no embedding of several: its parameters keep the names that other transformers give them.
        if "" in fields:
            self.embed_tokens, self.embed_places = embedding(fields[""], config), places(fields[""], config)
        else:
            self.embed_tokens, self.embed_places = FieldsEmbedding(config), None
        times = len(fields) if config.independent_times else 1
        self.time = TimeEmbedding(config.hidden_size, times) if config.time_conditioning else None
        self.classes = nn.Embedding(config.num_classes + 1, config.hidden_size) if config.num_classes else None
        self.conditioned = config.time_conditioning or config.num_classes > 0
        last = config.num_hidden_layers - 1
        blocks = [Block(config, index, feed_forward=index < last) for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([*blocks, FeedForward(config)])
        self.norm = Norm(config, parts=2)

    def forward(
        self,
        x: State,
        time: Tensor | None,
        attention_mask: State | None = None,
        class_labels: Tensor | None = None,
        clean: State | None = None,
        cache: BlockCache | None = None,
        embeds: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, positions, D] after the last attention, for `finish`.

        Args:
            x: states by field, continuous ones of unit size (`path.normalized`). Positions are those of all fields.
            time: [B], or [B, M] of independent times.
            attention_mask: [B, L] by field, 0 where padded; different positive numbers are of different documents.
            class_labels: [B], −1 for none.
            clean: for block-causal attention: the sequences [B, L] whose blocks the later blocks of x attend to.
            cache: of the positions around x, which is then a part of the sequence; attention_mask is of all of it.
            embeds: [B, L, D], in place of the embedding of a field of tokens.
            record: gets the embedding, and the hidden states after every block but the last.
        """
        if clean is not None:
            x = {name: torch.cat([value, clean[name]], 1) for name, value in x.items()}
        if self.field is None:
            hidden, mask, position = self.embed_tokens(x, time, attention_mask)
        else:
            values = x[""] if self.field.is_token else self.field.split(x[""])
            hidden = self.embed_tokens(values) if embeds is None else embeds  # [B, L, D]
            if self.embed_places is not None:
                start = 0 if cache is None else cache.length
                hidden = hidden + self.embed_places(torch.arange(hidden.shape[1], device=hidden.device) + start)
            mask, position = None if attention_mask is None else attention_mask[""], None
        frames = None if self.config.frames is None else frames_of(self.config, x, mask)
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # the residual stream too, not only the products
            hidden = hidden.to(torch.get_autocast_dtype(device))
        if self.config.block_size is None and cache is None:
            bias = None if mask is None or frames is not None else bidirectional_mask(self.config, hidden, mask)
        elif self.config.block_size is None:
            bias, position = window_attention(self.config, hidden, mask, cast(BlockCache, cache))
        else:
            bias, position = block_attention(self.config, hidden, clean is not None, mask, cache)
        condition = self._condition(time, class_labels, hidden) if self.conditioned else None
        rotary = rotary_embedding(hidden, self.config, position)
        size = self.config.conv_kernel_size
        near = neighbours(size, mask, position, hidden.dtype) if size else None
        for index, block in enumerate(self.layers[:-1]):
            if record is not None:
                record.append(hidden)
            entry = None if cache is None else cache.entry(index)
            hidden = block(hidden, rotary, bias, near, condition, cache=entry, frames=frames)
        return hidden if clean is None else hidden.chunk(2, 1)[0]

    def finish(
        self,
        hidden: Tensor,
        time: Tensor | None,
        class_labels: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, positions, D] of all positions, or [n, D] of rows that belong to the sequences [n]."""
        condition = self._condition(time, class_labels, hidden) if self.conditioned else None
        hidden = self.layers[-1](hidden, condition, sequence=sequence)
        return self.norm(hidden, condition, sequence)[0]

    def _condition(self, time: Tensor | None, class_labels: Tensor | None, hidden: Tensor) -> Tensor:
        """The vector that modulates the norms, [B, 1, D]: of the times [B] or [B, M] and the classes [B] (−1: none)."""
        condition = None if self.time is None else self.time(time)
        if self.classes is not None:
            count = (hidden if time is None else time).shape[0]
            labels = torch.full((count,), -1, device=hidden.device) if class_labels is None else class_labels
            by_class = self.classes(torch.where(labels < 0, self.config.num_classes, labels))[:, None]
            condition = by_class if condition is None else condition + by_class
        assert condition is not None  # `conditioned`
        return condition.to(hidden.dtype)


class Block(GradientCheckpointingLayer):
    """x + attention(mix(norm(x))), then (except in the last block) the feed-forward network.

    With time conditioning both are gated. `mix` is the local convolution, if the model has one, else the identity.
    """

    def __init__(self, config: GMConfig, index: int, feed_forward: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(config, parts=3)
        self.attention_mix = LocalConvolution(config) if config.conv_kernel_size else None
        self.attention = Attention(config, index) if config.frames is None else FrameAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.feed_forward = FeedForward(config, config.conv_kernel_size) if feed_forward else None

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        near: Tensor | None,
        condition: Tensor | None,
        cache: list[Tensor] | None = None,
        frames: Frames | None = None,
    ) -> Tensor:
        normed, gate = self.attention_norm(hidden, condition)
        if self.attention_mix is not None:
            normed = self.attention_mix(normed, near)
        mixed = self.attention(normed, rotary, *((mask, cache) if frames is None else (frames,)))
        hidden = gated(hidden, gate, self.dropout(mixed))
        return hidden if self.feed_forward is None else self.feed_forward(hidden, condition, near)


class FeedForward(nn.Module):
    """x + mlp(mix(norm(x))); without `mix` it works on each position by itself."""

    def __init__(self, config: GMConfig, conv_kernel_size: int = 0) -> None:
        super().__init__()
        self.norm = Norm(config, parts=3)
        self.mix = LocalConvolution(config) if conv_kernel_size else None
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden: Tensor,
        condition: Tensor | None,
        near: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:
        normed, gate = self.norm(hidden, condition, sequence)
        if self.mix is not None:
            normed = self.mix(normed, near)
        return gated(hidden, gate, self.dropout(self.mlp(normed)))


class Norm(nn.Module):
    """RMS normalisation, modulated by the time (adaLN, arXiv 2212.09748): shift, scale and, with three parts, a gate.

    The modulation starts at the identity. Returns the normalised states and the gate, `None` for a gate of 1.
    """

    def __init__(self, config: GMConfig, parts: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        conditioned = config.time_conditioning or config.num_classes
        self.modulation = zero_linear(config.hidden_size, parts * config.hidden_size) if conditioned else None
        self.parts = parts

    def forward(
        self, hidden: Tensor, condition: Tensor | None, sequence: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden: [B, L, D], or [n, D] with the sequence [n] of each row; condition: [B, 1, D]."""
        normed = self.norm(hidden)
        if self.modulation is None:
            return normed, None
        shift, scale, *gate = self.modulation(condition).chunk(self.parts, dim=-1)
        return modulated(normed, 1 + scale, shift, [1 + part for part in gate], sequence)


def modulated(
    normed: Tensor, factor: Tensor, shift: Tensor, gate: list[Tensor], sequence: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(factor · normed + shift, the gate, if there is one).

    Args:
        normed: normalised states [B, L, D], or [n, D] with the sequence [n] of each row.
        factor, shift: [B, 1, D]; gate: [B, 1, D], or nothing.
    """
    parts = [factor, shift, *gate]
    if sequence is not None:
        parts = torch.cat(parts, -1)[sequence, 0].chunk(len(parts), dim=-1)
    return multiply_add(normed, parts[0], parts[1]), parts[2] if gate else None


def gated(hidden: Tensor, gate: Tensor | None, update: Tensor) -> Tensor:
    """hidden + gate · update, with `None` for a gate of 1."""
    return hidden + update if gate is None else multiply_add(gate, update, hidden)


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, in one operation where no gradient is recorded: that of `addcmul` multiplies a and b by 1 first."""
    return a * b + c if torch.is_grad_enabled() else torch.addcmul(c, a, b)


class Attention(nn.Module):
    """Bidirectional multi-head attention with rotary positions and, unless `normalised` is off, RMS-normalised queries and
    keys."""

    is_causal = False  # transformers' attention functions read it: without a mask SDPA would be causal
    num_key_value_groups = 1

    def __init__(self, config: GMConfig, index: int, normalised: bool = True) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = index
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.query_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if normalised else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if normalised else nn.Identity()
        self.output = zero_linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: list[Tensor] | None = None,
    ) -> Tensor:
        batch, length, _ = hidden.shape
        # Positions before heads, as the product has them and the attention's kernels read and write them: no copies.
        heads = self.qkv(hidden).view(batch, length, 3, self.config.num_attention_heads, self.head_dim)
        query, key, value = heads.unbind(2)  # [B, L, heads, head_dim]
        query, key = rotate(self.query_norm(query), rotary), rotate(self.key_norm(key), rotary)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = append(cache, key, value)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "sdpa", eager_attention)
        mixed, _ = attend(
            self,
            query,
            key,
            value,
            **(mask if isinstance(mask, Mapping) else {"attention_mask": mask}),
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=False,
        )
        return self.output(mixed.reshape(batch, length, self.config.hidden_size))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), or squared ReLU (arXiv 2109.08668)."""

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.gated = config.hidden_act == "swiglu"
        self.input = nn.Linear(config.hidden_size, (1 + self.gated) * config.intermediate_size, bias=False)
        self.output = zero_linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.input(hidden).chunk(2, dim=-1)
            return self.output(F.silu(gate) * up)
        positive = F.relu(self.input(hidden))
        return self.output(positive * positive)


class LocalConvolution(nn.Module):
    """y_i = Σ_j w_j ⊙ x_{i+j} over |j| ≤ r: a depthwise convolution over the nearest positions of a field and document.

    A masked symbol depends mostly on its neighbours, which attention takes long to learn.
    """

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.conv_kernel_size, config.hidden_size))

    def forward(self, hidden: Tensor, near: Tensor | None) -> Tensor:
        """near: which of the positions around each one belong to its field and document (see `neighbours`); `None`: all."""
        radius, length = len(self.weight) // 2, hidden.shape[1]
        padded = F.pad(hidden, (0, 0, radius, radius))
        weight = self.weight.to(hidden.dtype)
        mixed = hidden * weight[radius]
        for j in range(len(weight)):
            if j != radius:
                neighbour = padded[:, j : j + length]
                mixed = multiply_add(neighbour if near is None else neighbour * near[j], weight[j], mixed)
        return mixed


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """softmax(scaling · q kᵀ + mask) v, written out (`attn_implementation="eager"`)."""
    scores = query @ key.transpose(-1, -2) * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1, dtype=torch.float32)
    weights = F.dropout(weights.to(value.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
