"""Embeddings of discrete and continuous fields, and of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.field import Field
from gm_discrete.nn.names import module_name
from gm_discrete.process import State

TIME_FEATURES = 128
"""Sines and cosines of t, at periods from 2π/1000 to 20π."""

SYMBOL_SIZE = 16
"""Channels of a symbol that shares its position with other symbols."""


def embedding(field: Field, config: GMConfig) -> nn.Module:
    """The layer that maps a field's entries to hidden states [B, L, D]."""
    if field.is_token:
        return nn.Embedding(field.vocab_size, config.hidden_size)
    if field.vocab_size:
        return PatchEmbedding(config, field.slots, field.vocab_size)
    return NumberEmbedding(config, field.num_inputs)


def places(field: Field, config: GMConfig) -> nn.Embedding | None:
    """A learned vector for each position of an image: rotary positions alone would order its patches on a line."""
    return nn.Embedding(field.length, config.hidden_size) if field.image_shape else None


class FieldsEmbedding(nn.Module):
    """Embeds fields one after another, [B, L_1 + L_2 + …, D]; the embeddings of fields that share positions are summed.

    Every group of fields has a vector of its own; with independent times the time of each field is added as well. What
    frames are does not enter here, but in relation to each other (see `nn/frames.py`).
    """

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.fields, self.groups = config.state_fields, config.groups
        # Prefixed, as the name of a field may be that of an attribute of a module.
        self.keys = {name: f"of {module_name(name)}" for name in self.fields}
        read = {name: field for name, field in self.fields.items() if name not in (config.frames or ())}
        self.entries = nn.ModuleDict({self.keys[name]: embedding(field, config) for name, field in read.items()})
        found = {self.keys[name]: places(field, config) for name, field in self.fields.items()}
        self.places = nn.ModuleDict({name: module for name, module in found.items() if module is not None})
        self.kinds = nn.Embedding(len(self.groups), config.hidden_size)
        self.times = nn.Linear(TIME_FEATURES, config.hidden_size) if config.independent_times else None

    def forward(
        self, x: State, time: Tensor | None, attention_mask: State | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(hidden states, attention mask [B, L] or `None`, place of every position within its field [L]).

        A position is padding only if it is padded in all of its fields. Fields without a mask are of document 1.
        """
        parts, masks, positions = [], [], []
        kinds = self.kinds(torch.arange(len(self.groups), device=next(iter(x.values())).device))
        for kind, group in enumerate(self.groups):
            hidden = kinds[kind]
            for name in group:
                hidden = hidden + self._embedded(name, x[name], time)
            parts.append(hidden)
            positions.append(torch.arange(hidden.shape[1], device=hidden.device))
            if attention_mask:
                given = [attention_mask[name].long() for name in group if name in attention_mask]
                one = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
                masks.append(torch.stack(given).amax(0) if given else one)
        return torch.cat(parts, 1), torch.cat(masks, 1) if masks else None, torch.cat(positions)

    def _embedded(self, name: str, x: Tensor, time: Tensor | None) -> Tensor:
        field, key = self.fields[name], self.keys[name]
        if key in self.entries:
            hidden = self.entries[key](x if field.is_token else field.split(x))
        else:
            hidden = torch.zeros(*x.shape[:2], 1, dtype=self.kinds.weight.dtype, device=x.device)
        if key in self.places:
            hidden = hidden + self.places[key](torch.arange(hidden.shape[1], device=hidden.device))
        if self.times is not None and time is not None:
            column = time if time.dim() == 1 else time[:, list(self.fields).index(name)]
            hidden = hidden + self.times(time_features(column).to(precision_of(self.times)))[:, None]
        return hidden


class PatchEmbedding(nn.Module):
    """The S symbols of each position [B, L, S] → [B, L, D]: a few channels for each symbol, and one matrix for all slots."""

    def __init__(self, config: GMConfig, slots: int, vocab_size: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(vocab_size, SYMBOL_SIZE)
        self.output = nn.Linear(slots * SYMBOL_SIZE, config.hidden_size)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.output(self.symbols(symbols).flatten(2))


class NumberEmbedding(nn.Module):
    """The S real numbers of each position [B, L, S] → [B, L, D].

    A number v enters as v, sin(2^j π v/2) and cos(2^j π v/2), j < F: from v alone the network would not resolve its fine
    scale.
    """

    def __init__(self, config: GMConfig, slots: int) -> None:
        super().__init__()
        self.num_frequencies = config.num_frequencies
        self.output = nn.Linear(slots * (1 + 2 * config.num_frequencies), config.hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        octave = torch.arange(self.num_frequencies, device=values.device, dtype=values.dtype)
        angle = values[..., None] * (math.pi / 2 * 2**octave)
        features = torch.cat([values[..., None], angle.sin(), angle.cos()], dim=-1).flatten(2)
        return self.output(features.to(precision_of(self.output)))


class TimeEmbedding(nn.Module):
    """t [B], or [B, M] of independent times → [B, 1, D]: sines and cosines, then a two-layer network."""

    def __init__(self, hidden_size: int, num_times: int = 1) -> None:
        super().__init__()
        self.num_times = num_times
        self.inner = nn.Linear(num_times * TIME_FEATURES, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)

    def forward(self, time: Tensor) -> Tensor:
        time = time[:, None].expand(-1, self.num_times) if time.dim() == 1 else time
        features = time_features(time).flatten(1).to(precision_of(self.inner))
        return F.silu(self.outer(F.silu(self.inner(features))))[:, None]


def precision_of(layer: nn.Linear) -> torch.dtype:
    """The type of a layer's input: that of its weight, or float32 where the weight is quantised to integers."""
    dtype = layer.weight.dtype
    return dtype if dtype.is_floating_point else torch.float32


def time_features(time: Tensor) -> Tensor:
    """Cosines and sines of times at geometrically spaced periods, [..., TIME_FEATURES], float32."""
    half = TIME_FEATURES // 2
    exponent = torch.arange(half, device=time.device, dtype=torch.float32) / half
    angle = 1000.0 * time[..., None].float() * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
