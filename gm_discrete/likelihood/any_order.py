"""The likelihood of what a masked model reveals one by one, in any order: exact for few symbols, or a tighter bound.

Of a masked path with a network that does not see the time, the order σ in which symbols are revealed is uniform, and

    p_θ(z) = E_σ Π_i π(z_σ(i) | z_σ(<i)),

the law of what `first_hitting` samples, and other samplers in the limit of many steps. `likelihood_bound` moves the
logarithm inside the mean over orders; here it stays outside. Both functions take the scored positions S given the others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Jump
from gm_discrete.generators.kernels import map_rows
from gm_discrete.likelihood.bound import LikelihoodBound
from gm_discrete.objective import conditioning_of, scored_positions, unwrapped
from gm_discrete.paths.base import uniform
from gm_discrete.paths.mixture import MaskedPath

MAX_SCORED = 16
"""2¹⁶ network rows for a sequence; each symbol more doubles them."""


@torch.no_grad()
def any_order_likelihood(
    model: Any,
    z: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scored: Tensor | None = None,
    class_labels: Tensor | None = None,
    batch_size: int = 256,
    max_scored: int = MAX_SCORED,
) -> LikelihoodBound:
    """−log p(z_S | z_C), exactly, by recursion over the sets R ⊆ S that can have been revealed:

        F(∅) = 1,   F(R) = (1/|R|) Σ_{i∈R} F(R∖i) π(z_i | z_{R∖i}, z_C),   p(z_S | z_C) = F(S).

    The network reads every set but S itself: 2ⁿ − 1 rows for n scored positions.

    Args:
        model: anything with a `MaskedPath` as `.path` and `.generator(x, t)`, which does not see the time.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded.
        scored: bool [B, L], the positions S; all that are not padded by default.
        class_labels: long [B], of a model with classes.
        batch_size: sequences that the network reads at once.
        max_scored: the most scored positions that are accepted.

    Returns:
        `.nats` [B], exact up to rounding; `.kind` is `"any_order"`.

    Raises:
        TypeError: the path does not mask.
        ValueError: the network sees the time; a sequence has more scored positions than `max_scored`.
    """
    with _Reader(model, z, attention_mask, scored, class_labels, batch_size) as reader:
        if not reader.time_free:
            raise ValueError(
                "this network sees the time: its likelihood is a mean over the times of the jumps, too, and no finite sum; "
                "use any_order_bound or likelihood_bound"
            )
        lengths: list[int] = reader.scored.sum(1).tolist()
        if max(lengths) > max_scored:
            raise ValueError(
                f"{max(lengths)} scored positions need 2^{max(lengths)} network rows; max_scored={max_scored}: score "
                "fewer, raise max_scored, or use any_order_bound or likelihood_bound"
            )
        device = z.device
        counts = torch.tensor([2**n - 1 for n in lengths], device=device)
        sequence = torch.arange(len(z), device=device).repeat_interleave(counts)
        first = (counts.cumsum(0) - counts)[sequence]
        revealed = torch.arange(len(sequence), device=device) - first  # the set R as bits
        rank = reader.scored.cumsum(1) - 1
        bits = torch.arange(max(lengths, default=0), device=device)
        tables = []
        for some, sets in zip(sequence.split(batch_size), revealed.split(batch_size), strict=True):
            masked = reader.scored[some] & ((sets[:, None] >> rank[some].clamp(min=0)) & 1 == 0)
            log_pi = reader.read(some, masked)
            order = reader.order[some][:, : len(bits)]  # the position behind each bit
            tables.append(log_pi.gather(1, order).cpu())
        nats = [
            -_over_sets(table[:, :n])
            for n, table in zip(lengths, torch.cat(tables).split(counts.tolist()), strict=True)
        ]
    return LikelihoodBound(torch.stack(nats).to(device), reader.scored.sum(1), "any_order")


def _over_sets(log_pi: Tensor) -> Tensor:
    """log F(S) of the recursion above, from log π(z_i | z_R) of sets R as bits [2ⁿ − 1, n]."""
    n = log_pi.shape[1]
    bits = torch.arange(n)
    members = (torch.arange(2**n)[:, None] >> bits) & 1 == 1
    total = torch.zeros(2**n, dtype=torch.float64)
    size = members.sum(1)
    for k in range(1, n + 1):
        sets = (size == k).nonzero().squeeze(1)
        before = sets[:, None] ^ (1 << bits)  # of bits that are no members nothing is read
        before = torch.where(members[sets], before, 0)
        terms = torch.where(members[sets], total[before] + log_pi[before, bits], -torch.inf)
        total[sets] = terms.logsumexp(1) - math.log(k)
    return total[-1]


@torch.no_grad()
def any_order_bound(
    model: Any,
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
) -> LikelihoodBound:
    """−log p(z_S | z_C) ≤ E[−log (1/M) Σ_m Π_i π(z_σm(i) | z_σm(<i), z_C)] for M = `num_orders` uniform orders σ_m of S.

    For M = 1 its mean is that of `likelihood_bound`; it falls with every further order, to the exact value (Burda et al.
    2016, arXiv 1509.00519, theorem 1), and is estimated without bias. An order needs n network rows for n scored positions;
    orders that have revealed the same positions share one. It is the bound for short stretches, of which `likelihood_bound`
    says less however often it draws (measured in benchmarks/README.md).

    The order is that of κ_i ~ U(0, 1), the times at which the path reveals the positions, and a network that sees the time
    is told these: for it, too, this bounds −log p of the process.

    Args:
        model: anything with a `MaskedPath` as `.path` and `.generator(x, t)`.
        z: clean data, long [B, L].
        attention_mask: [B, L], 0 where padded.
        num_orders: M.
        num_samples: independent repetitions, whose mean is taken.
        rng: source of the noise.
        scored: bool [B, L], the positions S; all that are not padded by default.
        class_labels: long [B], of a model with classes.
        paired: the same noise for every row, and so the same orders for rows of equal scored positions.
        batch_size: sequences that the network reads at once.

    Returns:
        `.nats` [B], and `.nats_stderr` from two samples on; `.kind` is `"masked"`.

    Raises:
        TypeError: the path does not mask.
        ValueError: `num_orders`, `num_samples` or `batch_size` is below 1.
    """
    for name, value in (("num_orders", num_orders), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    with _Reader(model, z, attention_mask, scored, class_labels, batch_size) as reader:
        repeats = num_orders * num_samples
        sequence = torch.arange(len(z), device=z.device).repeat_interleave(repeats)
        kappa = uniform((1 if paired else len(z), repeats, z.shape[1]), rng, z.device)
        kappa = kappa.expand(len(z), -1, -1).flatten(0, 1).masked_fill(~reader.scored[sequence], torch.inf)
        sorted_kappa, order = kappa.sort(1)
        rank, count = order.argsort(1), reader.scored.sum(1)[sequence]
        total = torch.zeros(len(sequence), dtype=torch.float64, device=z.device)
        for j in range(int(count.max())):
            going = (count > j).nonzero().squeeze(1)
            masked = reader.scored[sequence[going]] & (rank[going] >= j)
            t = None if reader.time_free else reader.path.schedule.inverse(sorted_kappa[going, j])
            log_pi = reader.read_shared(sequence[going], masked, t)
            total[going] += log_pi.gather(1, order[going, j, None]).squeeze(1)
        draws = math.log(num_orders) - total.view(len(z), num_samples, num_orders).logsumexp(2)
    return LikelihoodBound(draws.mean(1), reader.scored.sum(1), "masked", draws)


class _Reader:
    """log π(z_i | what is not masked) of a masked model, in evaluation mode and in batches."""

    def __init__(
        self,
        model: Any,
        z: Tensor,
        attention_mask: Tensor | None,
        scored: Tensor | None,
        class_labels: Tensor | None,
        batch_size: int,
    ) -> None:
        self.model = unwrapped(model)
        self.path: Any = self.model.path
        if not isinstance(self.path, MaskedPath):
            raise TypeError(
                f"orders are those in which masks are revealed; {self.path!r} has none: use likelihood_bound"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.z, self.batch_size = z, batch_size
        self.scored: Tensor = scored_positions(self.path, z, attention_mask, scored)
        self.order = (~self.scored).long().argsort(dim=1, stable=True)  # scored positions first
        given = {"attention_mask": attention_mask, "class_labels": class_labels}
        self.given = conditioning_of(self.model, z, given)
        self.training = bool(getattr(self.model, "training", False))
        self.rows = 0

    def __enter__(self) -> _Reader:
        if self.training:
            self.model.eval()
        self.time_free = self._time_free()
        return self

    def __exit__(self, *_: object) -> None:
        if self.training:
            self.model.train()

    def _time_free(self) -> bool:
        """A network says so in its config; of any other object the first sequences are read at two times."""
        sees: bool | None = getattr(getattr(self.model, "config", None), "time_conditioning", None)
        if sees is not None:
            return not sees
        some = torch.arange(min(len(self.z), self.batch_size), device=self.z.device)
        one = torch.ones(len(some), dtype=torch.float64, device=self.z.device)
        early, late = (self.read(some, self.scored[some], kappa * one) for kappa in (0.25, 0.75))
        return torch.allclose(early, late, rtol=1e-5, atol=1e-6)  # what float32 may round differently

    def read(self, sequence: Tensor, masked: Tensor, t: Tensor | None = None) -> Tensor:
        """log π(z_i | the rest) where `masked` [N, L], for the sequences [N]; −∞ elsewhere, float64 [N, L]."""
        z = self.z[sequence]
        x = torch.where(masked, self.path.mask_token_id, z)
        t = torch.full((len(x),), 0.5, dtype=torch.float64, device=x.device) if t is None else t
        generator = self.model.generator(x, t, **{name: value[sequence] for name, value in self.given.items()})
        if not isinstance(generator, Jump):
            raise TypeError(f"the model's generator is a {type(generator).__name__}, and not a Jump between symbols")
        where, belief = masked.flatten().nonzero().squeeze(1), generator.kernel.belief
        at_z, at_x = z.flatten()[where], x.flatten()[where]
        self.rows += len(x)

        def log_landing(chunk: Tensor) -> Tensor:
            inside = torch.searchsorted(where, chunk)
            return belief.log_landing(at_z[inside], at_x[inside], chunk)[0]

        values = map_rows(log_landing, belief.prepare(where))
        found = torch.full((x.numel(),), -torch.inf, dtype=torch.float64, device=x.device)
        return found.index_put((where,), values).view_as(x)

    def read_shared(self, sequence: Tensor, masked: Tensor, t: Tensor | None) -> Tensor:
        """`read` in batches, and each state only once where the network does not see the time."""
        if t is not None:
            parts = zip(*(value.split(self.batch_size) for value in (sequence, masked, t)), strict=True)
            return torch.cat([self.read(*part) for part in parts])
        states, inverse = torch.cat([sequence[:, None], masked.long()], 1).unique(dim=0, return_inverse=True)
        parts = [self.read(part[:, 0], part[:, 1:].bool()) for part in states.split(self.batch_size)]
        return torch.cat(parts)[inverse]
