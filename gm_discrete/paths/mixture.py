"""Mixture paths p_t(x|z) = (1 − κ(t)) p0(x) + κ(t) 1[x = z], independently per token, and the generators that solve them.

With π(k|x) the posterior P(z = k | X_t = x) of a token given the whole noisy sequence, h = κ'/(1 − κ):

    mixture rate   R(y|x) = h π(y|x)                                       (jump to a symbol drawn from the posterior)
    reversal rate  R(y|x) = κ'/κ · p0(x) E_{z~π}[ p_t(y|z) / p_t(x|z) ]    (time reversal of the noising process)

Both solve the Kolmogorov equation of the same marginal path; for masking they coincide. Sources: Campbell et al. 2024
(arXiv 2402.04997) and Gat et al. 2024 (arXiv 2407.15595) for the first, Lou et al. 2024 (arXiv 2310.16834) for the second.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.arguments import flag, listed, numbers, whole
from gm_discrete.generators import DominatingProcess, Jump
from gm_discrete.generators.kernels import Kernel, Reversal
from gm_discrete.generators.rows import categorical_from_prior
from gm_discrete.paths.base import uniform
from gm_discrete.paths.finite import CERTAIN, FinitePath, PathPosterior
from gm_discrete.paths.schedules import At, Schedule, ScheduleAt, TimeLike

LEAST = 1e-100
"""The least positive probability of a prior: squares of it are numbers in float64."""


class TokenMixturePath(FinitePath):
    """Base class of mixture paths, in closed form. Subclasses define the prior p0 over the K symbols."""

    is_mixture = True
    known_rates = ("reversal", "mixture")
    default_divergence = "generalized_kl"
    rounding = 0.0

    @property
    def spacing(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "linear" if self.rates == "masked" else "quadratic"

    @abstractmethod
    def probabilities(self) -> Sequence[float]:
        """p0 over the K symbols."""

    def at(self, t: TimeLike, per_kappa: bool = False) -> ScheduleAt:
        return self.schedule.at(t, per_kappa)

    def prior_probs(self, device: torch.device) -> Tensor:
        """p0 as a float64 tensor [K]."""
        if (found := self._cache.get(("prior", device))) is None:
            found = torch.tensor(self.probabilities(), dtype=torch.float64, device=device)
            self._cache["prior", device] = found
        return found

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        noise = uniform(shape, rng, device)
        return categorical_from_prior(self.prior_probs(noise.device), noise)

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
            self.check(z, t, "z")
            self.check_source(x_0, z, t)
        kept = uniform(z.shape, rng, z.device) < self.schedule.kappa(t)[:, None]
        return torch.where(kept, z, self.prior(z.shape, rng, z.device) if x_0 is None else x_0)

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        kappa, complement = self.schedule.kappa(t)[:, None], self.schedule.complement(t)[:, None]
        return (complement * self.prior_probs(z.device)).scatter_add(1, z[:, None], kappa)

    def mean_probs(self, belief: Tensor, t: Tensor) -> Tensor:
        kappa, complement = self.schedule.kappa(t)[:, None], self.schedule.complement(t)[:, None]
        return complement * self.prior_probs(belief.device) + kappa * belief

    def noise_probability(self, z: Tensor, t: Tensor, x_0: Tensor | None = None) -> Tensor:
        elsewhere = 1 - self.prior_probs(z.device)[z] if x_0 is None else (x_0 != z).double()
        return self.schedule.complement(t)[:, None] * elsewhere

    def sample_noise(self, z: Tensor, t: Tensor, u: Tensor, x_0: Tensor | None = None) -> Tensor:
        return super().sample_noise(z, t, u) if x_0 is None else x_0

    def movement(self, times: Tensor) -> Tensor:
        return self.schedule.increment(times[:-1], times[1:])

    def generator(self, belief: Kernel, x: Tensor, t: TimeLike, t_next: TimeLike | None = None) -> Jump:
        now, end = self.at(t), t_next.t if isinstance(t_next, At) else t_next
        hazard, probability = now.hazard[:, None], None
        if end is not None:
            probability = self.schedule.jump_probability(now.t, end)[:, None]
        kernel = belief
        if self.rates == "reversal":  # candidate events, thinned by the kernel
            kappa = now.kappa[:, None]
            kappa_next = kappa if end is None else self.schedule.kappa(end)[:, None]
            kernel = Reversal(belief, x, self.prior_probs(x.device), kappa, kappa_next)
            hazard = torch.where(kappa > 0, hazard / kappa, torch.inf)
            if probability is not None:
                probability = torch.where(probability > 0, probability / kappa_next, 0.0)
        undecided = self._undecided(x)
        return Jump(
            intensity=torch.where(undecided, hazard, 0.0),
            kernel=kernel,
            probability=None if probability is None else torch.where(undecided, probability, 0.0),
            posterior=PathPosterior(self, belief, x, now),
        )

    def _undecided(self, x: Tensor) -> Tensor:
        """Where a token may still move: a symbol outside the prior's support is the data symbol itself, and stays."""
        return torch.ones_like(x, dtype=torch.bool) if self.coupled else self.prior_probs(x.device)[x] > 0

    def dominating_process(self, x: Tensor) -> DominatingProcess:
        """Candidate events at rate 1 per undecided token in G = −log(1 − κ), for reversal rates in G = logit κ."""
        schedule, reversal = self.schedule, self.rates == "reversal"

        def cumulative_rate(t: Tensor) -> Tensor:
            value = -torch.log(schedule.complement(t))
            return value + torch.log(schedule.kappa(t)) if reversal else value

        def time(value: Tensor) -> Tensor:
            kappa = torch.sigmoid(value) if reversal else -torch.expm1(-value)
            return schedule.inverse(kappa.clamp(max=1 - 2**-53))

        def rate(t: Tensor) -> Tensor:
            return schedule.hazard(t) / schedule.kappa(t) if reversal else schedule.hazard(t)

        return DominatingProcess(self._undecided(x).double(), cumulative_rate, time, rate)

    def evidence(self, x: Tensor, t: TimeLike) -> Tensor:
        """log(p_t(x|z = x) / p_t(x|z ≠ x)) = log(1 + κ / ((1 − κ) p0(x))), [B, L]: the evidence of x for z = x.

        Added to the logit of x, it turns a network's prediction of z given the *other* tokens into the posterior π.
        """
        now = self.at(t)
        odds = now.complement[:, None] * self.prior_probs(x.device)[x]
        return torch.where(odds > 0, torch.log1p(now.kappa[:, None] / odds), CERTAIN).clamp(max=CERTAIN)

    def add_evidence(self, rows: Tensor, x: Tensor, t: TimeLike, excluded: Sequence[int] = ()) -> Tensor:
        symbols, logits = x[:, None], self.evidence(x[:, None], t).to(rows.dtype)
        for symbol in excluded:
            symbols = torch.nn.functional.pad(symbols, (0, 1), value=symbol)
            logits = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
        return rows.scatter_add_(1, symbols, logits)  # in place: no copy of [n, K] forward, and none backward

    def overlap(self, t: Tensor) -> Tensor:
        return self.schedule.complement(t)

    def purity(self, t: Tensor) -> Tensor:
        return self.schedule.kappa(t)


class MaskedPath(TokenMixturePath):
    """Masked (absorbing) diffusion: p0 = 1[x = mask], and the mask never occurs in data.

    Args:
        vocab_size: K, the mask included.
        mask_token_id: the mask's id; the last one by default.
        schedule: κ.

    >>> path = MaskedPath(5)
    >>> z, t = torch.tensor([[0, 1, 2, 3]]), torch.tensor([0.5])
    >>> path.sample(z, t, torch.Generator().manual_seed(0))
    tensor([[4, 4, 2, 4]])
    >>> path.prior((1, 4))
    tensor([[4, 4, 4, 4]])
    """

    type_name = "masked"
    known_rates = ("masked",)  # mixture and reversal rates are the same

    def __init__(
        self, vocab_size: int, mask_token_id: int | None = None, schedule: Schedule | dict | None = None
    ) -> None:
        super().__init__(vocab_size, schedule, rates="masked")
        last = self.vocab_size - 1
        self.mask_token_id = last if mask_token_id is None else whole("mask_token_id", mask_token_id, 0, last)
        self.excluded = (self.mask_token_id,)

    @property
    def is_masked(self) -> bool:
        return True

    def probabilities(self) -> Sequence[float]:
        return [float(symbol == self.mask_token_id) for symbol in range(self.vocab_size)]


class UniformPath(TokenMixturePath):
    """Uniform diffusion: p0 is uniform over the symbols that are not special.

    Args:
        vocab_size: K.
        schedule: κ.
        rates: `"reversal"`, whose likelihood bound is tight for the exact posterior, or `"mixture"`.
        special_token_ids: symbols (mask, padding, …) without prior mass; they may occur in data.

    >>> path = UniformPath(4, special_token_ids=[3])
    >>> path.probs(torch.tensor([0]), torch.tensor([0.25]))
    tensor([[0.5000, 0.2500, 0.2500, 0.0000]], dtype=torch.float64)
    """

    type_name = "uniform"

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule | dict | None = None,
        rates: str = "reversal",
        special_token_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(vocab_size, schedule, rates)
        tokens = listed("special_token_ids", special_token_ids)
        self.special_token_ids = tuple(whole("special_token_ids", token, 0, self.vocab_size - 1) for token in tokens)
        if len(set(self.special_token_ids)) > vocab_size - 2:
            raise ValueError(f"special_token_ids={self.special_token_ids} leave fewer than 2 of {vocab_size} symbols")

    def probabilities(self) -> Sequence[float]:
        special = set(self.special_token_ids)
        mass = 1 / (self.vocab_size - len(special))
        return [0.0 if symbol in special else mass for symbol in range(self.vocab_size)]


class MixturePath(TokenMixturePath):
    """Mixture path with any prior over the symbols, or from a source sequence x_0 that comes with every example.

    Coupled: p_t(x|z, x_0) = (1 − κ) 1[x = x_0] + κ 1[x = z], for pairs of data and source: a corruption of z, another
    language, a draft. The model then turns sources into data; its bound is one on −log p(z|x_0).

    Args:
        vocab_size: K.
        prior: probabilities [K], non-negative, of sum 1. For a coupled path the frequencies of the source's symbols, by
            which the evidence of a symbol is weighed; uniform by default.
        schedule: κ.
        rates: `"reversal"` (the default), whose likelihood bound is tight for the exact posterior, or `"mixture"`. A
            coupled path has `"mixture"`, because its noise cannot be drawn without the source.
        coupled: whether x_0 comes with the example.

    >>> path = MixturePath(3, prior=[0.5, 0.25, 0.25])
    >>> z = torch.zeros(1, 1, dtype=torch.long)
    >>> path.conditional(z, x=z + 1, t=torch.tensor([0.5])).rates(z + 1)[0]
    tensor([[ 3.0000, -3.5000,  0.5000]], dtype=torch.float64)
    """

    type_name = "mixture"

    def __init__(
        self,
        vocab_size: int,
        prior: Sequence[float] | Tensor | None = None,
        schedule: Schedule | dict | None = None,
        rates: str | None = None,
        coupled: bool = False,
    ) -> None:
        self.coupled = flag("coupled", coupled)
        super().__init__(vocab_size, schedule, ("mixture" if coupled else "reversal") if rates is None else rates)
        if coupled and self.rates != "mixture":
            raise ValueError(f'rates={rates!r}: a coupled path has rates="mixture"')
        if prior is None and not coupled:
            raise ValueError("prior is missing: give probabilities [K], or coupled=True; uniform is UniformPath")
        size = self.vocab_size
        weights = [1 / size] * size if prior is None else numbers("prior", prior)
        if len(weights) != size or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-5):
            raise ValueError(
                f"prior must hold vocab_size={size} probabilities of sum 1; "
                f"got {len(weights)} of sum {sum(weights):.6g}, the least {min(weights, default=math.nan):.6g}"
            )
        if small := [mass for mass in weights if 0 < mass < LEAST]:
            raise ValueError(
                f"prior holds {small[0]:g}: a probability below {LEAST:g} counts as 0 when float64 multiplies two of them, "
                "and rates become infinite; give 0 or a larger one"
            )
        total = math.fsum(weights)  # what sums to 1 but for rounding stays as it is, so that a round trip is exact
        self._weights = tuple(mass / total for mass in weights) if abs(total - 1) > 1e-12 else tuple(weights)

    @classmethod
    def unigram(
        cls,
        counts: Sequence[int] | Tensor,
        schedule: Schedule | dict | None = None,
        rates: str | None = None,
        never: Sequence[int] = (),
    ) -> MixturePath:
        """The path whose noise has the data's own frequencies: p0(k) ∝ counts[k] + 1, and 0 for the symbols `never`.

        Args:
            counts: how often each of the K symbols was seen. The one more keeps every symbol reachable.
            never: symbols that the noise never takes: padding, masks.
        """
        found, barred = numbers("counts", counts, least=0), set(listed("never", never))
        weights = [0.0 if k in barred else count + 1 for k, count in enumerate(found)]
        total = math.fsum(weights)
        if not 0 < total < math.inf or not barred <= set(range(len(found))):
            raise ValueError(
                f"counts must have a finite sum, and never={list(never)} hold ids below {len(found)} and leave a symbol"
            )
        return cls(len(weights), [weight / total for weight in weights], schedule, rates)

    def probabilities(self) -> Sequence[float]:
        return self._weights

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        if self.coupled:
            raise ValueError("a path with coupled=True has no prior: it starts from the source of each example, x_0")
        return super().prior(shape, rng, device)

    def to_dict(self) -> dict:
        return {
            "type": self.own_type(),
            "vocab_size": self.vocab_size,
            "prior": list(self._weights),
            "schedule": self.schedule.to_dict(),
            "rates": self.rates,
            "coupled": self.coupled,
        }

    def __repr__(self) -> str:
        coupled = ", coupled=True" if self.coupled else ""
        return f"MixturePath(vocab_size={self.vocab_size}, schedule={self.schedule!r}, rates={self.rates!r}{coupled})"
