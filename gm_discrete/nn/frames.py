"""Attention between frames, by which a network of positions and orientations is equivariant.

A frame is a rotation R_i and a point x_i, such as the orientation and the Cα atom of a residue. Turning and moving all
frames together is a change of coordinates, after which the predicted vectors should be turned, and nothing else. So the
network reads frames in relation to each other alone. In every head each position i makes query, key and value points from
its hidden state, in the coordinates of its frame, and (with T_i p = R_i p + x_i)

    a_ij = softmax_j( q_i·k_j/√d − ½ w Σ_p |T_i q_ip − T_j k_jp|² ),      o_ip = T_i⁻¹ Σ_j a_ij T_j v_jp .

Its output is o_ip and |o_ip|, beside Σ_j a_ij v_j of ordinary attention. The distances are products of points in global
coordinates, up to a term that is the same for all j: so all of it is one call of the attention kernel, with 3 P + 1 more
channels, and no tensor has an entry for each pair but the mask.

What the network predicts for a position is in the coordinates of its frame; `to_global` turns it.

Source: Jumper et al. 2021, AlphaFold 2, Algorithm 22 (invariant point attention), here without pair representation.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_discrete.generators import quaternions
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.layers import RMSNorm, rotate, zero_linear
from gm_discrete.nn.masks import same_document
from gm_discrete.paths import GaussianPath
from gm_discrete.process import State

QUERY_POINTS = 4
"""Points of each head whose distances weigh the attention, as in AlphaFold 2."""

VALUE_POINTS = 4
"""Points of each head that are averaged with the weights of the attention."""

RESOLUTION = 1e-3
"""Length below which a distance is rounded off, so that its gradient is finite at 0: 0.01 Å for frames in nanometres."""


class Frames(NamedTuple):
    """The frames of a batch, and which of them attend to each other.

    Attributes:
        matrix: rotation matrices [B, L, 3, 3], whose columns are the axes of each frame.
        origin: points [B, L, 3], around the mean of their document.
        visible: whether a position attends to another, bool [B, 1, L, L]; `None`: to all.
    """

    matrix: Tensor
    origin: Tensor
    visible: Tensor | None = None

    @classmethod
    def of(cls, matrix: Tensor, origin: Tensor, documents: Tensor | None = None) -> Frames:
        """Frames in the precision of the points, float32 at least.

        Args:
            matrix: [B, L, 3, 3]; origin: [B, L, 3]. What they are at padded positions has no effect elsewhere.
            documents: numbers of documents [B, L], 0 where padded; `None`: one document, without padding.
        """
        dtype = torch.promote_types(origin.dtype, torch.float32)
        matrix, origin = matrix.to(dtype), origin.to(dtype)
        if documents is None:
            return cls(matrix, origin - origin.mean(1, keepdim=True))
        real = (documents > 0)[..., None]
        matrix, origin = torch.where(real[..., None], matrix, 0.0), torch.where(real, origin, 0.0)
        visible = same_document(documents, documents)
        with torch.autocast(origin.device.type, enabled=False):
            same = visible[:, 0].to(dtype)
            mean = same @ origin / same.sum(-1, keepdim=True)
        return cls(matrix, torch.where(real, origin - mean, 0.0), visible)

    def place(self, points: Tensor) -> Tensor:
        """Global coordinates R_i p + x_i of points [B, L, H, P, 3] in those of the frames."""
        return torch.einsum("blij,blhpj->blhpi", self.matrix, points) + self.origin[:, :, None, None]

    def local(self, points: Tensor) -> Tensor:
        """Coordinates in the frames, R_iᵀ(p − x_i), of global points [B, L, H, P, 3]."""
        return torch.einsum("blji,blhpj->blhpi", self.matrix, points - self.origin[:, :, None, None])


def frames_of(config: GMConfig, x: State, documents: Tensor | None) -> Frames:
    """The frames of normalised states, see `GMConfig.frames`.

    Points are normalised, times the standard deviation of the data: so they have the size of the data at all times, and are
    in their units at late ones.

    Args:
        x: by field, the nine numbers [B, L, 9] of rotation matrices and points [B, L, 3] among them.
        documents: numbers of documents [B, L], 0 where padded.
    """
    assert config.frames is not None
    rotation, translation = config.frames
    scale = cast(GaussianPath, config.state_fields[translation].path).data_std
    return Frames.of(x[rotation].unflatten(-1, (3, 3)), scale * x[translation], documents)


class FrameAttention(nn.Module):
    """Multi-head attention of hidden states [B, L, D] with rotary positions, and of points in the frames of positions."""

    def __init__(self, config: GMConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.head_dim = config.hidden_size // self.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.query_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.key_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.points = nn.Linear(config.hidden_size, self.num_heads * (2 * QUERY_POINTS + VALUE_POINTS) * 3)
        self.log_weight = nn.Parameter(torch.zeros(self.num_heads))  # of w, relative to its first value
        self.output = zero_linear(
            config.hidden_size + self.num_heads * VALUE_POINTS * 4, config.hidden_size, bias=False
        )

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], frames: Frames) -> Tensor:
        batch, length, _ = hidden.shape
        heads = self.qkv(hidden).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = heads.unbind(2)
        query, key = rotate(self.query_norm(query), rotary), rotate(self.key_norm(key), rotary)
        points = self.points(hidden).view(batch, length, self.num_heads, -1, 3)
        dtype = frames.origin.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.log_weight.to(dtype).exp()
            mixed, local = self._attend(
                query.to(dtype), key.to(dtype), value.to(dtype), points.to(dtype), weight, frames
            )
            size = (local.square().sum(-1) + RESOLUTION**2).sqrt()
            found = torch.cat([mixed.flatten(2), local.flatten(2), size.flatten(2)], -1)
        return self.output(found.to(hidden.dtype))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, points: Tensor, weight: Tensor, frames: Frames
    ) -> tuple[Tensor, Tensor]:
        """Σ_j a_ij v_j [B, L, H, D/H], and the points o_i [B, L, H, P, 3] in the coordinates of the frames.

        Args:
            query, key, value: [B, L, H, D/H]; points: [B, L, H, all points, 3] in the frames; weight: [H].
        """
        ask, offer, carry = frames.place(points).split([QUERY_POINTS, QUERY_POINTS, VALUE_POINTS], -2)
        # At first the P squared distances have together the variance of one product (AlphaFold 2, Algorithm 22).
        weight = (weight * (2 / (9 * QUERY_POINTS)) ** 0.5)[:, None]
        square = offer.square().sum((-1, -2))[..., None]
        query = torch.cat([query * self.head_dim**-0.5, weight * ask.flatten(3), (-weight / 2).expand_as(square)], -1)
        key = torch.cat([key, offer.flatten(3), square], -1)
        value = torch.cat([value, carry.flatten(3)], -1)
        found = value.shape[-1]
        size = -(-max(query.shape[-1], found) // 8) * 8  # kernels take one number of channels, a multiple of 8
        parts = (F.pad(part, (0, size - part.shape[-1])).transpose(1, 2) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=frames.visible, dropout_p=dropout, scale=1.0)
        mixed, carried = mixed.transpose(1, 2)[..., :found].split([self.head_dim, found - self.head_dim], -1)
        return mixed, frames.local(carried.unflatten(-1, (VALUE_POINTS, 3)))


def to_global(rotation: Tensor, local: Tensor) -> Tensor:
    """Predictions in the coordinates of the frames, in global ones: R v of vectors, and R S of rotations.

    Args:
        rotation: unit quaternions of the frames [..., 4].
        local: vectors [..., 3], or unit quaternions [..., 4] of rotations relative to the frames.

    >>> quarter = torch.tensor([0.5, 0.5, 0.5, 0.5]).sqrt() * torch.tensor([1.0, 0.0, 0.0, 1.0])  # about z
    >>> to_global(quarter, torch.tensor([1.0, 0.0, 0.0])).round()
    tensor([0., 1., 0.])
    """
    return (quaternions.rotate if local.shape[-1] == 3 else quaternions.multiply)(rotation, local)
