"""The DiT of published discrete diffusion models (MDLM, SEDD, Duo): a second backbone, with the interface of `Backbone`.

    c = silu(W₂ silu(W₁ [cos ωσ̄, sin ωσ̄])),   (shift, scale, gate) = A c,   x ← x + gate · f((1 + scale) LN(x) + shift)

with f the attention, then the feed-forward network of each block. Its condition c is the total noise σ̄ = −log κ(t).
Sources: Peebles and Xie (arXiv 2212.09748) for the modulation, Lou et al. (arXiv 2310.16834) for the network.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from gm_discrete.nn.backbone import Attention, gated, modulated
from gm_discrete.nn.blocks import BlockCache, window_attention
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.embeddings import precision_of
from gm_discrete.nn.layers import rotary_embedding, zero_linear
from gm_discrete.nn.masks import AttentionMask, bidirectional_mask
from gm_discrete.paths import FinitePath
from gm_discrete.process import State

NOISE_FEATURES = 256
"""Cosines, then as many sines, of σ̄, at periods from 2π to 2π · 10⁴."""


class DiT(nn.Module):
    """Embedding and blocks up to the last attention; `finish` is the rest, position by position, as in `Backbone`.

    Without time conditioning the noise is σ̄ = 0 at all times.
    """

    logit_map = None  # nothing follows the head
    no_window = None

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = cast(FinitePath, config.state_fields[""].path).schedule
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.noise = NoiseEmbedding(config.condition_size)
        last = config.num_hidden_layers - 1
        blocks = [DiTBlock(config, index, feed_forward=index < last) for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([*blocks, DiTFeedForward(config)])
        self.norm = Modulated(config, parts=2)

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
        """Hidden states [B, L, D] after the last attention, of tokens [B, L] at times [B].

        It has no classes and no block-causal attention: class_labels and clean are `None`. The others are as in `Backbone`.
        """
        hidden = self.embed_tokens(x[""]) if embeds is None else embeds  # [B, L, D]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        documents = None if attention_mask is None else attention_mask[""]
        mask, position = None, None
        if cache is not None:
            mask, position = window_attention(self.config, hidden, documents, cache)
        elif documents is not None:
            mask = bidirectional_mask(self.config, hidden, documents)
        condition = self._condition(time, hidden)
        rotary = rotary_embedding(hidden, self.config, position)
        for index, block in enumerate(self.layers[:-1]):
            if record is not None:
                record.append(hidden)
            hidden = block(hidden, rotary, mask, condition, cache=None if cache is None else cache.entry(index))
        return hidden

    def finish(
        self,
        hidden: Tensor,
        time: Tensor | None,
        class_labels: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D] of all positions, or [n, D] of rows that belong to the sequences [n]."""
        condition = self._condition(time, hidden)
        hidden = self.layers[-1](hidden, condition, sequence)
        return self.norm(hidden, condition, sequence)[0]

    def total_noise(self, time: Tensor) -> Tensor:
        """σ̄ = −log κ at times [B], clamped to the range that the network was trained in; 0 without time conditioning."""
        if not self.config.time_conditioning:
            return torch.zeros_like(time)
        least, most = self.config.noise_range
        return (-torch.log(self.schedule.kappa(time))).clamp(least, most)

    def _condition(self, time: Tensor | None, hidden: Tensor) -> Tensor:
        """c, [B, 1, C]."""
        if time is None:
            raise ValueError("time is missing: a DiT is conditioned on the noise; pass time=t, of shape [B], in [0, 1]")
        return self.noise(self.total_noise(time))[:, None].to(hidden.dtype)


class NoiseEmbedding(nn.Module):
    """σ̄ [B] → c [B, C]: its cosines and sines, then a two-layer network with SiLU after both layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(NOISE_FEATURES, size)
        self.outer = nn.Linear(size, size)

    def forward(self, noise: Tensor) -> Tensor:
        half = NOISE_FEATURES // 2
        exponent = torch.arange(half, device=noise.device, dtype=torch.float32) / half
        angle = noise[:, None].float() * torch.exp(-math.log(10000.0) * exponent)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(precision_of(self.inner))
        return F.silu(self.outer(F.silu(self.inner(features))))


class LayerNorm(nn.LayerNorm):
    """(x − mean) / deviation · weight, without bias, in the precision of x.

    The kernel computes in float32 for every type of x, and rounds once. Autocast would copy x and the output for the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, self.weight.to(input.dtype), eps=self.eps)


class Modulated(nn.Module):
    """(1 + scale) LN(x) + shift, and with three parts a gate: what the condition makes of a normalisation.

    The modulation starts at zero, and so every block at the identity.
    """

    def __init__(self, config: GMConfig, parts: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size, bias=False)
        self.modulation = zero_linear(config.condition_size, parts * config.hidden_size)
        self.parts = parts

    def forward(
        self, hidden: Tensor, condition: Tensor, sequence: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden: [B, L, D], or [n, D] with the sequence [n] of each row; condition: [B, 1, C]."""
        shift, scale, *gate = self.modulation(condition).chunk(self.parts, dim=-1)
        return modulated(self.norm(hidden), 1 + scale, shift, gate, sequence)


class DiTFeedForward(nn.Module):
    """x + gate · W₂ gelu(W₁ …), with biases and the tanh form of GELU."""

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.norm = Modulated(config, parts=3)
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, condition: Tensor, sequence: Tensor | None = None) -> Tensor:
        normed, gate = self.norm(hidden, condition, sequence)
        return gated(hidden, gate, self.dropout(self.output(F.gelu(self.input(normed), approximate="tanh"))))


class DiTBlock(GradientCheckpointingLayer):
    """x + gate · attention(…), then (but for the last block) the feed-forward network."""

    def __init__(self, config: GMConfig, index: int, feed_forward: bool) -> None:
        super().__init__()
        self.norm = Modulated(config, parts=3)
        self.attention = Attention(config, index, normalised=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.feed_forward = DiTFeedForward(config) if feed_forward else None

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        condition: Tensor,
        cache: list[Tensor] | None = None,
    ) -> Tensor:
        normed, gate = self.norm(hidden, condition)
        hidden = gated(hidden, gate, self.dropout(self.attention(normed, rotary, mask, cache)))
        return hidden if self.feed_forward is None else self.feed_forward(hidden, condition)
