"""Bregman divergences D(target, predicted) between generators of one kind: target first, prediction second.

For every convex φ, D_φ(a, b) = φ(a) − φ(b) − ⟨∇φ(b), a − b⟩ is affine in the target up to φ(a): replacing the marginal
generator by the conditional one changes the expected loss by a constant only, so both have the same gradient
(Generator Matching, proposition 2). φ acts on velocities, on squared noise scales, or on the rates of a jump process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.generators import Diffusion, Flow, Generator, Jump
from gm_discrete.generators.edit_kernels import EditKernel, KnownEdits
from gm_discrete.generators.kernels import Dirac, Kernel, Reversal
from gm_discrete.generators.rotation_kernels import RotationBelief, RotationLanding
from gm_discrete.generators.rows import is_small, map_rows, true_entries
from gm_discrete.generators.spaces import spread


@dataclass(frozen=True)
class Bregman:
    """D_φ(a, b) = φ(a) − φ(b) − φ'(b) (a − b) of real numbers, for a convex φ.

    Attributes:
        phi: φ, applied to each entry of a tensor.
        positive: whether its domain is a ≥ 0, b > 0 rather than the real line.
        formula: D in closed form; by default φ' is found by automatic differentiation.

    >>> quartic = Bregman(lambda a: a**4)
    >>> quartic(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([11.])
    """

    phi: Callable[[Tensor], Tensor]
    positive: bool = False
    formula: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, target: Tensor, predicted: Tensor) -> Tensor:
        """D(target, predicted) of each entry; φ(target), a constant, is left out where it is not finite."""
        if self.formula is not None:
            return self.formula(target, predicted)
        with torch.enable_grad():
            b = predicted if predicted.requires_grad else predicted.detach().requires_grad_()
            at_b = self.phi(b)
            (slope,) = torch.autograd.grad(at_b.sum(), b, create_graph=predicted.requires_grad)
        at_b = at_b if predicted.requires_grad else at_b.detach()
        at_target = self.phi(target)
        return torch.where(at_target.isfinite(), at_target, 0.0) - at_b - slope * (target - predicted)


def _log_cosh(a: Tensor) -> Tensor:
    return a.abs() + F.softplus(-2 * a.abs()) - math.log(2)


def _itakura_saito(a: Tensor, b: Tensor) -> Tensor:
    return a / b + b.log() - torch.where(a > 0, a, 1.0).log() - 1


DIVERGENCES: dict[str, Bregman] = {
    "squared": Bregman(lambda a: a * a / 2, formula=lambda a, b: (a - b) ** 2 / 2),
    "generalized_kl": Bregman(
        lambda a: torch.xlogy(a, a) - a, positive=True, formula=lambda a, b: torch.xlogy(a, a) - a * b.log() - a + b
    ),
    "itakura_saito": Bregman(lambda a: -a.log(), positive=True, formula=_itakura_saito),
    "root": Bregman(lambda a: -2 * a.sqrt(), positive=True, formula=lambda a, b: (a.sqrt() - b.sqrt()) ** 2 / b.sqrt()),
    "cosh": Bregman(torch.cosh, formula=lambda a, b: a.cosh() - b.cosh() - b.sinh() * (a - b)),
    "log_cosh": Bregman(_log_cosh, formula=lambda a, b: _log_cosh(a) - _log_cosh(b) - b.tanh() * (a - b)),
    "exponential": Bregman(torch.exp, formula=lambda a, b: a.exp() - b.exp() * (1 + a - b)),
}
"""By name. To use your own in a config, give it a name: `bregman.DIVERGENCES["mine"] = Bregman(phi)`."""


Choice = str | Bregman | Mapping[str, Any]
"""A divergence, by name or itself; for superposed generators by part, and for several fields by field."""


_OF_BELIEFS = Bregman(lambda a: torch.xlogy(a, a))
"""Σ a log(a/b), of the probabilities of data; for a known datum it is −log b."""


def named(kind: str | Bregman, part: str) -> Bregman:
    """The divergence of that name.

    Args:
        part: the kind of generators to compare, `"flow"`, `"diffusion"` or `"jump"`; or `"belief"`.

    Raises:
        ValueError: there is none of that name, or its domain does not fit.
    """
    if part == "belief":
        if kind != "cross_entropy":
            raise ValueError(f"divergence={kind!r}: beliefs about rotations are compared by 'cross_entropy'")
        return _OF_BELIEFS
    if isinstance(kind, str) and kind not in DIVERGENCES:
        raise ValueError(f"divergence={kind!r} is unknown; choose one of {', '.join(DIVERGENCES)}")
    if not isinstance(kind, str | Bregman):
        raise TypeError(f"divergence={kind!r} must be a Bregman or the name of one: {', '.join(DIVERGENCES)}")
    bregman = DIVERGENCES[kind] if isinstance(kind, str) else kind
    fitting = [name for name, other in DIVERGENCES.items() if other.positive == (part != "flow")]
    if part == "flow" and bregman.positive:
        raise ValueError(
            f"divergence={kind!r} is defined for positive numbers only, and velocities have either sign: "
            f"choose one of {', '.join(fitting)}"
        )
    if part != "flow" and not bregman.positive and bregman is not DIVERGENCES["squared"]:
        raise ValueError(
            f"divergence={kind!r} of rates or squared scales, which are positive and unbounded: "
            f"choose squared or one of {', '.join(fitting)}"
        )
    return bregman


def divergence(
    target: Generator,
    predicted: Generator,
    x: Tensor,
    where: Tensor | None = None,
    kind: str | Bregman = "generalized_kl",
) -> Tensor:
    """D(target, predicted) of two generators of one kind at the state x, per token or coordinate, of x's shape; of jumps and
    beliefs of rotations per rotation, [B, L].

    Flows are compared by D_φ of their velocities, diffusions by D_φ of their squared scales, and jumps of continuous states
    by Σ_b D_φ(Q_b, Q̂_b) of the rates into the bins b. Generators may be taken in other units first (`generator.per`).

    For jumps between symbols the kinds are:

    - `generalized_kl`: Σ_{y≠x} [R(y) log(R(y)/R̂(y)) − R(y) + R̂(y)] with the rates R of the target and R̂ of the
      prediction, in nats/time. Its time integral bounds −log p.
    - `cross_entropy`: −log π̂(z) of the predicted posterior of the data symbol, in nats.

    For strings it is `generalized_kl`, per entry [B, 2 (L + 1)] of the string (see `paths.edits`).

    With a `Dirac` target one landing probability is gathered from each row, so that a position costs O(K) for its logits
    and O(1) beyond. The network is evaluated only where the divergence can be positive.

    Args:
        target, predicted: generators of the same kind.
        x: state [B, L], or [B, …] if it is continuous.
        where: bool of x's shape; elsewhere the result is 0, and nothing is evaluated.
        kind: `"generalized_kl"` or `"cross_entropy"` for discrete states; else a name in `DIVERGENCES`, or a `Bregman`.

    Returns:
        Divergences, shaped as x: float64 for discrete states, else in the precision of x.

    Raises:
        TypeError: the generators are of different kinds.
        ValueError: the kind does not fit them.

    >>> target, predicted = Flow(torch.tensor([[1.0, 2.0]])), Flow(torch.tensor([[0.0, 2.0]]))
    >>> divergence(target, predicted, x=torch.zeros(1, 2), kind="squared")
    tensor([[0.5000, 0.0000]])
    """
    return compare(target, predicted, x, where, kind).values()


@dataclass(frozen=True)
class Comparison:
    """The divergence of two generators at each entry of a state: `plain`, plus what follows from the rows of a network.

    Attributes:
        x: the state; dtype: of the divergences.
        plain: of x's shape, without the part that needs rows; `None` where there is nothing else.
        entries: bool of x's shape, where rows are needed; `None`: nowhere.
        of_rows: entries [n] of the flattened state → what their rows add, [n].
        kernel: the predicted kernel, which the rows are read from.
    """

    x: Tensor
    dtype: torch.dtype
    plain: Tensor | None = None
    entries: Tensor | None = None
    of_rows: Callable[[Tensor], Tensor] | None = None
    kernel: Kernel | None = None

    def values(self) -> Tensor:
        """The divergence at each entry, of x's shape."""
        if self.entries is None or self.kernel is None or self.of_rows is None:
            assert self.plain is not None
            return self.plain
        (where,) = true_entries([self.entries])
        found = map_rows(self.of_rows, self.kernel.prepare(where)).to(self.dtype)
        values = torch.zeros(self.x.numel(), dtype=self.dtype, device=self.x.device)
        values = values.index_put((where,), found).view_as(self.x)
        return values if self.plain is None else self.plain + values

    def total(self, where: Tensor | None) -> Tensor:
        """The sum over all entries. With many rows its gradient is found in the same pass, so that no row is kept for it.

        Args:
            where: the indices [n] of the true `entries` (see `rows.true_entries`).
        """
        total = torch.zeros((), dtype=self.dtype, device=self.x.device) if self.plain is None else self.plain.sum()
        if where is None or self.kernel is None or self.of_rows is None:
            return total
        if self.x.is_floating_point() or is_small(self.x.numel() * self.kernel.vocab_size):
            # Rates of continuous states may depend on rows that were read before.
            return total + map_rows(self.of_rows, self.kernel.prepare(where)).sum().to(self.dtype)
        return total + self.kernel.total(self.of_rows, where)


def compare(
    target: Generator | Kernel,
    predicted: Generator | Kernel,
    x: Tensor,
    where: Tensor | None = None,
    kind: str | Bregman = "generalized_kl",
) -> Comparison:
    """What `divergence` evaluates, with the same arguments and errors; no row is read yet."""
    if isinstance(target, RotationBelief) and isinstance(predicted, RotationBelief):
        named(kind, "belief")
        values = -predicted.log_likelihood_ratio(target.clean)
    elif isinstance(target, Flow) and isinstance(predicted, Flow):
        values = named(kind, "flow")(target.velocity, predicted.velocity)
    elif isinstance(target, Diffusion) and isinstance(predicted, Diffusion):
        if target.drift is not None:
            raise TypeError("a Diffusion with a drift has no divergence: compare its path's flow, which determines it")
        values = named(kind, "diffusion")(target.scale**2, predicted.scale**2).expand(x.shape)
    elif not isinstance(target, Jump) or not isinstance(predicted, Jump):
        kinds = f"{type(target).__name__} and {type(predicted).__name__}"
        raise TypeError(f"there is no divergence of {kinds}: compare generators of one kind, part by part")
    elif isinstance(target.kernel, RotationLanding) and isinstance(predicted.kernel, RotationLanding):
        values = _of_landings(target, predicted, target.kernel, predicted.kernel, kind)
    elif isinstance(target.kernel, KnownEdits) and isinstance(predicted.kernel, EditKernel):
        return _of_edits(target, predicted, target.kernel, predicted.kernel, where, kind)
    elif x.is_floating_point():
        return _of_bins(target, predicted, x, where, kind)
    else:
        if not isinstance(kind, str) or kind not in _ROWS:
            raise ValueError(f"kind={kind!r} is no divergence of jumps; choose one of {', '.join(_ROWS)}")
        active = target.intensity + predicted.intensity > 0
        if where is not None:
            active = active & where

        def of_rows(entries: Tensor) -> Tensor:
            return _ROWS[kind](target, predicted, x, entries)

        return Comparison(x, torch.float64, None, active, of_rows, predicted.kernel)
    return Comparison(
        x,
        values.dtype,
        values
        if where is None
        else torch.where(where if where.dim() == values.dim() else spread(where, values), values, 0.0),
    )


def _of_bins(target: Jump, predicted: Jump, x: Tensor, where: Tensor | None, kind: str | Bregman) -> Comparison:
    """Σ_b D(Q_b, Q̂_b), Q = intensity · mass of the bin.

    For the generalised KL: λ log(λ/λ̂) − λ + λ̂ − λ Σ_b J_b (log Ĵ_b − log J_b), the last term evaluated only where λ > 0.
    """
    bregman = named(kind, "jump")
    rate, rate_hat = target.intensity.to(x.dtype), predicted.intensity.clamp(min=torch.finfo(x.dtype).tiny)
    kl = kind == "generalized_kl"
    evaluated = torch.ones_like(x, dtype=torch.bool) if where is None else where
    plain = torch.where(evaluated, bregman(rate, rate_hat), 0.0) if kl else None
    evaluated = evaluated & (rate > 0) if kl else evaluated
    aim, kernel, rate, rate_hat = target.kernel.belief, predicted.kernel, rate.flatten(), rate_hat.flatten()

    def of_rows(entries: Tensor) -> Tensor:
        log_mass = kernel.log_probs(entries)
        if kl and isinstance(aim, Dirac):
            return rate[entries] * -log_mass.gather(1, aim.target[entries, None]).squeeze(1)
        mass = target.kernel.log_probs(entries).exp().to(log_mass.dtype)
        if kl:
            return rate[entries] * (torch.xlogy(mass, mass) - mass * log_mass).sum(1)
        return bregman(rate[entries, None] * mass, rate_hat[entries, None] * log_mass.exp()).sum(1)

    return Comparison(x, x.dtype, plain, evaluated, of_rows, kernel)


def _of_edits(
    target: Jump,
    predicted: Jump,
    aim: KnownEdits,
    guess: EditKernel,
    where: Tensor | None,
    kind: str | Bregman,
) -> Comparison:
    """Σ_y [a(y) log(a(y)/R(y)) − a(y) + R(y)] at every entry, a(y) = λ k(y) with the share k of the remaining edits.

    With R = λ̂ times the probability of a deletion, or of writing times q(y), it is

        λ log(λ/λ̂) − λ + λ̂ − λ log P̂(delete or write) + λ Σ_y k(y) log(k(y)/q(y)).

    The last term, over what is written, is evaluated only where something is to be written.
    """
    if kind != "generalized_kl":
        raise ValueError(f"divergence={kind!r} of edits must be 'generalized_kl'")
    number = aim.number
    rate, rate_hat = target.intensity, predicted.intensity
    deletes = aim.deletions > 0
    chosen = torch.where(deletes, guess.log_delete, guess.log_write).view_as(rate)
    tiny = torch.finfo(rate_hat.dtype).tiny
    surprise = torch.where(rate > 0, rate_hat.clamp(min=tiny).log() + chosen, 0.0)
    plain = torch.xlogy(rate, rate) - rate * surprise - rate + rate_hat
    writes = (rate > 0) & ~deletes.view_as(rate)
    if where is not None:
        plain, writes = torch.where(where, plain, 0.0), writes & where
    each = (rate / number.clamp(min=1)).flatten()  # of one remaining edit

    def of_rows(rows: Tensor) -> Tensor:
        return each[rows] * aim.relative(guess.belief.log_probs(rows), rows)

    return Comparison(guess.x.view_as(rate), torch.float64, plain, writes, of_rows, guess.belief)


def _of_landings(
    target: Jump, predicted: Jump, landing: RotationLanding, guess: RotationLanding, kind: str | Bregman
) -> Tensor:
    """−λ log π̂(z|x) − λ + λ̂ for rotations: the divergence of the rates λ(x|z) J(y|z) π(z|x) of z and the landing y together.

    J is the same in target and prediction, and log π̂ is taken relative to log p(x|z), which no prediction changes.
    """
    if kind != "generalized_kl":
        raise ValueError(f"divergence={kind!r} of the jumps of rotations must be 'generalized_kl'")
    surprise = -guess.rotations.log_likelihood_ratio(landing.rotations.clean)
    return target.intensity * (surprise - 1) + predicted.intensity


def _generalized_kl(target: Jump, predicted: Jump, x: Tensor, rows: Tensor) -> Tensor:
    x = x.flatten()[rows]
    rate, rate_hat = target.intensity.flatten()[rows], predicted.intensity.flatten()[rows]
    log_ratio = torch.log(rate) - torch.log(rate_hat)
    if isinstance(target.kernel, Dirac):
        z = target.kernel.target[rows]
        log_z, log_leave = predicted.kernel.log_landing(z, x, rows)
        surprise = torch.where(z == x, 0.0, log_ratio - 1 - log_z)
        return rate * surprise + rate_hat * log_leave.exp()
    if (
        isinstance(target.kernel, Reversal)
        and isinstance(target.kernel.belief, Dirac)
        and isinstance(predicted.kernel, Reversal)
    ):
        relative, mass, mass_hat = _reversal_kl(target.kernel, target.kernel.belief, predicted.kernel, x, rows)
        return rate * (relative + log_ratio * mass - mass) + rate_hat * mass_hat
    return _dense_kl(target, predicted, x, rows, rate_hat, log_ratio)


def _dense_kl(target: Jump, predicted: Jump, x: Tensor, rows: Tensor, rate_hat: Tensor, log_ratio: Tensor) -> Tensor:
    """R̂-weighted Σ_{y≠x} k̂ g(u), u = log(R/R̂), g(u) = e^u (u − 1) + 1 ≥ 0; computed so that nothing cancels near u = 0."""
    log_k_hat = predicted.kernel.log_probs(rows)
    log_k = target.kernel.log_probs(rows).to(log_k_hat.dtype) + log_ratio[:, None].to(log_k_hat.dtype)
    k, k_hat, u = log_k.exp(), log_k_hat.exp(), log_k - log_k_hat
    # Where u is small the closed form loses eps/u² of its value, the series below u⁵/420.
    small = u.abs() < torch.finfo(u.dtype).eps ** (1 / 7)
    near, far = torch.where(small, u, 0.0), torch.where(small | (k == 0), 0.0, u)
    series = near**2 * (1 / 2 + near * (1 / 3 + near * (1 / 8 + near * (1 / 30 + near / 144))))
    terms = torch.where(small, k_hat * series, k * (far - 1) + k_hat).scatter(1, x[:, None], 0.0)
    return rate_hat * terms.sum(1, dtype=torch.float64)


def _reversal_kl(
    aim: Reversal, data: Dirac, predicted: Reversal, x: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ k log(k/k̂), Σ k and Σ k̂ over y ≠ x, each [n], for a data symbol z and a belief π about it.

    Both are (1 − κ) p0(y) c + κ π(y), with 1[y = z] for π in the target and c = 1 − π(x) κ/(B + κ), so that

        Σ_{y≠x} p0(y) log k̂(y) = Σ_{y≠x} p0(y) [log((1 − κ) ĉ p0(y)) + log1p(κ π(y) / ((1 − κ) ĉ p0(y)))]

    is all that needs a row; the target's own cancels against it but for the term at z.
    """
    z, prior, tiny = data.target[rows], aim.prior, torch.finfo(torch.float64).tiny
    b, kappa_t, kappa = aim.stay_odds(rows), aim.kappa_t[rows], aim.kappa_s[rows]
    log_belief = predicted.belief.log_probs(rows)
    belief = log_belief.exp()
    log_z = log_belief.gather(1, z[:, None]).squeeze(1).double()
    at_x = belief.gather(1, x[:, None]).squeeze(1).double()
    leave = belief.scatter(1, x[:, None], 0.0).sum(1, dtype=torch.float64)

    moved, p_x, p_z = z != x, prior[x], prior[z]
    c = torch.where(moved, 1.0, b / (b + kappa_t))
    c_hat = (leave + at_x * b / (b + kappa_t)).clamp(min=tiny)
    odds = kappa / ((1 - kappa) * c_hat)  # of "data" against "noise", but for π(y)/p0(y)
    log_odds = (
        kappa.log() - torch.log1p(-kappa) - c_hat.log()
    )  # not the logarithm of the odds, whose gradient is ∞ at 0
    # In log space, as π(y)/p0(y) overflows in float32 where p0 is tiny. A symbol without prior mass has no term.
    log_prior = torch.where(prior > 0, prior, 1.0).log()
    each = log_belief + (log_odds[:, None] - log_prior).to(belief.dtype)
    surplus = torch.logaddexp(each, torch.zeros_like(each)) * prior.to(belief.dtype)
    surplus = surplus.sum(1, dtype=torch.float64) - p_x * torch.log1p(odds * at_x / p_x)

    noise, noise_z = (1 - kappa) * c, (1 - kappa) * c * p_z
    log_noise_z = torch.log((1 - kappa) * c_hat) + torch.log(p_z.clamp(min=tiny))
    log_z_hat = torch.logaddexp(log_noise_z, torch.log(kappa.clamp(min=tiny)) + log_z)
    at_z = (noise_z + kappa) * (torch.log(noise_z + kappa) - log_z_hat)  # in place of the noise term there, which is
    noise_at_z = torch.xlogy(noise_z, noise_z) - noise_z * log_z_hat  #    part of the sum over all y ≠ x
    relative = (1 - kappa) * ((1 - p_x) * (torch.xlogy(c, c) - c * torch.log(c_hat)) - c * surplus)
    relative = relative + torch.where(moved, at_z - noise_at_z, 0.0)
    mass = noise * (1 - p_x) + torch.where(moved, kappa, 0.0)
    return relative, mass, (1 - kappa) * c_hat * (1 - p_x) + kappa * leave


def _cross_entropy(target: Jump, predicted: Jump, x: Tensor, rows: Tensor) -> Tensor:
    aim, belief = target.kernel.belief, predicted.kernel.belief
    if not isinstance(aim, Dirac):
        raise TypeError(f"cross_entropy needs a target headed for one symbol, got the kernel {type(aim).__name__}")
    return -belief.log_landing(aim.target[rows], x.flatten()[rows], rows)[0]


_ROWS = {"generalized_kl": _generalized_kl, "cross_entropy": _cross_entropy}
