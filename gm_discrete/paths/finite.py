"""Paths on K symbols, independently per token, and what follows from p_t(x|z) alone.

A path of one's own needs `probs`. Everything else has a default: samples, the generators that solve its Kolmogorov
equation (`transport.py`), what a symbol says about its data symbol, and a clock for exact simulation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import DominatingProcess, Jump, kernels
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, Readout, TensorReadout, inverse_cdf, require
from gm_discrete.generators.transport import FLOWS, Renewal, Transport
from gm_discrete.paths.base import Path, check_times, uniform
from gm_discrete.paths.schedules import LinearSchedule, Schedule

CERTAIN = 1e4
"""Log-odds of what is known for sure: e^-10000 is 0 in every float type, and sums of such numbers stay finite."""

UNSCORED = -100
"""The label of a position that is not scored, as everywhere in transformers."""

CLOCK_LOGITS = 20.0
"""A tabulated clock covers logit κ ∈ [−20, 20]: at κ = 2e-9 a sequence of 10⁴ tokens is still noise, at 1 − 2e-9 data."""


class FinitePath(Path):
    """A conditional path p_t(x|z) = Π_i p_t(x^i|z^i) on K symbols. A subclass gives `probs`, and may give more.

    Args:
        vocab_size: K.
        schedule: κ, by which times are drawn and grids are spaced; linear by default.
        rates: which of the generators that carry the path: `"kinetic"` or `"positive_part"` (see `transport.py`).

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
    """

    is_discrete = True
    schedule: Schedule
    rates: str
    """Which of the generators that solve the path it is simulated and scored with."""
    spacing = "linear"

    excluded: tuple[int, ...] = ()
    """Symbols that no data holds, so that π vanishes on them."""

    coupled = False
    """Whether every example brings its own x_0."""

    known_rates: tuple[str, ...] = FLOWS
    default_divergence = "cross_entropy"
    """What a model is trained with: the rates' divergence costs O(K²) per position here, the cross-entropy O(K)."""

    def __init__(self, vocab_size: int, schedule: Schedule | dict | None = None, rates: str = "kinetic") -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size={vocab_size} must be at least 2")
        if rates not in self.known_rates:
            raise ValueError(f"rates={rates!r} must be {' or '.join(map(repr, self.known_rates))}")
        if not isinstance(schedule, Schedule | dict | None):
            raise TypeError(f"schedule={schedule!r} must be a Schedule, such as CosineSchedule()")
        self.vocab_size = int(vocab_size)
        self.schedule = Schedule.from_dict(schedule) if isinstance(schedule, dict) else schedule or LinearSchedule()
        self.rates = rates
        self._cache: dict[Any, Any] = {}

    @property
    def heads(self) -> dict[str, int]:
        return {"tokens": self.vocab_size}

    def time(self, u: Tensor) -> Tensor:
        return self.schedule.inverse(u)

    def units(self, t: Tensor) -> dict[str, Tensor]:
        return {"jump": self.schedule.derivative(t)}

    def loss_mask(self, labels: Tensor) -> Tensor:
        return labels != UNSCORED

    def mask_labels(self, z: Tensor, scored: Tensor) -> Tensor:
        return z.masked_fill(~scored, UNSCORED)

    # The law

    @abstractmethod
    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        """p_t(·|z) of data symbols z [n] at times t [n]: float64 rows [n, K]; at t = 0 the same for every z."""

    def derivative(self, z: Tensor, t: Tensor) -> Tensor:
        """dp_t(·|z)/dt, [n, K]; by forward-mode differentiation of `probs`."""
        return torch.func.jvp(lambda time: self.probs(z, time), (t.clone(),), (torch.ones_like(t),))[1]

    def mean_probs(self, belief: Tensor, t: Tensor) -> Tensor:
        """E_{z~belief} p_t(·|z), rows [n, K] for beliefs [n, K] at times t [n]."""
        size = max(1, kernels.ROW_ELEMENTS // self.vocab_size**2)
        parts = [
            (rows[:, None].double() @ self.table(times)).squeeze(1)
            for rows, times in zip(belief.split(size), t.split(size), strict=True)
        ]
        return torch.cat(parts)

    def table(self, t: Tensor) -> Tensor:
        """p_t(x|z) at the times t [n]: [n, K, K], z before x."""
        return self._every_symbol(self.probs, t)

    def _every_symbol(self, rows: Any, t: Tensor) -> Tensor:
        times, index = t.unique(return_inverse=True)
        symbols = torch.arange(self.vocab_size, device=t.device).repeat(len(times))
        table = rows(symbols, times.repeat_interleave(self.vocab_size))
        return table.unflatten(0, (len(times), self.vocab_size))[index]

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        device = torch.device(device if device is not None else rng.device if rng is not None else "cpu")
        z = torch.zeros(tuple(shape), dtype=torch.long, device=device)
        return self.sample(z, torch.zeros(len(z), dtype=torch.float64, device=device), rng)

    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None, x_0: Tensor | None = None) -> Tensor:
        self.check_source(x_0, z, t)
        self.check(z, t, "z")
        times = t[:, None].expand(z.shape).flatten()
        noise = uniform(z.shape, rng, z.device).flatten()
        size = max(1, kernels.ROW_ELEMENTS // self.vocab_size)
        parts = zip(z.flatten().split(size), times.split(size), noise.split(size), strict=True)
        return torch.cat([inverse_cdf(self.probs(data, time), u) for data, time, u in parts]).view_as(z)

    # Generators

    def conditional(self, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        self.check(x, t, "x")
        if z.shape != x.shape:
            raise ValueError(f"z has shape {tuple(z.shape)}, x has {tuple(x.shape)}; they must agree")
        self.check(z, t, "z")
        return self.generator(Dirac(z, self.vocab_size), x, t, t_next)

    def marginal(self, readout: Readout | Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        self.check(x, t, "x")
        if isinstance(readout, Tensor):
            if readout.shape != (*x.shape, self.vocab_size):
                expected = [*x.shape, self.vocab_size]
                raise ValueError(f"logits have shape {list(readout.shape)}; expected [B, L, vocab_size] = {expected}")
            readout = TensorReadout(readout, self.excluded)
        belief = Categorical(readout, x.shape, self.vocab_size, x.device, excluded=self.excluded)
        return self.generator(belief, x, t, t_next)

    def generator(self, belief: Kernel, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        """The generator that a belief about the data symbols makes: the marginal one if it is their posterior."""
        intensity, probability = self.intensity(x, t), None
        if t_next is not None:
            probability = self.event_probability(x, t, t_next)
        ceiling = intensity if probability is None else probability
        kernel = Transport(belief, x, t, t_next, self, ceiling)
        return Jump(intensity, kernel, probability, PathPosterior(self, belief, x, t))

    def intensity(self, x: Tensor, t: Tensor) -> Tensor:
        """A rate [B, L] that no token's rate of leaving exceeds, whatever its z: of the candidates that are thinned."""
        times, index = t.unique(return_inverse=True)
        return self._greatest_rate(times)[index][:, None].expand(x.shape)

    def event_probability(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """A probability [B, L] that no token's probability of leaving in [t, t_next] exceeds, whatever its z."""
        return (t_next > t).double()[:, None].expand(x.shape)

    def dominating_process(self, x: Tensor) -> DominatingProcess:
        """A clock that rings at least as often as a token at x leaves: by default from a table over logit κ."""
        if ("clock", x.device) not in self._cache:
            kappa = torch.linspace(-CLOCK_LOGITS, CLOCK_LOGITS, 801, dtype=torch.float64, device=x.device).sigmoid()
            times = self.schedule.inverse(kappa)
            rates = torch.cat([self._greatest_rate(part) for part in times.split(8)])
            rates = 1.25 * torch.maximum(rates[:-1], rates[1:])  # between two nodes; checked at every ring
            cumulative_rate = torch.nn.functional.pad((rates * times.diff()).cumsum(0), (1, 0))
            self._cache["clock", x.device] = times, cumulative_rate, rates
        times, cumulative_rate, rates = self._cache["clock", x.device]
        return DominatingProcess(
            torch.ones(x.shape, dtype=torch.float64, device=x.device),
            lambda t: torch.where(
                t < times[0], -torch.inf, torch.where(t > times[-1], torch.inf, _line(t, times, cumulative_rate))
            ),
            lambda value: _line(value, cumulative_rate, times),
            lambda t: rates[(torch.searchsorted(times, t) - 1).clamp(0, len(rates) - 1)],
        )  # fmt: skip

    def _greatest_rate(self, t: Tensor) -> Tensor:
        """A bound on Σ_y R(x → y|z) over all x and z, [n]."""
        p, slope = self.table(t), self._every_symbol(self.derivative, t)
        gain = slope.clamp(min=0).sum(2, keepdim=True)
        loss = torch.where(p > 0, (-slope).clamp(min=0) / p, 0.0)
        if self.rates == "positive_part":
            size = ((p > 0) | (slope > 0)).sum(2, keepdim=True)
            gain = torch.where(p > 0, gain / (size * p), 0.0)
        return (gain + loss).amax((1, 2))

    # What a state says about the data

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x|z) of the symbols x [n] at the times t [n], for every z, up to a number for each: rows [n, K]."""
        times, index = t.unique(return_inverse=True)
        table = self.table(times).transpose(1, 2)  # [times, x, z]
        return table[index, x].log().clamp(min=-CERTAIN)

    def add_evidence(self, rows: Tensor, x: Tensor, t: Tensor, excluded: Sequence[int] = ()) -> Tensor:
        """Turns logits [n, K] of a belief about z given the *other* tokens into the posterior's; may overwrite them."""
        rows = rows + self.log_evidence(x, t).to(rows.dtype)
        if excluded:
            rows[:, list(excluded)] = -torch.inf
        return rows

    def overlap(self, t: Tensor) -> Tensor:
        """Σ_x min_z p_t(x|z) at times t [n]: the part of a token's law that says nothing about its data symbol."""
        times, index = t.unique(return_inverse=True)
        return self.table(times).amin(1).sum(1)[index]

    def purity(self, t: Tensor) -> Tensor:
        """min_z p_t(z|z) at times t [n]: the least probability that a token is its data symbol."""
        times, index = t.unique(return_inverse=True)
        return self.table(times).diagonal(dim1=1, dim2=2).amin(1)[index]

    def check_source(self, x_0: Tensor | None, z: Tensor, t: Tensor) -> None:
        """
        Raises:
            ValueError: a coupled path got no sources of z's shape, or another path got some.
        """
        if x_0 is None and not self.coupled:
            return
        if not self.coupled:
            raise ValueError("x_0 is given, but the path is not coupled: MixturePath(…, coupled=True)")
        if x_0 is None or x_0.shape != z.shape:
            found = "nothing" if x_0 is None else f"shape {tuple(x_0.shape)}"
            raise ValueError(f"a coupled path needs x_0, the sources, of z's shape {tuple(z.shape)}; got {found}")
        self.check(x_0, t, "x_0")

    def check(self, state: Tensor, t: Tensor, name: str) -> None:
        if state.dtype != torch.long or state.dim() != 2:
            raise ValueError(f"{name} must be a long tensor [B, L], got {state.dtype} of shape {tuple(state.shape)}")
        check_times(t, state)
        if torch.compiler.is_compiling():  # a look at the values would cut the graph in two
            return
        if state.device.type != "cpu":  # a look at the values would stall the device
            require(((state >= 0) & (state < self.vocab_size)).all(), ValueError, f"{name} holds ids out of range")
        elif state.numel() and not 0 <= int(state.min()) <= int(state.max()) < self.vocab_size:
            raise ValueError(
                f"{name} holds ids from {int(state.min())} to {int(state.max())}; vocab_size={self.vocab_size} "
                "allows 0 to vocab_size − 1: is this the tokenizer that the path was made for?"
            )


@dataclass(frozen=True)
class PathPosterior:
    """A belief about the data symbols at (x, t), and what the path makes of it (see `generators.Posterior`)."""

    path: FinitePath
    belief: Kernel
    x: Tensor
    t: Tensor

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        return self.path.generator(self.belief if belief is None else belief, self.x, self.t, t_next)

    def corrector(self) -> Jump:
        if self.path.coupled:
            raise ValueError(
                "tokens of a coupled path cannot be drawn anew: their noise is the source, which x does not tell"
            )
        ones = torch.ones(self.x.shape, dtype=torch.float64, device=self.x.device)
        return Jump(ones, Renewal(self.belief, self.x, self.t, self.path), posterior=self)


def _line(value: Tensor, nodes: Tensor, heights: Tensor) -> Tensor:
    """Piecewise linear interpolation; constant outside of the nodes."""
    i = torch.searchsorted(nodes, value).clamp(1, len(nodes) - 1)
    part = ((value - nodes[i - 1]) / (nodes[i] - nodes[i - 1])).clamp(0, 1)
    return heights[i - 1] + part * (heights[i] - heights[i - 1])
