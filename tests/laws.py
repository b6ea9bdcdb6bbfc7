"""Exact laws to hold against the library: chains, quadrature in κ, one-step matrices of the samplers, and the χ² test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from reference import ExactModel
from torch import Tensor
from torch.nn.functional import one_hot

from gm_discrete import MaskedPath, MixturePath, UniformPath, bregman
from gm_discrete.generators import Jump
from gm_discrete.schedules import Schedule

LEAST_P = 1e-4
"""A correct library fails a χ² test in one of 10⁴ seeds; every seed is fixed."""

SIGMAS = 4.5
"""A normal estimate is farther from its mean than this many standard errors once in 147 000 times."""

# name → (path of a schedule, number of symbols that data holds)
PATHS: dict[str, tuple[Callable[[Schedule | None], Any], int]] = {
    "masked": (lambda s: MaskedPath(4, schedule=s), 3),
    "mask is 1": (lambda s: MaskedPath(4, mask_token_id=1, schedule=s), 3),
    "uniform reversal": (lambda s: UniformPath(3, s), 3),
    "uniform mixture": (lambda s: UniformPath(3, s, rates="mixture"), 3),
    "prior reversal": (lambda s: MixturePath(3, [0.5, 0.3, 0.2], s), 3),
    "prior mixture": (lambda s: MixturePath(3, [0.5, 0.3, 0.2], s, rates="mixture"), 3),
    "special reversal": (lambda s: UniformPath(4, s, special_token_ids=(3,)), 4),  # data holds the special symbol
    "special mixture": (lambda s: MixturePath(4, [0.5, 0.3, 0.2, 0.0], s, rates="mixture"), 4),
}


def chain(name: str, length: int = 3, schedule: Schedule | None = None, kind: type[ExactModel] = ExactModel) -> Any:
    """The enumerable chain on the path of that name, with its exact posterior."""
    path, symbols = PATHS[name]
    model = kind(path(schedule), symbols, length, seed=1)
    if name == "mask is 1":
        model.data = model.data + (model.data >= 1)
    return model


class Lookup(ExactModel):
    """An exact posterior that is computed once for each state, for simulating many sequences at the same time t."""

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        states = self.states()
        powers = self.path.vocab_size ** torch.arange(self.length - 1, -1, -1)
        table = self.logits(states, t[:1].expand(len(states)))
        return self.path.marginal(table[(x * powers).sum(1)], x, t, t_next)


class Wrong(ExactModel):
    """A model that is not the posterior: a fixed random belief for each state, which may also depend on t."""

    time_dependent = False

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        symbols, length = self.path.vocab_size, self.length
        powers = symbols ** torch.arange(length - 1, -1, -1)
        rng = torch.Generator().manual_seed(7)
        table = torch.randn(2, symbols**length, length, symbols, generator=rng, dtype=torch.float64)
        fixed, moving = table[:, (x * powers).sum(1)]
        rows = fixed + 2 * moving * t[:, None, None] if self.time_dependent else fixed
        if not isinstance(self.path, MaskedPath):  # a belief about z given the other tokens, and what x says itself
            rows = rows.scatter_add(2, x[..., None], self.path.evidence(x, t)[..., None])
        return rows


class WrongInTime(Wrong):
    time_dependent = True


def chi_square(counts: Tensor, law: Tensor) -> float:
    """p-value of Pearson's χ² of observed counts against a law; cells expected fewer than 5 times are pooled."""
    total = counts.sum()
    if bool((counts[law <= 0] > 0).any()):
        return 0.0
    expected = law.double() / law.sum() * total
    rare = expected < 5
    cells = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    means = torch.cat([expected[~rare], expected[rare].sum()[None]])
    cells, means = cells[means > 0], means[means > 0]
    if len(cells) == 1:
        return 1.0  # a law with one outcome, which is what was seen
    statistic = ((cells - means) ** 2 / means).sum()
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2).double(), statistic / 2))


def kappa_nodes(n: int) -> Iterator[tuple[float, float]]:
    """(κ, weight) of a quadrature on (0, 1): Gauss-Legendre in u, κ = sin²(πu/2), dense where integrands are not smooth."""
    node, weight = np.polynomial.legendre.leggauss(n)
    for u, w in zip((node + 1) / 2, weight / 2, strict=True):
        yield float(np.sin(np.pi * u / 2) ** 2), float(w * np.pi / 2 * np.sin(np.pi * u))


def exact_bound(model: ExactModel, nodes: int) -> Tensor:
    """∫ E_{x ~ p_t(·|z)} D(F(x|z), F_θ(x)) dt for every z of the chain, [Z], summed over all x."""
    path, states, z = model.path, model.states(), model.data
    x = states.repeat(len(z), 1)
    data = z.repeat_interleave(len(states), 0)
    total = torch.zeros(len(z), dtype=torch.float64)
    for kappa, weight in kappa_nodes(nodes):
        t = path.schedule.inverse(kappa)
        likelihood = model.likelihood(states, t.expand(len(states))).T  # [Z, X]
        logits = model.logits(states, t.expand(len(states))).repeat(len(z), 1, 1)
        times = t.expand(len(x))
        target, predicted = path.conditional(data, x, times), path.marginal(logits, x, times)
        loss = bregman.divergence(target, predicted, x).sum(1).view_as(likelihood)
        loss = torch.where(likelihood > 0, likelihood * loss, 0.0)
        total += weight * loss.sum(1) / path.schedule.derivative(t)
    return total


def token_step(model: ExactModel, t: float, s: float, method: str) -> Tensor:
    """Probability that a sampler moves each token to each symbol in the step [t, s], with the posterior of t: [X, L, K].

    Written from the definition of each step by summing over the data symbol z, and not from the library.
    """
    path, x = model.path, model.states()
    time = torch.tensor([t, s], dtype=torch.float64)
    kappa_t, kappa_s = path.schedule.kappa(time).tolist()
    prior = path.prior_probs(x.device)
    posterior = model.logits(x, time[:1].expand(len(x))).exp()  # [X, L, K]
    stay = one_hot(x, path.vocab_size).double()
    exact = (kappa_s - kappa_t) / (1 - kappa_t)
    hazard = float(path.schedule.derivative(t)) / (1 - kappa_t)
    euler = method == "euler" and s < 1
    if path.rates == "reversal":
        z = y = torch.eye(path.vocab_size, dtype=torch.float64)

        def given(kappa: float, data: Tensor) -> Tensor:  # p(·|z), [z, symbol]
            return (1 - kappa) * prior + kappa * data

        at_x = given(kappa_t, z).T[x]  # p_t(x|z), [X, L, z]
        weight = torch.where(at_x > 0, posterior / at_x, 0.0)
        if euler:
            score = weight @ given(kappa_t, z)  # Σ_z π(z) p_t(y|z) / p_t(x|z)
            candidates = min(1.0, hazard / kappa_t * (s - t)) if kappa_t else 1.0
            moves = candidates * (1 - kappa_t) * prior[x][..., None] * score
            moves = moves * (1 - stay)
            step = moves + stay * (1 - moves.sum(-1, keepdim=True))
        else:
            back = kappa_t / kappa_s * y + (1 - kappa_t / kappa_s) * prior  # p(x_t|x_s = y), [y, x]
            step = (weight @ given(kappa_s, z)) * back.T[x]
    else:
        probability = min(1.0, hazard * (s - t)) if euler else exact
        step = probability * posterior + (1 - probability) * stay
    possible = model.likelihood(x, time[:1].expand(len(x))) @ model.law > 0  # elsewhere there is no posterior
    return torch.where((prior[x] > 0)[..., None] & possible[:, None, None], step, stay)


def step_matrix(model: ExactModel, t: float, s: float, method: str) -> Tensor:
    """Law of the next state for every state, [from, to]: tokens move independently within a step."""
    tokens, states = token_step(model, t, s, method), model.states()
    columns = [tokens[:, position][:, states[:, position]] for position in range(model.length)]
    return torch.stack(columns).prod(0)


def sampler_laws(model: ExactModel, times: Sequence[float], method: str, start: Tensor | None = None) -> list[Tensor]:
    """The exact law of a fixed-grid sampler at each of its times, [X] each, from p_0 or from `start`."""
    prior = model.path.prior_probs(torch.device("cpu"))[model.states()].prod(1)
    laws = [prior if start is None else start]
    for t, s in pairwise(times):
        laws.append(laws[-1] @ step_matrix(model, t, s, method))
    return laws
