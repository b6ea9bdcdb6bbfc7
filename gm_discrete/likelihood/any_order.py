"""The likelihood of masked models whose tokens are revealed one by one in any order: exact, or a tighter bound.

For a masked path and a network without time conditioning, the order σ in which tokens are revealed is uniform, and

    p_θ(z) = E_σ Π_i π(z_σ(i) | z_σ(<i)),

the distribution of what `FirstHitting` samples, and of other samplers in the limit of many steps. `likelihood_bound` moves
the logarithm inside the mean over orders; here it stays outside. Both functions take the scored positions S given the
others.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from gm_discrete.arguments import whole
from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import map_rows
from gm_discrete.likelihood.bound import evaluation_mode
from gm_discrete.likelihood.result import Likelihood
from gm_discrete.objective import conditioning_of, scored_positions, unwrapped
from gm_discrete.paths.base import uniform
from gm_discrete.paths.mixture import MaskedPath
from gm_discrete.process import Process, check_call

MAX_SCORED = 16
"""2¹⁶ network rows for a sequence; each further token doubles them."""


@torch.no_grad()
def any_order_likelihood(
    model: Process,
    z: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scored: Tensor | None = None,
    class_labels: Tensor | None = None,
    batch_size: int = 256,
    max_scored: int = MAX_SCORED,
) -> Likelihood:
    """−log p(z_S | z_C), exactly, by recursion over the sets R ⊆ S that can have been revealed:

        F(∅) = 1,   F(R) = (1/|R|) Σ_{i∈R} F(R∖i) π(z_i | z_{R∖i}, z_C),   p(z_S | z_C) = F(S).

    The network is evaluated on every set but S itself: 2ⁿ − 1 rows for n scored positions.

    >>> from gm_discrete import GMConfig, GMModel, MaskedPath
    >>> model = GMModel(GMConfig(path=MaskedPath(9), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> found = any_order_likelihood(model, torch.tensor([[0, 5, 2, 7]]))
    >>> round(found.nats.item(), 3)  # an untrained network is uniform over 8 symbols: 4 log 8
    8.318

    Args:
        model: a network or any other `Process` with a `MaskedPath`, without time conditioning.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded; different positive numbers are of different documents.
        scored: bool [B, L], the positions S; by default all that are not padded.
        class_labels: long [B], for a model with classes.
        batch_size: sequences in one call of the network.
        max_scored: the most scored positions that are accepted.

    Returns:
        `.nats` [B], exact up to rounding; `.kind` is `"any_order"`.

    Raises:
        TypeError: the path is not a `MaskedPath`.
        ValueError: the network has time conditioning; a sequence has more scored positions than `max_scored`.
    """
    whole("max_scored", max_scored, least=1)
    posterior = _MaskedPosterior(model, z, attention_mask, scored, class_labels, batch_size)
    with evaluation_mode(posterior.model):
        if posterior.depends_on_time():
            raise ValueError(
                "the network has time conditioning, so that its likelihood is also a mean over the jump times and no finite "
                "sum; use any_order_bound or likelihood_bound"
            )
        lengths: list[int] = posterior.scored.sum(1).tolist()
        if max(lengths) > max_scored:
            raise ValueError(
                f"{max(lengths)} scored positions need 2^{max(lengths)} network rows, and max_scored={max_scored}; score "
                "fewer, raise max_scored, or use any_order_bound or likelihood_bound"
            )
        tables = _log_probs_of_sets(posterior, lengths)
    nats = torch.stack([-_over_sets(table[:, :n]) for n, table in zip(lengths, tables, strict=True)])
    return Likelihood(nats.to(z.device), posterior.scored.sum(1), "any_order")


def _log_probs_of_sets(posterior: _MaskedPosterior, lengths: list[int]) -> tuple[Tensor, ...]:
    """For each sequence log π(z_i | z_R) of every set R but S as bits, [2ⁿ − 1, n or more]."""
    scored, device = posterior.scored, posterior.scored.device
    counts = torch.tensor([2**n - 1 for n in lengths], device=device)
    sequence = torch.arange(len(scored), device=device).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[sequence]
    revealed = torch.arange(len(sequence), device=device) - first  # the set R as bits
    rank, most = scored.cumsum(1) - 1, max(lengths, default=0)
    position = (~scored).long().argsort(dim=1, stable=True)[:, :most]  # the position of each bit
    rows = []
    size = posterior.batch_size
    for some, sets in zip(sequence.split(size), revealed.split(size), strict=True):
        masked = scored[some] & ((sets[:, None] >> rank[some].clamp(min=0)) & 1 == 0)
        rows.append(posterior.log_probs(some, masked).gather(1, position[some]).cpu())
    return torch.cat(rows).split(counts.tolist())


def _over_sets(log_pi: Tensor) -> Tensor:
    """log F(S) of the recursion above, from log π(z_i | z_R) of sets R as bits [2ⁿ − 1, n]."""
    n = log_pi.shape[1]
    bits = torch.arange(n)
    members = (torch.arange(2**n)[:, None] >> bits) & 1 == 1
    total = torch.zeros(2**n, dtype=torch.float64)
    size = members.sum(1)
    for k in range(1, n + 1):
        sets = (size == k).nonzero().squeeze(1)
        before = sets[:, None] ^ (1 << bits)
        before = torch.where(members[sets], before, 0)  # a valid index where bit i is no member; its term is −∞ below
        terms = torch.where(members[sets], total[before] + log_pi[before, bits], -torch.inf)
        total[sets] = terms.logsumexp(1) - math.log(k)
    return total[-1]


@torch.no_grad()
def any_order_bound(
    model: Process,
    z: Tensor,
    attention_mask: Tensor | None = None,
    num_orders: int = 16,
    num_samples: int = 1,
    rng: torch.Generator | None = None,
    *,
    scored: Tensor | None = None,
    class_labels: Tensor | None = None,
    paired: bool = False,
    batch_size: int = 256,
) -> Likelihood:
    """−log p(z_S | z_C) ≤ E[−log (1/M) Σ_m Π_i π(z_σm(i) | z_σm(<i), z_C)] for M = `num_orders` uniform orders σ_m of S.

    For M = 1 its mean is that of `likelihood_bound`; it falls with every further order, to the exact value (Burda et al.
    2016, arXiv 1509.00519, theorem 1), and is estimated without bias. An order needs n network rows for n scored positions;
    orders that have revealed the same positions share one. Use it for short continuations, where `likelihood_bound` stays
    loose however many draws it takes (measured in benchmarks/README.md).

    The order is that of κ_i ~ U(0, 1), the times at which the path reveals the positions. A network with time conditioning
    is evaluated at these times, and this bounds −log p of its process, too.

    Args:
        model: a network or any other `Process` with a `MaskedPath`.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded; different positive numbers are of different documents.
        num_orders: M.
        num_samples: independent repetitions, whose mean is taken.
        rng: source of the noise.
        scored: bool [B, L], the positions S; by default all that are not padded.
        class_labels: long [B], for a model with classes.
        paired: use the same noise for every row, and so the same orders for rows with the same scored positions.
        batch_size: sequences in one call of the network.

    Returns:
        `.nats` [B], and `.nats_stderr` from two samples on; `.kind` is `"masked"`.

    Raises:
        TypeError: the path is not a `MaskedPath`.
        ValueError: `num_orders`, `num_samples` or `batch_size` is below 1.
    """
    for name, value in (("num_orders", num_orders), ("num_samples", num_samples)):
        whole(name, value, least=1)
    posterior = _MaskedPosterior(model, z, attention_mask, scored, class_labels, batch_size)
    repeats = num_orders * num_samples
    sequence = torch.arange(len(z), device=z.device).repeat_interleave(repeats)
    kappa = uniform((1 if paired else len(z), repeats, z.shape[1]), rng, z.device)
    kappa = kappa.expand(len(z), -1, -1).flatten(0, 1).masked_fill(~posterior.scored[sequence], torch.inf)
    sorted_kappa, order = kappa.sort(1)
    rank, count = order.argsort(1), posterior.scored.sum(1)[sequence]
    total = torch.zeros(len(sequence), dtype=torch.float64, device=z.device)
    with evaluation_mode(posterior.model):
        timed = posterior.depends_on_time()
        for j in range(int(count.max())):
            going = (count > j).nonzero().squeeze(1)
            masked = posterior.scored[sequence[going]] & (rank[going] >= j)
            t = posterior.path.schedule.inverse(sorted_kappa[going, j]) if timed else None
            log_pi = posterior.log_probs_shared(sequence[going], masked, t)
            total[going] += log_pi.gather(1, order[going, j, None]).squeeze(1)
    draws = math.log(num_orders) - total.view(len(z), num_samples, num_orders).logsumexp(2)
    return Likelihood(draws.mean(1), posterior.scored.sum(1), "masked", draws)


class _MaskedPosterior:
    """log π(z_i | the tokens that are not masked) of a masked model, in batches."""

    def __init__(
        self,
        model: Process,
        z: Tensor,
        attention_mask: Tensor | None,
        scored: Tensor | None,
        class_labels: Tensor | None,
        batch_size: int,
    ) -> None:
        self.model = unwrapped(model)
        path = cast(MaskedPath, self.model.path)
        if not path.is_masked:
            raise TypeError(f"orders of revealing masks need a MaskedPath, not {path!r}; use likelihood_bound")
        whole("batch_size", batch_size, least=1)
        self.path, self.z, self.batch_size = path, z, batch_size
        self.scored: Tensor = scored_positions(path, z, attention_mask, scored)
        conditioning = {"attention_mask": attention_mask, "class_labels": class_labels}
        self.conditioning = conditioning_of(self.model, z, conditioning)
        check_call(self.model, z, "z", self.conditioning)

    def depends_on_time(self) -> bool:
        """A network's config says so; any other process is evaluated on the first sequences at two times."""
        conditioned: bool | None = getattr(getattr(self.model, "config", None), "time_conditioning", None)
        if conditioned is not None:
            return conditioned
        some = torch.arange(min(len(self.z), self.batch_size), device=self.z.device)
        one = torch.ones(len(some), dtype=torch.float64, device=self.z.device)
        early, late = (self.log_probs(some, self.scored[some], kappa * one) for kappa in (0.25, 0.75))
        return not torch.allclose(early, late, rtol=1e-5, atol=1e-6)  # what float32 may round differently

    def log_probs(self, sequence: Tensor, masked: Tensor, t: Tensor | None = None) -> Tensor:
        """log π(z_i | the rest) where `masked` [N, L], for the sequences [N]; −∞ elsewhere, float64 [N, L]."""
        z = self.z[sequence]
        x = torch.where(masked, self.path.mask_token_id, z)
        t = torch.full((len(x),), 0.5, dtype=torch.float64, device=x.device) if t is None else t
        inputs = {name: value[sequence] for name, value in self.conditioning.items()}
        generator = self.model.generator(x, t, **inputs)
        if not isinstance(generator, Jump):
            raise TypeError(f"the model's generator is a {type(generator).__name__}; a MaskedPath needs a Jump")
        where, belief = masked.flatten().nonzero().squeeze(1), generator.kernel.belief
        at_z, at_x = z.flatten()[where], x.flatten()[where]

        def log_landing(chunk: Tensor) -> Tensor:
            inside = torch.searchsorted(where, chunk)
            return belief.log_landing(at_z[inside], at_x[inside], chunk)[0]

        values = map_rows(log_landing, belief.prepare(where))
        found = torch.full((x.numel(),), -torch.inf, dtype=torch.float64, device=x.device)
        return found.index_put((where,), values).view_as(x)

    def log_probs_shared(self, sequence: Tensor, masked: Tensor, t: Tensor | None) -> Tensor:
        """`log_probs` in batches; without times the network is evaluated on each distinct state once."""
        if t is not None:
            parts = zip(*(value.split(self.batch_size) for value in (sequence, masked, t)), strict=True)
            return torch.cat([self.log_probs(*part) for part in parts])
        states, inverse = torch.cat([sequence[:, None], masked.long()], 1).unique(dim=0, return_inverse=True)
        parts = [self.log_probs(part[:, 0], part[:, 1:].bool()) for part in states.split(self.batch_size)]
        return torch.cat(parts)[inverse]
