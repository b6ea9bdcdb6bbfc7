"""Correctors: they add to a sampler's step one that moves back and forth along p_t, which reduces its errors.

Both preserve the path's distribution in the limit of small steps and of small strength, as they act on all tokens at once.
Tokens change more often, for more network evaluations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from gm_discrete.arguments import number, whole
from gm_discrete.configurable import Configurable
from gm_discrete.paths.base import Path
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import DISCRETE, Chain, Sampler, kind_of
from gm_discrete.samplers.removed import REMOVED
from gm_discrete.samplers.tau_leaping import TauLeaping


class Corrector(Configurable, ABC):
    """Turns the step of a sampler into a corrected one, for states with one discrete field."""

    argument: ClassVar[str] = "corrector"
    removed_types: ClassVar[dict[str, str]] = REMOVED

    def check(self, path: Path, sampler: Sampler) -> None:
        """
        Raises:
            ValueError: the corrector does not fit the path or the sampler.
        """
        if kind_of(path) != DISCRETE:
            raise ValueError(f"corrector={self!r} is for a single discrete field; {path!r} has {kind_of(path)} states")
        if not sampler.keeps_distribution:
            raise ValueError(
                f"corrector={self!r} cannot be combined with sampler={sampler!r}: a corrector assumes that the sampler "
                "targets the model distribution; use order='random'"
            )

    @abstractmethod
    def step(self, sampler: Sampler, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        """The state at t_next of one at t, by the sampler's step and its correction."""

    def corrected(self, sampler: Sampler) -> Sampler:
        """The sampler whose steps are corrected."""
        return Corrected(sampler, self)


class Corrected(Sampler):
    """A sampler with a corrector. It has no JSON form of its own: sampler and corrector have theirs."""

    states: ClassVar[frozenset[str]] = frozenset({DISCRETE})

    def __init__(self, sampler: Sampler, corrector: Corrector) -> None:
        self.sampler, self.corrector = sampler, corrector

    def check(self, path: Path) -> None:
        self.sampler.check(path)
        self.corrector.check(path, self.sampler)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        return self.corrector.step(self.sampler, chain, x, t, t_next)


class DetailedBalance(Corrector):
    """Corrector that draws tokens anew from p_t(·|z), z ~ π, each with probability 1 − e^{−strength}.

    It does so `sweeps` times after each step. The generator G(y|x) = E_{z~π} p_t(y|z) is in detailed balance with p_t, on
    any path (for mixture paths (1 − κ) p0(y) + κ π(y)); the forward-backward corrector of Campbell et al. 2022 (arXiv
    2205.14987) is one such.

    Args:
        sweeps: how often.
        strength: time for which G acts in each sweep.

    >>> import torch
    >>> from gm_discrete import DetailedBalance, ExactModel, UniformPath, simulate
    >>> process = ExactModel(UniformPath(3), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    >>> x_0 = process.path.prior((4, 3))
    >>> simulate(process, x_0, torch.linspace(0, 1, 9), corrector=DetailedBalance(sweeps=2)).shape
    torch.Size([4, 3])
    """

    type_name = "detailed_balance"

    def __init__(self, sweeps: int = 1, strength: float = 0.4) -> None:
        self.sweeps, self.strength = whole("sweeps", sweeps, least=1), number("strength", strength, above=0)

    def check(self, path: Path, sampler: Sampler) -> None:
        super().check(path, sampler)
        if path.coupled:
            raise ValueError(
                "corrector=DetailedBalance is not defined for coupled paths: the source x_0 cannot be recovered from x"
            )

    def step(self, sampler: Sampler, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        state = sampler.step(chain, x, t, t_next)[""]
        chain.error = None  # tokens that are drawn anew together are not exact
        if "" in chain.arriving:  # data stays as it is
            return {"": state}
        for _ in range(self.sweeps):
            events = chain.events(torch.full(state.shape, -math.expm1(-self.strength), device=state.device))
            posterior = chain.posterior({"": state}, t_next)
            chain.count(events.any(1))
            state = chain.land(state, posterior.corrector().kernel, events)
        return {"": state}


class ReMDM(Corrector):
    """Corrector of masked diffusion that masks revealed tokens again.

    A step masks revealed tokens with probability σ = η min(1, (1 − κ_s)/κ_t), and reveals masked ones with probability (κ_s
    − (1 − σ) κ_t)/(1 − κ_t). For a fixed z it carries p_t to p_s for every σ in that range. Wang et al. 2025 (arXiv
    2503.00307, equations 7 and 10).

    Args:
        eta: η in (0, 1].

    >>> import torch
    >>> from gm_discrete import ExactModel, MaskedPath, ReMDM, simulate
    >>> process = ExactModel(MaskedPath(4), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    >>> x = simulate(process, process.path.prior((4, 3)), torch.linspace(0, 1, 33), corrector=ReMDM(0.1))
    >>> bool((x == process.path.mask_token_id).any())
    False
    """

    type_name = "remdm"

    def __init__(self, eta: float = 0.2) -> None:
        self.eta = number("eta", eta, above=0, most=1)

    def check(self, path: Path, sampler: Sampler) -> None:
        super().check(path, sampler)
        if sampler != TauLeaping():
            raise ValueError(f"corrector={self!r} is a step of its own: use sampler='tau_leaping', not {sampler!r}")
        if path.rates != "masked":
            raise ValueError(f"corrector={self!r} needs a MaskedPath, not {path!r}; use DetailedBalance")

    def step(self, sampler: Sampler, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        path: Any = chain.path
        state, schedule, masked = x[""], chain.schedule(), x[""] == path.mask_token_id
        kappa, kappa_next = schedule.kappa(t[""])[:, None], schedule.kappa(t_next[""])[:, None]
        sigma = self.eta * torch.where(kappa > 0, (1 - kappa_next) / kappa, 0.0).clamp(max=1)
        reveal = (kappa_next - (1 - sigma) * kappa) / (1 - kappa)
        jump = chain.jump(x, t, t_next)
        events = chain.events(torch.where(masked, reveal, sigma))
        chain.count((events & masked).any(1))
        landed = chain.land(state, jump.kernel, events & masked)
        return {"": chain.jumped(landed, landed.masked_fill(events & ~masked, path.mask_token_id))}
