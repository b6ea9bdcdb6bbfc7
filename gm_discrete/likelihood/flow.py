"""The likelihood of points under a flow, by the change of variables along its paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from gm_discrete.arguments import whole
from gm_discrete.generators import Flow, Generator, Superposition, quaternions, terms
from gm_discrete.generators.rows import NOT_FINITE, require
from gm_discrete.likelihood.bound import evaluation_mode
from gm_discrete.likelihood.result import Likelihood
from gm_discrete.objective import unwrapped
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.rotations import RotationPath
from gm_discrete.process import Process, check_call, pack_state, unpack


def flow_likelihood(
    model: Process,
    z: Tensor,
    *,
    num_steps: int = 100,
    trace: str = "hutchinson",
    rng: torch.Generator | None = None,
    **conditioning: object,
) -> Likelihood:
    """−log p(z) under a flow by the instantaneous change of variables, backwards in time by Heun steps:

        −log p_1(z) = −log p_0(x_0) + ∫₀¹ ∇·u_t(x_t) dt,   dx_t/dt = u_t(x_t),   x_1 = z.

    (Chen et al. 2018, arXiv 1806.07366.) The integration starts at t = 1 − ε, where ε is the path's `stop`, and takes x
    there for αz, or z of rotations. In a superposition only the flow part is used: this is the likelihood of the flow alone.
    The density of rotations is against the Haar measure, under which the uniform distribution has −log p = 0.

    >>> from gm_discrete import ExactGaussianModel, GaussianPath
    >>> model = ExactGaussianModel(GaussianPath(), torch.zeros(1, 1), 0.5)  # data z ~ N(0, 0.5²)
    >>> found = flow_likelihood(model, torch.tensor([[[0.0]]]), trace="exact")
    >>> round(found.nats.item(), 2)  # log(0.5 √(2π)) = 0.226
    0.23

    Args:
        model: a network or any other `Process` with a `GaussianPath` or a path of rotations; a network is evaluated in
            evaluation mode.
        z: data [B, …].
        num_steps: steps of the integration, of two evaluations each.
        trace: how ∇·u is found. `"hutchinson"`: an unbiased estimate vᵀ ∇u v with one random sign vector v for each point
            (Grathwohl et al. 2018, arXiv 1810.01367). `"exact"`: one backward pass for each entry.
        rng: source of the signs.
        conditioning: passed on to `model.generator`.

    Returns:
        `.nats` [B] and its share of each entry, a number or a rotation, `.entries` [B, N];
        `.x_0`, the starting points; `.bits_per_dim(bin_width)`.

    Raises:
        TypeError: the path is another one.
        ValueError: an argument is out of range, or z is not a finite floating-point tensor of the path's shape.
    """
    model = unwrapped(model)
    path = model.path
    if not isinstance(path, GaussianPath | RotationPath):
        raise TypeError(
            f"flow_likelihood needs a GaussianPath or an SO3Path, not {path!r}; for several fields use field_likelihood"
        )
    z = cast(Tensor, unpack(pack_state(path, z, "z")))
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace={trace!r} must be 'hutchinson' or 'exact'")
    whole("num_steps", num_steps, least=1)
    check_call(model, z, "z", conditioning)
    if isinstance(model, nn.Module):  # so that the network does not compute the rates of jumps
        conditioning.setdefault("generators", {"flow": 1.0})
    signs = torch.randint(0, 2, z.shape, generator=rng, device=rng.device if rng else z.device).to(z) * 2 - 1

    rotations, space = isinstance(path, RotationPath), path.space

    def generator(x: Tensor, t: Tensor) -> Generator:
        # A tangent field that is constant along rays has the same divergence in R⁴ as on the sphere.
        return model.generator(quaternions.normalized(x) if rotations else x, t, **conditioning)

    def slope(x: Tensor, time: float) -> tuple[Tensor, Tensor]:
        return velocity_and_divergence(generator, x, time, signs if trace == "hutchinson" else None)

    times = torch.linspace(1 - path.stop, 0, num_steps + 1, dtype=torch.float64, device="cpu").tolist()
    end = torch.tensor(times[:1], dtype=torch.float64, device=z.device)
    scale = torch.ones_like(end) if rotations else cast(GaussianPath, path).schedule.alpha(end)
    # p_{1−ε}(αz) αᵈ is p_1(z) up to the blur of σ(1 − ε).
    x, change = scale.to(z.dtype) * z, torch.zeros_like(z.flatten(1), dtype=torch.float64)
    with evaluation_mode(model):
        for t, earlier in pairwise(times):
            velocity, divergence = slope(x, t)
            y = space.move(x, (earlier - t) * velocity)
            again, divergence_again = slope(y, earlier)
            x = space.move(x, (earlier - t) / 2 * (velocity + space.transported(again, y, x)))
            change = change + (earlier - t) / 2 * (divergence + divergence_again)
    flat = x.double().flatten(1)
    prior = torch.zeros_like(flat) if rotations else flat**2 / 2 + math.log(2 * math.pi) / 2
    entries = (prior - change - float(scale.log())).detach()
    if rotations:  # an entry is a whole rotation
        entries = entries.unflatten(1, (-1, 4)).sum(2)
    count = torch.full((len(z),), entries.shape[1], device=z.device)
    return Likelihood(entries.sum(1), count, "flow", entries=entries, x_0=x.detach())


def velocity_and_divergence(
    generator: Callable[[Tensor, Tensor], Generator], x: Tensor, time: float, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(u [B, …], the terms ∂u_i/∂x_i of ∇·u [B, N]) at (x, t), the latter estimated from random signs if there are any."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        t = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
        found = generator(x, t)
        flow = found.parts.get("flow") if isinstance(found, Superposition) else None  # its weight may be 0
        flow = flow if isinstance(flow, Flow) else next(part for _, part in terms(found) if isinstance(part, Flow))
        velocity = flow.velocity
        require(velocity.isfinite().all(), FloatingPointError, NOT_FINITE.format("velocity"))
        if signs is not None:
            (pulled,) = torch.autograd.grad((velocity * signs).sum(), x)
            return velocity.detach(), (pulled * signs).flatten(1).double()
        diagonal = []
        for i in range(x[0].numel()):
            (row,) = torch.autograd.grad(velocity.flatten(1)[:, i].sum(), x, retain_graph=True)
            diagonal.append(row.flatten(1)[:, i].double())
        return velocity.detach(), torch.stack(diagonal, 1)
