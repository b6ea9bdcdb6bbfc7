"""Steps of a fixed grid: from the state at t to a state at t_next.

A step has two stages. First the events: which positions see a candidate jump, a Bernoulli draw from a clock that knows no
network. Then, for those positions only, the landing symbol. (Drawing both at once from one categorical over
"stay or move to y" needs probabilities far below the 2⁻²⁴ grid of float32 uniforms and lowers the entropy of samples.)
"""

from __future__ import annotations

from torch import Tensor

from gm_discrete.generators.transport import Elsewhere, Extrapolated
from gm_discrete.samplers.chain import Chain, leaving
from gm_discrete.samplers.decoding import ranked
from gm_discrete.samplers.euclidean import euler_maruyama


def tau_leaping(
    chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, order: str = "random", order_temperature: float = 0.0
) -> Tensor:
    """Jump with the exact probability of the interval, (κ_s − κ_t)/(1 − κ_t) for mixture rates, with the belief frozen at t.

    Given the data symbol the step is exact; its error comes only from positions that move together. Euclidean states move
    along with their flow and diffusion, and a jump overrides these (see `samplers.euclidean`).

    Another `order` than the law's random one decides which masks are revealed (see `samplers.decoding`).
    """
    if x.is_floating_point():
        return euler_maruyama(chain, x, t, t_next)
    if order != "random":
        return ranked(chain, x, t, t_next, order, order_temperature)
    generator = chain.jump(x, t, t_next)
    events = chain.events(generator.chance)
    chain.count(generator, events)
    return chain.land(x, generator.kernel, events)


def euler(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Jump with probability min(1, λ(x, t)(t_next − t)) at the rates of the point t.

    The hazard is not integrable at t = 1, and a rate may be infinite at t = 0, where no Euler step converges: a step that
    ends or starts there is that of `tau_leaping`; so are all steps of Euclidean states.
    """
    if x.is_floating_point():
        return euler_maruyama(chain, x, t, t_next)
    generator = chain.jump(x, t)
    if bool((t_next >= 1).any()) or bool(generator.intensity.isinf().any()):
        return tau_leaping(chain, x, t, t_next)
    events = chain.events((generator.intensity * (t_next - t)[:, None]).clamp(max=1))
    chain.count(generator, events)
    return chain.land(x, generator.kernel, events)


def ancestral(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x_s ~ E_{z~π} p(x_s | x_t, z): the reverse transition of the noising process (D3PM, arXiv 2107.03006, equation 4).

    Realised by thinning, so that positions without a candidate event cost nothing. For masking it is `tau_leaping`.
    """
    rates = getattr(getattr(chain.model, "path", None), "rates", "reversal")
    if rates not in ("reversal", "masked"):
        raise ValueError(f'ancestral steps follow the reversal rates; the path has rates="{rates}"')
    return tau_leaping(chain, x, t, t_next)


def trapezoidal(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor, *, theta: float = 0.5) -> Tensor:
    """θ-trapezoidal step, of two evaluations: leap to the part θ of the step in −log(1 − κ), then finish
    with the belief extrapolated from both, ∝ [a π_inner − (a − 1) π_t]₊, a = 1/(2θ(1 − θ)).

    Of second order where nothing is clipped, which on masked paths is the rule; elsewhere of the first, with a smaller
    constant. A step that ends at t = 1, which is infinitely long in −log(1 − κ), is that of `tau_leaping`. Hu, Li and Min
    2011; for masked diffusion Ren et al. 2025 (arXiv 2502.00234, algorithm 2).
    """
    if not 0 < theta < 1:
        raise ValueError(f"theta={theta} must lie in (0, 1)")
    if bool((t_next >= 1).any()):
        return tau_leaping(chain, x, t, t_next)
    schedule = chain.path.schedule
    left, left_next = schedule.complement(t), schedule.complement(t_next)
    inner = schedule.inverse(1 - left * (left_next / left) ** theta)
    start = chain.posterior(x, t)
    first = start.over(inner)
    events = chain.events(first.chance)
    middle = chain.land(x, first.kernel, events)
    mid = chain.posterior(middle, inner)
    second = mid.over(t_next, Extrapolated(mid.belief, start.belief, 1 / (2 * theta * (1 - theta))))
    finish = chain.events(second.chance)
    chain.calls += (events | finish).any(1).long() + finish.any(1)
    return chain.land(middle, second.kernel, finish)


def stratified_hazard(chain: Chain, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Jump whenever the probability of leaving, added up from a random phase of each position, crosses a whole number.

    The number of jumps of a position keeps its mean and has the least variance that whole numbers allow: a token neither
    misses its edits nor gets them in crowds. The jumps are no longer those of a Markov chain, so that the path's law is
    left, for any number of steps. Jang and Han 2026 (arXiv 2601.02799).
    """
    generator = chain.jump(x, t, t_next)
    leave, read = leaving(generator.kernel, x, chain.free & (generator.chance > 0))
    phase = chain.memory.get("phase")
    before = chain.uniform(*x.shape) if phase is None else phase
    after = before + generator.chance * leave
    chain.memory["phase"] = after % 1
    events = after >= 1
    chain.calls += read | events.any(1)
    return chain.land(x, Elsewhere(generator.kernel, x), events)
