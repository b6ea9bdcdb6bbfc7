"""Guidance: jumps whose rates are tilted towards a condition, R'(y|x) = R(y|x) e^{w(y, x)} for y ≠ x.

    classifier-free   w = (γ − 1) log(R_c(y|x) / R_u(y|x)), so that R' = R_c^γ R_u^{1−γ}
    predictor         w = γ log(p(c|y) / p(c|x))

of the rates R_c, R_u with and without the condition c, and of a predictor of c from noisy states. With γ = 1 the second is
Bayes' rule: R' is the marginal generator of the data given c, exactly, for every process that is the time reversal of a
noising process which does not depend on c. Rates of masks and reversal rates are such. Mixture rates with another prior are
not, as a token of theirs jumps however it came to be what it is. Nisonoff et al. 2025 (arXiv 2406.01572).

The total rate changes with the tilt, and with it the clock: at γ > 1 classifier-free guidance jumps earlier than the path.
Normalised guidance keeps the hazard, and tilts the belief alone, π_γ ∝ π_c^γ π_u^{1−γ}: that is a matter of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import Kernel, map_rows, require
from gm_discrete.generators.rows import ROW_ELEMENTS

Weight = Callable[[Tensor], Tensor]
"""Positions [n] → w(y) for every symbol y there, rows [n, K]."""
Process = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities [n, K], positions [n]) → logits [n, K] that are drawn from in their place."""


class Tilted(Kernel):
    """k'(y) ∝ k(y) e^{w(y)} over y ≠ x.

    Args:
        kernel: k.
        x: state [B, L].
        weight: w.
        process: what becomes of the law before it is drawn from; the rates are those of the law as it is.
    """

    def __init__(self, kernel: Kernel, x: Tensor, weight: Weight, process: Process | None = None) -> None:
        self.kernel, self.x, self.weight, self.process = kernel, x, weight, process
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
        rows = self.log_masses(where).log_softmax(1)
        return rows if self.process is None else self.process(rows, where).log_softmax(1)


def tilted(jump: Jump, x: Tensor, weight: Weight, process: Process | None = None) -> Jump:
    """The jump with rates R(y|x) e^{w(y)}, y ≠ x; in an interval as if its rates were frozen.

    If a token leaves in the interval with probability q, and the tilt multiplies its rate of leaving by ρ, then it leaves
    with probability 1 − (1 − q)^ρ. Unlike that of a path, this clock asks the network wherever something may happen.

    Raises:
        FloatingPointError: the tilt rules out every symbol to which a token could jump, or is no number.
    """
    kernel = Tilted(jump.kernel, x, weight, process)
    chance = jump.intensity if jump.probability is None else jump.probability
    where = (chance > 0).flatten().nonzero().squeeze(1)
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
        # What leaves for sure leaves however slow it was made: at t = 1 no token may stay behind.
        probability = torch.where(leave > 0, torch.where(stay > 0, 1 - stay**faster, 1.0), 0.0)
    return replace(
        jump,
        intensity=jump.intensity * log_tilt.exp(),
        kernel=kernel,
        probability=probability,
        posterior=None,
        read=(chance > 0).any(1),
    )


_RULED_OUT = "guidance rules out every symbol that a token could become, or is no number: look at the predictor"


def classifier_free(
    conditional: Jump, unconditional: Jump, scale: float, x: Tensor, process: Process | None = None
) -> Jump:
    """R_c^γ R_u^{1−γ} of two generators with one clock, γ = `scale`; γ = 1 is the conditional one."""

    def weight(where: Tensor) -> Tensor:
        given, free = conditional.kernel.log_probs(where), unconditional.kernel.log_probs(where)
        # A symbol that one of them rules out stays ruled out.
        return torch.where((given > -torch.inf) & (free > -torch.inf), (scale - 1) * (given - free), -torch.inf)

    return tilted(conditional, x, weight, process)


@dataclass(frozen=True)
class ClassifierGuidance:
    """What tells a condition c from a noisy state: log p(c|x) at the time t.

    Attributes:
        log_prob: (x [n, L], t [n]) → log p(c|x) [n]; with `method="taylor"` x is floating-point [n, L, K], one-hot, and the
            answer differentiable with respect to it.
        scale: γ.
        method: `"exact"` asks for every neighbour of a state, K for each open position; `"taylor"` approximates
            log p(c|y) − log p(c|x) by ∇ log p(c|x) · (y − x), of one forward and backward pass for all.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0
    method: str = "exact"

    def __post_init__(self) -> None:
        if self.method not in ("exact", "taylor"):
            raise ValueError(f"method={self.method!r} must be 'exact' or 'taylor'")
        if not self.scale >= 0:
            raise ValueError(f"scale={self.scale} must be ≥ 0; 1 is Bayes' rule, 0 no guidance")


class ClassifierGuided:
    """A model that moves by R(y|x) [p(c|y) / p(c|x)]^γ, for `simulate`.

    Args:
        model: anything with `.path` and `.generator(x, t, t_next)`, of masked or reversal rates.
        predictor: of the condition.

    Raises:
        ValueError: the rates are others, for which Bayes' rule does not hold.
    """

    def __init__(self, model: Any, predictor: ClassifierGuidance) -> None:
        check_predictor(model.path)
        self.model, self.predictor, self.path = model, predictor, model.path

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        """The guided jump at (x, t), or of the step [t, t_next]."""
        jump = self.model.generator(x, t, t_next, **conditioning)
        ratios = self._taylor(x, t) if self.predictor.method == "taylor" else self._exact(x, t)
        return tilted(jump, x, lambda where: self.predictor.scale * ratios(where))

    def _exact(self, x: Tensor, t: Tensor) -> Weight:
        """log p(c|x^{i→y}) − log p(c|x)."""
        size, length = self.path.vocab_size, x.shape[1]
        here = self.predictor.log_prob(x, t).double()
        symbols = torch.arange(size, device=x.device)

        def of_neighbours(where: Tensor) -> Tensor:
            sequence, position = where // length, where % length
            neighbours = x[sequence].repeat_interleave(size, 0)
            neighbours[torch.arange(len(neighbours)), position.repeat_interleave(size)] = symbols.repeat(len(where))
            there = self.predictor.log_prob(neighbours, t[sequence].repeat_interleave(size))
            return there.double().view(-1, size) - here[sequence, None]

        def ratios(where: Tensor) -> Tensor:
            return torch.cat([of_neighbours(part) for part in where.split(max(1, ROW_ELEMENTS // (size * length * 8)))])

        return ratios

    def _taylor(self, x: Tensor, t: Tensor) -> Weight:
        """∇ log p(c|x) · (y − x), the gradient with respect to one-hot states."""
        with torch.enable_grad():
            state = torch.nn.functional.one_hot(x, self.path.vocab_size).float().requires_grad_()
            (slope,) = torch.autograd.grad(self.predictor.log_prob(state, t).sum(), state)
        slope, flat = slope.flatten(0, 1), x.flatten()
        return lambda where: slope[where] - slope[where].gather(1, flat[where, None])


def check_predictor(path: Any) -> None:
    """
    Raises:
        ValueError: the path's rates are not those of a time reversal.
    """
    if getattr(path, "rates", None) not in ("masked", "reversal"):
        raise ValueError(
            f"a predictor tilts the rates of a time reversal, and those of {path!r} are none: a token of theirs leaves "
            "at the same rate whatever it is, so that Bayes' rule does not hold; a MaskedPath or rates='reversal' fit"
        )
