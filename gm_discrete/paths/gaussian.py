"""The Gaussian path p_t(x|z) = N(α(t) z, σ(t)²), per coordinate, and three generators that carry it.

With x = α z + σ ε, the hazard of the noise h = −σ'/σ, and ẑ, ε̂ the posterior means of z and ε given x:

    flow        u = α' ẑ + σ' ε̂
    diffusion   b = u − ½ (g²/σ) ε̂,  g² = noise · σ          (the score of p_t is −ε̂/σ)
    jump        λ = h E[w² − ζw − 1]₊,  landing on J(·|z)      w = (x − αz)/σ, ζ = −(α'/σ') z; see `landings.py`

For CondOT (α = t, σ = 1 − t), which is the geometric average path of Generator Matching too, h = 1/(1 − t) and ζ = z.

What a network states may be one number per coordinate, of which flow and diffusion are made, with a rate and a law over bins
of the landing for the jump beside it; or a belief about z, as of tokens, of which all three are made.
Sources: Holderrieth et al., ICLR 2025; Lipman et al. 2022 (arXiv 2210.02747); Albergo et al. 2023 (arXiv 2303.08797).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Diffusion, Factor, Flow, Jump, Superposition
from gm_discrete.generators.beliefs import NormalBelief
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, TensorReadout, map_rows
from gm_discrete.generators.landings import BinnedLanding, Bins, KnownLanding, Landing, check_within, landing_quantile
from gm_discrete.paths.euclidean import EuclideanPath, Weights, normal_tail, shaped, superposed
from gm_discrete.paths.schedules import AT_REST, AffineSchedule, CondOTSchedule

LEAST_SLOPE = 1e-6
"""Where noise does not yet fall (σ' = 0) a jump would land anywhere; ζ is held finite there, λ stays what it is."""

LEAST_RATE = 1e-6
"""In speed/σ. Of bins that nothing seems to leave, so that a logarithm of it is finite: once in 10⁶ lengths of the path."""

CACHED = 2**16
"""Numbers of a block (256 KiB in float32): of some forty passes over it all but the first find it in the second cache."""

LEAST_ALPHA = 1e-3
"""Below it a prediction of the noise says nothing about the data in float32, which are then taken for their mean."""

MOST_OUTSIDE = 1e-3
"""So much of the prior may lie outside of bins of the landing, where nothing lands: what 3.3 standard deviations leave."""


class GaussianPath(EuclideanPath):
    """p_t(x|z) = N(αz, σ²) with a flow, a diffusion and a jump, in any superposition.

    Args:
        generators: weights of `"flow"`, `"diffusion"` and `"jump"`, of sum 1; numbers, or lists of them at even times.
        num_channels: C of states [B, L, C] or [B, C, H, W].
        schedule: α and σ; CondOT by default.
        prediction: what a network states. `"belief"`: the law of z over bins, of which all generators follow; the default
            with a jump. `"velocity"` u (the default without), `"data"` ẑ or `"noise"` ε̂: a number, of which flow and
            diffusion follow; a jump then has a log-rate and the law of its landing over bins of its own.
        data_mean, data_std: of the data, by which a network's inputs and outputs are brought to unit size.
        bins: of a belief, which must cover the data; else of the landing, which must cover all that x_t may be.
        noise: g²/σ of the diffusion, ≥ 0.
        stop: ε; the step from 1 − ε goes to ẑ, as there are infinitely many jumps on the way to t = 1.
    """

    type_name = "gaussian"
    known_generators = ("flow", "diffusion", "jump")

    def __init__(
        self,
        generators: Weights | None = None,
        num_channels: int = 1,
        schedule: AffineSchedule | dict[str, Any] | None = None,
        prediction: str | None = None,
        data_mean: float = 0.0,
        data_std: float = 1.0,
        bins: Bins | dict[str, Any] | None = None,
        noise: float = 1.0,
        stop: float = 0.005,
    ) -> None:
        super().__init__(generators, num_channels, bins, stop)
        if not isinstance(schedule, AffineSchedule | dict | None):
            raise TypeError(f"schedule={schedule!r} must be an AffineSchedule, such as CondOTSchedule()")
        self.schedule = (
            AffineSchedule.from_dict(schedule) if isinstance(schedule, dict) else schedule or CondOTSchedule()
        )
        prediction = prediction or ("belief" if "jump" in self.generators else "velocity")
        if prediction not in ("belief", "velocity", "data", "noise"):
            raise ValueError(f"prediction={prediction!r} must be 'belief', 'velocity', 'data' or 'noise'")
        if not data_std > 0:
            raise ValueError(f"data_std={data_std} must be positive")
        if not noise >= 0:
            raise ValueError(f"noise={noise} must not be negative")
        self.prediction, self.noise = prediction, float(noise)
        self.data_mean, self.data_std = float(data_mean), float(data_std)
        if "jump" in self.generators and prediction != "belief":
            reach = min(-self.bins.low, self.bins.high)
            if normal_tail(max(reach, 0.0)) > MOST_OUTSIDE:
                raise ValueError(
                    f"bins from {self.bins.low} to {self.bins.high} do not cover the prior N(0, 1): bins of the landing "
                    "need low ≤ −3.3 and high ≥ 3.3, or take those of the data with prediction='belief'"
                )

    @property
    def default_divergence(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        jump = {"jump": "generalized_kl"} if "jump" in self.generators else {}
        return jump if self.prediction == "belief" and set(self.generators) == {"jump"} else {"flow": "squared", **jump}

    @property
    def heads(self) -> dict[str, int]:
        if self.prediction == "belief":
            return {"belief": self.bins.number}
        return {"flow": 1} | ({"rate": 1, "landing": self.bins.number} if "jump" in self.generators else {})

    # The law

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        device = torch.device(device if device is not None else rng.device if rng is not None else "cpu")
        return torch.randn(tuple(shape), generator=rng, device=rng.device if rng else device).to(device)

    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None, x_0: Tensor | None = None) -> Tensor:
        self.check_source(x_0, z, t)
        self.check(z, t, "z")
        now = self.at(t, z)
        return now.alpha * z + now.sigma * self.prior(z.shape, rng, z.device).to(z.dtype)

    def at(self, t: Tensor, x: Tensor) -> _At:
        """α, σ and their derivatives at times t [B], shaped to act on the state x."""
        t, schedule = t.double(), self.schedule
        values = (schedule.alpha(t), schedule.sigma(t), schedule.alpha_derivative(t), schedule.sigma_derivative(t))
        return _At(*(shaped(value, x) for value in values))

    # Generators

    def conditional(self, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        self.check_pair(z, x, t)
        if self.prediction == "belief" or "jump" in self.generators:
            check_within(self.bins, z, "z")
        now = self.at(t, x)
        noise = (x - now.alpha * z) / now.sigma
        if "jump" not in self.generators:
            return self.generator(z, noise, None, None, x, t, t_next)
        flat = z.flatten().double()

        def kernel(when: Tensor) -> Kernel:
            if self.prediction == "belief":
                belief = Dirac(self.bins.index(z), self.bins.number)
                return self.landing(belief, x, when, lambda cells, u, where: flat[where])
            there = self.at(when, z)
            alpha, sigma = there.alpha.expand(z.shape), there.sigma.expand(z.shape)
            return KnownLanding(z, there.ratio * z, alpha, sigma, self.bins)

        return self.generator(z, noise, self.reduced_rate(z, noise, now), kernel, x, t, t_next)

    def marginal(self, readout: Any, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Superposition:
        """The prediction.

        Args:
            readout: called as `readout(head, where=None)`: `"belief"` → logits [n, bins] of z given x at the entries
                `where` of the flattened state. Else `"flow"` → u, ẑ or ε̂, of x's shape; with a jump also `"rate"` →
                log(λ σ/speed), of x's shape, and `"landing"` → logits [n, bins]. A tensor is taken for the logits of the
                belief [*x's shape, bins], or for the flow.
            x, t, t_next: state, times [B], and the end of the step.
        """
        self.check(x, t, "x")
        if self.prediction == "belief":
            return self._believed(readout, x, t, t_next)
        stated = readout if isinstance(readout, Tensor) else readout("flow")
        if stated.shape != x.shape:
            raise ValueError(f"the flow's head answered {tuple(stated.shape)}; expected x's shape {tuple(x.shape)}")
        clean, noise = self.clean_and_noise(stated, x, t)
        if "jump" not in self.generators:
            return self.generator(clean, noise, None, None, x, t, t_next)
        if isinstance(readout, Tensor):
            raise ValueError("a path with a jump needs a readout of 'flow', 'rate' and 'landing', not one tensor")
        belief = Categorical(readout, x.shape, self.bins.number, x.device, head="landing")
        kernel = BinnedLanding(belief, x, self.bins)
        return self.generator(clean, noise, readout("rate").exp(), lambda when: kernel, x, t, t_next)

    def _believed(self, readout: Any, x: Tensor, t: Tensor, t_next: Tensor | None) -> Superposition:
        """The generators of a belief Σ_k π_k N(c_k, s²) about z, c and s those of the bins."""
        readout = TensorReadout(readout) if isinstance(readout, Tensor) else readout
        seen, precise = x, torch.promote_types(x.dtype, torch.float32)
        x = x.to(precise)
        flat, time = x.flatten(), t.repeat_interleave(x[0].numel())
        belief = Categorical(readout, x.shape, self.bins.number, x.device, head="belief")
        every = belief.prepare(torch.arange(x.numel(), device=x.device))
        centers = self.bins.centers(x.device).to(x.dtype)
        leavers = Leavers(belief, lambda where: self._log_rate(flat[where], time[where]))

        def look(where: Tensor) -> Tensor:
            law = belief.log_probs(where)
            found = [(law.exp() * centers).sum(1)]  # not a product of matrices, which autocast would round to bf16
            if "jump" in self.generators:
                leaving = law + leavers.log_rate(where)
                leavers.rows = leaving if len(every) == 1 else None
                found.append(leaving.logsumexp(1))
            return torch.stack(found, 1)

        def leaver(cells: Tensor, u: Tensor, where: Tensor) -> Tensor:
            return self._within(flat[where].double(), time[where], cells[:, None]).leaver(u[:, None])[:, 0]

        found, now, std = map_rows(look, every).view(*x.shape, -1), self.at(t, x), self.bins.std
        # ẑ = Σ π_k m_k with the means m_k of the normal laws given x, and x = α ẑ + σ ε̂.
        away = (x - now.alpha * found[..., 0]) / ((now.alpha * std) ** 2 + now.sigma**2)
        clean, noise = (found[..., 0] + now.alpha * std**2 * away).to(seen.dtype), (now.sigma * away).to(seen.dtype)
        if "jump" not in self.generators:
            return self.generator(clean, noise, None, None, seen, t, t_next)
        landing = partial(self.landing, leavers, seen, values=leaver)
        return self.generator(clean, noise, found[..., 1].exp(), landing, seen, t, t_next)

    def _log_rate(self, x: Tensor, t: Tensor) -> Tensor:
        """log λ σ/speed of each bin, [n, bins], given entries x [n] at times t [n]; in blocks that fit a CPU's cache."""
        size = max(1, CACHED // self.bins.number) if x.device.type == "cpu" else max(1, len(x))
        blocks = zip(x.split(size), t.split(size), strict=True)
        return torch.cat([self._within(*block).rate.clamp(min=LEAST_RATE).log() for block in blocks])

    def _within(self, x: Tensor, t: Tensor, cells: Tensor | None = None) -> NormalBelief:
        """About z in each of the bins, or in one, given entries x [n] at times t [n]: [n, bins], or [n, 1]."""
        centers = self.bins.centers(x.device).to(x.dtype)
        center = centers if cells is None else centers[cells]
        return NormalBelief(x[:, None], center, self.bins.std, self.at(t, x[:, None]).to(x.dtype))

    def clean_and_noise(self, stated: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ, ε̂) of what the flow's head states: with x = α ẑ + σ ε̂ any of u, ẑ and ε̂ gives the others."""
        now = self.at(t, x)
        if self.prediction == "data":
            return stated, (x - now.alpha * stated) / now.sigma
        if self.prediction == "noise":
            early = now.alpha < LEAST_ALPHA
            clean = (x - now.sigma * stated) / torch.where(early, 1.0, now.alpha)
            return torch.where(early, self.data_mean, clean), stated
        slope = now.alpha * now.sigma_slope - now.alpha_slope * now.sigma  # −1 for CondOT
        rest = slope.abs() < AT_REST  # a schedule that starts at rest says nothing by its velocity there
        slope = torch.where(rest, 1.0, slope)
        clean = torch.where(rest, self.data_mean, (now.sigma_slope * x - now.sigma * stated) / slope)
        return clean, torch.where(rest, x, (now.alpha * stated - now.alpha_slope * x) / slope)

    def generator(
        self,
        clean: Tensor,
        noise: Tensor,
        reduced: Tensor | None,
        kernel: Callable[[Tensor], Kernel] | None,
        x: Tensor,
        t: Tensor,
        t_next: Tensor | None = None,
    ) -> Superposition:
        """The generator made of ẑ and ε̂, of the jump's rate λ σ/speed and of its landing, a function of the time [B].

        Over an interval [t, s], with all of these frozen: the flow has the mean velocity that leads to α_s ẑ + σ_s ε̂, the
        diffusion the mean g² of both ends; a jump has the probability 1 − exp(−λ G) with G = ∫ f/f(t), as λ at a fixed x
        grows like f = speed/σ³, for CondOT like (1 − t)⁻³ (`AffineSchedule.growth`); a step to t = 1 is the flow's, which
        leads to ẑ.
        """
        now = self.at(t, x)
        velocity, mean, sigma = now.alpha_slope * clean + now.sigma_slope * noise, None, now.sigma
        if t_next is not None:
            there, step = self.at(t_next, x), shaped(t_next - t, x)
            sigma = (now.sigma + there.sigma) / 2
            mean = torch.where(step > 0, (there.alpha * clean + there.sigma * noise - x) / step, velocity)
        parts: dict[str, Factor] = {"flow": Flow(velocity, mean)}
        if "diffusion" in self.generators:
            towards = -self.noise / 2 * noise  # ½ g² times the score
            scale = (self.noise * sigma).sqrt()
            parts["diffusion"] = Diffusion(scale, velocity + towards, None if mean is None else mean + towards)
        if reduced is not None and kernel is not None:
            probability, landing = None, kernel(t if t_next is None else t_next)
            rate = self._rate_unit(t)
            if t_next is not None:
                growth = rate * self.schedule.growth(t.double(), t_next.double())
                growth = growth.clamp(max=torch.finfo(x.dtype).max)  # a step to t = 1, in which nothing jumps
                probability = -torch.expm1(-reduced * shaped(growth, x))
            length = self.schedule.sigma(t.double())
            parts["jump"] = Jump(shaped(rate, x) * reduced, landing, probability, guessed=True, length=length)
        again = partial(self.generator, clean, noise, reduced, kernel, x, t)
        return superposed(parts, self.weights(t), t, t_next, "flow", again)

    def landing(self, belief: Kernel, x: Tensor, when: Tensor, values: Any) -> Landing:
        """J(·|z) at the times `when` [B], for z from a belief over cells (see `Landing`)."""
        size = x[0].numel()
        at = self.at(when, torch.empty(len(x), dtype=torch.float64, device=x.device))

        def land(z: Tensor, u: Tensor, where: Tensor) -> Tensor:
            row = where // size
            alpha, sigma = at.alpha[row], at.sigma[row]
            return alpha * z + sigma * landing_quantile(u, at.ratio[row] * z)

        return Landing(belief, x, values, land)

    def reduced_rate(self, z: Tensor, noise: Tensor, at: _At) -> Tensor:
        """λ(x|z) in its unit speed/σ: [−σ' (ε² − 1) − α' z ε]₊ / speed, with ε = (x − αz)/σ."""
        return (at.fall * (noise * noise - 1) - at.rise * z * noise).clamp(min=0)

    def _rate_unit(self, t: Tensor) -> Tensor:
        """speed/σ, 1/(1 − t) for CondOT, [B]: what the rates of jumps are of the order of."""
        return self.schedule.speed(t.double()) / self.schedule.sigma(t.double())

    # What networks work with

    def units(self, t: Tensor) -> Mapping[str, Tensor]:
        _, flow = self._preconditioning(t, "velocity")
        return {"flow": flow} | ({"jump": self._rate_unit(t)} if "jump" in self.generators else {})

    def output(self, head: str, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The flow's head states a m + skip (x − α m) + out · raw, so that the best `raw` has variance 1 at all times
        for data of mean m and standard deviation s (Karras et al. 2022, arXiv 2206.00364). To the logits of a belief is
        added what x itself says of z, log N(x; αc_k, v) of each bin. The others are as they are."""
        if head == "belief":
            return raw + self._within(x.to(torch.promote_types(x.dtype, torch.float32)), t).log_evidence
        if head != "flow":
            return raw
        skip, out = self._preconditioning(t, self.prediction)
        now, mean = self.at(t, x), self.data_mean
        of_data = {
            "velocity": now.alpha_slope,
            "data": torch.ones_like(now.alpha),
            "noise": torch.zeros_like(now.alpha),
        }
        return of_data[self.prediction] * mean + shaped(skip, x) * (x - now.alpha * mean) + shaped(out, x) * raw

    def normalized(self, x: Tensor, t: Tensor) -> Tensor:
        now = self.at(t, x)
        return (x - now.alpha * self.data_mean) / ((now.alpha * self.data_std) ** 2 + now.sigma**2).sqrt()

    def _preconditioning(self, t: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
        """(skip, out) [B]: y = a z + b ε regressed on x = α z + σ ε, for z of variance s²."""
        t, variance = t.double(), self.data_std**2
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        a, b = {
            "velocity": (self.schedule.alpha_derivative(t), self.schedule.sigma_derivative(t)),
            "data": (one, zero),
            "noise": (zero, one),
        }[prediction]
        total = alpha**2 * variance + sigma**2
        return (a * alpha * variance + b * sigma) / total, (a * sigma - b * alpha).abs() * (variance / total).sqrt()


@dataclass(frozen=True)
class _At:
    """A schedule at times t, shaped to act on a state."""

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor
    sigma_slope: Tensor

    def to(self, dtype: torch.dtype) -> _At:
        return _At(*(value.to(dtype) for value in (self.alpha, self.sigma, self.alpha_slope, self.sigma_slope)))

    @property
    def ratio(self) -> Tensor:
        """ζ/z = −α'/σ'."""
        return self.alpha_slope / (-self.sigma_slope).clamp(min=LEAST_SLOPE)

    @property
    def rise(self) -> Tensor:
        """α'/speed."""
        return self.alpha_slope / self._speed

    @property
    def fall(self) -> Tensor:
        """−σ'/speed."""
        return -self.sigma_slope / self._speed

    @property
    def _speed(self) -> Tensor:
        return torch.maximum(self.alpha_slope, -self.sigma_slope).clamp(min=AT_REST)


class Leavers(Categorical):
    """The law of the bin of z among those that leave, π_k λ_k / Σ π λ.

    Args:
        belief: π.
        log_rate: where → log λ_k, [n, bins].
    """

    def __init__(self, belief: Categorical, log_rate: Callable[[Tensor], Tensor]) -> None:
        super().__init__(belief.readout, belief.shape, belief.vocab_size, belief.device, belief.head)
        self.log_rate = log_rate
        self.rows: Tensor | None = None  # logits of all entries, where they are few enough to be kept

    def logits(self, where: Tensor) -> Tensor:
        return super().logits(where) + self.log_rate(where) if self.rows is None else self.rows[where]
