"""The Gaussian path p_t(x|z) = N(α(t) z, σ(t)²), per coordinate, and three generators that carry it.

With x = α z + σ ε, the hazard of the noise h = −σ'/σ, and ẑ, ε̂ the posterior means of z and ε given x:

    flow        u = α' ẑ + σ' ε̂
    diffusion   b = u − ½ (g²/σ) ε̂,  g² = noise · σ          (the score of p_t is −ε̂/σ)
    jump        λ = h E[w² − ζw − 1]₊,  landing on J(·|z)      w = (x − αz)/σ, ζ = −(α'/σ') z; see `landings.py`

For CondOT (α = t, σ = 1 − t), which is also the geometric average path of Generator Matching, h = 1/(1 − t) and ζ = z.

A network predicts either a distribution of z over bins, as for tokens, from which all three generators follow
(`gaussian_belief.py`); or one number per coordinate, from which flow and diffusion follow, and beside it the rate and the
binned landing of the jump (`generators/jump_heads.py`).
Sources: Holderrieth et al., ICLR 2025; Lipman et al. 2022 (arXiv 2210.02747); Albergo et al. 2023 (arXiv 2303.08797).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from gm_discrete.arguments import choice, number
from gm_discrete.generators import Diffusion, Factor, Flow, Jump, Superposition
from gm_discrete.generators.jump_heads import BinnedLanding, KnownLanding, check_landing_bins, jump_heads
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, Readout, TensorReadout
from gm_discrete.generators.landings import GREATEST, Bins, Landing, landing_quantile
from gm_discrete.paths.affine import AT_REST, AffineAt, AffineSchedule, CondOTSchedule
from gm_discrete.paths.base import check_times
from gm_discrete.paths.continuous import Weights, shaped, superposed
from gm_discrete.paths.euclidean import EuclideanPath
from gm_discrete.paths.gaussian_belief import BinnedBelief
from gm_discrete.paths.schedules import TimeLike

PREDICTIONS = ("belief", "velocity", "data", "noise")

LEAST_ALPHA = 1e-3
"""Below it, x in float32 hardly depends on z: a prediction of the noise does not determine ẑ, and the data mean is used."""

LANDING_REACH = 4.0
"""Bins of the landing cover at least [−4, 4], beyond which hardly any noise lies."""

LandingAt = Callable[[AffineAt], Kernel]
"""Where a jump lands, as a function of the time of landing."""


class GaussianPath(EuclideanPath):
    """p_t(x|z) = N(αz, σ²) with a flow, a diffusion and a jump, in any superposition.

    Args:
        generators: weights of `"flow"`, `"diffusion"` and `"jump"`, of sum 1; numbers, or lists of them at even times. Only
            the flow by default.
        num_channels: C of states [B, L, C] or [B, C, H, W].
        schedule: α and σ; CondOT by default.
        prediction: what the network predicts. `"belief"`: a distribution of z over bins, from which all generators follow;
            the default with a jump, and with `bins`, which `fit` sets. `"velocity"` u (the default of a flow or diffusion
            without `bins`), `"data"` ẑ or `"noise"` ε̂: a number, from which flow and diffusion follow; a jump then has
            outputs of its own, a log-rate and bins of the landing.
        data_mean, data_std: of the data; they scale a network's inputs and outputs to unit size.
        bins: with `"belief"` bins of z, which must cover the data, by default [−1, 1]; else of the landing, which must
            cover all values of x_t.
        noise: g²/σ of the diffusion, ≥ 0.
        stop: ε; the step from 1 − ε goes to ẑ, because a path to t = 1 has infinitely many jumps.

    >>> path = GaussianPath({"flow": 0.5, "jump": 0.5}, bins=Bins(-2.0, 2.0, 32))
    >>> z, x = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    >>> generator = path.conditional(z, x, t=torch.tensor([0.5]))
    >>> generator.parts["flow"].velocity.item(), generator.parts["jump"].intensity.item()
    (2.0, 2.0)
    """

    type_name = "gaussian"
    known_generators = ("flow", "diffusion", "jump")

    def __init__(
        self,
        generators: Weights | None = None,
        num_channels: int = 1,
        schedule: AffineSchedule | dict | None = None,
        prediction: str | None = None,
        data_mean: float = 0.0,
        data_std: float = 1.0,
        bins: Bins | dict | None = None,
        noise: float = 1.0,
        stop: float = 0.005,
    ) -> None:
        super().__init__(generators, num_channels, bins, stop)
        self.schedule = CondOTSchedule() if schedule is None else AffineSchedule.of(schedule)
        usual = "velocity" if bins is None and "jump" not in self.generators else "belief"
        prediction = choice("prediction", usual if prediction is None else prediction, PREDICTIONS)
        self.prediction, self.noise = prediction, number("noise", noise, least=0, most=1e6)
        self.data_mean = number("data_mean", data_mean, least=-GREATEST, most=GREATEST)
        self.data_std = number("data_std", data_std, least=1 / GREATEST, most=GREATEST)
        if "jump" in self.generators and prediction != "belief":
            check_landing_bins(self.bins)

    @classmethod
    def fit(
        cls,
        data: Tensor,
        generators: Weights | None = None,
        *,
        num_bins: int | None = None,
        margin: float = 0.05,
        **options: Any,
    ) -> Self:
        """The path for given data: their number of channels, mean and standard deviation, and bins that cover them.

        Args:
            data: floating point, [N, L, C] or [N, C, H, W]; NaN where a number is missing.
            generators: weights, see the class.
            num_bins: see `Bins.fit`.
            margin: how far the bins go beyond the data on either side, as a fraction of their range. Held-out data must
                lie in the bins, too.
            options: arguments of the constructor, which replace what is fitted.

        Raises:
            ValueError: the data have another shape, or hold no finite numbers.

        >>> path = GaussianPath.fit(torch.tensor([-3.0, 1.0, 2.0]).view(3, 1, 1), {"flow": 0.5, "jump": 0.5})
        >>> path.prediction, path.bins, path.data_mean
        ('belief', Bins(low=-3.25, high=2.25, number=64), 0.0)
        """
        if not isinstance(data, Tensor) or not data.is_floating_point() or data.dim() not in (3, 4):
            found = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else repr(data)
            raise ValueError(f"data must be a floating-point tensor [N, L, C] or [N, C, H, W], got {found}")
        bins = Bins.fit(data, num_bins, margin)
        if "jump" in (generators or ()) and options.get("prediction", "belief") not in (None, "belief"):
            low, high = min(bins.low, -LANDING_REACH), max(bins.high, LANDING_REACH)
            bins = Bins(low, high, num_bins or round((high - low) / bins.width))
        values = data[~data.isnan()].double()
        fitted = {
            "num_channels": data.shape[-1] if data.dim() == 3 else data.shape[1],
            "data_mean": float(values.mean()),
            "data_std": float(values.std(correction=0)) or 1.0,
            "bins": bins,
        }
        return cls(generators, **{**fitted, **options})

    @property
    def default_divergence(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        jump = {"jump": "generalized_kl"} if "jump" in self.generators else {}
        return jump if self.prediction == "belief" and set(self.generators) == {"jump"} else {"flow": "squared", **jump}

    @property
    def heads(self) -> dict[str, int]:
        if self.prediction == "belief":
            return {"belief": self.bins.number}
        return {"flow": 1} | (jump_heads(self.bins) if "jump" in self.generators else {})

    def at(self, t: TimeLike, per_kappa: bool = False) -> AffineAt:
        return self.schedule.at(t)

    # Distributions

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        source = rng.device if rng else device or "cpu"
        return torch.randn(tuple(shape), generator=rng, device=source).to(device or source)

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
        now = self.at(t).shaped(z)
        return now.alpha * z + now.sigma * self.prior(z.shape, rng, z.device).to(z.dtype)

    # Generators

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        now = self.at(t)
        here = now.shaped(x)
        noise = (x - here.alpha * z) / here.sigma
        if "jump" not in self.generators:
            return self.generator(z, noise, None, None, x, now, t_next)
        flat = z.flatten().double()

        def landing(then: AffineAt) -> Kernel:
            if self.prediction == "belief":
                belief = Dirac(self.bins.index(z), self.bins.number)
                return self.landing(belief, x, then, lambda cells, u, where: flat[where])
            there = then.shaped(z)
            alpha, sigma = there.alpha.expand(z.shape), there.sigma.expand(z.shape)
            return KnownLanding(z, there.ratio * z, alpha, sigma, self.bins)

        return self.generator(z, noise, self.reduced_rate(z, noise, here), landing, x, now, t_next)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        """The prediction.

        Args:
            readout: called as `readout(head, where=None)`: `"belief"` → logits [n, bins] of z given x at the entries
                `where` of the flattened state. Else `"flow"` → u, ẑ or ε̂, of x's shape; with a jump also `"rate"` →
                log(λ σ/speed), of x's shape, and `"landing"` → logits [n, bins]. A tensor stands for the logits of the
                belief [*x's shape, bins], or for the flow.
            x, t, t_next: state, times [B], and the end of the step.
            check: whether to check x and t.
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        now = self.at(t)
        if self.prediction == "belief":
            return self._from_belief(readout, x, now, t_next)
        output = readout if isinstance(readout, Tensor) else readout("flow")
        if output.shape != x.shape:
            raise ValueError(f"readout('flow') has shape {tuple(output.shape)}; expected x's shape {tuple(x.shape)}")
        clean, noise = self.clean_and_noise(output, x, now)
        if "jump" not in self.generators:
            return self.generator(clean, noise, None, None, x, now, t_next)
        if isinstance(readout, Tensor):
            raise ValueError("a path with a jump needs a readout of 'flow', 'rate' and 'landing', not one tensor")
        belief = Categorical(readout, x.shape, self.bins.number, x.device, head="landing")
        kernel = BinnedLanding(belief, x, self.bins)
        return self.generator(clean, noise, readout("rate").exp(), lambda then: kernel, x, now, t_next)

    def _from_belief(
        self, readout: Readout | Tensor, x: Tensor, now: AffineAt, t_next: TimeLike | None
    ) -> Superposition:
        readout = TensorReadout(readout) if isinstance(readout, Tensor) else readout
        belief = BinnedBelief(readout, x, now, self.bins)
        if "jump" not in self.generators:
            return self.generator(*belief.clean_and_noise(), None, None, x, now, t_next)
        clean, noise, rate, leaving = belief.clean_noise_and_jump()
        landing = partial(self.landing, leaving, x, values=belief.leaver)
        return self.generator(clean, noise, rate, landing, x, now, t_next)

    def clean_and_noise(self, output: Tensor, x: Tensor, t: TimeLike) -> tuple[Tensor, Tensor]:
        """(ẑ, ε̂) from the output of the flow's head: with x = α ẑ + σ ε̂, each of u, ẑ and ε̂ determines the others."""
        now = self.at(t).shaped(x)
        if self.prediction == "data":
            return output, (x - now.alpha * output) / now.sigma
        if self.prediction == "noise":
            early = now.alpha < LEAST_ALPHA
            clean = (x - now.sigma * output) / torch.where(early, 1.0, now.alpha)
            return torch.where(early, self.data_mean, clean), output
        slope = now.alpha * now.sigma_slope - now.alpha_slope * now.sigma  # −1 for CondOT
        rest = slope.abs() < AT_REST  # where a schedule starts at rest, its velocity does not determine ẑ
        slope = torch.where(rest, 1.0, slope)
        clean = torch.where(rest, self.data_mean, (now.sigma_slope * x - now.sigma * output) / slope)
        return clean, torch.where(rest, x, (now.alpha * output - now.alpha_slope * x) / slope)

    def generator(
        self,
        clean: Tensor,
        noise: Tensor,
        reduced: Tensor | None,
        landing: LandingAt | None,
        x: Tensor,
        t: TimeLike,
        t_next: TimeLike | None = None,
    ) -> Superposition:
        """The generator made of ẑ and ε̂, of the jump's rate λ σ/speed and of its landing, a function of the time.

        Over an interval [t, s], with all of these frozen: the flow has the mean velocity that leads to α_s ẑ + σ_s ε̂, the
        diffusion the mean g² of both ends; a jump has the probability 1 − exp(−λ G) with G = ∫ f/f(t), as λ at a fixed x
        grows like f = speed/σ³, for CondOT like (1 − t)⁻³ (`AffineSchedule.growth`). A step to t = 1 is taken by the flow,
        and leads to ẑ.
        """
        now, end = self.at(t), None if t_next is None else self.at(t_next)
        here = now.shaped(x)
        velocity, mean, sigma = here.alpha_slope * clean + here.sigma_slope * noise, None, here.sigma
        if end is not None:
            there, step = end.shaped(x), shaped(end.t - now.t, x)
            sigma = (here.sigma + there.sigma) / 2
            mean = torch.where(step > 0, (there.alpha * clean + there.sigma * noise - x) / step, velocity)
        parts: dict[str, Factor] = {"flow": Flow(velocity, mean)}
        if "diffusion" in self.generators:
            towards = -self.noise / 2 * noise  # ½ g² times the score
            scale = (self.noise * sigma).sqrt()
            parts["diffusion"] = Diffusion(scale, velocity + towards, None if mean is None else mean + towards)
        if reduced is not None and landing is not None:
            probability, rate = None, now.speed / now.sigma
            if end is not None:
                growth = rate * self.schedule.growth(now.t.double(), end.t.double())
                growth = growth.clamp(
                    max=torch.finfo(x.dtype).max
                )  # infinite in a step to t = 1, in which nothing jumps
                probability = -torch.expm1(-reduced * shaped(growth, x))
            kernel = landing(now if end is None else end)
            parts["jump"] = Jump(shaped(rate, x) * reduced, kernel, probability, guessed=True, length=now.sigma)
        again = partial(self.generator, clean, noise, reduced, landing, x, now)
        return superposed(parts, self.weights(now.t), now.t, None if end is None else end.t, "flow", again)

    def landing(
        self, belief: Kernel, x: Tensor, t: TimeLike, values: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Landing:
        """J(·|z) at the times t [B], for z from a belief over cells (see `Landing`)."""
        size, at = x[0].numel(), self.at(t)
        ratio = at.ratio

        def land(z: Tensor, u: Tensor, where: Tensor) -> Tensor:
            row = where // size
            return at.alpha[row] * z + at.sigma[row] * landing_quantile(u, ratio[row] * z)

        return Landing(belief, x, values, land)

    def reduced_rate(self, z: Tensor, noise: Tensor, at: AffineAt) -> Tensor:
        """λ(x|z) in its unit speed/σ: [−σ' (ε² − 1) − α' z ε]₊ / speed, with ε = (x − αz)/σ."""
        return (at.fall * (noise * noise - 1) - at.rise * z * noise).clamp(min=0)

    # Networks and losses

    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        """The flow's standard deviation given x, and the jump's speed/σ (1/(1 − t) for CondOT)."""
        now = self.at(t)
        _, flow = self._preconditioning(now, "velocity")
        return {"flow": flow} | ({"jump": now.speed / now.sigma} if "jump" in self.generators else {})

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        """Turns the raw output of a head into what `marginal` takes.

        The flow's is a m + skip (x − α m) + out · raw, so that the best `raw` has variance 1 at all times for data of mean
        m and standard deviation s (Karras et al. 2022, arXiv 2206.00364). To the logits of a belief the evidence of x is
        added, log N(x; αc_k, v) for each bin k. Other outputs stay as they are.
        """
        if head == "belief":
            return (
                raw
                + BinnedBelief.normal(
                    x.to(torch.promote_types(x.dtype, torch.float32)), self.at(t), self.bins
                ).log_evidence
            )
        if head != "flow":
            return raw
        now = self.at(t)
        skip, out = self._preconditioning(now, self.prediction)
        here = now.shaped(x)
        of_data = {"velocity": here.alpha_slope, "data": 1.0, "noise": 0.0}[self.prediction]
        centred = x - here.alpha * self.data_mean
        return of_data * self.data_mean + shaped(skip, x) * centred + shaped(out, x) * raw

    def normalized(self, x: Tensor, t: TimeLike) -> Tensor:
        now = self.at(t).shaped(x)
        return (x - now.alpha * self.data_mean) / ((now.alpha * self.data_std) ** 2 + now.sigma**2).sqrt()

    def _preconditioning(self, now: AffineAt, prediction: str) -> tuple[Tensor, Tensor]:
        """(skip, out) [B]: y = a z + b ε regressed on x = α z + σ ε, for z of variance s²."""
        variance, alpha, sigma = self.data_std**2, now.alpha, now.sigma
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        a, b = {
            "velocity": (now.alpha_slope, now.sigma_slope),
            "data": (one, zero),
            "noise": (zero, one),
        }[prediction]
        total = alpha**2 * variance + sigma**2
        return (a * alpha * variance + b * sigma) / total, (a * sigma - b * alpha).abs() * (variance / total).sqrt()
