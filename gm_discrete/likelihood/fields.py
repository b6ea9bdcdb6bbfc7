"""The likelihood of states with several fields: numbers by the flow, symbols by the bound, each given the other.

With independent times one model holds every conditional law, and the chain rule splits what is to be found:

    log p(z) = log p(numbers) + log p(symbols | numbers)

The first is the flow's with the symbols at time 0, where they tell nothing. For the second, with the numbers at time 1,
where they are known, −log p ≤ Σ_m ∫ E D(F^m(x^m|z^m), F^m_θ(x)) dt over the fields m of symbols. It is the likelihood of
the process that draws the numbers first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.generators import Flow, Product, terms
from gm_discrete.likelihood.bound import draw_masks
from gm_discrete.likelihood.flow import flow_likelihood
from gm_discrete.objective import bregman, scored_positions, unwrapped
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.mixture import MaskedPath
from gm_discrete.paths.product import ProductPath


@dataclass(frozen=True)
class FieldLikelihood:
    """Bounds on −log p(z) of B states, in nats; of numbers as a density per unit volume of the state's own scale.

    Attributes:
        nats: in all, [B], float64.
        fields: the share of each field, [B]: of symbols of their bound; of numbers of −log of the density, split as in
            `FlowLikelihood.entries`.
    """

    nats: Tensor
    fields: dict[str, Tensor]

    @property
    def mean(self) -> float:
        """Of `nats`."""
        return float(self.nats.mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean over states; NaN for a single one."""
        return float(self.nats.std() / math.sqrt(len(self.nats))) if len(self.nats) > 1 else math.nan


def field_likelihood(
    model: Any,
    z: Mapping[str, Tensor],
    attention_mask: Mapping[str, Tensor] | None = None,
    *,
    num_samples: int = 8,
    num_steps: int = 50,
    trace: str = "hutchinson",
    rng: torch.Generator | None = None,
    **conditioning: Any,
) -> FieldLikelihood:
    """The bound on −log p(z) of a product (see above).

    Numbers in natural units have the density of the state times `scaler.log_derivative` of each.

    Args:
        model: anything with `.path` and `.generator(x, t)`.
        z: clean data by field.
        attention_mask: by field, [B, L], 0 where padded; of symbols only.
        num_samples: draws of the bound per state.
        num_steps, trace: as of `flow_likelihood`.
        rng: source of the noise.
        conditioning: passed on to the generator.

    Raises:
        TypeError: the path is no product, or a field of numbers has no flow.
        ValueError: there are symbols and numbers, and they share one time; or the schedules of the numbers differ.
    """
    model = unwrapped(model)
    path = model.path
    if not isinstance(path, ProductPath):
        raise TypeError(f"{path!r} has a single field: use likelihood_bound or flow_likelihood")
    symbols = [name for name, factor in path.factors.items() if isinstance(factor, FinitePath)]
    numbers = [name for name in path.factors if name not in symbols]
    if symbols and numbers and not path.independent_times:
        raise ValueError(
            "symbols and numbers share one time: their joint law has no likelihood that is known, as numbers that flow by "
            "symbols that jump; train with independent_times=True"
        )
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    scored = scored_positions(path, z, attention_mask)
    if any(not bool(scored[name].all()) for name in numbers):
        raise ValueError("attention_mask leaves out numbers, whose density would be of another dimension")
    given = conditioning if attention_mask is None else {**conditioning, "attention_mask": attention_mask}
    fields: dict[str, Tensor] = {}
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        if numbers:
            view = Numbers(model, numbers, z, rng, given)
            flow = flow_likelihood(view, view.joined(z), num_steps=num_steps, trace=trace, rng=rng)
            fields |= {
                name: -part.sum(1) for name, part in zip(numbers, flow.entries.split(view.sizes, 1), strict=True)
            }
        if symbols:
            fields |= _bounds(model, path, symbols, z, scored, num_samples, rng, given)
    finally:
        if training:
            model.train()
    return FieldLikelihood(torch.stack(list(fields.values())).sum(0), {name: fields[name] for name in path.factors})


class Numbers:
    """The numbers of a product as one vector [B, N], with the symbols at time 0: a model for `flow_likelihood`."""

    def __init__(
        self,
        model: Any,
        names: list[str],
        z: Mapping[str, Tensor],
        rng: torch.Generator | None,
        conditioning: Mapping[str, Any],
    ) -> None:
        self.model, self.names, self.conditioning = model, names, dict(conditioning)
        self.product: ProductPath = model.path
        paths = [self.product.factors[name] for name in names]
        if not all(isinstance(path, GaussianPath) and "flow" in path.generators for path in paths):
            raise TypeError(f"the likelihood needs Gaussian paths with a flow, not {paths}")
        self.path: Any = paths[0]
        if any((path.schedule, path.stop) != (self.path.schedule, self.path.stop) for path in paths):  # pyright: ignore
            raise ValueError("the numbers have different schedules, and so do not flow as one vector")
        self.shapes = [z[name].shape[1:] for name in names]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        others = [name for name in self.product.factors if name not in names]
        self.noise = {
            name: self.product.factors[name].prior(z[name].shape, rng, z[name].device)  # what the network sees of them
            for name in others
        }
        if isinstance(model, nn.Module):  # the rates of jumps need not be found
            self.conditioning["generators"] = {name: {"flow": 1.0} for name in names}

    def joined(self, state: Mapping[str, Tensor]) -> Tensor:
        """[B, N]."""
        return torch.cat([state[name].flatten(1) for name in self.names], 1)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Flow:
        parts = zip(self.names, x.split(self.sizes, 1), self.shapes, strict=True)
        state = {**self.noise, **{name: part.unflatten(1, shape) for name, part, shape in parts}}
        times = {name: t if name in self.names else torch.zeros_like(t) for name in state}
        generator = self.model.generator(state, self.product.joined(times), **self.conditioning)
        found = {
            name: next(part.velocity for _, part in terms(generator.factors[name]) if isinstance(part, Flow))
            for name in self.names
        }
        return Flow(self.joined(found))


@torch.no_grad()
def _bounds(
    model: Any,
    path: ProductPath,
    symbols: list[str],
    z: Mapping[str, Tensor],
    scored: Mapping[str, Tensor],
    num_samples: int,
    rng: torch.Generator | None,
    conditioning: Mapping[str, Any],
) -> dict[str, Tensor]:
    """∫ E D(F^m(x^m|z^m), F^m_θ(x)) dt of each field of symbols, [B].

    Where all are masked on one schedule, by the number of masks among them (see `likelihood_bound`); else by t stratified on
    (0, 1), whose estimate has a variance that is not finite for masks.
    """
    first, paths = next(iter(z.values())), [path.factors[name] for name in symbols]
    masked = all(isinstance(one, MaskedPath) and one.schedule == paths[0].schedule for one in paths)  # pyright: ignore
    every = torch.cat([scored[name] for name in symbols], 1)
    offset = torch.rand(len(first), generator=rng, device=rng.device if rng else first.device, dtype=torch.float64)
    nats = {name: torch.zeros(len(first), dtype=torch.float64, device=first.device) for name in symbols}
    for j in range(num_samples):
        u, x = (j + offset.to(first.device)) / num_samples, dict(z)
        if masked:
            holes, t, weight = draw_masks(paths[0].schedule, every, u, rng)  # pyright: ignore
            parts = holes.split([z[name].shape[1] for name in symbols], 1)
            for name, one, part in zip(symbols, paths, parts, strict=True):
                x[name] = torch.where(part, one.mask_token_id, z[name])  # pyright: ignore
        else:
            t, weight = u.clamp(torch.finfo(torch.float64).tiny, 1 - 2**-53), torch.ones_like(u)
            for name, one in zip(symbols, paths, strict=True):
                x[name] = torch.where(scored[name], one.sample(z[name], t, rng), z[name])
        times = {name: t if name in symbols else torch.ones_like(t) for name in x}
        generator = model.generator(x, path.joined(times), **conditioning)
        assert isinstance(generator, Product)
        for name in symbols:
            target: Any = path.factors[name].conditional(z[name], x[name], t)
            loss = bregman.divergence(target, generator.factors[name], x[name], where=scored[name])
            nats[name] += weight * loss.sum(1) / num_samples
    return nats
