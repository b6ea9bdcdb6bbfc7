"""Data of a symbol and a number that depend on each other, and their distribution on a product path, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gm_discrete import ExactProductModel, FinitePath, GaussianPath, MaskedPath, ProductPath
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.euclid import Mixture, normal_density, numbers, rng

KINDS = torch.tensor([0, 0, 1, 2])
MEANS, STDS = numbers(-1.4, 0.6, 0.9, -0.3), numbers(0.3, 0.25, 0.4, 0.2)
LAW = numbers(0.25, 0.25, 0.3, 0.2)
SYMBOLS = 3
BINS_ENDS = (-4.0, 4.0)


class Mixed:
    """Component k has the weight w_k, the symbol c_k and a number N(m_k, s_k²); given k the two are independent.

    The marginal of the number has two modes, one of which is of symbol 0 alone, whose distribution has two modes as
    well: numbers that move by another symbol than their own are seen in every class.
    """

    def __init__(self, kind: FinitePath, size: GaussianPath, independent: bool = False) -> None:
        self.path = ProductPath(kind=kind, size=size, independent_times=independent)
        self.kind, self.size = kind, size
        data = {"kind": KINDS[:, None], "size": MEANS[:, None]}
        self.model = ExactProductModel(self.path, data, {"size": STDS}, LAW)

    @property
    def vocab(self) -> int:
        return self.kind.vocab_size

    def kinds(self, t: Any) -> Tensor:
        """p_t(x|c_k), [K, symbols], by definition: (1 − κ) p0 + κ 1[x = c_k]; differentiable in t."""
        kappa = self.kind.schedule.kappa(torch.as_tensor(t, dtype=torch.float64))
        p0 = torch.zeros(self.vocab, dtype=torch.float64)
        if isinstance(self.kind, MaskedPath):
            p0[self.vocab - 1] = 1.0
        else:
            p0 += 1 / self.vocab
        return (1 - kappa) * p0 + kappa * torch.nn.functional.one_hot(KINDS, self.vocab)

    def sizes(self, t: Any, x: Tensor) -> Tensor:
        """p_t(x|k) of numbers x [N], [N, K]; differentiable in t."""
        t, schedule = torch.as_tensor(t, dtype=torch.float64), self.size.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        std = ((alpha * STDS) ** 2 + sigma**2).sqrt()
        return normal_density((x[:, None] - alpha * MEANS) / std) / std

    def density(self, kind: Tensor, size: Tensor, t: Any, s: Any = None) -> Tensor:
        """p(x) of states [N] at the time t of the symbol and s (t by default) of the number."""
        return (LAW * self.kinds(t)[:, kind].T * self.sizes(t if s is None else s, size)).sum(1)

    def classes(self, t: float) -> Tensor:
        """P(symbol) at t, [symbols]."""
        return LAW @ self.kinds(t)

    def sizes_given(self, kind: int, t: float, s: float | None = None) -> Callable[[Tensor], Tensor]:
        """CDF of the number at the time s given the symbol at the time t."""
        weight = LAW * self.kinds(t)[:, kind]
        law = Mixture(MEANS.tolist(), STDS.tolist(), (weight / weight.sum()).tolist())
        return law.cdf(self.size.schedule, t if s is None else s)

    def start(self, n: int, seed: int = 1) -> dict[str, Tensor]:
        """x_0 from the prior: numbers on its quantiles, in a random order, so that they have next to no noise."""
        x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        return {
            "kind": self.kind.prior((n, 1), rng(seed)),
            "size": x[torch.randperm(n, generator=rng(seed))][:, None],
        }

    def p_value(self, x: dict[str, Tensor], t: float) -> float:
        """Of the χ² test of the symbols."""
        return chi_square(torch.bincount(x["kind"].flatten(), minlength=self.vocab), self.classes(t))


__all__ = ["BINS_ENDS", "KINDS", "LAW", "LEAST_P", "MEANS", "STDS", "SYMBOLS", "Mixed"]
