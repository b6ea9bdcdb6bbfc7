"""Paths of rotations, with a flow, a jump and a diffusion.

States are unit quaternions [B, L, 4] (rotation matrices [B, L, 3, 3] at the entry points, too); q and −q are one rotation.
With α in [0, π/2] half the angle between x and z, c = cos α, and the concentration k(t),

    p_t(x|z) = cosh(k c)/Z(k) against the Haar measure,   Z(k) = 2 I₁(k)/k,   A = I₂(k)/I₁(k),

    flow        dα/dt = −∂_t G/g, along the geodesic to z; G and g are the distribution function and the density of α
    diffusion   the flow and the drift ½ g² ∇ log p_t = ½ g² k tanh(k c) sin α towards z, with noise g² = noise/√(1 + k)
    jump        λ = k' [A − c tanh(k c)]₊; it lands about a uniform axis around z, at an angle of density
                ∝ [c tanh(k c) − A]₊ cosh(k c) sin²α

All three solve the Kolmogorov equation of this path, so that they may be superposed. The marginal generator is their mean
over the posterior of z (see `generators/rotation_belief.py`). Over an interval [t, s], with x and the posterior frozen, x
jumps with the probability 1 − p_s(x|z)/p_t̂(x|z), where t̂ in [t, s] is the time at which x is likeliest.

Source: Generator Matching (Holderrieth et al., ICLR 2025), section on SO(3).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from gm_discrete.arguments import number, readable, whole
from gm_discrete.generators import Diffusion, Factor, Flow, Jump, LazyParts, Superposition, quaternions
from gm_discrete.generators import von_mises_fisher as vmf
from gm_discrete.generators.kernels import Readout, TensorReadout
from gm_discrete.generators.rotation_belief import RotationMixture
from gm_discrete.generators.rotation_kernels import RotationBelief
from gm_discrete.generators.rotation_means import RotationMeans
from gm_discrete.generators.rows import require
from gm_discrete.generators.spaces import ROTATIONS
from gm_discrete.paths.base import check_times
from gm_discrete.paths.concentration import Concentration, ConcentrationAt, OddsConcentration
from gm_discrete.paths.continuous import ContinuousPath, Weights, shaped, superposed
from gm_discrete.paths.schedules import TimeLike

LEAST_LOG_K, MOST_LOG_K = -5.0, 12.0
"""Range of log K of a component that a network predicts: from uniform to a spread of half a degree."""

FIRST_LOG_K = 1.0
"""log K of a network that has not learned yet: components that overlap and cover all rotations."""


class RotationPath(ContinuousPath):
    """A path of rotations, each by itself given z, from the uniform distribution (the Haar measure) to the data."""

    space = ROTATIONS
    # A long first step, as the geometric grid has, leaves out how rotations depend on each other.
    spacing = "linear"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    shapes = "[B, L, 4] of unit quaternions"
    num_channels = 4
    num_inputs = 9
    placeholder = (1.0, 0.0, 0.0, 0.0)

    def as_state(self, values: Tensor, name: str) -> Tensor:
        """Unit quaternions [B, L, 4] of rotation matrices [B, L, 3, 3], or of quaternions, whose rounding is corrected."""
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        if values.dim() == 4 and values.shape[-2:] == (3, 3):
            return quaternions.from_matrix(values, name)
        if values.shape[-1] != 4:
            return values
        if readable(values):
            quaternions.check_quaternions(values, name)
        exact = (values.norm(dim=-1, keepdim=True) - 1).abs() < 1e-6  # as near as float32 rounds: stays bit for bit
        unit = torch.where(exact, values, quaternions.normalized(values))
        return torch.where(values.isnan().any(-1, keepdim=True), torch.nan, unit)

    def check(self, state: Tensor, t: TimeLike, name: str) -> None:
        super().check(state, t, name)
        if state.dim() != 3 or state.shape[-1] != 4:
            raise ValueError(
                f"{name} has shape {tuple(state.shape)}; rotations are unit quaternions (w, x, y, z) [B, L, 4]"
            )
        if readable(state):
            quaternions.check_quaternions(state, name)
        elif not torch.compiler.is_compiling():
            near = (state.norm(dim=-1) - 1).abs() < quaternions.TOLERANCE
            require(near.all(), ValueError, f"{name} holds quaternions whose length is not 1; give unit quaternions")

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return quaternions.uniform(tuple(shape)[:-1], rng, device)

    def normalized(self, x: Tensor, t: TimeLike) -> Tensor:
        """The nine numbers of the rotation matrix, which are the same for q and −q."""
        return quaternions.to_matrix(x).flatten(-2)

    @abstractmethod
    def turned(self, head: str, output: Tensor, by: Tensor) -> Tensor:
        """The output of a head as rows [n, size], of a network that predicts rotations relative to `by` [n, 4]."""


class SO3Path(RotationPath):
    """The symmetrised von Mises–Fisher path with a flow, a jump and a diffusion, in any superposition.

    Args:
        generators: weights of `"flow"`, `"jump"` and `"diffusion"`, of sum 1; numbers, or lists of them at even times. One
            network, trained once, serves all of them. Only the flow by default.
        concentration: k(t), or the scale of an `OddsConcentration`, its root at t = ½.
        num_components: M of the mixture that a network predicts.
        noise: g² √(1 + k) of the diffusion, ≥ 0.
        stop: ε; the step from 1 − ε goes to the posterior mean of z, because a path to t = 1 has infinitely many jumps.

    >>> path = SO3Path({"flow": 0.5, "jump": 0.5})
    >>> z = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    >>> x = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])  # half a turn away
    >>> generator = path.conditional(z, x, t=torch.tensor([0.5]))
    >>> round(generator.parts["jump"].intensity.item(), 3)  # k' A = 32 · 0.658
    21.058
    """

    type_name = "so3"
    known_generators = ("flow", "jump", "diffusion")
    default_divergence = {"belief": "cross_entropy"}

    def __init__(
        self,
        generators: Weights | None = None,
        concentration: Concentration | dict | float = 2.0,
        num_components: int = 8,
        noise: float = 1.0,
        stop: float = 0.005,
    ) -> None:
        super().__init__(generators, stop)
        scale = isinstance(concentration, float | int) and not isinstance(concentration, bool)
        if scale:
            concentration = OddsConcentration(number("concentration", concentration, least=1e-3, most=1e6))
        self.concentration = Concentration.of(concentration)  # pyright: ignore[reportArgumentType]
        self.num_components = whole("num_components", num_components, least=1, most=4096)
        self.noise = number("noise", noise, least=0, most=1e6)

    @property
    def heads(self) -> dict[str, int]:
        return {"belief": 6 * self.num_components}

    def at(self, t: TimeLike, per_kappa: bool = False) -> ConcentrationAt:
        return self.concentration.at(t)

    # Distributions

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
        return vmf.sample(z, self.at(t).k[:, None].expand(z.shape[:2]), rng).to(z.dtype)

    # Generators

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        return self.generator(RotationMixture.atoms(z.reshape(-1, 4)), x, t, t_next)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        """The prediction.

        Args:
            readout: `readout("belief")` → rows [B·L, 6 M] of the belief about z before x is taken into account (see
                `RotationMixture.from_rows`), or a tensor [B, L, 6 M] of them.
            x, t, t_next: state, times [B], and the end of the step.
            check: whether to check x and t.
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        readout = TensorReadout(readout) if isinstance(readout, Tensor) else readout
        return self.generator(RotationMixture.from_rows(readout("belief")), x, t, t_next)

    def generator(
        self, mixture: RotationMixture, x: Tensor, t: TimeLike, t_next: TimeLike | None = None
    ) -> Superposition:
        """The generator that follows from a belief about z, [B·L, M].

        Over an interval [t, s] with the posterior of z frozen the flow moves by the mean of what it does given z; jumps
        land where the path is at s. A step to t = 1 is taken by the flow, and leads to the mean of z in the tangent space.
        """
        now, end = self.at(t), None if t_next is None else self.at(t_next)
        belief = RotationBelief(mixture, x, now.k)
        parts = _Parts(belief, x, now, end)
        makers: dict[str, Callable[[], Factor]] = {"flow": parts.flow}
        if "jump" in self.generators:
            makers["jump"] = parts.jump
        if "diffusion" in self.generators:
            makers["diffusion"] = partial(parts.diffusion, self.noise)
        # Without a weight of its own the flow acts in the step to t = 1 alone.
        arrives = end is not None and not (readable(end.t) and bool((end.t < 1).all()))
        lazy = LazyParts(makers, () if "flow" in self.generators or arrives else ("flow",))
        again = partial(self.generator, mixture, x, now)
        return superposed(lazy, self.weights(now.t), now.t, None if end is None else end.t, "flow", again, belief)

    # Networks and losses

    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        """k k'/(1 + k²), the rate at which the distribution changes; for the flow times the spread of α."""
        now = self.at(t)
        rate = (now.k * now.slope / (1 + now.k.square())).clamp(min=torch.finfo(torch.float32).tiny)
        return {"flow": rate * now.spread, "jump": rate}

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        """Rows of the belief from the raw output [n, 6 M]; without any, M overlapping components spread evenly."""
        m = self.num_components
        weights, log_k, centers = raw.split([m, m, 4 * m], -1)
        log_k = LEAST_LOG_K + (MOST_LOG_K - LEAST_LOG_K) * torch.sigmoid(log_k / 2 + self._first)
        centers = centers.unflatten(-1, (m, 4)) + spread_on(m, raw.device, raw.dtype)
        return torch.cat([weights, log_k, quaternions.normalized(centers).flatten(-2)], -1)

    @property
    def _first(self) -> float:
        """The logit at which log K is `FIRST_LOG_K`."""
        return float(torch.tensor((FIRST_LOG_K - LEAST_LOG_K) / (MOST_LOG_K - LEAST_LOG_K), device="cpu").logit())

    def turned(self, head: str, output: Tensor, by: Tensor) -> Tensor:
        m = self.num_components
        weights, centers = output.split([2 * m, 4 * m], -1)
        centers = quaternions.multiply(by[..., None, :], centers.unflatten(-1, (m, 4)))
        return torch.cat([weights, centers.flatten(-2)], -1)


class _Parts:
    """The parts of a generator, at a time or over an interval [t, s]."""

    def __init__(self, belief: RotationBelief, x: Tensor, now: ConcentrationAt, end: ConcentrationAt | None) -> None:
        self.x, self.now, self.end = x, now, end
        self.k_end = None if end is None else end.k[:, None].expand(x.shape[:-1]).flatten()
        self.means = RotationMeans(belief, self.k_end)

    def flow(self) -> Flow:
        """k' E[−dα/dk] towards z; over an interval E[α(t) − α(s)]/(s − t)."""
        return self._flow

    @cached_property
    def _flow(self) -> Flow:
        means, end, lengths = self.means, self.end, [self.means.speed]
        if end is not None and self.k_end is not None:
            last = (end.t >= 1)[:, None].expand(self.x.shape[:-1]).flatten()
            lengths.append(partial(means.way, k_end=torch.where(last, torch.inf, self.k_end)))
        velocity, *way = (vector.view(self.x.shape) for vector in means.vectors(lengths))
        velocity, mean = (velocity * shaped(self.now.slope, velocity)).to(self.x.dtype), None
        if end is not None:
            step = shaped((end.t - self.now.t).double(), way[0])
            mean = torch.where(step > 0, (way[0] / torch.where(step > 0, step, 1.0)).to(self.x.dtype), velocity)
        return Flow(velocity, mean, ROTATIONS)

    def jump(self) -> Jump:
        """k' E[A − c tanh(k c)]₊; over an interval E[1 − p_s(x|z)/p_t̂(x|z)]."""
        means, values = self.means, [self.means.rate]
        if self.end is not None:
            values.append(means.chance)
        rate, *chance = (number.view(self.x.shape[:-1]) for number in means.numbers(values))
        rate = rate * shaped(self.now.slope, rate)
        probability = chance[0].clamp(0, 1) if chance else None  # a mean by quadrature, up to rounding
        return Jump(rate, means.landing(), probability, length=self.now.spread, space=ROTATIONS)

    def diffusion(self, noise: float) -> Diffusion:
        """g² = noise/√(1 + k), and the drift of the flow and ½ g² E[k tanh(k c) sin α] towards z."""
        flow, variance = self._flow, noise * self.now.spread
        (score,) = self.means.vectors([self.means.pull])
        towards = (score.view(self.x.shape) * shaped(variance / 2, score.view(self.x.shape))).to(self.x.dtype)
        scale = shaped(variance.sqrt(), self.x)
        return Diffusion(scale, flow.velocity + towards, None if flow.mean is None else flow.mean + towards, ROTATIONS)


@lru_cache
def spread_on(number: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`spiral(number)` on a device."""
    return spiral(number).to(device, dtype)


def spiral(number: int) -> Tensor:
    """`number` evenly spread rotations [n, 4], float64: the super-Fibonacci spiral (Alexa 2022, CVPR)."""
    phi, psi = 2**0.5, 1.533751168755204288118041
    s = torch.arange(number, dtype=torch.float64, device="cpu") + 0.5
    inner, outer = (s / number).sqrt(), (1 - s / number).sqrt()
    a, b = 2 * torch.pi * s / phi, 2 * torch.pi * s / psi
    return torch.stack([outer * b.cos(), outer * b.sin(), inner * a.sin(), inner * a.cos()], -1)
