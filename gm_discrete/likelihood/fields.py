"""The likelihood of states with continuous and discrete fields.

With independent times one model contains every conditional distribution, and by the chain rule

    log p(z) = log p(continuous) + log p(discrete | continuous).

The first term is the flow's, with the discrete fields at time 0, where they carry no information. For the second, with the
continuous fields at time 1, where they are observed, −log p ≤ Σ_m ∫ E D(F^m(x^m|z^m), F^m_θ(x)) dt over the discrete fields
m. Together they bound the likelihood of the process that samples the continuous fields first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gm_discrete.arguments import whole
from gm_discrete.generators import Flow, terms
from gm_discrete.likelihood.bound import bound_draws, discrete_fields, evaluation_mode
from gm_discrete.likelihood.flow import flow_likelihood
from gm_discrete.likelihood.noise import common_schedule
from gm_discrete.likelihood.result import Likelihood
from gm_discrete.objective import scored_positions, unwrapped
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.process import Process, State, check_call, factors


def field_likelihood(
    model: Process,
    z: State,
    attention_mask: Mapping[str, Tensor] | None = None,
    *,
    num_samples: int = 8,
    num_steps: int = 50,
    trace: str = "hutchinson",
    rng: torch.Generator | None = None,
    **conditioning: object,
) -> Likelihood:
    """Upper bound on −log p(z) for a product path; exact (up to the flow's integration) if all fields are continuous.

    Continuous fields have a density per unit volume of the state. For natural units add `scaler.log_derivative` of each
    value to its log-density, that is, subtract it from `.nats`.

    >>> from gm_discrete import ExactProductModel, GaussianPath, MaskedPath, ProductPath
    >>> path = ProductPath(kind=MaskedPath(4), size=GaussianPath(), independent_times=True)
    >>> data = {"kind": torch.tensor([[0], [1], [2]]), "size": torch.zeros(3, 1, 1)}
    >>> model = ExactProductModel(path, data, {"size": torch.ones(3)})  # kind: uniform; size ~ N(0, 1), independent
    >>> found = field_likelihood(model, {"kind": torch.tensor([[1]]), "size": torch.zeros(1, 1, 1)})
    >>> {name: round(nats.item(), 2) for name, nats in found.fields.items()}  # log 3, log √(2π)
    {'kind': 1.1, 'size': 0.92}

    Args:
        model: a network or any other `Process` with a `ProductPath`; a network is evaluated in evaluation mode.
        z: clean data by field.
        attention_mask: by field, [B, L], 0 where padded; for discrete fields only.
        num_samples: draws of the bound per example.
        num_steps, trace: see `flow_likelihood`.
        rng: source of the noise.
        conditioning: passed on to `model.generator`.

    Returns:
        `.nats` [B] and the share of each field, `.fields`. `.nats_stderr` is known where nothing but the draws of the bound
        is random: for discrete fields alone, and for masks and continuous fields with `trace="exact"`.

    Raises:
        TypeError: the path has a single field, or a continuous field has no flow.
        ValueError: there are discrete and continuous fields that share one time; the schedules of the continuous fields
            differ; or attention_mask leaves out continuous entries.
    """
    model = unwrapped(model)
    path = model.path
    if "" in path.fields:
        raise TypeError(f"field_likelihood needs a ProductPath, not {path!r}: use likelihood_bound or flow_likelihood")
    discrete = discrete_fields(path)
    continuous = [name for name in path.fields if name not in discrete]
    if discrete and continuous and not path.independent_times:
        raise ValueError(
            f"the fields share one time, and no likelihood is known for continuous fields ({', '.join(continuous)}) that "
            f"flow while discrete ones ({', '.join(discrete)}) jump; train with independent_times=True"
        )
    scored = scored_positions(path, z, attention_mask)
    for name in continuous:
        if not bool(scored[name].all()):
            raise ValueError(
                f"attention_mask[{name!r}] leaves out continuous entries, which changes the dimension of the density; "
                "give masks of discrete fields only"
            )
    if attention_mask is not None:
        conditioning["attention_mask"] = attention_mask
    whole("num_samples", num_samples, least=1)
    check_call(model, z, "z", conditioning)
    nats: dict[str, Tensor] = {}
    masking = all(factor.is_masked for factor in discrete.values())
    kept: Tensor | None = None
    with evaluation_mode(model):
        if continuous:
            vector = ContinuousFields(model, continuous, z, rng, conditioning)
            flow = flow_likelihood(vector, vector.joined(z), num_steps=num_steps, trace=trace, rng=rng)
            assert flow.entries is not None
            nats |= zip(continuous, (part.sum(1) for part in flow.entries.split(vector.sizes, 1)), strict=True)
        if discrete:
            # Masks are drawn by their number, which varies less than the estimate by the time.
            by_mask_count = masking and common_schedule(discrete) is not None
            with torch.no_grad():
                draws = bound_draws(model, z, scored, num_samples, rng, conditioning, by_mask_count=by_mask_count)
            if not continuous or (trace == "exact" and masking):
                # The value of the flow is the same for all draws.
                kept = torch.stack(
                    [*draws.values(), *(part[:, None].expand(-1, num_samples) for part in nats.values())]
                )
            nats |= {name: part.mean(1) for name, part in draws.items()}
    nats = {name: nats[name] for name in path.fields}
    count = torch.stack([mask.flatten(1).sum(1) for mask in scored.values()]).sum(0)
    kept = None if kept is None else kept.sum(0)
    return Likelihood(torch.stack(list(nats.values())).sum(0), count, "fields", kept, fields=nats)


class ContinuousFields:
    """The continuous fields of a product as one vector [B, N], with the discrete ones at time 0: a `Process` of a flow."""

    def __init__(
        self,
        model: Process,
        names: list[str],
        z: State,
        rng: torch.Generator | None,
        conditioning: Mapping[str, object],
    ) -> None:
        self.model, self.names, self.conditioning = model, names, dict(conditioning)
        paths = [model.path.fields[name] for name in names]
        gaussian = [path for path in paths if isinstance(path, GaussianPath) and "flow" in path.generators]
        if len(gaussian) < len(paths):
            raise TypeError(f"continuous fields need Gaussian paths with a flow, not {paths}; rotations have none here")
        self.path = gaussian[0]
        if any((path.schedule, path.stop) != (self.path.schedule, self.path.stop) for path in gaussian):
            raise ValueError(
                f"the fields {', '.join(names)} differ in schedule or stop, and so do not flow as one vector; "
                "give them one schedule"
            )
        self.shapes = [z[name].shape[1:] for name in names]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.noise = {  # the state of the discrete fields at time 0
            name: path.prior(z[name].shape, rng, z[name].device)
            for name, path in model.path.fields.items()
            if name not in names
        }
        if isinstance(model, nn.Module):  # so that the network does not compute the rates of jumps
            self.conditioning["generators"] = {name: {"flow": 1.0} for name in names}

    def joined(self, state: State) -> Tensor:
        """The vector [B, N] of a state."""
        return torch.cat([state[name].flatten(1) for name in self.names], 1)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Flow:
        parts = zip(self.names, x.split(self.sizes, 1), self.shapes, strict=True)
        state = {**self.noise, **{name: part.unflatten(1, shape) for name, part, shape in parts}}
        times = {name: t if name in self.names else torch.zeros_like(t) for name in state}
        found = factors(self.model.generator(state, self.model.path.joined(times), **self.conditioning))
        velocity = {
            name: next(part.velocity for _, part in terms(found[name]) if isinstance(part, Flow)) for name in self.names
        }
        return Flow(self.joined(velocity))
