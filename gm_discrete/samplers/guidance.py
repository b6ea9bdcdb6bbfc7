"""Classifier guidance: jumps whose rates are tilted towards a condition c by a classifier of noisy states,

    R'(y|x) = R(y|x) [p(c|y) / p(c|x)]^γ    for y ≠ x.

With γ = 1 this is Bayes' rule: R' is the marginal generator of the data given c, exactly, for every process that is the time
reversal of a noising process which does not depend on c. The rates of masked paths and reversal rates are such. Mixture
rates with another prior are not, as a token leaves at the same rate whatever it is. Nisonoff et al. 2025 (arXiv 2406.01572).

The total rate changes with the tilt, and with it the time of the jumps. (Classifier-free guidance of networks keeps the
rate, and tilts the posterior alone, π_γ ∝ π_c^γ π_u^{1−γ}: that is done on logits, see `GMModel.generator`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gm_discrete.arguments import number
from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import Kernel, map_rows, require
from gm_discrete.generators.rows import chunked
from gm_discrete.paths.base import Path
from gm_discrete.process import Process, check_call
from gm_discrete.samplers.base import discrete, positions_of

Weight = Callable[[Tensor], Tensor]
"""Positions [n] → w(y) for every symbol y there, rows [n, K]."""


class Tilted(Kernel):
    """k'(y) ∝ k(y) e^{w(y)} over y ≠ x.

    Args:
        kernel: k.
        x: state [B, L].
        weight: w.
    """

    def __init__(self, kernel: Kernel, x: Tensor, weight: Weight) -> None:
        self.kernel, self.x, self.weight = kernel, x, weight
        self.shape, self.vocab_size = x.shape, kernel.vocab_size

    @property
    def device(self) -> torch.device:
        return self.x.device

    def prepare(self, where: Tensor) -> Sequence[Tensor]:
        return self.kernel.prepare(where)

    def log_masses(self, where: Tensor) -> Tensor:
        """log k(y) + w(y), and −∞ for y = x, rows [n, K]."""
        rows = self.kernel.log_probs(where)
        rows = torch.where(rows > -torch.inf, rows + self.weight(where), -torch.inf)
        return rows.scatter(1, self.x.flatten()[where, None], -torch.inf)

    def log_probs(self, where: Tensor) -> Tensor:
        return self.log_masses(where).log_softmax(1)


def tilted(jump: Jump, x: Tensor, weight: Weight) -> Jump:
    """The jump with rates R(y|x) e^{w(y)}, y ≠ x; in an interval as if its rates were frozen.

    If a token leaves in the interval with probability q, and the tilt multiplies its rate of leaving by ρ, then it leaves
    with probability 1 − (1 − q)^ρ. Unlike those of a path, these probabilities need the network wherever a token may jump.

    Raises:
        FloatingPointError: the tilt rules out every symbol to which a token could jump, or is no number.
    """
    kernel = Tilted(jump.kernel, x, weight)
    chance = jump.intensity if jump.probability is None else jump.probability
    where = positions_of(chance > 0)
    flat, leave = x.flatten(), torch.zeros(x.numel()).to(chance)
    log_tilt = torch.full_like(leave, -torch.inf)
    if len(where):

        def masses(chunk: Tensor) -> Tensor:
            """(1 − k(x), log Σ_{y ≠ x} k(y) e^{w(y)}), [n, 2]."""
            return torch.stack(
                [jump.kernel.leave(flat[chunk], chunk), kernel.log_masses(chunk).double().logsumexp(1)], 1
            )

        leave[where], log_tilt[where] = map_rows(masses, kernel.prepare(where)).unbind(1)
        require(((leave[where] == 0) | log_tilt[where].isfinite()).all(), FloatingPointError, _RULED_OUT)
    leave, log_tilt = leave.view_as(x), log_tilt.view_as(x)
    probability = None
    if jump.probability is not None:
        stay = (1 - jump.probability * leave).clamp(min=0)
        faster = torch.where(leave > 0, log_tilt - leave.log(), 0.0).exp()
        # A token that leaves for sure leaves however slow it was made: at t = 1 none may stay.
        probability = torch.where(leave > 0, torch.where(stay > 0, 1 - stay**faster, 1.0), 0.0)
    return replace(
        jump,
        intensity=jump.intensity * log_tilt.exp(),
        kernel=kernel,
        probability=probability,
        posterior=None,
        read=(chance > 0).any(1),
    )


_RULED_OUT = (
    "guidance rules out every symbol that a token could become, or is not a number: look at the classifier's log_prob"
)


@dataclass(frozen=True)
class ClassifierGuidance:
    """Guidance by a classifier of noisy states: R(y|x) [p(c|y) / p(c|x)]^γ.

    Attributes:
        log_prob: (x [n, L], t [n]) → log p(c|x) [n]; with `method="taylor"` x is floating-point [n, L, K], one-hot, and the
            result differentiable with respect to it.
        scale: γ ≥ 0; 1 is Bayes' rule.
        method: `"exact"` evaluates the classifier at every neighbour of a state, K for each open position; `"taylor"`
            approximates log p(c|y) − log p(c|x) by ∇ log p(c|x) · (y − x), of one forward and backward pass for all.

    >>> import torch
    >>> from gm_discrete import ClassifierGuidance, ExactModel, MaskedPath, simulate
    >>> process = ExactModel(MaskedPath(3), torch.tensor([[0, 0], [1, 1]]))
    >>> towards_zero = ClassifierGuidance(lambda x, t: -20.0 * (x == 1).any(1))
    >>> simulate(towards_zero.guided(process), process.path.prior((2, 2)), torch.linspace(0, 1, 33)).tolist()
    [[0, 0], [0, 0]]
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0
    method: str = "exact"

    def __post_init__(self) -> None:
        if self.method not in ("exact", "taylor"):
            raise ValueError(f"method={self.method!r} must be 'exact' or 'taylor'")
        number("scale", self.scale, least=0, most=1e6, cure="; 1 is Bayes' rule, 0 no guidance")
        if not callable(self.log_prob):
            raise TypeError(f"log_prob={self.log_prob!r} must be a function of states and times")

    def check(self, path: Path) -> None:
        """
        Raises:
            ValueError: the path's rates are not those of a time reversal.
        """
        if path.rates not in ("masked", "reversal"):
            raise ValueError(
                f"ClassifierGuidance needs the rates of a time reversal, not rates={path.rates or None!r}: otherwise a "
                "token leaves at the same rate whatever it is, and Bayes' rule does not hold; use a MaskedPath or "
                "rates='reversal'"
            )

    def guided(self, process: Process) -> GuidedProcess:
        """The guided process, for `simulate` with `TauLeaping` or `Euler`.

        Raises:
            ValueError: the path's rates are not those of a time reversal.
        """
        return GuidedProcess(process, self)


class GuidedProcess:
    """A process that moves with the rates R(y|x) [p(c|y) / p(c|x)]^γ (see `ClassifierGuidance.guided`)."""

    def __init__(self, process: Process, guidance: ClassifierGuidance) -> None:
        guidance.check(process.path)
        self.process, self.guidance = process, guidance

    @property
    def path(self) -> Path:
        return self.process.path

    def check(self, x: Tensor, name: str, **conditioning: object) -> None:
        """Checks what goes to the generator of the process (see `process.check_call`)."""
        check_call(self.process, x, name, conditioning)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        """The guided jump at (x, t), or of the step [t, t_next]."""
        jump = discrete(self.process.generator(x, t, t_next, **conditioning))
        ratios = self._taylor(x, t) if self.guidance.method == "taylor" else self._exact(x, t)
        return tilted(jump, x, lambda where: self.guidance.scale * ratios(where))

    def _exact(self, x: Tensor, t: Tensor) -> Weight:
        """log p(c|x^{i→y}) − log p(c|x)."""
        size, length = self.path.heads["tokens"], x.shape[1]
        here = self.guidance.log_prob(x, t).double()
        symbols = torch.arange(size, device=x.device)

        def of_neighbours(where: Tensor) -> Tensor:
            sequence, position = where // length, where % length
            neighbours = x[sequence].repeat_interleave(size, 0)
            neighbours[torch.arange(len(neighbours)), position.repeat_interleave(size)] = symbols.repeat(len(where))
            there = self.guidance.log_prob(neighbours, t[sequence].repeat_interleave(size))
            return there.double().view(-1, size) - here[sequence, None]

        def ratios(where: Tensor) -> Tensor:
            return torch.cat([of_neighbours(part) for part in chunked(where, size * length * 8)])

        return ratios

    def _taylor(self, x: Tensor, t: Tensor) -> Weight:
        """∇ log p(c|x) · (y − x), the gradient with respect to one-hot states."""
        with torch.enable_grad():
            state = torch.nn.functional.one_hot(x, self.path.heads["tokens"]).float().requires_grad_()
            (slope,) = torch.autograd.grad(self.guidance.log_prob(state, t).sum(), state)
        slope, flat = slope.flatten(0, 1), x.flatten()
        return lambda where: slope[where] - slope[where].gather(1, flat[where, None])
