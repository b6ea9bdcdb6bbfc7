"""Upper bounds on −log p_θ(z), integrated over all of (0, 1), with standard errors.

    −log p_θ(z) ≤ ∫₀¹ E_{x~p_t(·|z)} D(F(x|z), F_θ(x)) dt

for the process that starts in the prior and moves by F_θ; the term at t = 0 vanishes because κ(0) = 0. With the exact
posterior the bound is the exact −log p for masking and for reversal rates. For mixture rates with a prior other than the
mask it is not tight: jumps always land on z, so that a path contains more information about z than its present state. It
then bounds the likelihood of another sampler, the one with mixture rates. For strings the bound is on −log p of the string
itself, its length included; it is not tight, because the columns of an alignment contain more information than the string
(see `paths.exact_edits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.arguments import whole
from gm_discrete.likelihood.edits import edit_draws
from gm_discrete.likelihood.noise import Noise
from gm_discrete.likelihood.result import Likelihood
from gm_discrete.objective import bregman, conditioning_of, scored_positions, unwrapped
from gm_discrete.paths import EditPath
from gm_discrete.paths.base import Path, uniform
from gm_discrete.paths.finite import FinitePath
from gm_discrete.process import Process, State, check_call, evaluation_mode, factors, pack, unpack


@torch.no_grad()
def likelihood_bound(
    model: Process,
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
) -> Likelihood:
    """Monte Carlo estimate of the bound on −log p(z), unbiased for every number of samples.

    - `"time"`: for any path. κ is stratified on (0, 1), a little denser near 1, and in 70 % of the draws one token is noise
      for certain, because a token that is noise near κ = 1 is rare and carries much of the sum. The divergence is weighted
      accordingly (`likelihood/noise.py` has the densities).
    - `"mask_count"` (masking only): the number n of masks stratified on {1, …, L}, κ ~ Beta(L − n + 1, n), a uniform
      subset of n masks, weight L/n. This is the time-free identity Σ_n (1/n) E_{|M|=n} Σ_{i∈M} −log π(z_i|z_{−M}), which
      also holds for networks with time conditioning, since κ given n has that Beta distribution. Its variance is lower,
      because the random number of masks varies most.

    With `scored` it bounds −log p_θ(z_S | z_C) of the scored positions S given all others C, for the process that starts
    from the prior in S while C is fixed. For masking this is the process that `generate` runs with prompts and gaps, and
    with the exact posterior the bound is the exact −log p(z_S | z_C). For other priors a network treats every symbol as
    noisy at the given time. Here its input holds C clean, while `generate` noises C to the level of the time: the bound
    holds for a process that differs from that of `generate`, and neither has the distribution p(z_S | z_C), not even with
    the exact posterior.

    >>> from gm_discrete import GMConfig, GMModel, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(9), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> bound = likelihood_bound(model, torch.tensor([[0, 5, 2, 7]]))
    >>> round(bound.perplexity, 3)  # an untrained network is uniform over the 8 symbols that are no mask
    8.0

    Args:
        model: a network or any other `Process`; a network is evaluated in evaluation mode.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded; different positive numbers are of different documents.
        num_samples: draws per sequence.
        rng: source of the noise.
        scored: bool [B, L], positions whose likelihood is bounded, given the others; by default all that are not padded.
        estimator: `"auto"` (mask_count for masking), `"time"` or `"mask_count"`.
        x_0: the sources [B, L] of a coupled path; the bound is then one on −log p(z|x_0).
        class_labels: long [B], for a model with classes; the bound is then one on −log p(z|class).
        paired: use the same times and the same noise for every row, and so the same masks for rows with the same scored
            positions. What such candidates share cancels in the differences by which they are ranked. The expectation of
            each row does not change.
        batch_size: sequences in one call of the network, so that several draws may go together; B by default. Draws of
            strings never do, as every alignment has a width of its own.

    Returns:
        `.nats` [B] and `.nats_stderr` (over the draws); `.bits_per_token`, `.perplexity` and `.stderr` (of the bits per
        token, over sequences). `.kind` names the rates of the path.

    Raises:
        TypeError: the path is not discrete, or it has several fields.
        ValueError: an argument is out of range or has the wrong shape.
    """
    model = unwrapped(model)
    path = discrete_fields(model.path).get("")
    if path is None:
        raise TypeError(
            f"likelihood_bound needs a discrete path, not {model.path!r}: use flow_likelihood for a continuous path, "
            "field_likelihood for several fields"
        )
    masking = path.is_masked
    if estimator not in ("auto", "time", "mask_count") or (estimator == "mask_count" and not masking):
        raise ValueError(f"estimator={estimator!r} must be 'auto', 'time', or (with a MaskedPath) 'mask_count'")
    if batch_size is not None:
        whole("batch_size", batch_size, least=1)
    whole("num_samples", num_samples, least=1)
    if x_0 is not None and not path.coupled:
        raise ValueError("x_0 is given, but the path is not coupled; use MixturePath(…, coupled=True)")
    states, masks = pack(z), pack(scored_positions(path, z, attention_mask, scored))
    conditioning = {"attention_mask": attention_mask, "class_labels": class_labels}
    conditioning = conditioning_of(model, z, conditioning)
    check_call(model, z, "z", conditioning)
    if path.strings is not None and paired and not cast(EditPath, path).inserts_only:
        raise ValueError("paired=True: strings with prior='uniform' have a source of their own each; leave it out")
    if path.strings is not None:
        z = path.strings.without_padding(z, attention_mask)
        conditioning.pop("attention_mask", None)
        with evaluation_mode(model):
            draws = edit_draws(model, z, masks[""], num_samples, rng, conditioning, paired)
        symbols = (masks[""] & (z != path.strings.blank)).sum(1)
        return Likelihood(draws.mean(1), symbols, path.rates, draws)
    with evaluation_mode(model):
        draws = bound_draws(
            model, states, masks, num_samples, rng, conditioning,
            by_mask_count=masking and estimator != "time", x_0=x_0, paired=paired, batch_size=batch_size,
        )[""]  # fmt: skip
    return Likelihood(draws.mean(1), masks[""].sum(1), path.rates, draws)


def bound_draws(
    model: Process,
    z: State,
    scored: State,
    num_samples: int,
    rng: torch.Generator | None,
    conditioning: Mapping[str, Any],
    *,
    by_mask_count: bool,
    x_0: Tensor | None = None,
    paired: bool = False,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """S draws of ∫ E D(F^m(x^m|z^m), F^m_θ(x)) dt for each discrete field m, [B, S]. Continuous fields are at t = 1.

    Args:
        z, scored: clean data and loss masks of all fields.
        by_mask_count: draw the number of masks among all discrete fields (see `likelihood_bound`), else the time.
        x_0, paired, batch_size: see `likelihood_bound`.
    """
    path, first = model.path, next(iter(z.values()))
    if paired and rng is None:
        rng = torch.Generator(first.device).manual_seed(int(torch.randint(2**62, ())))
    noise = Noise(discrete_fields(path), z, scored, rng, x_0, paired)
    batch = len(first)
    at_once = max(1, (batch_size or batch) // max(1, batch))
    offset = uniform((1,) if paired else (batch,), rng, first.device).expand(batch)
    draws: dict[str, list[Tensor]] = {name: [] for name in noise.paths}
    for start in range(0, num_samples, at_once):
        count = min(at_once, num_samples - start)
        drawn = []
        for j in range(start, start + count):
            u = (j + offset) / num_samples  # stratified over the draws of each sequence
            drawn.append(noise.masks(u) if by_mask_count else noise.times(u))
        x = {name: torch.cat([part.x[name] for part in drawn]) for name in z}
        t, weight = torch.cat([part.t for part in drawn]), torch.cat([part.weight for part in drawn])
        times = {name: t if name in noise.paths else torch.ones_like(t) for name in z}
        targets = {
            name: factor.conditional(_repeated(z[name], count), x[name], t) for name, factor in noise.paths.items()
        }
        inputs = {
            name: {field: _repeated(part, count) for field, part in value.items()}
            if isinstance(value, Mapping)
            else _repeated(value, count)
            for name, value in conditioning.items()
        }
        predicted = factors(model.generator(unpack(x), path.joined(times), **inputs))
        for name, target in targets.items():
            loss = bregman.divergence(target, predicted[name], x[name], where=_repeated(scored[name], count))
            draws[name].append((weight * loss.sum(1)).double().unflatten(0, (count, batch)))
    return {name: torch.cat(parts).T for name, parts in draws.items()}


def discrete_fields(path: Path) -> dict[str, FinitePath]:
    """The paths of the discrete fields."""
    return {name: cast(FinitePath, factor) for name, factor in path.fields.items() if factor.is_discrete}


def _repeated(value: Tensor, times: int) -> Tensor:
    """The rows [B, …] of a tensor, `times` times in a row."""
    return value if times == 1 else value.repeat(times, *[1] * (value.dim() - 1))
