"""The mixture path p_t(x|z) = (1 − κ) U[low, high] + κ δ_z of real numbers, and three generators that solve it.

With h = κ'/(1 − κ), D = high − low, and per coordinate:

    jump        λ(x|z) = h 1[x ≠ z], landing on z
    flow        u(x|z) = h (x − low − D 1[x > z])                               0 at x = z
    diffusion   g²(x|z) = 2h [½(z − low)² + D [x − z]₊ − ½(x − low)²]           no drift, reflecting at low and high

A particle that has reached z stays there. The path shows what the theory says: three processes of different kinds have
the same marginal distribution at every time. Source: Generator Matching (Holderrieth et al., ICLR 2025), table of
generators of the mixture path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gm_discrete.arguments import flag, readable
from gm_discrete.generators import Diffusion, Factor, Flow, Jump, Superposition
from gm_discrete.generators.kernels import Categorical, Dirac, Kernel, Readout
from gm_discrete.generators.landings import ROUNDING, Bins, Landing, ends
from gm_discrete.generators.spaces import Interval
from gm_discrete.paths.base import check_times, uniform
from gm_discrete.paths.continuous import Weights, shaped, superposed
from gm_discrete.paths.euclidean import EuclideanPath
from gm_discrete.paths.schedules import LinearSchedule, Schedule, ScheduleAt, TimeLike


class EuclideanMixturePath(EuclideanPath):
    """p_t(x|z) = (1 − κ) U[low, high] + κ δ_z with a jump, a flow and a pure diffusion, in any superposition.

    Args:
        generators: weights of `"jump"`, `"flow"` and `"diffusion"`, of sum 1.
        low, high: ends of the uniform prior; data must lie within.
        block: whether all coordinates of a state are noised together, or each by itself. In a block the landing of a jump
            is a new data point, independent of x: for exact posteriors, not for networks with bins.
        num_channels, bins, stop: as for `GaussianPath`; bins of the data.
        schedule: κ.
    """

    type_name = "euclidean_mixture"
    known_generators = ("jump", "flow", "diffusion")

    def __init__(
        self,
        generators: Weights | None = None,
        low: float = -1.0,
        high: float = 1.0,
        block: bool = False,
        num_channels: int = 1,
        bins: Bins | dict | None = None,
        schedule: Schedule | dict | None = None,
        stop: float = 0.005,
    ) -> None:
        self.low, self.high = ends("low", low, "high", high)
        self.space = Interval(self.low, self.high)
        super().__init__(
            {"jump": 1.0} if generators is None else generators,
            num_channels,
            Bins(low, high) if bins is None else bins,
            stop,
        )
        self.block = flag("block", block)
        if block and set(self.generators) != {"jump"}:
            raise ValueError(
                f"generators={self.generators}: the flow and the diffusion work per coordinate, not in a block"
            )
        self.schedule = LinearSchedule() if schedule is None else Schedule.of(schedule).check_ends()

    @property
    def default_divergence(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        kinds = {"flow": "squared", "diffusion": "generalized_kl", "jump": "generalized_kl"}
        return {name: kinds[name] for name in self.generators}

    @property
    def heads(self) -> dict[str, int]:
        own = {"flow": {"flow": 1}, "diffusion": {"diffusion": 1}, "jump": {"rate": 1, "landing": self.bins.number}}
        return {head: size for name in self.generators for head, size in own[name].items()}

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return (self.low + (self.high - self.low) * uniform(shape, rng, device)).float()

    def at(self, t: TimeLike, per_kappa: bool = False) -> ScheduleAt:
        return self.schedule.at(t)

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
        shape = (len(z), *[1] * (z.dim() - 1)) if self.block else z.shape
        kept = uniform(shape, rng, z.device) < shaped(self.schedule.kappa(t), z)
        return torch.where(kept, z, self.prior(z.shape, rng, z.device).to(z.dtype))

    def check(self, state: Tensor, t: TimeLike, name: str) -> None:
        super().check(state, t, name)
        if readable(state) and state.numel():
            low, high = float(state.min()), float(state.max())
            slack = ROUNDING * (self.high - self.low)
            if low < self.low - slack or high > self.high + slack:
                raise ValueError(
                    f"{name} goes from {low:.4g} to {high:.4g}, beyond the path's low={self.low} and high={self.high}"
                )

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        away = (x != z).to(x.dtype)
        if self.block:
            away = away.flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1)).expand(x.shape)
        width, flat = self.high - self.low, z.flatten().double()
        flow = (x - self.low - width * (x > z)) * away
        spread = 2 * ((z - self.low) ** 2 / 2 + width * (x - z).clamp(min=0) - (x - self.low) ** 2 / 2)
        kernel = self._landing(Dirac(self.bins.index(z), self.bins.number), x, lambda cells, u, where: flat[where])
        return self.generator(flow, spread.clamp(min=0) * away, away, kernel, x, t, t_next)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        """The prediction.

        Args:
            readout: called as `readout(head, where=None)`: `"flow"` → u/h, `"diffusion"` → log(g²/h) and `"rate"` →
                logit of λ/h, the probability that the number is still noise, each of x's shape; `"landing"` → logits of the
                bins [n, bins] at the entries `where` of the flattened state. Only what the path's generators need.
            x, t, t_next: state, times [B], and the end of the step.
            check: whether to check x and t.
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        if self.block:
            raise ValueError("block=True: a network with bins predicts each coordinate by itself; use block=False")
        if isinstance(readout, Tensor):
            raise TypeError(f"readout must be a function of the head, {', '.join(self.heads)}; got a tensor")
        flow = readout("flow") if "flow" in self.generators else None
        spread = readout("diffusion").exp() if "diffusion" in self.generators else None
        away = kernel = None
        if "jump" in self.generators:
            away = torch.sigmoid(readout("rate"))
            belief = Categorical(readout, x.shape, self.bins.number, x.device, head="landing")
            kernel = self._landing(belief, x, lambda cells, u, where: self.bins.value(cells, u))
        return self.generator(flow, spread, away, kernel, x, t, t_next)

    def generator(
        self,
        flow: Tensor | None,
        spread: Tensor | None,
        away: Tensor | None,
        kernel: Kernel | None,
        x: Tensor,
        t: TimeLike,
        t_next: TimeLike | None = None,
    ) -> Superposition:
        """The generator made of u/h, g²/h, λ/h and the distribution of landings.

        Over an interval the hazard is its mean. In a step to t = 1, where it is infinite, only the jump moves; a flow or a
        diffusion without a jump stays where it is, and the mass 1 − κ(1 − ε) does not reach the data.
        """
        now, end = self.at(t), None if t_next is None else self.at(t_next).t
        t, hazard, probability, jumped = now.t, now.hazard, None, None
        if end is not None:
            jumped = self.schedule.jump_probability(t, end)
            mean = -torch.log1p(-jumped) / (end - t)
            hazard = torch.where(jumped < 1, mean, 0.0)
        rate, rate_now, parts = shaped(hazard, x), shaped(now.hazard, x), {}
        if flow is not None and "flow" in self.generators:
            parts["flow"] = Flow(rate_now * flow, None if end is None else rate * flow, self.space)
        if spread is not None and "diffusion" in self.generators:
            parts["diffusion"] = Diffusion((rate * spread).sqrt(), space=self.space)
        if away is not None and kernel is not None and "jump" in self.generators:
            if jumped is not None:
                probability = shaped(jumped, x) * away
            length = torch.full_like(t, (self.high - self.low) / 2)
            parts["jump"] = Jump(rate_now * away, kernel, probability, joint=self.block, length=length)
        every: dict[str, Factor] = parts
        finisher = "jump" if "jump" in every else next(iter(every))
        again = partial(self.generator, flow, spread, away, kernel, x, now)
        return superposed(every, self.weights(t), t, end, finisher, again)

    def _landing(self, belief: Kernel, x: Tensor, values: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Landing:
        return Landing(belief, x, values, lambda z, u, where: z)

    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        now, width = self.at(t), (self.high - self.low) / 2
        hazard = now.hazard
        units = {"flow": hazard * width * now.complement.sqrt(), "diffusion": hazard * width**2, "jump": hazard}
        return {name: units[name] for name in self.generators}

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        """The flow is D/2 √(1 − κ) · raw, so that the best `raw` is of unit size: the fraction κ, which is at z, stands
        still."""
        return raw * shaped(self.at(t).complement.sqrt() * (self.high - self.low) / 2, x) if head == "flow" else raw

    def normalized(self, x: Tensor, t: TimeLike) -> Tensor:
        return (2 * x - self.low - self.high) / (self.high - self.low)
