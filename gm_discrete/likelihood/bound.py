"""Upper bounds on −log p_θ(z), integrated over all of (0, 1), with standard errors.

−log p_θ(z) ≤ ∫₀¹ E_{x~p_t(·|z)} D(F(x|z), F_θ(x)) dt for the process that starts in the prior and moves by F_θ; the
term at t = 0 vanishes because κ(0) = 0. With the exact posterior the bound is the exact −log p for masking and for
reversal rates; for mixture rates with another prior it is not tight, since jumps always land on z and a path therefore
tells more about z than its present state. It then bounds the likelihood of another sampler, the one with mixture rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gm_discrete.objective import bregman, conditioning_of, scored_positions, unwrapped
from gm_discrete.paths.base import uniform
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.mixture import MaskedPath
from gm_discrete.paths.schedules import Schedule


@dataclass(frozen=True, repr=False)
class LikelihoodBound:
    """Bounds on the negative log-likelihood of B sequences.

    Attributes:
        nats: [B], float64, per sequence.
        num_tokens: [B], scored tokens per sequence.
        kind: `"masked"`, `"reversal"` or `"mixture"`: the dynamics whose likelihood is bounded.
        draws: [B, S], float64, the S draws whose means `nats` are, where they were kept.
    """

    nats: Tensor
    num_tokens: Tensor
    kind: str = ""
    draws: Tensor | None = None

    @property
    def nats_stderr(self) -> Tensor:
        """Standard error of each of `nats` over its draws, [B]: std(draws) / √S; NaN where it is not known.

        The draws are stratified, and this is the error of independent ones: its square is on average (σ² − V)/(S − 1), for
        draws of variance σ² and a true V, so that it errs on the safe side whenever stratification helps (V ≤ σ²/S). It
        knows nothing of how far the bound lies above −log p. Of a difference between paired rows a and b it is
        std(draws[a] − draws[b]) / √S.
        """
        if self.draws is None:
            return torch.full_like(self.nats, math.nan)
        size = self.draws.shape[1]
        return self.draws.std(1) / math.sqrt(size) if size > 1 else torch.full_like(self.nats, math.nan)

    @property
    def bits_per_token(self) -> float:
        """Σ nats / (Σ scored tokens · ln 2)."""
        return float(self.nats.sum()) / (int(self.num_tokens.sum()) * math.log(2))

    @property
    def perplexity(self) -> float:
        """exp(Σ nats / Σ scored tokens), per token."""
        return 2**self.bits_per_token

    @property
    def stderr(self) -> float:
        """Standard error of `bits_per_token` over sequences, as a ratio of sums; NaN for a single sequence."""
        n = len(self.nats)
        if n < 2:
            return math.nan
        residual = self.nats - self.nats.sum() / self.num_tokens.sum() * self.num_tokens
        return math.sqrt(float(residual.square().sum()) * n / (n - 1)) / (int(self.num_tokens.sum()) * math.log(2))

    def __repr__(self) -> str:
        tokens = int(self.num_tokens.sum())
        bits = f"{self.bits_per_token:.4f} ± {self.stderr:.4f} bits per token"
        return f"LikelihoodBound({bits}, {len(self.nats)} sequences, {tokens} tokens, kind={self.kind!r})"

    @staticmethod
    def cat(bounds: Sequence[LikelihoodBound]) -> LikelihoodBound:
        """The bound of all the sequences together.

        Raises:
            ValueError: there are none, or they bound the likelihood of different dynamics.
        """
        if len({bound.kind for bound in bounds}) != 1:
            raise ValueError(f"cannot join bounds of kinds {sorted({bound.kind for bound in bounds})}")
        draws = [bound.draws for bound in bounds if bound.draws is not None]
        equal = len(draws) == len(bounds) and len({part.shape[1] for part in draws}) == 1
        return LikelihoodBound(
            torch.cat([bound.nats for bound in bounds]),
            torch.cat([bound.num_tokens for bound in bounds]),
            bounds[0].kind,
            torch.cat(draws) if equal else None,
        )


@torch.no_grad()
def likelihood_bound(
    model: Any,
    z: Tensor,
    attention_mask: Tensor | None = None,
    num_samples: int = 8,
    rng: torch.Generator | None = None,
    *,
    scored: Tensor | None = None,
    estimator: str = "auto",
    x_0: Tensor | None = None,
    class_labels: Tensor | None = None,
    paired: bool = False,
    batch_size: int | None = None,
) -> LikelihoodBound:
    """Monte-Carlo estimate of the bound on −log p(z), unbiased for every number of samples.

    - `"time"`: κ stratified on (0, 1), x ~ p_t(·|z). For any path. Few draws near κ = 1 may carry much of the sum, so that
      the standard error of few sequences can be too small.
    - `"mask_count"` (masking only): the number n of masks stratified on {1, …, L}, κ ~ Beta(L − n + 1, n), a uniform
      subset of n masks, weight L/n. The time-free identity Σ_n (1/n) E_{|M|=n} Σ_{i∈M} −log π(z_i|z_{−M}), which also
      holds for networks that see the time since κ given n has that Beta law. Its variance is lower, as the random number
      of masks is what varies most.

    With `scored` it bounds −log p_θ(z_S | z_C) of the scored positions S given all others C, for the process that starts
    from the prior in S while C stands as it is. For masking this is what `generate` runs with prompts and gaps, and with the
    exact posterior the bound is the exact −log p(z_S | z_C). A network for another prior takes every symbol for as noisy as
    the time says. Here it sees C clean, while `generate` shows it C at the noise of the time: the bound holds for a process
    that is not the one of `generate`, and of neither is the law p(z_S | z_C), not even with the exact posterior.

    Args:
        model: anything with `.path` and `.generator(x, t)`; a network is read in evaluation mode.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded.
        num_samples: draws per sequence.
        rng: source of the noise.
        scored: bool [B, L], positions whose likelihood is bounded, given the others; all that are not padded by default.
        estimator: `"auto"` (mask_count for masking), `"time"` or `"mask_count"`.
        x_0: the sources [B, L] of a coupled path; the bound is then one on −log p(z|x_0).
        class_labels: long [B], of a model with classes; the bound is then one on −log p(z|class).
        paired: the same times and the same noise for every row, and so the same masks for rows of equal scored positions:
            what such candidates share cancels in the differences by which they are ranked. Each row's mean is as before.
        batch_size: sequences that the network reads at once, so that several draws may go together; B by default.

    Returns:
        `.nats` [B] and `.nats_stderr` (over the draws); `.bits_per_token`, `.perplexity` and `.stderr` (of the bits per
        token, over sequences).

    Raises:
        TypeError, ValueError: an argument is not what the bound needs; the message names it.
    """
    model = unwrapped(model)
    path = model.path
    if not isinstance(path, FinitePath):
        others = "flow_likelihood, or field_likelihood of several fields"
        raise TypeError(f"this bounds the likelihood of symbols, not of {path!r}: use {others}")
    masked = isinstance(path, MaskedPath)
    if estimator not in ("auto", "time", "mask_count") or (estimator == "mask_count" and not masked):
        raise ValueError(f"estimator={estimator!r}: choose 'auto', 'time', or (with a MaskedPath) 'mask_count'")
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    chosen: Tensor = scored_positions(path, z, attention_mask, scored)
    if x_0 is not None and not getattr(path, "coupled", False):
        raise ValueError("x_0 is given, but the path is not coupled: MixturePath(…, coupled=True)")
    draw = _draw_mask_count if masked and estimator != "time" else _draw_time
    given = {"attention_mask": attention_mask, "class_labels": class_labels}
    given = conditioning_of(model, z, given)
    if paired and rng is None:
        rng = torch.Generator(z.device).manual_seed(int(torch.randint(2**62, ())))
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        batch, draws = len(z), []
        at_once = max(1, (batch_size or batch) // max(1, batch))
        offset = uniform((1,) if paired else (batch,), rng, z.device).expand(batch)
        for first in range(0, num_samples, at_once):
            count = min(at_once, num_samples - first)
            drawn = []
            for j in range(first, first + count):
                u = (j + offset) / num_samples  # stratified over the draws of each sequence
                drawn.append(draw(path, z, chosen, u, rng, x_0, paired))
            x, t, weight = (torch.cat(column) for column in zip(*drawn, strict=True))
            rows, where = _repeated(z, count), _repeated(chosen, count)
            told = {name: _repeated(value, count) for name, value in given.items()}
            target, predicted = path.conditional(rows, x, t), model.generator(x, t, **told)
            values = weight * bregman.divergence(target, predicted, x, where=where).sum(1)
            draws.append(values.double().unflatten(0, (count, batch)))
    finally:
        if training:
            model.train()
    every = torch.cat(draws).T  # [B, S]
    return LikelihoodBound(every.mean(1), chosen.sum(1), path.rates, every)


def _repeated(value: Tensor, times: int) -> Tensor:
    """The rows again and again."""
    return value if times == 1 else value.repeat(times, *[1] * (value.dim() - 1))


def _draw_time(
    path: FinitePath,
    z: Tensor,
    scored: Tensor,
    u: Tensor,
    rng: torch.Generator | None,
    x_0: Tensor | None,
    paired: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """κ = u, of density 1: dt = dκ/κ'."""
    t = path.schedule.inverse(u.clamp(torch.finfo(torch.float64).tiny, 1 - 2**-53))
    if paired and rng is not None:  # a path draws what it needs in its own way: every row starts from the same state
        state, rows = rng.get_state(), []
        for i in range(len(z)):
            rng.set_state(state)
            row = slice(i, i + 1)
            rows.append(path.sample(z[row], t[row], rng, None if x_0 is None else x_0[row]))
        x = torch.cat(rows)
    else:
        x = path.sample(z, t, rng, x_0)
    return torch.where(scored, x, z), t, 1 / path.schedule.derivative(t)


def _draw_mask_count(
    path: Any, z: Tensor, scored: Tensor, u: Tensor, rng: torch.Generator | None, _: Tensor | None, paired: bool
) -> tuple[Tensor, Tensor, Tensor]:
    masked, t, weight = draw_masks(path.schedule, scored, u, rng, paired)
    return torch.where(masked, path.mask_token_id, z), t, weight


def draw_masks(
    schedule: Schedule, scored: Tensor, u: Tensor, rng: torch.Generator | None, paired: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(masked [B, L], t [B], weight [B]): n masks among the L scored positions, n at the quantile u of {1, …, L}.

    The divergence carries the hazard h(t), hence the weight (L/n)/h(t). Paired rows share one row of noise.
    """
    length = scored.sum(1)
    masks = torch.minimum((u * length).long() + 1, length).clamp(min=1)
    noise = uniform((1 if paired else len(scored), scored.shape[1]), rng, scored.device)
    noise = noise.expand(scored.shape).masked_fill(~scored, -1)
    kappa = noise.sort(1, descending=True).values.gather(1, masks[:, None] - 1)  # n-th largest ~ Beta(L − n + 1, n)
    t = schedule.inverse(kappa.squeeze(1).clamp(0, 1 - 2**-53))
    return scored & (noise >= kappa), t, torch.where(length > 0, length / masks / schedule.hazard(t), 0.0)
