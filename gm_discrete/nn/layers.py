"""Layers that several networks are made of: normalisation, linear layers that start at zero, rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_discrete.nn.config import GMConfig


def zero_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts at zero: used where the output enters the residual stream, modulates it, or is a head's.

    So every block is the identity at initialisation, and the first predictions are uniform. It is no class of its own:
    quantisation and PEFT replace plain `nn.Linear` layers.
    """
    layer = nn.Linear(in_features, out_features, bias)
    vars(layer)["starts_at_zero"] = True  # read by `GMPreTrainedModel._init_weights`
    return layer


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight, with the weight cast to the precision of x, which torch's fused kernel requires."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def rotary_embedding(hidden: Tensor, config: GMConfig, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the rotary positions (arXiv 2104.09864), each [L, 1, head_dim]; sin is −sin in its first half.

    Computed anew in each call: `from_pretrained` leaves non-persistent buffers without values.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    position = torch.arange(hidden.shape[1], device=hidden.device) if position is None else position
    position = position.float()
    exponent = torch.arange(0, head_dim, 2, device=hidden.device, dtype=torch.float32) / head_dim
    angle = position[:, None, None] * config.rope_theta**-exponent
    sin = angle.sin()
    return angle.cos().repeat(1, 1, 2).to(hidden.dtype), torch.cat([-sin, sin], dim=-1).to(hidden.dtype)


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (i, i + head_dim/2) of states [B, L, heads, head_dim] by the angle of their position."""
    cos, sin = rotary
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)
