"""Exact posteriors in place of a network: of Gaussian mixtures on a Gaussian path, and of data with several fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Factor, Product, Superposition
from gm_discrete.generators.beliefs import NormalBelief
from gm_discrete.generators.kernels import Categorical, TensorReadout
from gm_discrete.generators.landings import ROUNDING
from gm_discrete.paths.check import ExactModel
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.product import ProductPath


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

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x|k), but for a constant, of states x at times t [B] and every component: [B, Z]."""
        return self._given(x, t).log_evidence.sum(2)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        return self.weighted(self.law.log() + self.log_evidence(x, t), x, t, t_next)

    def _given(self, x: Tensor, t: Tensor) -> NormalBelief:
        """About z in each component, [B, Z, d]."""
        flat = x.double().flatten(1)[:, None]  # [B, 1, d]
        return NormalBelief(flat, self.means.flatten(1), self.std[:, None], self.path.at(t, flat))

    def weighted(self, log_weight: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        """The generator where the components have these posterior weights, log [B, Z] but for a constant."""
        flat, means, number = x.double().flatten(1)[:, None], self.means.flatten(1), x[0].numel()  # [B, 1, d], [Z, d]
        now, given = self.path.at(t, flat), self._given(x, t)  # [B, 1, 1]
        log_weight = log_weight.log_softmax(1)[..., None]
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


class ExactProductModel:
    """Data of several fields and a `ProductPath`: the generator by Bayes' rule, with weights from all fields together.

    Data point k, of probability w_k, has symbols where a field is one of symbols, and N(m_k, s²) where it is one of numbers;
    given k the fields are independent, and its posterior weight is ∝ w_k Π_m p_t(x^m|k).

    Args:
        path: fields of symbols on any path, and of numbers on Gaussian ones.
        data: by field, [Z, …]: symbols, or means m_k.
        std: s by field of numbers, a number or [Z]; 0 by default.
        law: w_k, [Z]; even by default.
    """

    def __init__(
        self,
        path: ProductPath,
        data: Mapping[str, Tensor],
        std: Mapping[str, Tensor | float] | None = None,
        law: Tensor | None = None,
    ) -> None:
        path.check(data, torch.ones(len(next(iter(data.values()))), dtype=torch.float64), "data")
        self.path = path
        self.fields: dict[str, Any] = {}
        for name, factor in path.factors.items():
            if isinstance(factor, FinitePath):
                self.fields[name] = ExactModel(factor, data[name], law)
            else:
                self.fields[name] = ExactGaussianModel(factor, data[name], (std or {}).get(name, 0.0), law)  # pyright: ignore
        self.law = next(iter(self.fields.values())).law

    def log_evidence(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x^m|k) of one field, but for a constant: [B, Z]. At t = 1 numbers that are known tell all they can."""
        field = self.fields[name]
        if isinstance(field, ExactModel):
            return field.likelihood(x, t).log()
        return field.log_evidence(x, t.clamp(max=1 - KNOWN))

    def generator(
        self, x: Mapping[str, Tensor], t: Tensor, t_next: Tensor | None = None, network_time: Tensor | None = None
    ) -> Product:
        """The factors are those of the times t; the fields are seen as at the times `told`, where these are others."""
        now, seen = self.path.times(t), self.path.times(t if network_time is None else network_time)
        then = dict.fromkeys(now) if t_next is None else self.path.times(t_next)
        log_weight = self.law.log() + torch.stack([self.log_evidence(name, x[name], seen[name]) for name in x]).sum(0)
        impossible = log_weight.isneginf().all(1, keepdim=True)  # where steps of finite length may lead, too
        log_weight = torch.where(impossible, self.law.log(), log_weight)
        factors: dict[str, Factor] = {}
        for name, field in self.fields.items():
            if isinstance(field, ExactModel):
                logits = field.logits_of(log_weight.softmax(1))
                factors[name] = field.path.marginal(logits, x[name], now[name], then[name])
            else:
                factors[name] = field.weighted(log_weight, x[name], now[name].clamp(max=1 - KNOWN), then[name])
        return Product(factors)


KNOWN = 1e-6
"""1 − t of a number that is known: its noise is then the rounding of float32."""
