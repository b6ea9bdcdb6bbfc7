"""Kernels: where a jump lands, as distributions over the K symbols at every position, evaluated only where needed.

Positions are addressed by `where`, a long tensor [n] of indices into the flattened [B·L] positions (`None`: all of them,
in order), so that choosing the positions costs one `nonzero` a step and every later selection is plain indexing.
Probabilities are *rows* [n, K], computed for those n positions only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gm_discrete.generators.rows import categorical_from_prior, chunked, inverse_cdf, map_rows, require

__all__ = [
    "BeliefKernel",
    "Categorical",
    "Dirac",
    "GatheredLogits",
    "Kernel",
    "Readout",
    "Reversal",
    "TensorReadout",
    "categorical_from_prior",
    "chunked",
    "inverse_cdf",
    "map_rows",
    "require",
]


class Readout(Protocol):
    """The outputs of a network at a state, on demand: `readout("tokens", where)` → logits [n, K].

    Logits must be a new tensor at every call, because kernels write into it. A readout may have a method `prepare(where)`,
    which runs the network once for all positions that will be needed, and returns them in chunks, and a method
    `total(head, function, where, row_size)`, the sum of `function` over chunks of positions, or `None` if it has no faster
    way than `prepare`.
    """

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor: ...


class TensorReadout:
    """A readout of given logits, e.g. those of an exact posterior.

    Args:
        logits: [B, L, K].
        excluded: symbols that never occur in data; their logits become −∞.
    """

    def __init__(self, logits: Tensor, excluded: Sequence[int] = ()) -> None:
        self.logits = logits.flatten(0, -2)
        self.excluded = excluded

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        rows = self.logits.clone() if where is None else self.logits[where]
        for symbol in self.excluded:
            rows[:, symbol] = -torch.inf
        return rows


class Kernel(ABC):
    """A distribution over `vocab_size` symbols at each of the positions of a state of shape [B, L]."""

    shape: torch.Size
    vocab_size: int
    row_dims: int = 1  # `log_probs` computes K numbers for a position, or K² on the way

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        """Landing symbols [n]. The noise of a position does not depend on which others are in `where`."""
        chunks = self.prepare(where)
        noise = self._uniform(rng, where).split([len(rows) for rows in chunks])
        return torch.cat([inverse_cdf(self.log_probs(rows).exp(), u) for rows, u in zip(chunks, noise, strict=True)])

    @abstractmethod
    def log_probs(self, where: Tensor) -> Tensor:
        """log k(y) for every symbol y: rows [n, K]."""

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Runs the network once for all positions that will be needed, and returns them in chunks of bounded memory."""
        return chunked(where, self.vocab_size, kept=torch.is_grad_enabled())

    def total(self, function: Callable[[Tensor], Tensor], where: Tensor) -> Tensor:
        """Σ function(rows) over all positions, float64; `function` maps a chunk of them to values [n], which depend on
        trained weights through the kernel's logits alone."""
        belief: Any = self.belief
        total = getattr(getattr(belief, "readout", None), "total", None)
        found = None if total is None else total(belief.head, function, where, self.vocab_size**self.row_dims)
        return map_rows(function, self.prepare(where)).sum() if found is None else found

    def log_landing(self, y: Tensor, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """(log k(y), log(1 − k(x))), each [n] in float64.

        The second is the sum over the other symbols: 1 − k(x) would cancel where k(x) is nearly 1.
        """
        rows = self.log_probs(where)
        log_y = rows.gather(1, y[:, None]).squeeze(1)
        log_leave = rows.scatter(1, x[:, None], -torch.inf).logsumexp(1)
        return log_y.double(), log_leave.double()

    def leave(self, x: Tensor, where: Tensor) -> Tensor:
        """1 − k(x), the probability of landing elsewhere, [n] in float64, for symbols x [n]."""
        return self.log_landing(x, x, where)[1].exp()

    @property
    def belief(self) -> Kernel:
        """The posterior of the data symbol that the kernel was made of; by default the kernel itself."""
        return self

    def probs(self) -> Tensor:
        """k at every position, [B, L, K]: for inspection, as it is dense."""
        everywhere = torch.arange(self.shape.numel(), device=self.device)
        return self.log_probs(everywhere).exp().unflatten(0, self.shape)

    def nodes(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Landings and their probabilities, [n, Q] each, for sums over the kernel."""
        symbols = torch.arange(self.vocab_size, device=self.device)
        return symbols.expand(len(where), -1), self.log_probs(where).exp()

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    def _uniform(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        """Float64 uniforms [n] in [0, 1), drawn for every position so that the stream is the same for any `where`."""
        device = rng.device if rng is not None else self.device
        noise = torch.rand(self.shape.numel(), generator=rng, device=device, dtype=torch.float64)
        return noise.to(self.device)[where]


class Dirac(Kernel):
    """k(y) = 1[y = target]: the jump of a conditional mixture path, straight to its data symbol.

    >>> kernel = Dirac(torch.tensor([[2, 0]]), vocab_size=3)
    >>> kernel.probs()[0]
    tensor([[0., 0., 1.],
            [1., 0., 0.]], dtype=torch.float64)
    """

    def __init__(self, target: Tensor, vocab_size: int) -> None:
        self.target = target.flatten()  # [B·L]
        self.shape = target.shape
        self.vocab_size = vocab_size

    @property
    def device(self) -> torch.device:
        return self.target.device

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        return self.target[where]

    def log_probs(self, where: Tensor) -> Tensor:
        rows = torch.full((len(where), self.vocab_size), -torch.inf, dtype=torch.float64, device=self.device)
        return rows.scatter_(1, self.target[where, None], 0.0)


class Categorical(Kernel):
    """k = softmax(logits), lazily: it holds a readout, and computes logits only where they are needed.

    Args:
        readout: the logits, on demand.
        shape: of the state, [B, L].
        vocab_size: K.
        device: of the logits.
        head: name of the readout's output.
        excluded: symbols whose probability in the readout is 0.
    """

    def __init__(
        self,
        readout: Readout,
        shape: torch.Size,
        vocab_size: int,
        device: torch.device,
        head: str = "tokens",
        excluded: Sequence[int] = (),
    ) -> None:
        self.readout = readout
        self.shape = shape
        self.vocab_size = vocab_size
        self.head = head
        self.excluded = excluded
        self._device = device

    @property
    def device(self) -> torch.device:
        return self._device

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        prepare = getattr(self.readout, "prepare", None)
        return super().prepare(where) if prepare is None else prepare(where)

    def logits(self, where: Tensor) -> Tensor:
        """Unnormalised log-probabilities [n, K]."""
        rows = self.readout(self.head, where)
        if rows.shape != (len(where), self.vocab_size):
            raise ValueError(
                f"readout returned {tuple(rows.shape)} for {len(where)} positions; "
                f"expected [{len(where)}, vocab_size={self.vocab_size}]"
            )
        return rows

    def log_probs(self, where: Tensor) -> Tensor:
        return self.logits(where).log_softmax(1)

    def log_landing(self, y: Tensor, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        at_y, at_x, others = GatheredLogits.apply(self.logits(where), y, x)
        at_x, others = at_x.double(), others.double()
        total = torch.logaddexp(others, at_x)
        return at_y.double() - total, others - total

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        chunks = self.prepare(where)
        noise = self._uniform(rng, where).split([len(rows) for rows in chunks])
        return torch.cat([inverse_cdf(self.logits(rows).softmax(1), u) for rows, u in zip(chunks, noise, strict=True)])


class BeliefKernel(Kernel):
    """A kernel that is computed from a belief: the posterior of the data symbols given the state x."""

    _belief: Kernel
    x: Tensor

    @property
    def belief(self) -> Kernel:
        return self._belief

    @property
    def device(self) -> torch.device:
        return self.x.device

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        return self.belief.prepare(where)


class Reversal(BeliefKernel):
    """Landing distribution of the thinned reversal step at x ~ p_t, for the prior p0 and a belief π about the data symbol z:

        k(y) = E_{z~π}[ a(z) p_s(y|z) + (1 − a(z)) 1[y = x] ],   a(z) = B / (B + κ_t 1[z = x]),   B = (1 − κ_t) p0(x),

    with p_s(y|z) = (1 − κ_s) p0(y) + κ_s 1[y = z]. A candidate event draws z, is accepted with probability a(z) and then
    lands on p_s(·|z): a(z) (κ_s − κ_t) / (κ_s (1 − κ_t)) is the exact probability that a path in x at t was last
    renewed from z after t. For s = t it is the kernel of the reversal rate κ'/κ · p0(x) p_t(y|z)/p_t(x|z).

    Args:
        belief: π, a `Categorical` (prediction) or a `Dirac` (target).
        x: state [B, L].
        prior: p0, float64 [K].
        kappa_t, kappa_s: [B, 1] float64.
    """

    def __init__(self, belief: Kernel, x: Tensor, prior: Tensor, kappa_t: Tensor, kappa_s: Tensor) -> None:
        self._belief = belief
        self.shape = x.shape
        self.vocab_size = belief.vocab_size
        self.x = x.flatten()
        self.prior = prior
        self.kappa_t = kappa_t.expand(x.shape).flatten()
        self.kappa_s = kappa_s.expand(x.shape).flatten()

    def stay_odds(self, where: Tensor) -> Tensor:
        """B = (1 − κ_t) p0(x), [n]."""
        return (1 - self.kappa_t[where]) * self.prior[self.x[where]]

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        x, b, kappa_t = self.x[where], self.stay_odds(where), self.kappa_t[where]
        z = self.belief.sample(rng, where)
        accepted = self._uniform(rng, where) * (b + kappa_t * (z == x)) < b
        kept = self._uniform(rng, where) < self.kappa_s[where]
        noise = categorical_from_prior(self.prior, self._uniform(rng, where))
        return torch.where(accepted, torch.where(kept, z, noise), x)

    def log_probs(self, where: Tensor) -> Tensor:
        """Rows in the belief's precision. For y ≠ x: k(y) = (1 − κ_s) p0(y) c + κ_s π(y), c = 1 − π(x) κ_t/(B + κ_t)."""
        x, b = self.x[where], self.stay_odds(where)
        belief = self.belief.log_probs(where)
        at_x = belief.gather(1, x[:, None]).squeeze(1)
        kappa_t, kappa_s, at_x = self.kappa_t[where], self.kappa_s[where], at_x.double().exp()
        leave = belief.exp().scatter(1, x[:, None], 0.0).sum(1, dtype=torch.float64)
        accepted = leave + at_x * b / (b + kappa_t)
        stay = (1 - kappa_s) * self.prior[x] * accepted + at_x * (kappa_s * b + kappa_t) / (b + kappa_t)
        from_prior = torch.log(self.prior) + torch.log((1 - kappa_s) * accepted)[:, None]
        # log 0 is kept finite on this side: logaddexp(−∞, −∞) has no gradient.
        from_prior = from_prior.to(belief.dtype).clamp(min=torch.finfo(belief.dtype).min / 2)
        rows = torch.logaddexp(from_prior, belief + torch.log(kappa_s)[:, None].to(belief.dtype))
        stay = stay.clamp(min=torch.finfo(torch.float64).tiny).log().to(rows.dtype)
        return rows.scatter(1, x[:, None], stay[:, None])


class GatheredLogits(torch.autograd.Function):
    """rows [n, K] → (rows[y], rows[x], logsumexp of rows over the symbols other than x), each [n].

    One exponential of the rows serves forward and backward, where autograd would keep and scan several copies. It writes
    into the rows, which the `Readout` protocol allows.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_y, at_x = rows.gather(1, torch.stack([y, x], 1)).unbind(1)
        nothing = torch.finfo(rows.dtype).min  # in place of −∞, so that a row without other symbols has a softmax
        rows.scatter_(1, x[:, None], nothing)
        peak, at_peak = rows.max(1, keepdim=True)
        weights = rows.softmax(1)
        ctx.save_for_backward(weights, y, x)
        others = peak - weights.gather(1, at_peak).log()
        return at_y, at_x, others.masked_fill(peak <= nothing, -torch.inf).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_y, grad_x, grad_others = grads
        weights, y, x = ctx.saved_tensors
        grad = weights * grad_others[:, None]
        grad.scatter_add_(1, torch.stack([y, x], 1), torch.stack([grad_y, grad_x], 1))
        return grad, None, None
