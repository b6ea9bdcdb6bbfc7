"""Mixture paths p_t(x|z) = (1 − κ(t)) p0(x) + κ(t) 1[x = z], independently per token, and the generators that solve them.

With π(k|x) the posterior P(z = k | X_t = x) of a token given the whole noisy sequence, h = κ'/(1 − κ):

    mixture rate   R(y|x) = h π(y|x)                                       (jump to a symbol drawn from the posterior)
    reversal rate  R(y|x) = κ'/κ · p0(x) E_{z~π}[ p_t(y|z) / p_t(x|z) ]    (time reversal of the noising process)

Both solve the Kolmogorov equation of the same marginal path; for masking they coincide. Sources: Campbell et al. 2024
(arXiv 2402.04997) and Gat et al. 2024 (arXiv 2407.15595) for the first, Lou et al. 2024 (arXiv 2310.16834) for the second.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.kernels import Categorical, Dirac, Readout, Reversal, TensorReadout, categorical_from_prior, require
from gm_discrete.paths.base import Path
from gm_discrete.schedules import LinearSchedule, Schedule

CERTAIN = 1e4
"""Log-odds of what is known for sure: e^-10000 is 0 in every float type, and sums of such numbers stay finite."""


class TokenMixturePath(Path, ABC):
    """What all mixture paths share. A subclass sets the prior p0 over the K symbols and the rates that are used."""

    excluded: tuple[int, ...] = ()
    """Symbols that no data holds, so that π vanishes on them."""

    def __init__(self, vocab_size: int, schedule: Schedule | dict | None, rates: str) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size={vocab_size} must be at least 2")
        if rates not in ("reversal", "mixture"):
            raise ValueError(f"rates={rates!r} must be 'reversal' or 'mixture'")
        if not isinstance(schedule, Schedule | dict | None):
            raise TypeError(f"schedule={schedule!r} must be a Schedule, such as CosineSchedule()")
        self.vocab_size = int(vocab_size)
        self.schedule = Schedule.from_dict(schedule) if isinstance(schedule, dict) else schedule or LinearSchedule()
        self.rates = rates
        self._tensors: dict[torch.device, Tensor] = {}

    @abstractmethod
    def probabilities(self) -> Sequence[float]:
        """p0 over the K symbols."""

    def prior_probs(self, device: torch.device) -> Tensor:
        """p0 as a float64 tensor [K]."""
        if device not in self._tensors:
            self._tensors[device] = torch.tensor(self.probabilities(), dtype=torch.float64, device=device)
        return self._tensors[device]

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        device = torch.device(device if device is not None else rng.device if rng is not None else "cpu")
        return categorical_from_prior(self.prior_probs(device), _uniform(shape, rng, device))

    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None) -> Tensor:
        self.check(z, t, "z")
        kept = _uniform(z.shape, rng, z.device) < self.schedule.kappa(t)[:, None]
        return torch.where(kept, z, self.prior(z.shape, rng, z.device))

    def conditional(self, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        self.check(x, t, "x")
        if z.shape != x.shape:
            raise ValueError(f"z has shape {tuple(z.shape)}, x has {tuple(x.shape)}; they must agree")
        self.check(z, t, "z")
        return self._generator(Dirac(z, self.vocab_size), x, t, t_next)

    def marginal(self, readout: Readout | Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        self.check(x, t, "x")
        if isinstance(readout, Tensor):
            if readout.shape != (*x.shape, self.vocab_size):
                expected = [*x.shape, self.vocab_size]
                raise ValueError(f"logits have shape {list(readout.shape)}; expected [B, L, vocab_size] = {expected}")
            readout = TensorReadout(readout, self.excluded)
        belief = Categorical(readout, x.shape, self.vocab_size, x.device)
        return self._generator(belief, x, t, t_next)

    def _generator(self, belief: Dirac | Categorical, x: Tensor, t: Tensor, t_next: Tensor | None) -> Jump:
        kappa, kappa_next = (
            self.schedule.kappa(t)[:, None],
            self.schedule.kappa(t if t_next is None else t_next)[:, None],
        )
        hazard, probability = self.schedule.hazard(t)[:, None], None
        if t_next is not None:
            probability = self.schedule.jump_probability(t, t_next)[:, None]
        kernel = belief
        if self.rates == "reversal":  # candidate events, thinned by the kernel
            kernel = Reversal(belief, x, self.prior_probs(x.device), kappa, kappa_next)
            hazard = torch.where(kappa > 0, hazard / kappa, torch.inf)
            if probability is not None:
                probability = torch.where(probability > 0, probability / kappa_next, 0.0)
        # A symbol outside the prior's support can only be the data symbol itself: nothing is left to happen there.
        undecided = self.prior_probs(x.device)[x] > 0
        return Jump(
            intensity=torch.where(undecided, hazard, 0.0),
            kernel=kernel,
            probability=None if probability is None else torch.where(undecided, probability, 0.0),
        )

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """log(p_t(x|z = x) / p_t(x|z ≠ x)) = log(1 + κ / ((1 − κ) p0(x))), [B, L]: what x itself says about z = x.

        Added to the logit of x, it turns a network's belief about z given the *other* tokens into the posterior π.
        """
        odds = self.schedule.complement(t)[:, None] * self.prior_probs(x.device)[x]
        kappa = self.schedule.kappa(t)[:, None]
        return torch.where(odds > 0, torch.log1p(kappa / odds), CERTAIN).clamp(max=CERTAIN)

    def check(self, state: Tensor, t: Tensor, name: str) -> None:
        if state.dtype != torch.long or state.dim() != 2:
            raise ValueError(f"{name} must be a long tensor [B, L], got {state.dtype} of shape {tuple(state.shape)}")
        if not isinstance(t, Tensor) or t.shape != state.shape[:1]:
            found = tuple(t.shape) if isinstance(t, Tensor) else t
            raise ValueError(f"t must have shape [B] = [{state.shape[0]}], got {found}")
        if torch.compiler.is_compiling():  # a look at the values would cut the graph in two
            return
        if state.device.type != "cpu":  # a look at the values would stall the device
            require(((state >= 0) & (state < self.vocab_size)).all(), ValueError, f"{name} holds ids out of range")
            require(((t >= 0) & (t <= 1)).all(), ValueError, "times must lie in [0, 1]")
        elif state.numel():
            if not 0 <= int(state.min()) <= int(state.max()) < self.vocab_size:
                raise ValueError(
                    f"{name} holds ids from {int(state.min())} to {int(state.max())}; vocab_size={self.vocab_size} "
                    "allows 0 to vocab_size − 1: is this the tokenizer that the path was made for?"
                )
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise ValueError(f"times must lie in [0, 1] (0: prior, 1: data), got {t.min():.6g} to {t.max():.6g}")


class MaskedPath(TokenMixturePath):
    """Masked (absorbing) diffusion: p0 = 1[x = mask], and no data symbol is the mask.

    Args:
        vocab_size: K, the mask included.
        mask_token_id: the mask's id; the last one by default.
        schedule: κ.
    """

    type_name = "masked"

    def __init__(
        self, vocab_size: int, mask_token_id: int | None = None, schedule: Schedule | dict | None = None
    ) -> None:
        super().__init__(vocab_size, schedule, rates="mixture")
        self.rates = "masked"  # both rates are the same
        self.mask_token_id = vocab_size - 1 if mask_token_id is None else mask_token_id
        if not 0 <= self.mask_token_id < vocab_size:
            raise ValueError(f"mask_token_id={mask_token_id} must be an id below vocab_size={vocab_size}")
        self.excluded = (self.mask_token_id,)

    def probabilities(self) -> Sequence[float]:
        return [float(symbol == self.mask_token_id) for symbol in range(self.vocab_size)]


class UniformPath(TokenMixturePath):
    """Uniform diffusion: p0 uniform over the symbols that are not special.

    Args:
        vocab_size: K.
        schedule: κ.
        rates: `"reversal"`, whose likelihood bound is tight for the exact posterior, or `"mixture"`.
        special_token_ids: symbols (mask, padding, …) without prior mass; data may hold them.
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
        self.special_token_ids = tuple(int(token) for token in special_token_ids)
        if not all(0 <= token < vocab_size for token in self.special_token_ids):
            raise ValueError(f"special_token_ids={self.special_token_ids} must be ids below vocab_size={vocab_size}")
        if len(set(self.special_token_ids)) > vocab_size - 2:
            raise ValueError(f"special_token_ids={self.special_token_ids} leave fewer than 2 of {vocab_size} symbols")

    def probabilities(self) -> Sequence[float]:
        special = set(self.special_token_ids)
        mass = 1 / (self.vocab_size - len(special))
        return [0.0 if symbol in special else mass for symbol in range(self.vocab_size)]


class MixturePath(TokenMixturePath):
    """Mixture path with any prior over the symbols, e.g. the unigram frequencies of the data.

    Args:
        vocab_size: K.
        prior: probabilities [K], non-negative, of sum 1.
        schedule: κ.
        rates: `"reversal"`, whose likelihood bound is tight for the exact posterior, or `"mixture"`.
    """

    type_name = "mixture"

    def __init__(
        self,
        vocab_size: int,
        prior: Sequence[float] | Tensor,
        schedule: Schedule | dict | None = None,
        rates: str = "reversal",
    ) -> None:
        super().__init__(vocab_size, schedule, rates)
        weights = [float(mass) for mass in prior]
        if len(weights) != vocab_size or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-5):
            raise ValueError(
                f"prior must hold vocab_size={vocab_size} probabilities of sum 1; "
                f"got {len(weights)} of sum {sum(weights):.6g}, the least {min(weights, default=math.nan):.6g}"
            )
        total = math.fsum(weights)  # what sums to 1 but for rounding stays as it is, so that a round trip is exact
        self._weights = tuple(mass / total for mass in weights) if abs(total - 1) > 1e-12 else tuple(weights)

    def probabilities(self) -> Sequence[float]:
        return self._weights

    def to_dict(self) -> dict:
        return {
            "type": self.type_name,
            "vocab_size": self.vocab_size,
            "prior": list(self._weights),
            "schedule": self.schedule.to_dict(),
            "rates": self.rates,
        }

    def __repr__(self) -> str:
        return f"MixturePath(vocab_size={self.vocab_size}, schedule={self.schedule!r}, rates={self.rates!r})"


def _uniform(shape: Sequence[int], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """Float64 uniforms in [0, 1), drawn on the generator's device."""
    return torch.rand(tuple(shape), generator=rng, device=rng.device if rng else device, dtype=torch.float64).to(device)
