"""Conditional generator matching: E_{t, z, x ~ p_t(·|z)} D(F(x|z), F_θ(x)), whose minimiser is the marginal generator.

Times are drawn through κ: with κ uniform, the integrand per unit of κ is the one of the likelihood bound. A bell-shaped
law spends more draws on the middle of the path, where the network learns most, and changes what is minimised, not what
is reported (Hong et al. 2026, arXiv 2605.13026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete import bregman
from gm_discrete.generators import Jump
from gm_discrete.paths.base import Path


@dataclass(frozen=True)
class UniformTimes:
    """κ(t) uniform on (0, 1): the loss is then an unbiased estimate of the likelihood bound per position."""

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return u


@dataclass(frozen=True)
class LogitNormalTimes:
    """logit κ(t) ~ N(mean, std²): bell-shaped."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std={self.std} must be positive")

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


TimeLaw = UniformTimes | LogitNormalTimes


def draw_times(
    path: Path, batch: int, rng: torch.Generator | None, device: torch.device, times: TimeLaw | None = None
) -> Tensor:
    """Stratified times t [B], float64: κ at the quantiles (j + u)/B of the law with one common u, in random order."""
    source = rng.device if rng is not None else device
    offset = torch.rand((), generator=rng, device=source, dtype=torch.float64)
    order = torch.randperm(batch, generator=rng, device=source)
    u = ((order + offset) / batch).clamp(torch.finfo(torch.float64).tiny, 1 - 2**-53)  # neither end, where κ is 0 or 1
    return path.schedule.inverse((times or UniformTimes()).quantile(u)).to(device)


def corrupt(
    path: Path,
    z: Tensor,
    scored: Tensor,
    rng: torch.Generator | None = None,
    times: TimeLaw | None = None,
    rank: int = 0,
    world_size: int = 1,
    x_0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(x, t): times [B] and noisy states x ~ p_t(·|z) [B, L], with the entries that are not scored left as they are.

    `x_0` [B, L] are the sources of a coupled path.

    The noise is that of the global batch, of which this process holds the rows of its `rank`: with generators in equal
    states, processes that share a batch draw together what one process would draw for all of it.
    """
    batch = len(z)
    rows = slice(rank * batch, (rank + 1) * batch)
    t = draw_times(path, batch * world_size, rng, z.device, times)
    sources = None if x_0 is None else x_0.repeat(world_size, 1)
    x = path.sample(z.repeat(world_size, 1), t, rng, sources)[rows]
    return torch.where(scored, x, z), t[rows]


def matching_loss(
    path: Path,
    predicted: Jump,
    z: Tensor,
    x: Tensor,
    t: Tensor,
    scored: Tensor,
    num_items: Tensor | int | None = None,
    divergence: str = "generalized_kl",
) -> Tensor:
    """Mean over the scored positions of D(F(x|z), F_θ(x)), a float32 scalar in nats.

    `generalized_kl` is taken per unit of κ (divided by κ'(t)), `cross_entropy` as it is.

    Args:
        z, x: data and state [B, L]; t: times [B]; scored: bool [B, L].
        num_items: what the sum is divided by; the number of scored positions by default.
    """
    target = path.conditional(z, x, t)
    values = bregman.divergence(target, predicted, x, where=scored, kind=divergence)
    if divergence == "generalized_kl":
        values = values / path.schedule.derivative(t)[:, None]
    count = scored.sum().clamp(min=1) if num_items is None else num_items
    return (values.sum() / count).float()


def conditional_loss(
    model: Any,
    z: Tensor,
    attention_mask: Tensor | None = None,
    rng: torch.Generator | None = None,
    *,
    scored: Tensor | None = None,
    times: TimeLaw | None = None,
    divergence: str | None = None,
    x_0: Tensor | None = None,
) -> Tensor:
    """Conditional generator matching loss of a batch, in nats per scored position.

    Draws t and x ~ p_t(·|z). A network computes the loss in its own forward, where wrappers for mixed precision and
    distributed training can see it; any other object with `.path` and `.generator(x, t)` is asked for its generator.

    Args:
        model: a module called as `model(input_ids=x, time=t, labels=z)`, or a stand-in such as an exact posterior.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded: neither noised, nor attended to, nor scored.
        rng: source of the noise.
        scored: bool [B, L], positions to noise and to score; all that are not padded by default.
        times: law of κ(t), uniform by default.
        divergence: `"generalized_kl"` or `"cross_entropy"`; by default that of the model's config, or of its path.
        x_0: the sources [B, L] of a coupled path.

    Returns:
        Scalar.
    """
    path = unwrapped(model).path
    scored = scored_positions(path, z, attention_mask, scored)
    x, t = corrupt(path, z, scored, rng, times, x_0=x_0)
    masks = {} if attention_mask is None else {"attention_mask": attention_mask}
    if isinstance(model, nn.Module):
        choice = {} if divergence is None else {"divergence": divergence}
        return model(input_ids=x, time=t, labels=z.masked_fill(~scored, -100), **masks, **choice).loss
    predicted = model.generator(x, t, **masks)
    return matching_loss(path, predicted, z, x, t, scored, divergence=divergence or path.default_divergence)


def scored_positions(path: Path, z: Tensor, attention_mask: Tensor | None, scored: Tensor | None = None) -> Tensor:
    """bool [B, L]: the positions asked for that are not padded.

    Raises:
        ValueError: a mask is not of z's shape, or (looked at on the CPU only, elsewhere it would stall the device) nothing
            is left to score, or what is scored holds a symbol that no data has, such as the mask.
    """
    if z.dim() != 2:
        raise ValueError(f"z must have shape [B, L], got {tuple(z.shape)}")
    for name, mask in (("attention_mask", attention_mask), ("scored", scored)):
        if mask is not None and mask.shape != z.shape:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected that of z, {tuple(z.shape)}")
    real = torch.ones_like(z, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    chosen = real if scored is None else real & scored.bool()
    if z.device.type == "cpu":
        if not bool(chosen.any()):
            raise ValueError("nothing is left to score: attention_mask and scored leave no position")
        for symbol in getattr(path, "excluded", ()):
            if bool((chosen & (z == symbol)).any()):
                raise ValueError(
                    f"z holds the id {symbol}, which is no data symbol of {path!r}: clean data has no masks"
                )
    return chosen


def unwrapped(model: Any) -> Any:
    """The object with a path: the model, or the module that a wrapper (DDP, torch.compile) holds.

    Raises:
        TypeError: there is none.
    """
    for holder in (model, getattr(model, "module", None), getattr(model, "_orig_mod", None)):
        if isinstance(getattr(holder, "path", None), Path):
            return holder
    raise TypeError(f"{type(model).__name__} has no probability path: give an object with .path and .generator(x, t)")
