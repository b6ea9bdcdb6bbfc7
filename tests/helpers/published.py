"""MDLM's, SEDD's and Duo's networks and what they make of them, written from their papers on a state dict, in float64.

Time τ runs from data (0) to noise (1) here, as it does there.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

K, WIDTH, HEADS, CONDITION, DEPTH, HIDDEN, LENGTH = 7, 16, 2, 6, 3, 24, 5
EPS = 1e-3

FLAT = {
    "n_heads": HEADS,
    "model_length": LENGTH,
    "dropout": 0.1,
    "hidden_dim": WIDTH,
    "cond_dim": CONDITION,
    "n_blocks": DEPTH,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mdlm": {"model_type": "mdlm", "time_conditioning": False, "vocab_size": K, **FLAT},
    "mdlm, conditioned on time": {"model_type": "mdlm", "time_conditioning": True, "vocab_size": K, **FLAT},
    "duo": {"model_type": "DUO", "causal": False, "var_min": True, "vocab_size": K, **FLAT},
    "sedd": {
        "tokens": K - 1, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"},
        "model": {"n_heads": HEADS, "length": LENGTH, "dropout": 0.1, "scale_by_sigma": True},
    },
}  # fmt: skip
"""What stands in their config.json."""


def state_dict(seed: int = 0, symbols: int = K) -> dict[str, Tensor]:
    """Random weights under the names of the originals, in the order in which their modules define them."""
    size = (LENGTH_OF_HEAD := WIDTH // HEADS) // 2
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (symbols, WIDTH),
        "sigma_map.mlp.0.weight": (CONDITION, 256),
        "sigma_map.mlp.0.bias": (CONDITION,),
        "sigma_map.mlp.2.weight": (CONDITION, CONDITION),
        "sigma_map.mlp.2.bias": (CONDITION,),
        "rotary_emb.inv_freq": (size,),
    }
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.norm1.weight": (WIDTH,),
            f"blocks.{i}.attn_qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn_out.weight": (WIDTH, WIDTH),
            f"blocks.{i}.norm2.weight": (WIDTH,),
            f"blocks.{i}.mlp.0.weight": (HIDDEN, WIDTH),
            f"blocks.{i}.mlp.0.bias": (HIDDEN,),
            f"blocks.{i}.mlp.2.weight": (WIDTH, HIDDEN),
            f"blocks.{i}.mlp.2.bias": (WIDTH,),
            f"blocks.{i}.adaLN_modulation.weight": (6 * WIDTH, CONDITION),
            f"blocks.{i}.adaLN_modulation.bias": (6 * WIDTH,),
        }
    shapes |= {
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (symbols, WIDTH),
        "output_layer.linear.bias": (symbols,),
        "output_layer.adaLN_modulation.weight": (2 * WIDTH, CONDITION),
        "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
    }
    noise = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=noise) * _scale(shape) for name, shape in shapes.items()}
    state["rotary_emb.inv_freq"] = 1 / 10000.0 ** (torch.arange(0, LENGTH_OF_HEAD, 2).float() / LENGTH_OF_HEAD)
    return state


def _scale(shape: tuple[int, ...]) -> float:
    return 0.5 if len(shape) == 1 else 1 / math.sqrt(min(shape[1], 16))


def total_noise(tau: Iterable[float] | Tensor, eps: float = EPS) -> Tensor:
    """σ̄(τ) = −log(1 − (1 − ε)τ)."""
    return -torch.log1p(-(1 - eps) * torch.as_tensor(tau, dtype=torch.float64))


def network(state: dict[str, Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """The raw output u [B, L, K] on symbols x [B, L], conditioned on σ̄ [B]."""
    w = {name: tensor.double() for name, tensor in state.items()}
    frequency = torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
    angles = sigma[:, None].double() * frequency
    features = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    inner = _silu(features @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"])
    c = _silu(inner @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])  # [B, C]
    h = w["vocab_embed.embedding"][x]
    for i in range(DEPTH):
        p = f"blocks.{i}."
        parts = (c @ w[p + "adaLN_modulation.weight"].T + w[p + "adaLN_modulation.bias"])[:, None].split(WIDTH, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        mixed = _attention(_norm(h, w[p + "norm1.weight"]) * (1 + scale_a) + shift_a, w[p + "attn_qkv.weight"])
        h = h + gate_a * (mixed @ w[p + "attn_out.weight"].T)
        inside = _norm(h, w[p + "norm2.weight"]) * (1 + scale_m) + shift_m
        inside = _gelu(inside @ w[p + "mlp.0.weight"].T + w[p + "mlp.0.bias"])
        h = h + gate_m * (inside @ w[p + "mlp.2.weight"].T + w[p + "mlp.2.bias"])
    o = "output_layer."
    shift, scale = (c @ w[o + "adaLN_modulation.weight"].T + w[o + "adaLN_modulation.bias"])[:, None].split(WIDTH, -1)
    h = _norm(h, w[o + "norm_final.weight"]) * (1 + scale) + shift
    return h @ w[o + "linear.weight"].T + w[o + "linear.bias"]


def _silu(v: Tensor) -> Tensor:
    return v / (1 + torch.exp(-v))


def _gelu(v: Tensor) -> Tensor:
    return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def _norm(h: Tensor, weight: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight


def _attention(h: Tensor, qkv: Tensor) -> Tensor:
    """Every head by itself; channels i and i + d/2 are a complex number that turns with the position."""
    size = WIDTH // HEADS
    position = torch.arange(h.shape[1]).double()
    turn = torch.polar(
        torch.ones(1).double(), position[:, None] * 10000.0 ** (-torch.arange(size // 2).double() * 2 / size)
    )
    q, k, v = (h @ rows.T for rows in qkv.split(WIDTH))
    mixed = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        a, b = (torch.complex(y[..., part][..., : size // 2], y[..., part][..., size // 2 :]) * turn for y in (q, k))
        scores = (a @ b.conj().transpose(1, 2)).real / math.sqrt(size)  # Re⟨a, b⟩ is the product of the real vectors
        mixed.append(torch.softmax(scores, -1) @ v[..., part])
    return torch.cat(mixed, -1)


# What the families make of u


def mdlm_log_belief(u: Tensor, x: Tensor, mask: int) -> Tensor:
    """log π [B, L, K] (SUBS): no mask, and revealed symbols carry over."""
    u = u.clone()
    u[..., mask] = -torch.inf
    carried = torch.full_like(u, -torch.inf).scatter(-1, x[..., None], 0.0)
    return torch.where((x == mask)[..., None], torch.log_softmax(u, -1), carried)


def sedd_log_score(u: Tensor, x: Tensor, sigma: Tensor, scale_by_sigma: bool) -> Tensor:
    """log s(y) = log p(y)/p(x); 0 at y = x."""
    if scale_by_sigma:
        u = u - torch.log(torch.expm1(sigma))[:, None, None] - math.log(u.shape[-1] - 1)
    return u.scatter(-1, x[..., None], 0.0)


def duo_step(u: Tensor, x: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """The law [B, L, K] of x_s given x_t, for s < t (less noise): equation for q(x_s|x_t) with x̂ = softmax(u)."""
    belief, here = torch.softmax(u, -1), torch.nn.functional.one_hot(x, u.shape[-1]).double()
    symbols, ratio = u.shape[-1], alpha_t / alpha_s
    above = (
        alpha_t * symbols * belief * here
        + (ratio - alpha_t) * here
        + (alpha_s - alpha_t) * belief
        + (1 - ratio) * (1 - alpha_s) / symbols
    )
    return above / (alpha_t * symbols * (belief * here).sum(-1, keepdim=True) + 1 - alpha_t)


def duo_bound(u: Tensor, x: Tensor, z: Tensor, alpha: float) -> Tensor:
    """The integrand of its bound [B, L], for dα: by x̄ = Kαx̂ + 1 − α, with sums over all symbols j, as the paper states it.

    −1/(Kα) [ K/z̄_x − K/x̄_x − Σ_j (z̄_j/z̄_x) log( (x̄_x z̄_j) / (x̄_j z̄_x) ) ], with z̄ the same of the one-hot z.
    """
    symbols = u.shape[-1]
    said = symbols * alpha * torch.softmax(u, -1) + 1 - alpha
    true = symbols * alpha * torch.nn.functional.one_hot(z, symbols).double() + 1 - alpha
    said_x, true_x = said.gather(-1, x[..., None]), true.gather(-1, x[..., None])
    inner = (true / true_x * torch.log(said_x * true / (said * true_x))).sum(-1)
    return -(symbols / true_x - symbols / said_x).squeeze(-1) / (symbols * alpha) + inner / (symbols * alpha)
