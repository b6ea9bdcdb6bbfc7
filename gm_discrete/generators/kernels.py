"""Where a jump lands: distributions over the K symbols at every position, evaluated only where they are asked.

Positions are addressed by `where`, a long tensor [n] of indices into the flattened [B·L] positions (`None`: all of them,
in order), so that choosing the positions costs one `nonzero` a step and every later selection is plain indexing. The
probability of the symbols is looked up in *rows* [n, K], which come into being for those n positions only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

ROW_ELEMENTS = 2**25
"""Rows are processed in chunks of at most this many elements (128 MiB in float32)."""

KEPT_CHUNKS = 4
"""Up to so many chunks are kept for backward; if there are more, they are recomputed there."""


class Readout(Protocol):
    """What a network says about a state, on demand: `readout("tokens", where)` → fresh logits [n, K], the caller's own."""

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor: ...


class TensorReadout:
    """A readout whose logits [B, L, K] are known beforehand, e.g. those of an exact posterior.

    Args:
        logits: [B, L, K].
        excluded: symbols that no data holds; their logits are read as −∞.
    """

    def __init__(self, logits: Tensor, excluded: Sequence[int] = ()) -> None:
        self.logits = logits.flatten(0, -2)
        self.excluded = excluded

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        rows = self.logits.clone() if where is None else self.logits[where]
        for symbol in self.excluded:
            rows[:, symbol] = -torch.inf
        return rows


def chunked(where: Tensor, row_size: int, total: int | None = None) -> Sequence[Tensor]:
    """The positions in chunks of few enough rows; with `total`, in as many as that number of positions would need."""
    if total is None:
        return where.split(max(1, ROW_ELEMENTS // row_size))
    return where.tensor_split(-(-total * row_size // ROW_ELEMENTS))


def map_rows(function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Tensor:
    """`function` [n, …] of all chunks; if they are many, none of their [n, K] tensors outlives its chunk."""
    if len(chunks) == 1:
        return function(chunks[0])
    if torch.is_grad_enabled() and len(chunks) > KEPT_CHUNKS:
        parts = [checkpoint(function, chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [function(chunk) for chunk in chunks]
    return torch.cat(parts)  # type: ignore[arg-type]  # checkpoint is annotated as returning Any | None


class Kernel(ABC):
    """A distribution over `vocab_size` symbols at each of the positions of a state of shape [B, L]."""

    shape: torch.Size
    vocab_size: int

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        """Landing symbols [n]. The noise of a position does not depend on which others are asked."""
        chunks = self.prepare(where)
        noise = self._uniform(rng, where).split([len(rows) for rows in chunks])
        return torch.cat([inverse_cdf(self.log_probs(rows).exp(), u) for rows, u in zip(chunks, noise, strict=True)])

    @abstractmethod
    def log_probs(self, where: Tensor) -> Tensor:
        """log k(y) for every symbol y: rows [n, K]."""

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        """Announces the positions that will be asked for, so that the network runs once, and cuts them into chunks."""
        return chunked(where, self.vocab_size)

    def log_landing(self, y: Tensor, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """(log k(y), log(1 − k(x))), each [n] in float64; the second is summed over the others, never subtracted from 1."""
        rows = self.log_probs(where)
        log_y = rows.gather(1, y[:, None]).squeeze(1)
        log_leave = rows.scatter(1, x[:, None], -torch.inf).logsumexp(1)
        return log_y.double(), log_leave.double()

    def leave(self, x: Tensor, where: Tensor) -> Tensor:
        """1 − k(x), the probability of landing elsewhere, [n] in float64, for symbols x [n]."""
        return self.log_landing(x, x, where)[1].exp()

    @property
    def belief(self) -> Kernel:
        """The belief about the data symbol that the kernel was made of; by itself a kernel is one."""
        return self

    def probs(self) -> Tensor:
        """The dense view k [B, L, K], for those who want to look."""
        everywhere = torch.arange(self.shape.numel(), device=self.device)
        return self.log_probs(everywhere).exp().unflatten(0, self.shape)

    def nodes(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Landings and their probabilities, [n, Q] each: what a sum over the kernel runs over."""
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
    """k(y) = 1[y = target]: the jump of a conditional mixture path, straight to its data symbol."""

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
    """k = softmax(logits), lazily: it holds a readout, and logits come into being only where they are asked.

    Args:
        excluded: symbols of which the readout is known to say that their probability is 0.
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
                f"the readout answered {tuple(rows.shape)} for {len(where)} positions; "
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
    """A kernel that is made of a belief about the data symbols at a state x, and asks for nothing else."""

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
    """Landing law of the thinned reversal step on x ~ p_t, for the prior p0 and a belief π about the data symbol z:

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

    One exponential of the rows serves forward and backward, where autograd would keep and scan several copies. It takes
    possession of the rows and writes into them, as a readout's rows are the caller's own.
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


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Symbols [n] with law `probs` [n, K] from one float64 uniform [n] each.

    The cumulative sum runs in float64 over sums of blocks, then inside the one block that was hit, so that every symbol
    keeps its probability to float64 of the total although no [n, K] float64 tensor exists.
    """
    size = probs.shape[1]
    block = max(1, int(size**0.5))
    whole = size // block * block
    blocks = [probs[:, :whole].unflatten(1, (-1, block)).sum(2, dtype=torch.float64)]
    blocks.append(probs[:, whole:].sum(1, keepdim=True, dtype=torch.float64))
    coarse = torch.cat(blocks, 1).cumsum(1)
    total = coarse[:, -1]
    require((total > 0).all(), FloatingPointError, _NO_LAW)
    # A product rounded up to the total would lie behind the last symbol.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    hit = torch.searchsorted(coarse, target[:, None], right=True)  # [n, 1]
    before = torch.nn.functional.pad(coarse, (1, 0)).gather(1, hit).squeeze(1)
    symbols = hit * block + torch.arange(block, device=probs.device)  # [n, block]
    fine = torch.where(symbols < size, probs.gather(1, symbols.clamp(max=size - 1)), 0.0).double().cumsum(1)
    inside = torch.searchsorted(fine, (target - before)[:, None], right=True)
    last = (fine[:, -1:] > fine).sum(1, keepdim=True)  # last symbol of the block that has mass, against rounding
    return (hit * block + torch.minimum(inside, last)).squeeze(1)


_NO_LAW = "a landing law is not a number or has no mass: look at the model's weights and the logits processors"


def require(condition: Tensor, error: type[Exception], message: str) -> None:
    """Raises the error unless the condition holds; on a GPU asynchronously, where waiting for it would stall the device."""
    if condition.device.type == "cuda":
        torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(condition):
        raise error(message)


def categorical_from_prior(prior: Tensor, uniform: Tensor) -> Tensor:
    """Symbols with law `prior` [K], one for each float64 uniform, of the uniforms' shape."""
    cumulative = prior.double().cumsum(0)
    total = cumulative[-1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)
