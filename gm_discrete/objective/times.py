"""Time samplers: distributions of training times t, drawn through κ(t) and stratified over the batch.

With κ uniform, the loss per unit of κ is the integrand of the likelihood bound. A bell-shaped distribution spends more draws
on the middle of the path, where a network learns most; it changes the weights of the loss, not the reported bound (Hong et
al. 2026, arXiv 2605.13026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gm_discrete.arguments import number, readable
from gm_discrete.paths import Path, ProductPath


class TimeSampler(Protocol):
    """A distribution of κ(t), given by its quantile function. An object of any class with this method is one."""

    def quantile(self, u: Tensor) -> Tensor:
        """κ in (0, 1) at the quantiles u [B] in (0, 1), float64; increasing."""
        ...


@dataclass(frozen=True)
class UniformTimeSampler:
    """κ(t) uniform on (0, 1): the loss is then an unbiased estimate of the likelihood bound per position.

    >>> UniformTimeSampler().quantile(torch.tensor([0.25, 0.5]))
    tensor([0.2500, 0.5000])
    """

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return u


@dataclass(frozen=True)
class LogitNormalTimeSampler:
    """logit κ(t) ~ N(mean, std²): bell-shaped, the default of training.

    >>> LogitNormalTimeSampler(std=0.5).quantile(torch.tensor([0.1, 0.5]))
    tensor([0.3451, 0.5000])
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        # Beyond, κ is 0 or 1 in every float type at all times that are drawn, and nothing is learnt.
        number("mean", self.mean, least=-20, most=20)
        number("std", self.std, above=0, most=20)

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class FieldTimeSampler:
    """Times [B, M] for a `ProductPath` with independent times: a mixture of three kinds of examples.

    In a share `shared` of the examples all fields have one common time. In a share `conditional` they do too, except that
    each field is observed (t = 1) with a probability that is itself uniform on (0, 1). In the rest every field has its own
    time. Training so covers what generation uses: all fields together, some conditioned on others, and other schedules.

    Attributes:
        marginal: distribution of every single time.
        shared, conditional: the first two shares.

    >>> FieldTimeSampler(UniformTimeSampler(), shared=0.5, conditional=0.5).marginal
    UniformTimeSampler()
    """

    marginal: TimeSampler = LogitNormalTimeSampler()
    shared: float = 1 / 3
    conditional: float = 1 / 3

    def __post_init__(self) -> None:
        _check_sampler("marginal", self.marginal)
        if number("shared", self.shared, least=0) + number("conditional", self.conditional, least=0) > 1 + 1e-9:
            raise ValueError(
                f"shared={self.shared} and conditional={self.conditional} must be shares of the examples: ≥ 0, of sum ≤ 1"
            )

    def quantile(self, u: Tensor) -> Tensor:
        """κ of a single time at the quantile u."""
        return self.marginal.quantile(u)


DEFAULT: TimeSampler = LogitNormalTimeSampler()
"""The time sampler of `conditional_loss` and `GMTrainer`."""


def _check_sampler(name: str, sampler: object) -> None:
    """
    Raises:
        TypeError: it is no time sampler. (A tensor has a method of the same name.)
    """
    if isinstance(sampler, Tensor) or not callable(getattr(sampler, "quantile", None)):
        raise TypeError(f"{name}={sampler!r} must have a method quantile, as UniformTimeSampler() has")


def draw_times(
    path: Path, batch: int, rng: torch.Generator | None, device: torch.device, time_sampler: TimeSampler | None = None
) -> Tensor:
    """Stratified times t [B], float64: κ at the quantiles (j + u)/B with one common u, in random order.

    For continuous paths, and products whose fields share one time, t itself has the sampler's distribution, scaled to
    [0, `path.latest`]. For products with independent times the result is [B, M] (see `FieldTimeSampler`).

    Args:
        time_sampler: `DEFAULT` by default.

    Raises:
        ValueError: a quantile of the time sampler lies outside [0, 1], or is not a number.
    """
    sampler = DEFAULT if time_sampler is None else time_sampler
    _check_sampler("time_sampler", sampler)
    if isinstance(path, ProductPath) and path.independent_times:
        return _draw_field_times(path, batch, rng, device, sampler)
    source = rng.device if rng is not None else device
    offset = torch.rand((), generator=rng, device=source, dtype=torch.float64)
    order = torch.randperm(batch, generator=rng, device=source)
    least, most = torch.finfo(torch.float64).tiny, 1 - 2**-53  # neither end, where κ is 0 or 1
    u = ((order + offset) / batch).clamp(least, most)
    kappa = sampler.quantile(u)
    if readable(kappa) and not bool(((kappa >= 0) & (kappa <= 1)).all()):
        raise ValueError(
            f"time_sampler={sampler!r} gives κ from {float(kappa.min()):.4g} to {float(kappa.max()):.4g}: its quantile must "
            "lie in [0, 1] for u in [0, 1]"
        )
    return path.time(path.latest * kappa.clamp(least, most)).to(device)


def _draw_field_times(
    path: ProductPath, batch: int, rng: torch.Generator | None, device: torch.device, sampler: TimeSampler
) -> Tensor:
    mix = sampler if isinstance(sampler, FieldTimeSampler) else FieldTimeSampler(sampler)
    own = torch.stack([draw_times(field, batch, rng, device, mix) for field in path.fields.values()], 1)
    one = draw_times(ProductPath(path.factors), batch, rng, device, mix)[:, None]
    source = rng.device if rng is not None else device
    kind, share = torch.rand(2, batch, 1, generator=rng, device=source, dtype=torch.float64).to(device)
    observed = torch.rand(own.shape, generator=rng, device=source, dtype=torch.float64).to(device) < share
    t = torch.where(kind < mix.shared + mix.conditional, one, own)
    return torch.where((kind >= mix.shared) & (kind < mix.shared + mix.conditional) & observed, 1.0, t)
