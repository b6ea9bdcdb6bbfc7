"""One step of a sampler: from the state at t to a state at t_next.

A step has two stages. First the events: which positions see a candidate jump, a Bernoulli draw from a clock that knows no
network. Then, for those positions only, the landing symbol. (Drawing both at once from one categorical over
"stay or move to y" needs probabilities far below the 2⁻²⁴ grid of float32 uniforms and lowers the entropy of samples.)
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gm_discrete.generators import Jump


class Step(Protocol):
    """(model, x [B, L], t [B], t_next [B], rng, free [B, L], conditioning) → (x at t_next, events bool [B, L])."""

    def __call__(
        self,
        model: Any,
        x: Tensor,
        t: Tensor,
        t_next: Tensor,
        rng: torch.Generator | None,
        free: Tensor,
        conditioning: dict[str, Any],
    ) -> tuple[Tensor, Tensor]: ...


def tau_leaping(
    model: Any,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    rng: torch.Generator | None,
    free: Tensor,
    conditioning: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Jump with the exact probability of the interval, (κ_s − κ_t)/(1 − κ_t) for mixture rates, with the belief frozen at t.

    Given the data symbol the step is exact; its error comes only from positions that move together.
    """
    generator = model.generator(x, t, t_next, **conditioning)
    return _jump(generator, generator.probability, x, rng, free)


def euler(
    model: Any,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    rng: torch.Generator | None,
    free: Tensor,
    conditioning: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Jump with probability min(1, λ(x, t)(t_next − t)) at the rates of the point t.

    The hazard is not integrable at t = 1, and a rate may be infinite at t = 0, where no Euler step converges: a step that
    ends or starts there is that of `tau_leaping`.
    """
    generator = model.generator(x, t, **conditioning)
    if bool((t_next >= 1).any()) or bool(generator.intensity.isinf().any()):
        return tau_leaping(model, x, t, t_next, rng, free, conditioning)
    return _jump(generator, (generator.intensity * (t_next - t)[:, None]).clamp(max=1), x, rng, free)


def ancestral(
    model: Any,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    rng: torch.Generator | None,
    free: Tensor,
    conditioning: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """x_s ~ E_{z~π} p(x_s | x_t, z): the reverse transition of the noising process (D3PM, arXiv 2107.03006, equation 4).

    Realised by thinning, so that positions without a candidate event cost nothing. For masking it is `tau_leaping`.
    """
    if getattr(getattr(model, "path", None), "rates", None) == "mixture":
        raise ValueError('ancestral steps follow the reversal rates: give the path rates="reversal"')
    return tau_leaping(model, x, t, t_next, rng, free, conditioning)


def _jump(
    generator: Jump, probability: Tensor | None, x: Tensor, rng: torch.Generator | None, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws the events, then the landing symbols at the events."""
    if not isinstance(generator, Jump):
        raise TypeError(f"this step simulates jumps; the model's generator is a {type(generator).__name__}")
    if probability is None:
        raise ValueError("the model's generator ignored t_next: its jump has no interval probability")
    device = rng.device if rng is not None else x.device
    noise = torch.rand(x.shape, generator=rng, device=device, dtype=torch.float64).to(x.device)
    events = (noise < probability) & free
    where = events.flatten().nonzero().squeeze(1)
    if len(where) == 0:
        return x, events
    landed = generator.kernel.sample(rng, where)
    return x.flatten().index_put((where,), landed).view_as(x), events


STEPS: dict[str, Step] = {"tau_leaping": tau_leaping, "euler": euler, "ancestral": ancestral}
