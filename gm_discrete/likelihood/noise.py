"""Noisy states at which the bound is estimated, drawn more often where its integrand is large.

The bound is ∫₀¹ E_{x~p_κ(·|z)} f(x, κ) dκ with the divergence f = D(F(x|z), F_θ(x)) per unit of κ. Near κ = 1 hardly a
token is noise, but the divergence of one that is is about 1/(1 − κ), the rate of its jump, times its surprise. So E f is
integrable there, but E f² ~ L/(1 − κ) is not: with κ uniform and x ~ p_κ the variance is infinite. Even the best density of
κ, ∝ √E f², leaves 6.2 nats on chains of 4 tokens. Hence x is drawn by importance first, and then κ.

**x.** In a share α of the draws one token, chosen at random from n, is noise for certain: x_i ~ p_κ(·|z_i) given x_i ≠ z_i.
With q_i = P(x_i ≠ z_i | z_i) the density of x relative to p_κ(x|z) is (a mixture as a proposal, Owen and Zhou 2000)

    r(x) = 1 − α + (α/n) Σ_i 1[x_i ≠ z_i] / q_i,

so that f/r is unbiased, at most f/(1 − α), and near κ = 1 of the size of n times a surprise. For masks α = 1 would be the
estimator `"mask_count"`, as the number of masks is then uniform.

**κ.** What is left, √E (f/r)², is about constant for text, and for the exact posterior of a few symbols it grows like the
surprise, log 1/(1 − κ). The density has a closed form that dominates every power of this logarithm,

    ρ(κ) = 1 − a + a/(2 √(1 − κ)),     1 − κ = v²,  (1 − a) v² + a v = 1 − u  for u uniform on (0, 1).

Then f/(r ρ) has a standard deviation of 2.7 nats on these chains with uniform noise; their own best density would leave 1.7.
For other paths than mixtures κ is measured in ρ by how far p_t(·|z) moves, in total variation (`FinitePath.movement`),
tabulated over the time; a share of it is left to κ itself, so that the density is nowhere 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from gm_discrete.paths.base import uniform
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.mixture import MaskedPath
from gm_discrete.paths.schedules import Schedule
from gm_discrete.process import State

FORCED = 0.7
"""α. Between 0.5 and 0.8 the standard deviation changes by a tenth, on chains of 4 tokens and on text of 128 characters."""

LATE = 0.2
"""a. Chains of 4 tokens prefer more, down to 2.2 nats at a = 1; text prefers a = 0, with a tenth less than here."""

SHARE_OF_KAPPA = 0.05
"""Share of tabulated times that is drawn by κ."""

NODES = 161
"""Of the table of times, evenly spaced in logit κ on [−20, 20], and the two ends."""

ALMOST_0, ALMOST_1 = 2**-53, 1 - 2**-53
"""Of κ and the time: at the ends themselves rates are 0/0."""


def common_schedule(paths: Mapping[str, FinitePath]) -> Schedule | None:
    """The schedule that all paths share; `None` if they differ."""
    schedules = [path.schedule for path in paths.values()]
    return schedules[0] if all(schedule == schedules[0] for schedule in schedules) else None


class Draw(NamedTuple):
    """Noisy states of all fields, their time [B] and the weight [B] of their divergence."""

    x: dict[str, Tensor]
    t: Tensor
    weight: Tensor


class Noise:
    """Draws noisy states of discrete fields at the quantiles u [B] of the time, or of the number of masks."""

    def __init__(
        self,
        paths: Mapping[str, FinitePath],
        z: State,
        scored: State,
        rng: torch.Generator | None,
        x_0: Tensor | None,
        paired: bool,
    ) -> None:
        self.paths, self.z, self.scored, self.rng, self.x_0, self.paired = paths, z, scored, rng, x_0, paired
        self.schedule = common_schedule(paths)
        mixtures = all(path.is_mixture for path in paths.values())
        device = next(iter(z.values())).device
        self.table = None if mixtures and self.schedule is not None else time_table(paths, device)

    def times(self, u: Tensor) -> Draw:
        """At the time whose quantile is u, with one token made noise in a share of the rows."""
        t, density = self._times(u)
        x = dict(self.z)
        for name, path in self.paths.items():
            x[name] = torch.where(self.scored[name], self._sample(path, self.z[name], t), self.z[name])
        noise = {name: path.noise_probability(self.z[name], t, self.x_0) for name, path in self.paths.items()}
        relative = self._force(x, noise, t)
        return Draw(x, t, 1 / (density * relative))

    def _times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times t at the quantiles u, and their density, both [B]."""
        v = 2 * (1 - u) / (LATE + torch.sqrt(LATE**2 + 4 * (1 - LATE) * (1 - u)))
        kappa = (1 - v * v).clamp(ALMOST_0, ALMOST_1)
        density = 1 - LATE + LATE / (2 * torch.sqrt(1 - kappa))
        if self.table is None:
            assert self.schedule is not None
            t = self.schedule.inverse(kappa)
            return t, density * self.schedule.derivative(t)
        nodes, cumulative = self.table
        cell = (torch.searchsorted(cumulative, kappa, right=True) - 1).clamp(0, len(nodes) - 2)
        slope = cumulative.diff()[cell] / nodes.diff()[cell]
        t = nodes[cell] + (kappa - cumulative[cell]) / slope
        return t.clamp(ALMOST_0, ALMOST_1), density * slope

    def _force(self, x: dict[str, Tensor], noise: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """Makes one token of x noise in the share α of the rows, and returns the density [B] of all rows relative to p_t."""
        widths = [self.z[name].shape[1] for name in self.paths]
        chance = torch.cat([torch.where(self.scored[name], noise[name], 0.0) for name in self.paths], 1)
        possible = chance > torch.finfo(chance.dtype).tiny
        number = possible.sum(1)
        share = torch.where(number > 0, FORCED, 0.0)
        rows = 1 if self.paired else len(t)
        forced, token, symbol = uniform((3, rows), self.rng, t.device).expand(3, len(t))
        rank = torch.minimum((token * number).long() + 1, number)[:, None]
        chosen = possible & (possible.cumsum(1) == rank) & (forced < share)[:, None]
        for (name, path), here in zip(self.paths.items(), chosen.split(widths, 1), strict=True):
            row, column = here.nonzero(as_tuple=True)
            x_0 = None if self.x_0 is None else self.x_0[row, column]
            changed = path.sample_noise(self.z[name][row, column], t[row], symbol[row], x_0)
            x[name] = x[name].index_put((row, column), changed)
        differs = torch.cat([x[name] != self.z[name] for name in self.paths], 1)
        count = torch.where(differs & possible, 1 / chance.masked_fill(~possible, 1.0), 0.0).sum(1)
        return 1 - share + share * count / number.clamp(min=1)

    def _sample(self, path: FinitePath, z: Tensor, t: Tensor) -> Tensor:
        if not self.paired or self.rng is None:
            return path.sample(z, t, self.rng, self.x_0)
        state, rows = self.rng.get_state(), []  # each path draws in its own way: every row starts from the same state
        for i in range(len(z)):
            self.rng.set_state(state)
            row = slice(i, i + 1)
            rows.append(path.sample(z[row], t[row], self.rng, None if self.x_0 is None else self.x_0[row]))
        return torch.cat(rows)

    def masks(self, u: Tensor) -> Draw:
        """n masks among the scored positions of all discrete fields, which are masked on one schedule."""
        assert self.schedule is not None
        widths = [self.z[name].shape[1] for name in self.paths]
        every = torch.cat([self.scored[name] for name in self.paths], 1)
        masked, t, weight = draw_masks(self.schedule, every, u, self.rng, self.paired)
        x = dict(self.z)
        for (name, path), part in zip(self.paths.items(), masked.split(widths, 1), strict=True):
            x[name] = torch.where(part, cast(MaskedPath, path).mask_token_id, self.z[name])
        return Draw(x, t, weight)


def time_table(paths: Mapping[str, FinitePath], device: torch.device) -> tuple[Tensor, Tensor]:
    """(nodes, cumulative): times from 0 to 1 and how far all paths have moved by then, from 0 to 1; increasing."""
    cache = next(iter(paths.values()))._cache if len(paths) == 1 else {}  # the table of one path is kept with it
    if (found := cache.get(("times", device))) is not None:
        return found
    inner = torch.linspace(-20, 20, NODES, dtype=torch.float64, device=device).sigmoid()
    kappa = torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=1.0)
    nodes = torch.cat([path.schedule.inverse(kappa) for path in paths.values()]).unique()
    mass = torch.zeros_like(nodes[1:])
    for path in paths.values():
        moved, kept = path.movement(nodes), path.schedule.increment(nodes[:-1], nodes[1:])
        mass += (1 - SHARE_OF_KAPPA) * moved / moved.sum() + SHARE_OF_KAPPA * kept
    cumulative = torch.nn.functional.pad(mass.cumsum(0), (1, 0))
    cache["times", device] = found = nodes, cumulative / cumulative[-1]
    return found


def draw_masks(
    schedule: Schedule, scored: Tensor, u: Tensor, rng: torch.Generator | None, paired: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(masked [B, L], t [B], weight [B]): n masks among the L scored positions, n at the quantile u of {1, …, L}.

    The divergence contains the hazard h(t), hence the weight (L/n)/h(t). Paired rows share one row of noise.
    """
    length = scored.sum(1)
    masks = torch.minimum((u * length).long() + 1, length).clamp(min=1)
    noise = uniform((1 if paired else len(scored), scored.shape[1]), rng, scored.device)
    noise = noise.expand(scored.shape).masked_fill(~scored, -1)
    kappa = noise.sort(1, descending=True).values.gather(1, masks[:, None] - 1)  # n-th largest ~ Beta(L − n + 1, n)
    t = schedule.inverse(kappa.squeeze(1).clamp(0, 1 - 2**-53))
    return scored & (noise >= kappa), t, torch.where(length > 0, length / masks / schedule.hazard(t), 0.0)
