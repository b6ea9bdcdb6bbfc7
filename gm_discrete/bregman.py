"""Bregman divergences D(target, predicted) between generators of one kind: target first, prediction second.

For every convex φ, D_φ(a, b) = φ(a) − φ(b) − ⟨∇φ(b), a − b⟩ is affine in the target up to φ(a): replacing the marginal
generator by the conditional one changes the expected loss by a constant only, so both have the same gradient
(Generator Matching, proposition 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.kernels import Dirac, Reversal, map_rows


def divergence(
    target: Jump, predicted: Jump, x: Tensor, where: Tensor | None = None, kind: str = "generalized_kl"
) -> Tensor:
    """Divergence of two jump generators at the state x, per position.

    - `generalized_kl`: Σ_{y≠x} [R(y) log(R(y)/R̂(y)) − R(y) + R̂(y)] with the rates R of the target and R̂ of the
      prediction, in nats/time. Its time integral bounds −log p.
    - `cross_entropy`: −log π̂(z) of the belief about the data symbol, in nats: the simplex KL of where a jump is headed.

    Against a `Dirac` target one landing probability is gathered from each row, so that a position costs O(K) for its
    logits and O(1) beyond. The predicted logits are read only where the divergence can be positive.

    Args:
        target, predicted: generators of intensity [B, L].
        x: state [B, L].
        where: bool [B, L], positions to look at; elsewhere the divergence is reported as 0.
        kind: `"generalized_kl"` or `"cross_entropy"`.

    Returns:
        [B, L], float64.
    """
    if kind not in _ROWS:
        raise ValueError(f"kind={kind!r} is no divergence of jumps; choose one of {', '.join(_ROWS)}")
    active = target.intensity + predicted.intensity > 0
    if where is not None:
        active = active & where
    rows = active.flatten().nonzero().squeeze(1)
    predicted.kernel.prepare(rows)
    values = map_rows(lambda chunk: _ROWS[kind](target, predicted, x, chunk), rows, predicted.kernel.vocab_size)
    return torch.zeros(x.numel(), dtype=torch.float64, device=x.device).index_put((rows,), values).view_as(x)


def _generalized_kl(target: Jump, predicted: Jump, x: Tensor, rows: Tensor) -> Tensor:
    x = x.flatten()[rows]
    rate, rate_hat = target.intensity.flatten()[rows], predicted.intensity.flatten()[rows]
    log_ratio = torch.log(rate) - torch.log(rate_hat)
    if isinstance(target.kernel, Dirac):
        z = target.kernel.target[rows]
        log_z, log_leave = predicted.kernel.log_landing(z, x, rows)
        surprise = torch.where(z == x, 0.0, log_ratio - 1 - log_z)
        return rate * surprise + rate_hat * log_leave.exp()
    return _dense_kl(target, predicted, x, rows, rate_hat, log_ratio)


def _dense_kl(target: Jump, predicted: Jump, x: Tensor, rows: Tensor, rate_hat: Tensor, log_ratio: Tensor) -> Tensor:
    """R̂-weighted Σ_{y≠x} k̂ g(u), u = log(R/R̂), g(u) = e^u (u − 1) + 1 ≥ 0; computed so that nothing cancels near u = 0."""
    log_k_hat = predicted.kernel.log_probs(rows)
    log_k = target.kernel.log_probs(rows).to(log_k_hat.dtype) + log_ratio[:, None].to(log_k_hat.dtype)
    k, k_hat, u = log_k.exp(), log_k_hat.exp(), log_k - log_k_hat
    # Where u is small the closed form loses eps/u² of its value, the series below u⁵/420.
    small = u.abs() < torch.finfo(u.dtype).eps ** (1 / 7)
    near, far = torch.where(small, u, 0.0), torch.where(small | (k == 0), 0.0, u)
    series = near**2 * (1 / 2 + near * (1 / 3 + near * (1 / 8 + near * (1 / 30 + near / 144))))
    terms = torch.where(small, k_hat * series, k * (far - 1) + k_hat).scatter(1, x[:, None], 0.0)
    return rate_hat * terms.sum(1, dtype=torch.float64)


def _cross_entropy(target: Jump, predicted: Jump, x: Tensor, rows: Tensor) -> Tensor:
    aim, belief = target.kernel, predicted.kernel
    if isinstance(aim, Reversal) and isinstance(belief, Reversal):
        aim, belief = aim.belief, belief.belief
    if not isinstance(aim, Dirac):
        raise TypeError(f"cross_entropy needs a target headed for one symbol, got the kernel {type(aim).__name__}")
    return -belief.log_landing(aim.target[rows], x.flatten()[rows], rows)[0]


_ROWS = {"generalized_kl": _generalized_kl, "cross_entropy": _cross_entropy}
