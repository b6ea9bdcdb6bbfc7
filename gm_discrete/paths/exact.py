"""The exact posterior of Gaussian mixtures on a Gaussian path, in place of a network."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from gm_discrete.beliefs import NormalBelief
from gm_discrete.generators import Superposition
from gm_discrete.kernels import Categorical, TensorReadout
from gm_discrete.landings import ROUNDING
from gm_discrete.paths.gaussian import GaussianPath


class ExactGaussianModel:
    """Data Σ_k w_k N(m_k, s_k² I) and a `GaussianPath`: the generator by Bayes' rule, for `simulate` and `conditional_loss`.

    Given component k, z is normal with variance s² σ²/v, v = α² s² + σ² (see `NormalBelief`); component k has the posterior
    weight ∝ w_k N(x; α m_k, v I).

    Args:
        path: with any generators.
        means: m_k, [Z, …] with the shape of one state behind.
        std: s_k ≥ 0, a number or [Z]. 0: the data are the means themselves.
        law: w_k, [Z]; even by default.
    """

    def __init__(self, path: GaussianPath, means: Tensor, std: Tensor | float = 0.0, law: Tensor | None = None) -> None:
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path={path!r} must be a GaussianPath")
        self.path, self.means = path, means.double()
        self.std = torch.as_tensor(std, dtype=torch.float64, device=means.device).expand(len(means))
        if bool((self.std < 0).any()):
            raise ValueError("std must not be negative")
        self.law = torch.full_like(self.std, 1 / len(means)) if law is None else law.double().to(means.device)
        if self.law.shape != (len(means),) or not math.isclose(float(self.law.sum()), 1, abs_tol=ROUNDING):
            raise ValueError(f"law must hold {len(means)} probabilities of sum 1, got {self.law.tolist()}")

    def sample(self, number: int, rng: torch.Generator | None = None) -> Tensor:
        """Data, [number, …]."""
        device = rng.device if rng is not None else self.law.device
        k = torch.multinomial(self.law.to(device), number, replacement=True, generator=rng).to(self.law.device)
        noise = torch.randn(number, *self.means.shape[1:], generator=rng, dtype=torch.float64, device=device).to(
            k.device
        )
        return self.means[k] + noise * self.std[k].view(-1, *[1] * (self.means.dim() - 1))

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        flat, means, number = x.double().flatten(1)[:, None], self.means.flatten(1), x[0].numel()  # [B, 1, d], [Z, d]
        now = self.path.at(t, flat)  # [B, 1, 1]
        given = NormalBelief(flat, means, self.std[:, None], now)  # [B, Z, d]
        log_weight = (self.law.log() + given.log_evidence.sum(2)).log_softmax(1)[..., None]
        clean = (log_weight.exp() * given.mean).sum(1)
        noise = (flat[:, 0] - now.alpha[:, 0] * clean) / now.sigma[:, 0]
        reduced, kernel = None, None
        if "jump" in self.path.generators:
            laws = (log_weight + given.rate.log()).transpose(1, 2)  # [B, d, Z]
            reduced = laws.logsumexp(2).exp().view_as(x).to(x.dtype)
            belief = Categorical(TensorReadout(laws), x.shape, len(means), x.device, head="landing")

            def leaver(cells: Tensor, u: Tensor, where: Tensor) -> Tensor:
                row, entry = where // number, where % number
                at = self.path.at(t[row], u)
                return NormalBelief(flat[row, 0, entry], means[cells, entry], self.std[cells], at).leaver(u)

            kernel = partial(self.path.landing, belief, x, values=leaver)

        return self.path.generator(
            clean.view_as(x).to(x.dtype), noise.view_as(x).to(x.dtype), reduced, kernel, x, t, t_next
        )
