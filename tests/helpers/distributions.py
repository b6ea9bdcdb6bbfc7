"""Exact distributions to hold against the library: chains, quadrature in κ, one-step matrices of samplers, the χ² test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gm_discrete import FinitePath, MaskedPath, MetricPath, MixturePath, UniformPath, bregman
from gm_discrete.generators import Jump
from gm_discrete.paths.schedules import Schedule
from tests.helpers.chains import EnumeratedChain, index_of

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


DISTANCE = torch.tensor(
    [[0.0, 1.0, 3.0], [0.8, 0.0, 1.0], [2.0, 1.5, 0.0]], dtype=torch.float64
)  # d(x, z): ordered, not symmetric
METRIC = {"prior": [0.5, 0.3, 0.2], "c": 0.8, "a": 1.2}
SOFT = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]]).double()


def metric_probs(kappa: Tensor) -> Tensor:
    """p0(x) e^{−β d(x, z)} / Σ, β = c (κ/(1 − κ))^a, [B, z, x]."""
    beta = METRIC["c"] * (kappa / (1 - kappa))[:, None, None] ** METRIC["a"]
    weights = (
        torch.tensor(METRIC["prior"], dtype=torch.float64) * torch.where(DISTANCE.T > 0, -beta * DISTANCE.T, 0.0).exp()
    )
    return weights / weights.sum(2, keepdim=True)


class Blur(FinitePath):
    """A path of a user's own: levels that sharpen, (1 − κ)² start(x) + 2κ(1 − κ) soft(x|z) + κ² 1[x = z].

    From an even start its support is everything; from a start in the middle the support grows, and differs with z.
    """

    def __init__(self, start: Sequence[float], schedule: Schedule | None = None) -> None:
        super().__init__(3, schedule)
        self.start = start

    def rows(self, kappa: Tensor) -> Tensor:
        kappa, start = kappa[:, None, None], torch.tensor(self.start, dtype=torch.float64)
        return (1 - kappa) ** 2 * start + 2 * kappa * (1 - kappa) * SOFT + kappa**2 * torch.eye(3).double()

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        return self.rows(self.schedule.kappa(t))[torch.arange(len(z)), z]


# name → path of a schedule; data holds all 3 symbols. Their distributions are `EnumeratedChain.definition` or `.sources`.
GENERAL_PATHS: dict[str, Callable[[Schedule | None], Any]] = {
    "metric kinetic": lambda s: MetricPath(3, DISTANCE, schedule=s, **METRIC),
    "blur kinetic": lambda s: Blur([1 / 3, 1 / 3, 1 / 3], s),
    "growing kinetic": lambda s: Blur([0.0, 1.0, 0.0], s),
    "coupled": lambda s: MixturePath(3, schedule=s, coupled=True),
}
ALL_PATHS = [*PATHS, *GENERAL_PATHS]


def chain(
    name: str, length: int = 3, schedule: Schedule | None = None, kind: type[EnumeratedChain] = EnumeratedChain
) -> Any:
    """The enumerable chain on the path of that name, with its exact posterior."""
    if name in PATHS:
        path, symbols = PATHS[name]
        model = kind(path(schedule), symbols, length, seed=1)
        if name == "mask is 1":
            model.data = model.data + (model.data >= 1)
        return model
    model = kind(GENERAL_PATHS[name](schedule), 3, length, seed=1)
    if name == "coupled":  # several data points share a source
        model.sources = model.data[torch.randint(len(model.data), (len(model.data),), generator=rng(1))]
    else:
        model.definition = metric_probs if isinstance(model.path, MetricPath) else model.path.rows
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(model: EnumeratedChain, law: Tensor, number: int, seed: int = 0) -> Tensor:
    """States [number, L] with the probabilities [X]."""
    return model.states()[torch.multinomial(law, number, replacement=True, generator=rng(seed))]


def frequencies(model: EnumeratedChain, x: Tensor) -> Tensor:
    """How often each state was seen, [X]."""
    return torch.bincount(index_of(x, model.path.vocab_size), minlength=model.path.vocab_size**model.length)


def p_value(model: EnumeratedChain, x: Tensor, law: Tensor) -> float:
    """p-value of the χ² test of the states x [B, L] against a distribution [X]."""
    return chi_square(frequencies(model, x), law)


def total_variation(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


class Lookup(EnumeratedChain):
    """An exact posterior that is computed once for each state, for simulating many sequences at the same time t."""

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        states = self.states()
        table = self.logits(states, t[:1].expand(len(states)))
        return self.path.marginal(table[index_of(x, self.path.vocab_size)], x, t, t_next)


class Wrong(EnumeratedChain):
    """A model that is not the posterior: a fixed random belief for each state, which may also depend on t."""

    time_dependent = False

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        symbols, length = self.path.vocab_size, self.length
        table = torch.randn(2, symbols**length, length, symbols, generator=rng(7), dtype=torch.float64)
        fixed, moving = table[:, index_of(x, symbols)]
        rows = fixed + 2 * moving * t[:, None, None] if self.time_dependent else fixed
        if not isinstance(self.path, MaskedPath):  # a belief about z given the other tokens, and what x says itself
            rows = rows.scatter_add(2, x[..., None], self.path.evidence(x, t)[..., None])
        return rows


class WrongInTime(Wrong):
    time_dependent = True


def chi_square(counts: Tensor, law: Tensor) -> float:
    """p-value of Pearson's χ² of observed counts against a distribution; cells expected fewer than 5 times are pooled."""
    total = counts.sum()
    if bool((counts[law <= 0] > 0).any()):
        return 0.0
    expected = law.double() / law.sum() * total
    rare = expected < 5
    cells = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    means = torch.cat([expected[~rare], expected[rare].sum()[None]])
    cells, means = cells[means > 0], means[means > 0]
    if len(cells) == 1:
        return 1.0  # a distribution with one outcome, which is what was seen
    statistic = ((cells - means) ** 2 / means).sum()
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2).double(), statistic / 2))


def kappa_nodes(n: int) -> Iterator[tuple[float, float]]:
    """(κ, weight) of a quadrature on (0, 1): Gauss-Legendre in u, κ = sin²(πu/2), dense where integrands are not smooth."""
    node, weight = np.polynomial.legendre.leggauss(n)
    for u, w in zip((node + 1) / 2, weight / 2, strict=True):
        yield float(np.sin(np.pi * u / 2) ** 2), float(w * np.pi / 2 * np.sin(np.pi * u))


def exact_bound(model: EnumeratedChain, nodes: int) -> Tensor:
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


def token_law(model: EnumeratedChain, t: float) -> Tensor:
    """p_t(x|z) of a token, [z, x]."""
    kappa = model.path.schedule.kappa(torch.tensor([t], dtype=torch.float64))
    if model.definition is not None:
        return model.definition(kappa)[0]
    return (1 - kappa) * model.path.prior_probs(kappa.device) + kappa * torch.eye(model.path.vocab_size).double()


def posterior(model: EnumeratedChain, t: float) -> Tensor:
    """π(z|x) of every token of every state, [X, L, K]."""
    states = model.states()
    return model.logits(states, torch.full((len(states),), t, dtype=torch.float64)).exp()


def general_moves(model: EnumeratedChain, t: float, s: float, euler: bool) -> Tensor:
    """Probability that a token with known z moves from x to y in the step, from `p_t` and `p_s` alone: [z, x, y].

    [q(y) − p(y) q(x)/p(x)]₊. Euler: (s − t) times the rates, in which ṗ stands for Δ = q − p; ṗ is a difference over 2e-6,
    for a relative error near 1e-9.
    """
    p, q = token_law(model, t), token_law(model, s)
    change = (s - t) * (token_law(model, t + 1e-6) - token_law(model, t - 1e-6)) / 2e-6 if euler else q - p
    p, change = p.tolist(), change.tolist()
    symbols = range(len(p))
    moves = torch.zeros(len(p), len(p), len(p), dtype=torch.float64)
    for z in symbols:
        for x in [x for x in symbols if p[z][x] > 0]:
            ratio = change[z][x] / p[z][x]
            moves[z, x] = torch.tensor([max(change[z][y] - p[z][y] * ratio, 0.0) for y in symbols])
            moves[z, x, x] = 0.0
    return moves


def token_step(model: EnumeratedChain, t: float, s: float, method: str) -> Tensor:
    """Probability that a sampler moves each token to each symbol in the step [t, s], with the posterior of t: [X, L, K]."""
    return believed_step(model, model.states(), posterior(model, t), t, s, method)


def believed_step(model: EnumeratedChain, x: Tensor, belief: Tensor, t: float, s: float, method: str) -> Tensor:
    """The same from states x [N, L], for a belief π(z) [N, L, K] about each token.

    Written from the definition of each step by summing over the data symbol z, and not from the library.
    """
    path, stay = model.path, one_hot(x, model.path.vocab_size).double()
    time = torch.tensor([t, s], dtype=torch.float64)
    kappa_t, kappa_s = path.schedule.kappa(time).tolist()
    exact = (kappa_s - kappa_t) / (1 - kappa_t)
    hazard = float(path.schedule.derivative(t)) / (1 - kappa_t)
    euler = method == "euler" and s < 1
    undecided = torch.ones_like(x, dtype=torch.bool)
    if model.definition is not None:
        moves = general_moves(model, t, s, euler)[:, x].movedim(0, 2)  # [N, L, z, y]
        if euler:  # candidates come at the path's own rate, which shows only where a step is too long for it
            candidates = path.intensity(x, time[:1].expand(len(x)))[..., None] * (s - t)
            moves = moves / candidates[..., None].clamp(min=1)
        moves = (belief[..., None, :] @ moves).squeeze(-2)
        step = moves + stay * (1 - moves.sum(-1, keepdim=True))
    elif path.rates == "reversal":
        prior, undecided = path.prior_probs(x.device), path.prior_probs(x.device)[x] > 0
        at_x = token_law(model, t).T[x]  # p_t(x|z), [N, L, z]
        weight = torch.where(at_x > 0, belief / at_x, 0.0)
        if euler:
            score = weight @ token_law(model, t)  # Σ_z π(z) p_t(y|z) / p_t(x|z)
            candidates = min(1.0, hazard / kappa_t * (s - t)) if kappa_t else 1.0
            moves = candidates * (1 - kappa_t) * prior[x][..., None] * score
            moves = moves * (1 - stay)
            step = moves + stay * (1 - moves.sum(-1, keepdim=True))
        else:
            back = (
                kappa_t / kappa_s * torch.eye(path.vocab_size).double() + (1 - kappa_t / kappa_s) * prior
            )  # p(x_t|x_s = y)
            step = (weight @ token_law(model, s)) * back.T[x]
    else:
        if model.sources is None:
            undecided = path.prior_probs(x.device)[x] > 0
        probability = min(1.0, hazard * (s - t)) if euler else exact
        step = probability * belief + (1 - probability) * stay
    possible = model.likelihood(x, time[:1].expand(len(x))) @ model.weights > 0  # elsewhere there is no posterior
    return torch.where(undecided[..., None] & possible[:, None, None], step, stay)


def joint(model: EnumeratedChain, tokens: Tensor) -> Tensor:
    """Distribution of the next state from token probabilities [N, L, K], [N, to]: tokens move independently within a
    step."""
    states = model.states()
    return torch.stack([tokens[:, position][:, states[:, position]] for position in range(model.length)]).prod(0)


def step_matrix(model: EnumeratedChain, t: float, s: float, method: str, theta: float = 0.5) -> Tensor:
    """Distribution of the next state for every state, [from, to]."""
    if method != "trapezoidal" or s == 1:
        return joint(model, token_step(model, t, s, method))
    # θ of the step in −log(1 − κ), then [a π_inner − (a − 1) π_t]₊ for every start and every inner state: [start, inner].
    schedule, states = model.path.schedule, model.states()
    left, left_next = (1 - float(schedule.kappa(time)) for time in (t, s))
    inner = float(schedule.inverse(1 - left ** (1 - theta) * left_next**theta))
    a = 1 / (2 * theta * (1 - theta))
    belief = (a * posterior(model, inner)[None] - (a - 1) * posterior(model, t)[:, None]).clamp(min=0)
    belief = belief / belief.sum(-1, keepdim=True).clamp(min=1e-300)  # an impossible state has none
    middle = states.repeat(len(states), 1)
    second = joint(model, believed_step(model, middle, belief.flatten(0, 1), inner, s, "tau_leaping"))
    first = joint(model, token_step(model, t, inner, "tau_leaping"))
    return torch.einsum("xm,xmy->xy", first, second.unflatten(0, (len(states), len(states))))


def sampler_distributions(
    model: EnumeratedChain, times: Sequence[float], method: str, start: Tensor | None = None
) -> list[Tensor]:
    """The exact distribution of a fixed-grid sampler at each of its times, [X] each, from p_0 or from `start`."""
    laws = [model.joint_marginal(0.0) if start is None else start]
    for t, s in pairwise(times):
        laws.append(laws[-1] @ step_matrix(model, t, s, method))
    return laws
