"""The exact posterior of Gaussian mixtures on a Gaussian path, in place of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gm_discrete.generators import Superposition
from gm_discrete.kernels import Categorical, Kernel, TensorReadout
from gm_discrete.paths.gaussian import GaussianPath


class ExactGaussianModel:
    """Data Σ_k w_k N(m_k, s_k² I) and a `GaussianPath`: the generator by Bayes' rule, for `simulate` and `conditional_loss`.

    Given component k, z is N(m + (α s²/v) (x − α m), s² σ²/v) with v = α² s² + σ²; component k has the posterior weight
    ∝ w_k N(x; α m_k, v I). The jump's mean over that normal law is a Gauss–Hermite sum.

    Args:
        path: with any generators.
        means: m_k, [Z, …] with the shape of one state behind.
        std: s_k ≥ 0, a number or [Z]. 0: the data are the means themselves.
        law: w_k, [Z]; even by default.
        nodes: terms of the sum.
    """

    def __init__(
        self, path: GaussianPath, means: Tensor, std: Tensor | float = 0.0, law: Tensor | None = None, nodes: int = 48
    ) -> None:
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path={path!r} must be a GaussianPath")
        self.path, self.means = path, means.double()
        self.std = torch.as_tensor(std, dtype=torch.float64, device=means.device).expand(len(means))
        if bool((self.std < 0).any()):
            raise ValueError("std must not be negative")
        self.law = torch.full((len(means),), 1 / len(means), dtype=torch.float64) if law is None else law.double()
        if self.law.shape != (len(means),) or not math.isclose(float(self.law.sum()), 1, abs_tol=1e-6):
            raise ValueError(f"law must hold {len(means)} probabilities of sum 1, got {self.law.tolist()}")
        self.points, self.masses = _hermite(nodes if bool((self.std > 0).any()) else 1)

    def sample(self, number: int, rng: torch.Generator | None = None) -> Tensor:
        """Data, [number, …]."""
        k = torch.multinomial(self.law, number, replacement=True, generator=rng)
        noise = torch.randn(number, *self.means.shape[1:], generator=rng, dtype=torch.float64)
        return self.means[k] + noise * self.std[k].view(-1, *[1] * (self.means.dim() - 1))

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        schedule, flat, means = self.path.schedule, x.double().flatten(1), self.means.flatten(1)  # [B, d], [Z, d]
        alpha, sigma = (v[:, None, None] for v in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        s = self.std[:, None]  # [Z, 1]
        total = (alpha * s) ** 2 + sigma**2  # v, [B, Z, 1]
        away = flat[:, None] - alpha * means  # [B, Z, d]
        log_weight = self.law.log() - ((away**2 / total + total.log()) / 2).sum(2)
        weight = log_weight.softmax(1)[:, :, None]  # [B, Z, 1]
        mean = means + alpha * s**2 / total * away
        clean = (weight * mean).sum(1)
        noise = (flat - alpha[:, 0] * clean) / sigma[:, 0]
        reduced, kernel = None, None
        if "jump" in self.path.generators:
            spread = s * sigma / total.sqrt()
            z = (mean[..., None] + spread[..., None] * self.points).transpose(1, 2).flatten(2)  # [B, d, Z·Q]
            mass = (weight[..., None] * self.masses).expand(*mean.shape, -1).transpose(1, 2).flatten(2)
            rates = mass * self.path.reduced_rate(z, (flat[..., None] - alpha * z) / sigma, self.path.at(t, alpha))
            reduced = rates.sum(2).view_as(x).to(x.dtype)
            cells, laws = z.flatten(0, 1), rates.flatten(0, 1).log()
            belief = Categorical(TensorReadout(laws[None]), x.shape, cells.shape[1], x.device, head="landing")

            def landing(when: Tensor) -> Kernel:
                return self.path.landing(belief, x, when, lambda index, u, where: cells[where, index])

            kernel = landing

        return self.path.generator(
            clean.view_as(x).to(x.dtype), noise.view_as(x).to(x.dtype), reduced, kernel, x, t, t_next
        )


def _hermite(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(N(0, 1)), by the eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    beside = torch.arange(1, number, dtype=torch.float64).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return values, vectors[0] ** 2
