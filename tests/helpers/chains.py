"""Enumerable chains with exact posteriors: every distribution, bound and rate of a path can be summed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.paths import FinitePath


class EnumeratedChain:
    """The exact posterior of a distribution over all sequences of `symbols`^`length`, in place of a network.

    Attributes:
        path: the path whose posterior is computed.
        data: [Z, L], every sequence. weights: [Z], float64, its probability.
        definition: of a path that is no mixture, κ [B] → p(x|z) [B, z, x].
        sources: of a coupled path, the x_0 [Z, L] of each data point.
    """

    definition: Callable[[Tensor], Tensor] | None = None
    sources: Tensor | None = None

    def __init__(self, path: FinitePath, symbols: int, length: int, seed: int = 0) -> None:
        self.path, self.symbols, self.length = path, symbols, length
        self.data = torch.tensor(list(itertools.product(range(symbols), repeat=length)))
        rng = torch.Generator().manual_seed(seed)
        weights = torch.rand(len(self.data), generator=rng, dtype=torch.float64) ** 4  # far from uniform
        self.weights = weights / weights.sum()
        self.calls = 0

    @property
    def entropy(self) -> float:
        return float(-(self.weights * self.weights.log()).sum())

    def states(self) -> Tensor:
        """Every state of the path, [X, L]."""
        return torch.tensor(list(itertools.product(range(self.path.vocab_size), repeat=self.length)))

    def likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """p_t(x|z) for every state and every data point, [B, Z]."""
        kappa = self.path.schedule.kappa(t)[:, None, None]
        if self.sources is not None:
            return ((1 - kappa) * (x[:, None] == self.sources) + kappa * (x[:, None] == self.data)).prod(-1)
        if self.definition is not None:
            tokens = self.definition(kappa.flatten()).transpose(1, 2)[torch.arange(len(x))[:, None], x]
        else:
            same = x[..., None] == torch.arange(self.path.vocab_size)
            tokens = (1 - kappa) * self.path.prior_probs(x.device)[x][..., None] + kappa * same
        total = torch.ones((), dtype=torch.float64)
        for token, symbols in zip(tokens.unbind(1), self.data.T, strict=True):  # p(x|z) [B, z] of each token
            total = total * token.index_select(1, symbols)
        return total

    def joint_marginal(self, t: float) -> Tensor:
        """p_t over `states()`, [X]."""
        states = self.states()
        return self.likelihood(states, torch.full((len(states),), t, dtype=torch.float64)) @ self.weights

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """log π(k|x) of every position, [B, L, K]; impossible states get an arbitrary posterior."""
        joint = self.likelihood(x, t) * self.weights
        posterior = joint / joint.sum(1, keepdim=True).clamp(min=1e-300)
        onehot = torch.nn.functional.one_hot(self.data, self.path.vocab_size).double()
        return torch.einsum("bz,zlk->blk", posterior, onehot).log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        self.calls += 1
        return self.path.marginal(self.logits(x, t), x, t, t_next)


def index_of(x: Tensor, symbols: int) -> Tensor:
    """Position of each sequence [B, L] in `itertools.product(range(symbols), repeat=L)`."""
    powers = symbols ** torch.arange(x.shape[1] - 1, -1, -1)
    return (x * powers).sum(1)


def joint_rates(model: Any, t: float) -> Tensor:
    """The generator matrix over all states, [X, X], column = from, row = to, from the dense token rates."""
    states = model.states()
    rates = model.generator(states, torch.full((len(states),), t, dtype=torch.float64)).rates(states)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for position in range(model.length):
        for symbol in range(model.path.vocab_size):
            neighbour = states.clone()
            neighbour[:, position] = symbol
            moves = neighbour[:, position] != states[:, position]
            columns = moves.nonzero().squeeze(1)
            matrix[index_of(neighbour, model.path.vocab_size)[columns], columns] += rates[columns, position, symbol]
    return matrix - torch.diag(matrix.sum(0))
