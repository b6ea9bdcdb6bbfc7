"""Conditional generator matching: E_{t, z, x ~ p_t(·|z)} D(F(x|z), F_θ(x)), whose minimiser is the marginal generator.

Times are drawn through κ: with κ uniform, the integrand per unit of κ is the one of the likelihood bound. A bell-shaped
law spends more draws on the middle of the path, where the network learns most, and changes what is minimised, not what
is reported (Hong et al. 2026, arXiv 2605.13026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.generators import Generator, Product, Superposition
from gm_discrete.objective import bregman
from gm_discrete.paths.base import Path
from gm_discrete.paths.product import ProductPath


@dataclass(frozen=True)
class UniformTimeSampler:
    """κ(t) uniform on (0, 1): the loss is then an unbiased estimate of the likelihood bound per position."""

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return u


@dataclass(frozen=True)
class LogitNormalTimeSampler:
    """logit κ(t) ~ N(mean, std²): bell-shaped."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std={self.std} must be positive")

    def quantile(self, u: Tensor) -> Tensor:
        """κ at the quantile u."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class FieldTimeSampler:
    """Times [B, M] of a product whose fields have independent ones.

    In a part of the examples all fields share one time; in another they do, too, but each is known (t = 1) with a
    probability that is itself uniform on (0, 1); in the rest every field has a time of its own. So a model sees most of
    what it is asked in generation: all fields together, some given others, and other curves.

    Attributes:
        law: of each time.
        shared, given: the first two parts.
    """

    law: UniformTimeSampler | LogitNormalTimeSampler = UniformTimeSampler()
    shared: float = 1 / 3
    given: float = 1 / 3

    def __post_init__(self) -> None:
        if min(self.shared, self.given) < 0 or self.shared + self.given > 1:
            raise ValueError(f"shared={self.shared} and given={self.given} must be parts of one, ≥ 0 of sum ≤ 1")

    def quantile(self, u: Tensor) -> Tensor:
        """Of the law of each time."""
        return self.law.quantile(u)


TimeSampler = UniformTimeSampler | LogitNormalTimeSampler | FieldTimeSampler


def draw_times(
    path: Path, batch: int, rng: torch.Generator | None, device: torch.device, times: TimeSampler | None = None
) -> Tensor:
    """Stratified times t [B], float64: κ at the quantiles (j + u)/B of the law with one common u, in random order.

    Of Euclidean paths, and of products that share one time, t itself has the law, on [0, `path.latest`]. Of products with
    independent times they are [B, M] (see `FieldTimeSampler`).
    """
    if isinstance(path, ProductPath) and path.independent_times:
        return _draw_field_times(path, batch, rng, device, times)
    source = rng.device if rng is not None else device
    offset = torch.rand((), generator=rng, device=source, dtype=torch.float64)
    order = torch.randperm(batch, generator=rng, device=source)
    u = ((order + offset) / batch).clamp(torch.finfo(torch.float64).tiny, 1 - 2**-53)  # neither end, where κ is 0 or 1
    return path.time(path.latest * (times or UniformTimeSampler()).quantile(u)).to(device)


def _draw_field_times(
    path: ProductPath, batch: int, rng: torch.Generator | None, device: torch.device, times: TimeSampler | None
) -> Tensor:
    mix = times if isinstance(times, FieldTimeSampler) else FieldTimeSampler(times or UniformTimeSampler())
    own = torch.stack([draw_times(factor, batch, rng, device, mix) for factor in path.factors.values()], 1)
    one = draw_times(ProductPath(path.factors), batch, rng, device, mix)[:, None]
    source = rng.device if rng is not None else device
    kind, share = torch.rand(2, batch, 1, generator=rng, device=source, dtype=torch.float64).to(device)
    known = torch.rand(own.shape, generator=rng, device=source, dtype=torch.float64).to(device) < share
    t = torch.where(kind < mix.shared + mix.given, one, own)
    return torch.where((kind >= mix.shared) & (kind < mix.shared + mix.given) & known, 1.0, t)


def corrupt(
    path: Path,
    z: Any,
    scored: Any,
    rng: torch.Generator | None = None,
    times: TimeSampler | None = None,
    rank: int = 0,
    world_size: int = 1,
    x_0: Tensor | None = None,
) -> tuple[Any, Tensor]:
    """(x, t): times [B] and noisy states x ~ p_t(·|z) [B, L], with the entries that are not scored left as they are.

    Of a product z, scored and x are dicts by field. `x_0` [B, L] are the sources of a coupled path.

    The noise is that of the global batch, of which this process holds the rows of its `rank`: with generators in equal
    states, processes that share a batch draw together what one process would draw for all of it.
    """
    first = next(iter(z.values())) if isinstance(path, ProductPath) else z
    batch = len(first)
    rows = slice(rank * batch, (rank + 1) * batch)
    t = draw_times(path, batch * world_size, rng, first.device, times)

    def noised(path: Path, z: Tensor, scored: Tensor, t: Tensor) -> Tensor:
        everyone = (world_size, *[1] * (z.dim() - 1))
        sources = None if x_0 is None else x_0.repeat(everyone)
        return torch.where(scored, path.sample(z.repeat(everyone), t, rng, sources)[rows], z)

    if not isinstance(path, ProductPath):
        return noised(path, z, scored, t), t[rows]
    at = path.times(t)
    return {name: noised(factor, z[name], scored[name], at[name]) for name, factor in path.factors.items()}, t[rows]


def matching_loss(
    path: Path,
    predicted: Generator,
    z: Any,
    x: Any,
    t: Tensor,
    scored: Any,
    num_items: Any = None,
    divergence: Any = None,
    weights: Mapping[str, Any] | None = None,
) -> Tensor:
    """Mean over the scored entries of Σ_parts w D(F(x|z), F_θ(x)), a float32 scalar; of symbols in nats. Of a product the
    weighted sum of that of its fields (see `field_losses`).

    Generators are taken in `path.units`, those of symbols per unit of κ. Of a superposition the parts are compared
    unscaled: what a part weighs in the loss has nothing to do with what it weighs in the process.

    Args:
        z, x: data and state [B, …]; t: times [B]; scored: bool of their shape.
        num_items: what the sum is divided by; the number of scored entries by default.
        divergence: of a `Jump` between symbols one of its kinds, of a superposition kinds by part; the path's by default.
        weights: w by part, 1 by default; of a product by field.
    """
    if isinstance(path, ProductPath):
        losses = field_losses(path, predicted, z, x, t, scored, num_items, divergence, weights)
        return torch.stack([field_weight(weights, name) * loss for name, loss in losses.items()]).sum()
    values = parts_of_loss(path, predicted, z, x, t, scored, divergence)
    total = torch.stack([(weights or {}).get(name, 1.0) * value.sum() for name, value in values.items()]).sum()
    count = scored.sum().clamp(min=1) if num_items is None else num_items
    return (total / count).float()


def field_losses(
    path: ProductPath,
    predicted: Generator,
    z: Mapping[str, Tensor],
    x: Mapping[str, Tensor],
    t: Tensor,
    scored: Mapping[str, Tensor],
    num_items: Mapping[str, Any] | None = None,
    divergence: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The matching loss of each field of a product, per scored entry of its own (see `field_parts`).

    Args:
        num_items, divergence: as of `matching_loss`, by field.
        weights: by field a number w_m, which is not applied here, or weights of its parts.
    """
    losses = {}
    for name, values in field_parts(path, predicted, z, x, t, scored, divergence, weights).items():
        count = scored[name].sum().clamp(min=1) if num_items is None else num_items[name]
        losses[name] = (values.sum() / count).float()
    return losses


def field_parts(
    path: ProductPath,
    predicted: Generator,
    z: Mapping[str, Tensor],
    x: Mapping[str, Tensor],
    t: Tensor,
    scored: Mapping[str, Tensor],
    divergence: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """D(F^m(x^m|z^m), F^m_θ(x)) by field, its parts weighed, each of x^m's shape and 0 where it is not scored.

    The marginal generator minimises any weighted sum of them, as the divergences of different factors share no output. A
    field at its time 1 is given, and there is nothing to learn of it.
    """
    if not isinstance(predicted, Product):
        raise TypeError(f"the path is a product, and the model's generator a {type(predicted).__name__}")
    found = {}
    for name, time in path.times(t).items():
        factor, parts = path.factors[name], (weights or {}).get(name)
        open_ = (time < 1).view(-1, *[1] * (x[name].dim() - 1)) & scored[name]
        values = parts_of_loss(
            factor, predicted.factors[name], z[name], x[name], clamp_time(factor, time), open_,
            (divergence or {}).get(name),
        )  # fmt: skip
        weighed = parts if isinstance(parts, Mapping) else {}
        found[name] = torch.stack([weighed.get(part, 1.0) * value for part, value in values.items()]).sum(0)
    return found


def field_weight(weights: Mapping[str, Any] | None, name: str) -> float:
    """w_m of a field: 1 unless a number is given for it."""
    weight = (weights or {}).get(name, 1.0)
    return 1.0 if isinstance(weight, Mapping) else float(weight)


def clamp_time(path: Path, t: Tensor) -> Tensor:
    """Times at which the generators of a field have a value: that of one that is known (t = 1) is never looked at, but must
    not be infinite, as 0 · ∞ in its gradient would be. A hazard of 2³⁰ is finite in every float type but float16."""
    return t.clamp(max=min(path.latest, 1 - 2**-30))


def parts_of_loss(
    path: Path, predicted: Generator, z: Tensor, x: Tensor, t: Tensor, scored: Tensor, divergence: Any = None
) -> dict[str, Tensor]:
    """D(F(x|z), F_θ(x)) by part, each of x's shape and 0 where it is not scored."""
    target = path.conditional(z, x, t)
    kinds: Any = divergence or path.default_divergence
    pairs: dict[str, tuple[Any, Any]] = {"jump": (target, predicted)}
    if isinstance(target, Superposition):
        parts = predicted.parts if isinstance(predicted, Superposition) else {}
        if missing := kinds.keys() - parts.keys():
            raise TypeError(f"the model's generator lacks {', '.join(sorted(missing))}, which the path learns")
        pairs = {name: (target.parts[name], parts[name]) for name in kinds}
    else:
        kinds = {"jump": kinds}
    values = {}
    for name, (aim, guess) in pairs.items():
        unit = path.units(t)[name].view(-1, *[1] * (x.dim() - 1))
        unit = unit.to(x.dtype) if x.is_floating_point() else unit
        values[name] = bregman.divergence(aim.per(unit), guess.per(unit), x, where=scored, kind=kinds[name])
    return values


def conditional_loss(
    model: Any,
    z: Any,
    attention_mask: Any = None,
    rng: torch.Generator | None = None,
    *,
    scored: Any = None,
    times: TimeSampler | None = None,
    divergence: Any = None,
    x_0: Tensor | None = None,
    class_labels: Tensor | None = None,
) -> Tensor:
    """Conditional generator matching loss of a batch, per scored position (of symbols, in nats) or entry.

    Draws t and x ~ p_t(·|z). A network computes the loss in its own forward, where wrappers for mixed precision and
    distributed training can see it; any other object with `.path` and `.generator(x, t)` is asked for its generator.

    Args:
        model: a module called as `model(input_ids=x, time=t, labels=z)` (`input_values` of numbers), or a stand-in such as
            an exact posterior.
        z: clean data, long [B, L], or floating-point [B, …] of a Euclidean path; of a product a dict by field, as are then
            attention_mask and scored.
        attention_mask: [B, L], 0 where padded: neither noised, nor attended to, nor scored.
        rng: source of the noise.
        scored: bool of z's shape, entries to noise and to score; all that are not padded by default.
        times: law of κ(t), uniform by default.
        divergence: by default that of the model's config, or of its path (see `matching_loss`).
        x_0: the sources [B, L] of a coupled path.
        class_labels: long [B], of a model with classes; a part `config.class_dropout` of them is left out.

    Returns:
        Scalar.
    """
    path = unwrapped(model).path
    scored = scored_positions(path, z, attention_mask, scored)
    x, t = corrupt(path, z, scored, rng, times, x_0=x_0)
    given: dict[str, Any] = {"attention_mask": attention_mask}
    if class_labels is not None:
        dropout = getattr(getattr(unwrapped(model), "config", None), "class_dropout", 0.0)
        given["class_labels"] = drop_classes(class_labels, dropout, rng)
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, nn.Module):
        choice = {} if divergence is None else {"divergence": divergence}
        state = {path.state_name: x}
        return model(**state, time=t, labels=path.mask_labels(z, scored), **given, **choice).loss
    return matching_loss(path, model.generator(x, t, **given), z, x, t, scored, divergence=divergence)


def drop_classes(
    class_labels: Tensor, dropout: float, rng: torch.Generator | None, rank: int = 0, world_size: int = 1
) -> Tensor:
    """The labels [B], each −1 (no class) with probability `dropout`; the noise is that of the global batch."""
    batch = len(class_labels)
    device = rng.device if rng is not None else class_labels.device
    u = torch.rand(batch * world_size, generator=rng, device=device)[rank * batch : (rank + 1) * batch]
    return torch.where(u.to(class_labels.device) < dropout, -1, class_labels)


def scored_positions(path: Path, z: Any, attention_mask: Any, scored: Any = None) -> Any:
    """bool [B, L]: the positions asked for that are not padded; of a product by field.

    Raises:
        ValueError: a mask is not of z's shape, or (looked at on the CPU only, elsewhere it would stall the device) nothing
            is left to score, or what is scored holds a symbol that no data has, such as the mask.
    """
    if isinstance(path, ProductPath):
        path.check(z, torch.zeros(len(next(iter(z.values()))), device=next(iter(z.values())).device), "z")
        path.check_known(attention_mask, "attention_mask")
        path.check_known(scored, "scored")
        found = {
            name: _chosen(factor, z[name], (attention_mask or {}).get(name), (scored or {}).get(name))
            for name, factor in path.factors.items()
        }
        _check_any(list(found.values()))
        return found
    chosen = _chosen(path, z, attention_mask, scored)
    _check_any([chosen])
    return chosen


def _check_any(chosen: list[Tensor]) -> None:
    if chosen[0].device.type == "cpu" and not any(bool(part.any()) for part in chosen):
        raise ValueError("nothing is left to score: attention_mask and scored leave no position")


def _chosen(path: Path, z: Tensor, attention_mask: Tensor | None, scored: Tensor | None) -> Tensor:
    """`scored_positions` of one field, which may be none."""
    if z.dim() < 2 or (z.dim() > 2 and not z.is_floating_point()):
        raise ValueError(f"z must have shape [B, L], got {tuple(z.shape)}")
    if attention_mask is not None and z.is_floating_point() and z.dim() == 3:
        attention_mask = attention_mask[..., None].expand(z.shape)
    for name, mask in (("attention_mask", attention_mask), ("scored", scored)):
        if mask is not None and mask.shape != z.shape:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected that of z, {tuple(z.shape)}")
    real = torch.ones_like(z, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    chosen = real if scored is None else real & scored.bool()
    if z.device.type == "cpu":
        for symbol in getattr(path, "excluded", ()):
            if bool((chosen & (z == symbol)).any()):
                raise ValueError(
                    f"z holds the id {symbol}, which is no data symbol of {path!r}: clean data has no masks"
                )
    return chosen


def conditioning_of(model: Any, z: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's generator is told beside the state when data z is scored: what is given, and by a block-causal model
    the data whose blocks come before each block."""
    clean = z if getattr(getattr(model, "config", None), "block_size", None) else None
    return {name: value for name, value in {**given, "clean": clean}.items() if value is not None}


def unwrapped(model: Any) -> Any:
    """The object with a path: the model, or the module that a wrapper (DDP, torch.compile) holds.

    Raises:
        TypeError: there is none.
    """
    for holder in (model, getattr(model, "module", None), getattr(model, "_orig_mod", None)):
        if isinstance(getattr(holder, "path", None), Path):
            return holder
    raise TypeError(f"{type(model).__name__} has no probability path: give an object with .path and .generator(x, t)")
