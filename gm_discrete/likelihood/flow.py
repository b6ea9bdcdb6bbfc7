"""Log-likelihoods of points under a flow, by the change of variables along its paths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.generators import Flow, terms
from gm_discrete.objective import unwrapped
from gm_discrete.paths.gaussian import GaussianPath


@dataclass(frozen=True)
class FlowLikelihood:
    """Log-likelihoods of B points under a flow.

    Attributes:
        nats: log p(z), [B], float64: a density per unit volume of the data's own scale.
        num_entries: entries of a point.
        x_0: where the points come from, [B, …].
        entries: what each entry adds to the sum, [B, num_entries]: the log density of its noise and of its own volume. Of
            entries that depend on each other only the sum has a meaning of its own.
    """

    nats: Tensor
    num_entries: int
    x_0: Tensor
    entries: Tensor

    def bits_per_dim(self, bin_width: float = 1.0) -> Tensor:
        """−log₂ of the probability of a bin of that width per entry, [B]: 2/255 for pixels of 8 bits in [−1, 1], if they
        were dequantised uniformly; then a bound, in the mean."""
        return -self.nats / (self.num_entries * math.log(2)) - math.log2(bin_width)


def flow_likelihood(
    model: Any,
    z: Tensor,
    *,
    num_steps: int = 100,
    trace: str = "hutchinson",
    rng: torch.Generator | None = None,
    **conditioning: Any,
) -> FlowLikelihood:
    """log p(z) of a flow by the instantaneous change of variables, backwards in time by Heun steps:

        log p_1(z) = log p_0(x_0) − ∫₀¹ ∇·u_t(x_t) dt,   dx_t/dt = u_t(x_t),   x_1 = z.

    (Chen et al. 2018, arXiv 1806.07366.) The path is followed from t = 1 − ε, ε its `stop`, where x and z are taken for
    the same up to the scale α; the velocity of other parts of a superposition is left out, so that it is the likelihood
    of the flow alone.

    Args:
        model: anything with `.path` (a `GaussianPath`) and `.generator(x, t)`.
        z: data [B, …].
        num_steps: of the integration, two evaluations each.
        trace: of ∇u: `"hutchinson"`, an unbiased estimate vᵀ ∇u v with one random sign vector v for each point (Grathwohl
            et al. 2018, arXiv 1810.01367), or `"exact"`, with one backward pass for each entry.
        rng: source of the signs.
        conditioning: passed on to the generator.
    """
    model = unwrapped(model)
    path = model.path
    if not isinstance(path, GaussianPath):
        raise TypeError(
            f"the likelihood of a flow needs a GaussianPath, not {path!r}; of several fields use field_likelihood"
        )
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace={trace!r} must be 'hutchinson' or 'exact'")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    path.check(z, torch.ones(len(z), device=z.device), "z")
    ask: Any = model.generator
    if isinstance(model, nn.Module):  # the rates of jumps need not be found
        conditioning.setdefault("generators", {"flow": 1.0})
    signs = torch.randint(0, 2, z.shape, generator=rng, device=rng.device if rng else z.device).to(z) * 2 - 1

    def slope(x: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """(u, the terms ∂u_i/∂x_i of ∇·u) at (x, t)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            t = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
            generator = ask(x, t, **conditioning)
            velocity = next(part.velocity for _, part in terms(generator) if isinstance(part, Flow))
            if trace == "hutchinson":
                (pulled,) = torch.autograd.grad((velocity * signs).sum(), x)
                return velocity.detach(), (pulled * signs).flatten(1).double()
            diagonal = []
            for i in range(x[0].numel()):
                (row,) = torch.autograd.grad(velocity.flatten(1)[:, i].sum(), x, retain_graph=True)
                diagonal.append(row.flatten(1)[:, i].double())
            return velocity.detach(), torch.stack(diagonal, 1)

    times = torch.linspace(1 - path.stop, 0, num_steps + 1, dtype=torch.float64, device="cpu").tolist()
    end = torch.tensor(times[:1], dtype=torch.float64, device=z.device)
    scale = path.schedule.alpha(end)  # p_{1−ε}(αz) αᵈ is p_1(z) up to the blur of σ(1 − ε)
    x, change = scale.to(z.dtype) * z, torch.zeros_like(z.flatten(1), dtype=torch.float64)
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        for t, earlier in pairwise(times):
            velocity, divergence = slope(x, t)
            again, divergence_again = slope(x + (earlier - t) * velocity, earlier)
            x = x + (earlier - t) / 2 * (velocity + again)
            change = change + (earlier - t) / 2 * (divergence + divergence_again)
    finally:
        if training:
            model.train()
    flat = x.double().flatten(1)
    entries = (-(flat**2) / 2 - math.log(2 * math.pi) / 2 + change + float(scale.log())).detach()
    return FlowLikelihood(entries.sum(1), flat.shape[1], x.detach(), entries)
