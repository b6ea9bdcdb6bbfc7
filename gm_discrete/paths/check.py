"""Numerical checks of paths on small state spaces: the exact posterior by enumeration, and the Kolmogorov equation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Never

import numpy as np
import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.paths.base import check_times
from gm_discrete.paths.finite import NEGATIVE, FinitePath
from gm_discrete.renamed import refuse_unknown

MOST_STATES = 4096
"""With more states the generator is a matrix of more than 128 MiB."""
ROUNDING = NEGATIVE
"""Errors of probabilities up to this size are taken for rounding."""
ENDS = (1e-4, 4e-4, 1.5e-3, 6e-3)
"""κ at the first ends of intervals, and 1 − κ at the last ones: rates that grow like 1/κ or 1/(1 − κ) are smooth enough on
each for a rule of 12 nodes."""


class ExactModel:
    """A process with the exact posterior in place of a network: π(k|x) = P(z^i = k | X_t = x) by Bayes' rule over all z.

    Use it in `simulate`, `conditional_loss` and `likelihood_bound`, to compare their results with the truth.

    Args:
        path: any path on symbols.
        data: sequences z [Z, L].
        weights: their probabilities [Z], or numbers proportional to them; equal by default.
        x_0: the source [Z, L] of each, for a coupled path.

    >>> from gm_discrete import MaskedPath
    >>> model = ExactModel(MaskedPath(3), data=torch.tensor([[0, 0], [1, 1]]), weights=torch.tensor([3.0, 1.0]))
    >>> x, t = torch.tensor([[2, 2], [2, 1]]), torch.tensor([0.5, 0.5])
    >>> model.logits(x, t).exp()[:, 0]
    tensor([[0.7500, 0.2500, 0.0000],
            [0.0000, 1.0000, 0.0000]], dtype=torch.float64)
    """

    def __init__(
        self, path: FinitePath, data: Tensor, weights: Tensor | None = None, x_0: Tensor | None = None, **unknown: Never
    ) -> None:
        refuse_unknown(unknown, "ExactModel", {"law": "weights"})
        if not isinstance(path, FinitePath) or not isinstance(data, Tensor):
            raise TypeError(f"path={path!r} must be a path on symbols, and data a tensor [Z, L] of them")
        self.path, self.data, self.x_0 = path, data, x_0
        path.check(data, torch.zeros(len(data), device=data.device), "data")
        path.check_source(x_0, data, torch.zeros(len(data), device=data.device))
        weights = torch.ones(len(data), dtype=torch.float64) if weights is None else weights.double()
        if weights.shape != (len(data),) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
            raise ValueError(
                f"weights={weights.tolist()} must hold a probability for each of the {len(data)} data points"
            )
        self.weights = (weights / weights.sum()).to(data.device)

    def likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """p_t(x|z) for states x [B, L] at times t [B] and every data point: [B, Z]."""
        if self.x_0 is not None:
            kappa = self.path.schedule.kappa(t)[:, None, None]
            each = (1 - kappa) * (x[:, None] == self.x_0) + kappa * (x[:, None] == self.data)
            return each.prod(2)
        table = self.path.table(t)  # [B, z, x]
        row = torch.arange(len(x), device=x.device)[:, None, None]
        return table[row, self.data, x[:, None]].prod(2)

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """log π [B, L, K]; arbitrary where x is impossible."""
        joint = self.likelihood(x, t) * self.weights
        joint = torch.where(joint.sum(1, keepdim=True) > 0, joint, self.weights)
        return self.logits_of(joint / joint.sum(1, keepdim=True))

    def logits_of(self, posterior: Tensor) -> Tensor:
        """log π [B, L, K] of a posterior over the data points, [B, Z]."""
        onehot = torch.nn.functional.one_hot(self.data, self.path.vocab_size).double()
        return torch.einsum("bz,zlk->blk", posterior, onehot).log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        self.path.check(x, t, "x")
        check_times(t, x, t_next)
        return self.path.marginal(self.logits(x, t), x, t, t_next)

    def states(self) -> Tensor:
        """Every state, [K^L, L], in the order of `index`."""
        length = self.data.shape[1]
        if self.path.vocab_size**length > MOST_STATES:
            raise ValueError(f"vocab_size^length = {self.path.vocab_size}^{length} exceeds {MOST_STATES} states")
        return torch.tensor(list(itertools.product(range(self.path.vocab_size), repeat=length)))

    def index(self, x: Tensor) -> Tensor:
        """Index of the states x [B, L] in `states()`, [B]."""
        return (x * self.path.vocab_size ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device)).sum(1)

    def marginal(self, t: float) -> Tensor:
        """p_t over `states()`; at t = 1 the data distribution."""
        states = self.states()
        return self.likelihood(states, torch.full((len(states),), t, dtype=torch.float64)) @ self.weights


@dataclass(frozen=True)
class KolmogorovResidual:
    """The residual of the Kolmogorov equation, max_x |p_b(x) − p_a(x) − ∫_a^b (R_t p_t)(x) dt| for each interval [a, b].

    Attributes:
        times: ends of the intervals, [N + 1].
        conditional: [N], of p_t(·|z) with the conditional rates, the worst z.
        marginal: [N], of p_t with the rates averaged over the exact posterior, for sequences with random probabilities.
    """

    times: Tensor
    conditional: Tensor
    marginal: Tensor

    @property
    def worst(self) -> float:
        """The greatest residual; it is the error of rounding and quadrature if the rates carry the path."""
        return float(torch.cat([self.conditional, self.marginal]).max())

    def __repr__(self) -> str:
        parts = f"conditional={float(self.conditional.max()):.1e}, marginal={float(self.marginal.max()):.1e}"
        return f"KolmogorovResidual({parts}, {len(self.times) - 1} intervals)"


def check_kolmogorov(
    path: FinitePath, times: Tensor | None = None, length: int = 2, nodes: int = 12, seed: int = 0
) -> KolmogorovResidual:
    """Integrates dp/dt = R p numerically, to check that a path's rates carry its p_t(x|z), and the marginal rates its p_t.

    Args:
        path: one of the library's or your own, with K^length at most 4096.
        times: ends of the intervals [N + 1]; by default 12 of them between κ = 0.02 and 0.98, and 4 more to each side, as
            far as 10⁻⁴ from the ends.
        length: L of the marginal check.
        nodes: of the Gauss-Legendre rule on each interval. Rates with kinks need more.
        seed: of the random data distribution.

    >>> from gm_discrete import UniformPath
    >>> check_kolmogorov(UniformPath(3)).worst < 1e-10
    True
    """
    if path.coupled:
        raise ValueError("path must have coupled=False: the distribution of a coupled path depends on its sources")
    if path.vocab_size**length > MOST_STATES:
        raise ValueError(
            f"vocab_size^length = {path.vocab_size}^{length} exceeds {MOST_STATES} states: check a smaller one"
        )
    if times is None:
        middle, ends = torch.linspace(0.02, 0.98, 13, dtype=torch.float64), torch.tensor(ENDS, dtype=torch.float64)
        times = path.schedule.inverse(torch.cat([ends, middle, 1 - ends.flip(0)]))
    times = torch.as_tensor(times, dtype=torch.float64)
    if len(times) < 2 or not bool((times.diff() > 0).all()) or nodes < 1:
        raise ValueError(f"times={times.tolist()} must increase, at least two of them, and nodes={nodes} be positive")
    every = torch.tensor([symbol for symbol in range(path.vocab_size) if symbol not in path.excluded])
    data = torch.tensor(list(itertools.product(every.tolist(), repeat=length)))
    weights = torch.rand(len(data), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2
    model = ExactModel(path, data, weights)
    _check_probs(path, every, times)
    _check_candidates(path)
    states, symbols = model.states(), torch.arange(path.vocab_size)
    z, x = every.repeat_interleave(path.vocab_size)[:, None], symbols.repeat(len(every))[:, None]
    conditional, marginal = [], []
    for a, b in itertools.pairwise(times.tolist()):
        points, masses = _quadrature(a, b, nodes)
        p = path.clean_probs(every.repeat(nodes), points.repeat_interleave(len(every))).view(nodes, len(every), -1)
        pairs = x.repeat(nodes, 1)  # all nodes at once
        known = path.conditional(z.repeat(nodes, 1), pairs, points.repeat_interleave(len(x)))
        rates = known.rates(pairs).view(nodes, len(every), len(symbols), -1)  # [n, z, x, y]
        flows = torch.einsum("n,nzx,nzxy->zy", masses, p, torch.where((p > 0)[..., None], rates, 0.0))
        every_state = states.repeat(nodes, 1)
        found = model.generator(every_state, points.repeat_interleave(len(states))).rates(every_state)
        flow = torch.zeros(len(states)).double()
        for t, weight, rates in zip(points.tolist(), masses, found.unflatten(0, (nodes, -1)), strict=True):
            p = model.marginal(t)
            flow += weight * (_matrix(model, torch.where((p > 0)[:, None, None], rates, 0.0)) @ p)
        change = path.clean_probs(every, _times(b, every)) - path.clean_probs(every, _times(a, every))
        conditional.append(float((change - flows).abs().max()))
        marginal.append(float((model.marginal(b) - model.marginal(a) - flow).abs().max()))
    return KolmogorovResidual(times, torch.tensor(conditional), torch.tensor(marginal))


def _check_probs(path: FinitePath, z: Tensor, times: Tensor) -> None:
    """
    Raises:
        ValueError: `probs` are no distributions p_t(·|z) from a common prior to the data; the message has the worst value.
    """
    every = [0.0, *times.tolist(), 1.0]
    rows = [path.probs(z, _times(t, z)) for t in every]
    for p in rows:
        if p.shape != (len(z), path.vocab_size):
            raise ValueError(
                f"probs of {path!r} must have the shape [n, K] = {[len(z), path.vocab_size]}, got {[*p.shape]}"
            )
        if p.dtype != torch.float64:
            raise ValueError(f"probs of {path!r} must be float64, got {p.dtype}: compute them from schedule.kappa(t)")
    p = torch.stack(rows)  # [times, z, x]
    data = torch.nn.functional.one_hot(z, path.vocab_size).double()
    value, where = _worst(-p, every, z)
    if not value <= NEGATIVE:
        raise ValueError(f"probs of {path!r} must not be negative, got {-value:.3g} at {where}")
    value, where = _worst((p.sum(2, keepdim=True) - 1).abs(), every, z)
    if not value <= ROUNDING:
        raise ValueError(
            f"probs of {path!r} must sum to 1 over x, but are off by {value:.3g} at {where.split(', x')[0]}"
        )
    value, where = _worst((p[:1] - p[:1, :1]).abs(), every, z)
    if not value <= ROUNDING:
        raise ValueError(
            f"probs of {path!r} must not depend on z at t = 0, but are {value:.3g} from those of z={int(z[0])} at {where}"
        )
    value, where = _worst((p[-1:] - data).abs(), [1.0], z)
    if not value <= ROUNDING:
        raise ValueError(f"probs of {path!r} must be 1[x = z] at t = 1, but are off by {value:.3g} at {where}")


def _check_candidates(path: FinitePath) -> None:
    """
    Raises:
        ValueError: a token's rate exceeds that of its candidate events, as far as 10⁻⁸ from the ends of κ.
    """
    kappa = torch.linspace(-18, 18, 257, dtype=torch.float64).sigmoid()  # not the nodes of a table
    t = path.schedule.inverse(kappa)
    x = torch.arange(path.vocab_size).repeat(len(t), 1)
    process, intensity = path.dominating_process(x), path.conditional(torch.zeros_like(x), x, t).intensity
    excess = intensity / (process.rate(t)[:, None] * process.weight).clamp(min=torch.finfo(torch.float64).tiny)
    row, symbol = (excess == excess.max()).nonzero()[0].tolist()
    if not float(excess[row, symbol]) <= 1 + ROUNDING:
        raise ValueError(
            f"dominating_process of {path!r} must bound its intensity, and is exceeded by a factor of "
            f"{float(excess[row, symbol]):.4g} at t={float(t[row]):.8g}, x={symbol}: return a greater rate"
        )


def _worst(fault: Tensor, times: list[float], z: Tensor) -> tuple[float, str]:
    """The greatest value of fault [times, z, x], or NaN, and where it is."""
    value, index = fault.flatten().max(0)
    t, row, x = torch.unravel_index(index, fault.shape)
    return float(value), f"z={int(z[row])}, t={times[int(t)]:.4g}, x={int(x)}"


def _quadrature(a: float, b: float, nodes: int) -> tuple[Tensor, Tensor]:
    """The nodes and weights of the Gauss-Legendre rule on [a, b]."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    half = (b - a) / 2
    return torch.as_tensor((a + b) / 2 + half * points), torch.as_tensor(half * weights)


def _times(t: float, states: Tensor) -> Tensor:
    return torch.full((len(states),), t, dtype=torch.float64)


def _matrix(model: ExactModel, rates: Tensor) -> Tensor:
    """The generator matrix of sequences [to, from], from the token rates [X, L, K] at every state."""
    states, count = model.states(), rates.shape[2]
    place = count ** torch.arange(states.shape[1] - 1, -1, -1)
    without = model.index(states)[:, None] - states * place  # [X, L], the state with symbol 0 there
    # Where the token has the symbol already, the rate is the diagonal: minus the row's sum.
    to = without[..., None] + place[:, None] * torch.arange(count)
    columns = torch.arange(len(rates))[:, None, None].expand(to.shape)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    return matrix.index_put_((to, columns), rates, accumulate=True)
