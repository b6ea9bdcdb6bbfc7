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
    chunks = predicted.kernel.prepare(rows)
    values = map_rows(lambda chunk: _ROWS[kind](target, predicted, x, chunk), chunks)
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
    if (
        isinstance(target.kernel, Reversal)
        and isinstance(target.kernel.belief, Dirac)
        and isinstance(predicted.kernel, Reversal)
    ):
        relative, mass, mass_hat = _reversal_kl(target.kernel, target.kernel.belief, predicted.kernel, x, rows)
        return rate * (relative + log_ratio * mass - mass) + rate_hat * mass_hat
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


def _reversal_kl(
    aim: Reversal, data: Dirac, predicted: Reversal, x: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ k log(k/k̂), Σ k and Σ k̂ over y ≠ x, each [n], for a data symbol z and a belief π about it.

    Both are (1 − κ) p0(y) c + κ π(y), with 1[y = z] for π in the target and c = 1 − π(x) κ/(B + κ), so that

        Σ_{y≠x} p0(y) log k̂(y) = Σ_{y≠x} p0(y) [log((1 − κ) ĉ p0(y)) + log1p(κ π(y) / ((1 − κ) ĉ p0(y)))]

    is all that needs a row; the target's own cancels against it but for the term at z.
    """
    z, prior, tiny = data.target[rows], aim.prior, torch.finfo(torch.float64).tiny
    b, kappa_t, kappa = aim.stay_odds(rows), aim.kappa_t[rows], aim.kappa_s[rows]
    log_belief = predicted.belief.log_probs(rows)
    belief = log_belief.exp()
    log_z = log_belief.gather(1, z[:, None]).squeeze(1).double()
    at_x = belief.gather(1, x[:, None]).squeeze(1).double()
    leave = belief.scatter(1, x[:, None], 0.0).sum(1, dtype=torch.float64)

    moved, p_x, p_z = z != x, prior[x], prior[z]
    c = torch.where(moved, 1.0, b / (b + kappa_t))
    c_hat = (leave + at_x * b / (b + kappa_t)).clamp(min=tiny)
    odds = kappa / ((1 - kappa) * c_hat)  # of "data" against "noise", but for π(y)/p0(y)
    inverse = torch.where(prior > 0, 1 / prior, 0.0).to(belief.dtype)
    surplus = torch.log1p(odds[:, None].to(belief.dtype) * belief * inverse) * prior.to(belief.dtype)
    surplus = surplus.sum(1, dtype=torch.float64) - p_x * torch.log1p(odds * at_x / p_x)

    noise, noise_z = (1 - kappa) * c, (1 - kappa) * c * p_z
    log_noise_z = torch.log((1 - kappa) * c_hat) + torch.log(p_z.clamp(min=tiny))
    log_z_hat = torch.logaddexp(log_noise_z, torch.log(kappa.clamp(min=tiny)) + log_z)
    at_z = (noise_z + kappa) * (torch.log(noise_z + kappa) - log_z_hat)  # in place of the noise term there, which is
    noise_at_z = torch.xlogy(noise_z, noise_z) - noise_z * log_z_hat  #    part of the sum over all y ≠ x
    relative = (1 - kappa) * ((1 - p_x) * (torch.xlogy(c, c) - c * torch.log(c_hat)) - c * surplus)
    relative = relative + torch.where(moved, at_z - noise_at_z, 0.0)
    mass = noise * (1 - p_x) + torch.where(moved, kappa, 0.0)
    return relative, mass, (1 - kappa) * c_hat * (1 - p_x) + kappa * leave


def _cross_entropy(target: Jump, predicted: Jump, x: Tensor, rows: Tensor) -> Tensor:
    aim, belief = target.kernel.belief, predicted.kernel.belief
    if not isinstance(aim, Dirac):
        raise TypeError(f"cross_entropy needs a target headed for one symbol, got the kernel {type(aim).__name__}")
    return -belief.log_landing(aim.target[rows], x.flatten()[rows], rows)[0]


_ROWS = {"generalized_kl": _generalized_kl, "cross_entropy": _cross_entropy}
