"""Correctors: they turn a step into one that also moves back and forth along p_t, and so mends what steps got wrong.

A corrector is a function from steps to steps. Each generator leaves the path's law alone: in the limit of small steps (and
of small strength of `DetailedBalance` and `ReMDM`, which act on all tokens at once) the tokens follow p_t as before. But
they may change their minds more often, for more network evaluations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.steps import tau_leaping


class Corrector(Configurable, ABC):
    """Makes a step of a step."""

    @abstractmethod
    def corrected(self, step: Step) -> Step:
        """The step with its correction."""


class DetailedBalance(Corrector):
    """After each step, `sweeps` times: every token is drawn anew from p_t(·|z), z ~ π, with probability 1 − e^{−strength}.

    The generator G(y|x) = E_{z~π} p_t(y|z) is in detailed balance with p_t, on any path (for mixture paths
    (1 − κ) p0(y) + κ π(y)); the forward-backward corrector of Campbell et al. 2022 (arXiv 2205.14987) is one such.
    """

    type_name = "detailed_balance"

    def __init__(self, sweeps: int = 1, strength: float = 0.4) -> None:
        if sweeps < 1:
            raise ValueError(f"sweeps={sweeps} must be at least 1")
        self.sweeps, self.strength = int(sweeps), _positive("strength", strength)

    def corrected(self, step: Step) -> Step:
        def stepped(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            x = step(chain, x, t, t_next)
            chain.error = None  # tokens that are drawn anew together leave the law of an exact step
            if bool((t_next >= 1).any()):  # data is drawn anew as it is
                return x
            for _ in range(self.sweeps):
                events = chain.events(torch.full(x.shape, -math.expm1(-self.strength), device=x.device))
                chain.calls += events.any(1)
                x = chain.land(x, chain.posterior(x, t_next).corrector().kernel, events)
            return x

        return stepped


class _Renoising(Corrector):
    """Before each step the state is noised, from κ_t to a smaller κ_b; the step then starts at b.

    Noise needs no network: each token is renewed from p0 with probability 1 − κ_b/κ_t. For mixture paths.
    """

    @abstractmethod
    def kappa_back(self, kappa: Tensor, kappa_next: Tensor, duration: Tensor) -> Tensor:
        """κ_b ≤ κ_t for a step from κ_t to κ_s that takes the time `duration`."""

    def corrected(self, step: Step) -> Step:
        def stepped(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            path = chain.path
            if not hasattr(path, "renoise"):
                raise ValueError(f"{type(self).__name__} is for mixture paths; use DetailedBalance here")
            schedule = path.schedule
            back = schedule.inverse(self.kappa_back(schedule.kappa(t), schedule.kappa(t_next), t_next - t))
            back = torch.minimum(back, t)
            noised = torch.where(chain.free, path.renoise(x, t, back, chain.rng), x)
            return step(chain, chain.moved(x, noised), back, t_next)

        return stepped


class BackwardNoise(_Renoising):
    """The generator (1 + b) R + b R̄ of the path's rate R and the backward rate R̄(y|x) = (κ'/κ) p0(y): κ_b = κ_t (κ_t/κ_s)^b.

    R̄ solves the Kolmogorov equation backwards in time, so that the sum solves it forwards for every b ≥ 0.
    """

    type_name = "backward_noise"

    def __init__(self, b: float = 1.0) -> None:
        self.b = _positive("b", b)

    def kappa_back(self, kappa: Tensor, kappa_next: Tensor, duration: Tensor) -> Tensor:
        return kappa * (kappa / kappa_next) ** self.b


class EtaNoise(_Renoising):
    """Noise at the constant rate η per token, and data at the rate that balances it: κ_b = κ_t e^{−η (s − t)}.

    For masking: unmask at h + η κ/(1 − κ), mask again at η. For S symbols of uniform noise each z → y has the rate η/S, and
    y → z the rate (η/S)(1 + (S − 1) κ)/(1 − κ) more. Campbell et al. 2024 (arXiv 2402.04997, section 3).
    """

    type_name = "eta_noise"

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = _positive("eta", eta)

    def kappa_back(self, kappa: Tensor, kappa_next: Tensor, duration: Tensor) -> Tensor:
        return kappa * torch.exp(-self.eta * duration)


class ReMDM(Corrector):
    """Remasking of masked diffusion: a step masks revealed tokens with probability σ, and reveals masked ones with
    (κ_s − (1 − σ) κ_t)/(1 − κ_t), σ = η min(1, (1 − κ_s)/κ_t).

    Given z the step carries p_t to p_s for every σ in that range. Wang et al. 2025 (arXiv 2503.00307, equations 7 and 10).
    """

    type_name = "remdm"

    def __init__(self, eta: float = 0.2) -> None:
        self.eta = _positive("eta", eta)
        if eta > 1:
            raise ValueError(f"eta={eta} must be in (0, 1]")

    def corrected(self, step: Step) -> Step:
        if step is not tau_leaping:
            raise ValueError('remdm is a step of its own: use it with the method "tau_leaping"')

        def stepped(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            path = chain.path
            if path.rates != "masked":
                raise ValueError(f'remdm is for masked paths; with rates="{path.rates}" use BackwardNoise')
            schedule, masked = path.schedule, x == path.mask_token_id
            kappa, kappa_next = schedule.kappa(t)[:, None], schedule.kappa(t_next)[:, None]
            sigma = self.eta * torch.where(kappa > 0, (1 - kappa_next) / kappa, 0.0).clamp(max=1)
            reveal = (kappa_next - (1 - sigma) * kappa) / (1 - kappa)
            generator = chain.jump(x, t, t_next)
            events = chain.events(torch.where(masked, reveal, sigma))
            chain.calls += (events & masked).any(1)
            landed = chain.land(x, generator.kernel, events & masked)
            return chain.moved(landed, landed.masked_fill(events & ~masked, path.mask_token_id))

        return stepped


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be positive")
    return float(value)
