"""Paths on K symbols, independently per token, and what follows from p_t(x|z) alone.

A subclass needs `probs`. Everything else has a default: samples, generators that solve the path's Kolmogorov equation
(`transport.py`), the evidence of a noisy symbol about its data symbol, and a dominating process for exact simulation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from gm_discrete.arguments import readable
from gm_discrete.generators import DominatingProcess, Jump
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, Readout, TensorReadout
from gm_discrete.generators.rows import chunked, inverse_cdf, require
from gm_discrete.generators.transport import Renewal, Transport
from gm_discrete.paths.base import check_times, uniform
from gm_discrete.paths.discrete import DiscretePath
from gm_discrete.paths.schedules import Schedule, TimeLike
from gm_discrete.paths.tabulated import RateTable

CERTAIN = 1e4
"""Log-odds of certainty: e^-10000 is 0 in every float type, and sums of such numbers stay finite."""

ROUNDING = 1e-14
"""Probabilities below this are rounding errors where they are differences of numbers of size 1, as in a product of matrices,
and the ratio of two of them would become a rate. Those above have a relative error of a tenth at most."""

NEGATIVE = 1e-9
"""Probabilities down to −1e-9 are taken for rounding errors, too. A lower one is a mistake of the path."""

MOVEMENT_ELEMENTS = 2**22
"""`movement` evaluates that many probabilities: of few symbols where the vocabulary is large."""


class FinitePath(DiscretePath):
    """A conditional path p_t(x|z) = Π_i p_t(x^i|z^i) on K symbols. Subclasses define `probs`, and may override the rest.

    Args:
        vocab_size: K.
        schedule: κ, by which times are drawn and grids are spaced; linear by default.
        rates: which of the generators that solve the path's Kolmogorov equation; one of `known_rates`.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.

    A path whose noise moves a symbol to either of its neighbours on a ring:

    >>> from gm_discrete import FinitePath, check_kolmogorov
    >>> class RingPath(FinitePath):
    ...     type_name = "ring"
    ...     def probs(self, z, t):
    ...         one_hot = torch.nn.functional.one_hot(z, self.vocab_size).double()
    ...         spread = (one_hot.roll(1, 1) + one_hot + one_hot.roll(-1, 1)) / 3
    ...         uniform = torch.full_like(one_hot, 1 / self.vocab_size)
    ...         t = t[:, None]
    ...         return (1 - t) ** 2 * uniform + 2 * t * (1 - t) * spread + t**2 * one_hot
    >>> check_kolmogorov(RingPath(3)).worst < 1e-6
    True
    """

    rounding = ROUNDING
    """Results of `probs` below this count as 0. A path whose `probs` have relative precision however small they are, as
    products and exponentials have, sets 0."""

    default_divergence = "cross_entropy"
    """Default loss: the divergence of the rates costs O(K²) per position here, the cross-entropy O(K)."""

    def __init__(self, vocab_size: int, schedule: Schedule | dict | None = None, rates: str = "kinetic") -> None:
        super().__init__(vocab_size, schedule, rates)
        self._cache = Derived()

    # Distributions

    @abstractmethod
    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        """p_t(·|z) of data symbols z [n] at times t [n]: float64 rows [n, K]; at t = 0 the same for every z."""

    def clean_probs(self, z: Tensor, t: Tensor) -> Tensor:
        """`probs` with rounding errors set to 0, from which everything else is computed.

        Raises:
            ValueError: one is negative, or no number.
        """
        p = self.probs(z, t)
        if not self.rounding:
            return p
        fine = (p >= -NEGATIVE).all()
        if not readable(p):
            require(fine, ValueError, "probs of the path must not be negative")
        elif not bool(fine):
            least = float(p.min())
            raise ValueError(
                f"probs of {self!r} must not be negative, got {least:.3g} at t={float(t[p.argmin() // p.shape[1]]):.6g}"
            )
        return torch.where(p < self.rounding, 0.0, p)

    def derivative(self, z: Tensor, t: Tensor) -> Tensor:
        """dp_t(·|z)/dt, [n, K]; by forward-mode differentiation of `probs`."""
        return torch.func.jvp(lambda time: self.probs(z, time), (t.clone(),), (torch.ones_like(t),))[1]

    def mean_probs(self, belief: Tensor, t: Tensor) -> Tensor:
        """E_{z~belief} p_t(·|z), rows [n, K] for beliefs [n, K] at times t [n]."""
        parts = zip(chunked(belief, self.vocab_size**2), chunked(t, self.vocab_size**2), strict=True)
        return torch.cat([(rows[:, None].double() @ self.table(times)).squeeze(1) for rows, times in parts])

    def table(self, t: Tensor) -> Tensor:
        """p_t(x|z) at the times t [n]: [n, K, K], z before x."""
        return self._every_symbol(self.clean_probs, t)

    def _every_symbol(self, rows: Callable[[Tensor, Tensor], Tensor], t: Tensor) -> Tensor:
        """rows(z, t) of every symbol z at the times t [n]: [n, K, K]; equal times are computed once."""
        times, index = t.unique(return_inverse=True)
        symbols = torch.arange(self.vocab_size, device=t.device).repeat(len(times))
        table = rows(symbols, times.repeat_interleave(self.vocab_size))
        return table.unflatten(0, (len(times), self.vocab_size))[index]

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        z = torch.zeros(tuple(shape), dtype=torch.long, device=device or (rng.device if rng else "cpu"))
        return self.sample(z, torch.zeros(len(z), dtype=torch.float64, device=z.device), rng, check=False)

    def sample(
        self,
        z: Tensor,
        t: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        *,
        check: bool = True,
    ) -> Tensor:
        if check:
            self.check_source(x_0, z, t)
            self.check(z, t, "z")
        values = z.flatten(), t[:, None].expand(z.shape).flatten(), uniform(z.shape, rng, z.device).flatten()
        parts = zip(*(chunked(value, self.vocab_size) for value in values), strict=True)
        return torch.cat([inverse_cdf(self.clean_probs(data, time), u) for data, time, u in parts]).view_as(z)

    def noise_probability(self, z: Tensor, t: Tensor, x_0: Tensor | None = None) -> Tensor:
        """P(x ≠ z) of each token of z [B, L] at times t [B]; float64 [B, L], without cancellation near t = 1."""
        values = z.flatten(), t[:, None].expand(z.shape).flatten()
        parts = zip(*(chunked(value, self.vocab_size) for value in values), strict=True)
        return torch.cat([self._noise(data, time).sum(1) for data, time in parts]).view_as(z)

    def sample_noise(self, z: Tensor, t: Tensor, u: Tensor, x_0: Tensor | None = None) -> Tensor:
        """x ~ p_t(·|z) given x ≠ z for symbols z, times t and uniforms u, all [n]."""
        return inverse_cdf(self._noise(z, t), u) if len(z) else z

    def _noise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.clean_probs(z, t).scatter(1, z[:, None], 0.0)

    def movement(self, times: Tensor) -> Tensor:
        """How far p_t(·|z) moves between successive times [n + 1]: [n], total variation summed over (a sample of) z."""
        every = [symbol for symbol in range(self.vocab_size) if symbol not in self.excluded]
        count = max(4, MOVEMENT_ELEMENTS // (self.vocab_size * len(times)))
        moved = torch.zeros_like(times[1:])
        for symbol in every[:: -(-len(every) // count)]:
            rows = self.probs(torch.full_like(times, symbol, dtype=torch.long), times)
            moved += (rows[:-1] - rows[1:]).clamp(min=0).sum(1)
        return moved

    # Generators

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Jump:
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        return self.generator(Dirac(z, self.vocab_size), x, t, t_next)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Jump:
        """The prediction.

        Args:
            readout: posterior logits π(z|x): a `Readout` with the output `"tokens"`, or a tensor [B, L, K].
            x, t, t_next: state [B, L], times [B], and the end of the step.
            check: whether to check x and t.
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        if isinstance(readout, Tensor):
            if readout.shape != (*x.shape, self.vocab_size):
                expected = [*x.shape, self.vocab_size]
                raise ValueError(f"readout has shape {list(readout.shape)}; expected [B, L, vocab_size] = {expected}")
            readout = TensorReadout(readout, self.excluded)
        belief = Categorical(readout, x.shape, self.vocab_size, x.device, excluded=self.excluded)
        return self.generator(belief, x, t, t_next)

    def generator(self, belief: Kernel, x: Tensor, t: TimeLike, t_next: TimeLike | None = None) -> Jump:
        """The generator Σ_z belief(z) · (generator of p_t(·|z)) at x: the marginal one if `belief` is the posterior."""
        now, end = self.at(t), None if t_next is None else self.at(t_next).t
        intensity, probability = self.intensity(x, now.t), None
        if end is not None:
            probability = self.event_probability(x, now.t, end)
        ceiling = intensity if probability is None else probability
        kernel = Transport(belief, x, now.t, end, self, ceiling)
        return Jump(intensity, kernel, probability, PathPosterior(self, belief, x, now))

    def intensity(self, x: Tensor, t: Tensor) -> Tensor:
        """Rate [B, L] of candidate events: at least the rate at which the token leaves x, whatever its z."""
        times, index = t.unique(return_inverse=True)
        return self._greatest_rate(times)[index][:, None].expand(x.shape)

    def event_probability(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Probability [B, L] of a candidate event in [t, t_next]: at least that of leaving x, whatever the token's z."""
        return (t_next > t).double()[:, None].expand(x.shape)

    def dominating_process(self, x: Tensor) -> DominatingProcess:
        """Candidate events at a rate that no token at x exceeds: by default from a table over logit κ."""
        if (table := self._cache.get(("dominating", x.device))) is None:
            self._cache["dominating", x.device] = table = RateTable.of(self._greatest_rate, self.schedule, x.device)
        return table.process(x)

    def _greatest_rate(self, t: Tensor) -> Tensor:
        """A bound on Σ_y R(x → y|z) over all x and z, [n]."""
        p, slope = self.table(t), self._every_symbol(self.derivative, t)
        gain = slope.clamp(min=0).sum(2, keepdim=True)
        loss = torch.where(p > 0, (-slope).clamp(min=0) / p, 0.0)
        return (gain + loss).amax((1, 2))

    # Evidence of a state about the data

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x|z) of the symbols x [n] at the times t [n], for every z, up to a number for each: rows [n, K]."""
        times, index = t.unique(return_inverse=True)
        table = self.table(times).transpose(1, 2)  # [times, x, z]
        return table[index, x].log().clamp(min=-CERTAIN)

    def add_evidence(self, rows: Tensor, x: Tensor, t: TimeLike, excluded: Sequence[int] = ()) -> Tensor:
        """Turns logits [n, K] of z given the *other* tokens into those of the posterior π(z|x); may overwrite them.

        Args:
            rows: logits; x, t: symbols and times of the same tokens, [n].
            excluded: symbols whose logit becomes −∞.
        """
        rows = rows + self.log_evidence(x, self.at(t).t).to(rows.dtype)
        if excluded:
            rows[:, list(excluded)] = -torch.inf
        return rows

    def overlap(self, t: Tensor) -> Tensor:
        """Σ_x min_z p_t(x|z) at times t [n]: the probability mass of a token that is independent of its data symbol."""
        times, index = t.unique(return_inverse=True)
        return self.table(times).amin(1).sum(1)[index]

    def purity(self, t: Tensor) -> Tensor:
        """min_z p_t(z|z) at times t [n]: the least probability that a token is its data symbol."""
        times, index = t.unique(return_inverse=True)
        return self.table(times).diagonal(dim1=1, dim2=2).amin(1)[index]


class Derived(dict[Any, Any]):
    """Derived tensors by (name, device). Those that `torch.export` makes hold no values, and are not kept."""

    def __setitem__(self, key: object, value: object) -> None:
        parts = value if isinstance(value, tuple) else (value,)
        if not any(isinstance(part, FakeTensor) for part in parts):
            super().__setitem__(key, value)


@dataclass(frozen=True)
class PathPosterior:
    """The posterior of the data symbols at (x, t), and the generators that its path makes of it (`generators.Posterior`)."""

    path: FinitePath
    belief: Kernel
    x: Tensor
    t: TimeLike

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        return self.path.generator(self.belief if belief is None else belief, self.x, self.t, t_next)

    def corrector(self) -> Jump:
        if self.path.coupled:
            raise ValueError(
                "a corrector is not defined for a path with coupled=True: it would draw x anew from its source x_0, "
                "which cannot be recovered from x"
            )
        ones = torch.ones(self.x.shape, dtype=torch.float64, device=self.x.device)
        return Jump(ones, Renewal(self.belief, self.x, self.path.at(self.t).t, self.path), posterior=self)
