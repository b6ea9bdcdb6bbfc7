"""Exact posteriors in place of a network, for Gaussian mixtures on a Gaussian path and for data with several fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Never

import torch
from torch import Tensor

from gm_discrete.generators import Factor, Product, Superposition
from gm_discrete.generators.beliefs import NormalBelief
from gm_discrete.generators.kernels import Categorical, TensorReadout
from gm_discrete.generators.landings import ROUNDING
from gm_discrete.paths.affine import AffineAt
from gm_discrete.paths.check import ExactModel
from gm_discrete.paths.exact_rotations import ExactRotationModel
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.product import ProductPath
from gm_discrete.paths.rotations import SO3Path
from gm_discrete.paths.schedules import TimeLike
from gm_discrete.renamed import refuse_unknown


class ExactGaussianModel:
    """A process whose data are a Gaussian mixture Σ_k w_k N(m_k, s_k² I), with the exact marginal generator.

    Given component k, z is normal with variance s² σ²/v, v = α² s² + σ² (see `NormalBelief`); component k has the posterior
    weight ∝ w_k N(x; α m_k, v I). Use it in place of a network, in `simulate` or `conditional_loss`.

    Args:
        path: with any generators.
        means: m_k, [Z, …]: the shape of one state after the first dimension.
        std: s_k ≥ 0, a number or [Z]. 0: the data are the means themselves.
        weights: w_k, [Z]; equal by default.

    >>> model = ExactGaussianModel(GaussianPath(), means=torch.tensor([[[-1.0]], [[1.0]]]))
    >>> model.generator(torch.zeros(1, 1, 1), torch.tensor([0.5])).parts["flow"].velocity
    tensor([[[0.]]])
    """

    def __init__(
        self,
        path: GaussianPath,
        means: Tensor,
        std: Tensor | float = 0.0,
        weights: Tensor | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(unknown, "ExactGaussianModel", {"law": "weights"})
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path={path!r} must be a GaussianPath")
        self.path, self.means = path, means.double()
        self.std = torch.as_tensor(std, dtype=torch.float64, device=means.device).expand(len(means))
        if bool((self.std < 0).any()):
            raise ValueError(f"std={self.std.tolist()} must not be negative")
        even = torch.full_like(self.std, 1 / len(means))
        self.weights = even if weights is None else weights.double().to(means.device)
        if self.weights.shape != (len(means),) or not math.isclose(float(self.weights.sum()), 1, abs_tol=ROUNDING):
            raise ValueError(f"weights={self.weights.tolist()} must hold {len(means)} probabilities of sum 1")

    def sample(self, number: int, rng: torch.Generator | None = None) -> Tensor:
        """Data, [number, …]."""
        device = rng.device if rng is not None else self.weights.device
        k = torch.multinomial(self.weights.to(device), number, replacement=True, generator=rng).to(self.weights.device)
        noise = torch.randn(number, *self.means.shape[1:], generator=rng, dtype=torch.float64, device=device).to(
            k.device
        )
        return self.means[k] + noise * self.std[k].view(-1, *[1] * (self.means.dim() - 1))

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x|k), up to a constant, of states x at times t [B] and every component: [B, Z]."""
        return self._posterior(x, self.path.at(t)).log_evidence.sum(2)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        now = self.path.at(t)
        log_weights = self.weights.log() + self._posterior(x, now).log_evidence.sum(2)
        return self.with_weights(log_weights, x, now, t_next)

    def _posterior(self, x: Tensor, now: AffineAt) -> NormalBelief:
        """The posterior of z within each component, [B, Z, d]."""
        flat = x.double().flatten(1)[:, None]  # [B, 1, d]
        return NormalBelief(flat, self.means.flatten(1), self.std[:, None], now.shaped(flat))

    def with_weights(self, log_weights: Tensor, x: Tensor, t: TimeLike, t_next: Tensor | None = None) -> Superposition:
        """The generator if the components have these posterior weights, log [B, Z] up to a constant."""
        flat, means, number = x.double().flatten(1)[:, None], self.means.flatten(1), x[0].numel()  # [B, 1, d], [Z, d]
        now = self.path.at(t)
        here, posterior = now.shaped(flat), self._posterior(x, now)  # [B, 1, 1], [B, Z, d]
        log_weights = log_weights.log_softmax(1)[..., None]
        clean = (log_weights.exp() * posterior.mean).sum(1)
        noise = (flat[:, 0] - here.alpha[:, 0] * clean) / here.sigma[:, 0]
        reduced, landing = None, None
        if "jump" in self.path.generators:
            leaving = (log_weights + posterior.rate.log()).transpose(1, 2)  # [B, d, Z]
            reduced = leaving.logsumexp(2).exp().view_as(x).to(x.dtype)
            belief = Categorical(TensorReadout(leaving), x.shape, len(means), x.device, head="landing")

            def leaver(cells: Tensor, u: Tensor, where: Tensor) -> Tensor:
                row, entry = where // number, where % number
                at = now[row].shaped(u)
                return NormalBelief(flat[row, 0, entry], means[cells, entry], self.std[cells], at).leaver(u)

            landing = partial(self.path.landing, belief, x, values=leaver)

        return self.path.generator(
            clean.view_as(x).to(x.dtype), noise.view_as(x).to(x.dtype), reduced, landing, x, now, t_next
        )


class ExactProductModel:
    """A process whose data are a list of states with several fields, with the exact marginal generator.

    Data point k, of probability w_k, has symbols in discrete fields, N(m_k, s²) in Gaussian ones and rotations in those of
    an `SO3Path`; given k the fields are independent, and its posterior weight is ∝ w_k Π_m p_t(x^m|k).

    Args:
        path: a product of finite and Gaussian paths and of paths of rotations.
        data: by field, [Z, …]: symbols, means m_k, or rotations.
        std: s by Gaussian field, a number or [Z]; 0 by default.
        concentration: K by field of rotations, a number or [Z]; by default they are atoms.
        weights: w_k, [Z]; equal by default.
    """

    def __init__(
        self,
        path: ProductPath,
        data: Mapping[str, Tensor],
        std: Mapping[str, Tensor | float] | None = None,
        weights: Tensor | None = None,
        concentration: Mapping[str, Tensor | float] | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(unknown, "ExactProductModel", {"law": "weights"})
        data = {
            name: path.fields[name].as_state(x, f"data[{name!r}]") if name in path.fields else x
            for name, x in data.items()
        }
        path.check(data, torch.ones(len(next(iter(data.values()))), dtype=torch.float64), "data")
        self.path = path
        self.fields: dict[str, ExactModel | ExactGaussianModel | ExactRotationModel] = {}
        for name, factor in path.factors.items():
            if isinstance(factor, FinitePath):
                self.fields[name] = ExactModel(factor, data[name], weights)
            elif isinstance(factor, GaussianPath):
                self.fields[name] = ExactGaussianModel(factor, data[name], (std or {}).get(name, 0.0), weights)
            elif isinstance(factor, SO3Path):
                self.fields[name] = ExactRotationModel(factor, data[name], (concentration or {}).get(name), weights)
            else:
                raise TypeError(f"field {name!r} has {factor!r}; it must have a finite or Gaussian path, or an SO3Path")
        self.weights = next(iter(self.fields.values())).weights

    def log_evidence(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x^m|k) of one field, up to a constant: [B, Z]. At t = 1, where a number is observed, noise of 1e-6."""
        field = self.fields[name]
        if isinstance(field, ExactModel):
            return field.likelihood(x, t).log()
        return field.log_evidence(x, t.clamp(max=1 - OBSERVED))

    def generator(
        self, x: Mapping[str, Tensor], t: Tensor, t_next: Tensor | None = None, network_time: Tensor | None = None
    ) -> Product:
        """The marginal generator, whose factors are those at the times t.

        Args:
            network_time: times at which the fields are taken as evidence, if they differ from t: 1 for observed fields.
        """
        now, evidence_times = self.path.times(t), self.path.times(t if network_time is None else network_time)
        then = dict.fromkeys(now) if t_next is None else self.path.times(t_next)
        evidence = [self.log_evidence(name, x[name], evidence_times[name]) for name in x]
        log_weights = self.weights.log() + torch.stack(evidence).sum(0)
        impossible = log_weights.isneginf().all(1, keepdim=True)  # steps of finite length may lead there
        log_weights = torch.where(impossible, self.weights.log(), log_weights)
        factors: dict[str, Factor] = {}
        for name, field in self.fields.items():
            if isinstance(field, ExactModel):
                logits = field.logits_of(log_weights.softmax(1))
                factors[name] = field.path.marginal(logits, x[name], now[name], then[name])
            else:
                factors[name] = field.with_weights(log_weights, x[name], now[name].clamp(max=1 - OBSERVED), then[name])
        return Product(factors)


OBSERVED = 1e-6
"""1 − t of an observed number: its noise is then the rounding of float32."""
