"""Exact posteriors in place of a network, for edit processes with few and short strings.

A *configuration* is a data string z, a source x_0, one of their alignments, and a set of those of its d columns with
x_0 ≠ z that show z at time t. With s of them shown, it has the probability

    P(z) P(x_0) P(alignment | x_0, z) κ^s (1 − κ)^(d − s),

and it determines the string x_t and the edits that remain. The sums over all configurations of a string x are polynomials

    p_t(x) = Σ_k c_k κ^k (1 − κ)^(R − k),    R the greatest d,    c ≥ 0, so that nothing cancels,

and so is Σ A(e) of the number A(e) of columns whose remaining edit is e, which divided by p_t(x) is n(e|x). The marginal
generator, whose rates are h n(e|x), solves the Kolmogorov equation of p_t.

**How far the likelihood bound is from the entropy.** Let Q be the distribution of the path of edits (which edit of which
string, and when) of a random (z, x_0, alignment), and P that of the process with the marginal generator. In both the path
begins with x_0 from the prior. With Ā = E[A | z, x_0, alignment, edits so far], the chain rule of relative entropy reads

    E[bound] − H(Z) = ∫ h Σ_e E[A log A − Ā log Ā] dt + I(path; alignment | z, x_0) + KL(Q ‖ P).

All terms are ≥ 0. The first is paid for comparing rates column by column, where several columns lead to one edit; the second
vanishes where the alignment is a function of x_0 and z; the third is what the history of the edits says about z beyond x_t.
From the empty prior only the first one is left: every embedding of x_t into z comes from exactly one order of the edits so
far, and all orders are equally likely. So given z the embedding is uniform whatever the history, Ā is the mean over the
embeddings of x_t into z, the posterior of z depends on x_t alone, and Q = P. For the uniform prior only the sum is computed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.generators import Jump
from gm_discrete.generators.strings import Strings
from gm_discrete.paths import alignments
from gm_discrete.paths.base import check_times
from gm_discrete.paths.edits import EditPath

MOST = 2**20
"""Configurations; with more of them enumeration takes gigabytes."""
LARGEST = 2**26
"""Coefficients of all polynomials, 512 MiB."""


class ExactEditModel:
    """An edit process with the exact posterior in place of a network, by enumeration of all configurations.

    Use it in `simulate`, `conditional_loss` and `likelihood_bound`, to compare their results with the truth.

    Args:
        path: an `EditPath`.
        data: strings z, long [Z, L], with blanks where they are shorter.
        weights: their probabilities [Z], or numbers proportional to them; equal by default.

    Raises:
        TypeError: the path is no `EditPath`, or the data no tensor.
        ValueError: there are no data, the weights are none, or there are too many configurations.

    >>> model = ExactEditModel(EditPath(3), data=torch.tensor([[0, 0], [1, 2]]))  # "00" and "1"; 2 is the blank
    >>> model.states()
    tensor([[0, 0],
            [0, 2],
            [1, 2],
            [2, 2]])
    >>> model.marginal(0.5)
    tensor([0.1250, 0.2500, 0.2500, 0.3750], dtype=torch.float64)
    >>> model.expected_edits(torch.tensor([[2]]), torch.tensor([0.5]))[0, 1]  # into the gap at the start, of symbols 0, 1, 2
    tensor([0.6667, 0.6667, 0.0000], dtype=torch.float64)
    """

    def __init__(self, path: EditPath, data: Tensor, weights: Tensor | None = None) -> None:
        if not isinstance(path, EditPath) or not isinstance(data, Tensor):
            raise TypeError(f"path={path!r} must be an EditPath, and data a tensor [Z, L] of strings")
        if data.dim() != 2 or not len(data):
            raise ValueError(f"data has shape {tuple(data.shape)}; it must be strings [Z, L], one at least")
        path.check(data, torch.zeros(len(data), device=data.device), "data")
        weights = torch.ones(len(data), dtype=torch.float64) if weights is None else weights.double()
        if weights.shape != (len(data),) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
            raise ValueError(f"weights={weights.tolist()} must hold a probability for each of the {len(data)} strings")
        self.path, self._strings = path, path.strings
        packed = self._strings.trimmed(self._strings.packed(data[weights.to(data.device) > 0].cpu()))
        self.data, same = packed.unique(dim=0, return_inverse=True)
        self.weights = torch.zeros(len(self.data), dtype=torch.float64)
        self.weights = self.weights.index_add(0, same, weights[weights > 0].cpu()) / weights.sum().cpu()
        self._every = _configurations(_aligned_pairs(path, self.data, self.weights), self._strings)
        self._states, self._state = self._every.x.unique(dim=0, return_inverse=True)
        self._prepare_index()
        self._prepare_coefficients()

    def _prepare_index(self) -> None:
        symbols = torch.cat([self._states.flatten(), torch.tensor([self._strings.blank])]).unique()
        symbols = symbols[symbols != self._strings.blank]
        self._rank = torch.full((self.path.vocab_size,), -1)  # of symbols that no state has
        self._rank[symbols] = torch.arange(1, len(symbols) + 1)
        self._rank[self._strings.blank] = 0
        if (len(symbols) + 1) ** self._states.shape[1] >= 2**63:
            raise ValueError(
                f"data with {len(symbols)} symbols in strings of {self._states.shape[1]} have too many states: give fewer"
            )
        self._codes, self._order = self._code(self._states).sort()

    def _prepare_coefficients(self) -> None:
        every, count = self._every, len(self._states)
        self._degree = degree = int((every.shown + every.remaining).max())
        raising = torch.zeros(degree + 1, degree + 1, degree + 1, dtype=torch.float64)  # κ^s (1 − κ)^r to the degree R
        for s, r in itertools.product(range(degree + 1), repeat=2):
            for k in range(degree - s - r + 1):
                raising[s, r, s + k] = math.comb(degree - s - r, k)
        rows = every.weight[:, None] * raising[every.shown, every.remaining]
        self._probability = torch.zeros(count + 1, degree + 1, dtype=torch.float64).index_add(0, self._state, rows)
        self._entries, symbols = 2 * (self._states.shape[1] + 1), self.path.vocab_size
        if (size := (count + 1) * self._entries * symbols * (degree + 1)) > LARGEST:
            raise ValueError(
                f"data with {count} states of {self._entries} entries and {symbols} symbols need {size} coefficients, more "
                f"than {LARGEST}: give fewer or shorter strings"
            )
        row, entry, symbol = every.edits
        where = (self._state[row] * self._entries + entry) * symbols + symbol
        edits = torch.zeros((count + 1) * self._entries * symbols, degree + 1, dtype=torch.float64)
        self._edits = edits.index_add(0, where, rows[row]).view(count + 1, self._entries * symbols, degree + 1)

    # States

    def states(self) -> Tensor:
        """Every string that the process may be at, packed, [S, W]."""
        return self._states

    def index(self, x: Tensor) -> Tensor:
        """Index [B] in `states()` of strings x [B, L]; S, one beyond the last, for those that are never reached."""
        x = self._strings.packed(x.cpu())
        width = self._states.shape[1]
        code = self._code(F.pad(x, (0, max(0, width - x.shape[1])), value=self._strings.blank)[:, :width])
        place = torch.searchsorted(self._codes, code).clamp(max=len(self._codes) - 1)
        known = (self._codes[place] == code) & (self._strings.lengths(x) <= width) & (self._rank[x] >= 0).all(1)
        return torch.where(known, self._order[place], len(self._states))

    def _code(self, x: Tensor) -> Tensor:
        base = int(self._rank.max()) + 1
        return (self._rank[x] * base ** torch.arange(x.shape[1])).sum(1)

    # The process

    def marginal(self, t: float) -> Tensor:
        """p_t over `states()`, float64 [S]; at t = 1 the distribution of the data."""
        return self._probability[:-1] @ self._powers(torch.tensor([t], dtype=torch.float64))[0]

    def expected_edits(self, x: Tensor, t: Tensor) -> Tensor:
        """n(e|x), the expected number of columns whose remaining edit is e, given X_t = x, at times t [B].

        Args:
            x: strings [B, L]; those that are never reached have no edits.

        Returns:
            Float64 [B, E, K], E = 2 (L + 1): by entry (see `generators.strings`) and the symbol that the edit writes; the
            blank deletes.
        """
        where, powers = self.index(x), self._powers(t.cpu().double())
        if len(t) and bool((t == t[0]).all()):  # one table for all rows
            found = _ratio(self._edits @ powers[0], self._probability @ powers[0])[where]
        else:
            at_once = max(1, LARGEST // (8 * self._edits[0].numel()))
            parts = [
                _ratio(torch.einsum("bek,bk->be", self._edits[rows], power), (self._probability[rows] * power).sum(1))
                for rows, power in zip(where.split(at_once), powers.split(at_once), strict=True)
            ]
            found = torch.cat(parts)
        found = found.unflatten(1, (self._entries, -1))
        return F.pad(found, (0, 0, 0, 2 * (x.shape[1] + 1) - self._entries)).to(x.device)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        """The marginal generator at strings x [B, L] and times t [B]: every edit has the rate h n(e|x)."""
        self.path.check(x, t, "x")
        check_times(t, x, t_next)
        x = self.path.packed(x)
        return self.path.marginal(self.expected_edits(x, t), x, t, t_next)

    def _powers(self, t: Tensor) -> Tensor:
        """κ^k (1 − κ)^(R − k), [B, R + 1]."""
        return self._monomials(self.path.schedule.kappa(t), self.path.schedule.complement(t))

    def _monomials(self, kappa: Tensor, complement: Tensor) -> Tensor:
        k = torch.arange(self._degree + 1)
        return kappa[:, None] ** k * complement[:, None] ** (self._degree - k)

    # The bound

    def entropy(self) -> float:
        """H(Z) of the data, in nats."""
        return float(torch.special.entr(self.weights).sum())

    def expected_bound(self) -> float:
        """E[bound] = ∫ h Σ_e (E[A log A] − E[n log n]) dt of the likelihood bound with this generator, in nats.

        The first part is a sum of Beta functions, the second is integrated over κ by the tanh-sinh rule.
        """
        count, rows = self._every.count_edits(self._keys())
        first = float((self._every.mass()[rows // self._stride] * torch.xlogy(count, count)).sum())
        step = 1 / 32
        u = torch.arange(-3.4, 3.4, step, dtype=torch.float64)
        steep = torch.pi * u.sinh()
        kappa, second = steep.sigmoid(), 0.0
        for power, weight in zip(
            self._monomials(kappa, (-steep).sigmoid()), step * torch.pi * u.cosh() * kappa, strict=True
        ):
            number, p = self._edits @ power, self._probability @ power
            second += float(weight * torch.xlogy(number, _ratio(number, p)).sum())
        return first - second

    def bound_gap(self) -> float:
        """E[bound] − H(Z) ≥ 0 of the likelihood bound with this generator, in nats.

        From the empty prior it is ∫ h Σ_e E[A log A − Ā log Ā] dt in closed form, where Ā is the mean of A over the
        embeddings of x_t into z. From the uniform prior it is the difference of `expected_bound()` and `entropy()`.
        """
        if not self.path.inserts_only:
            return self.expected_bound() - self.entropy()
        every, stride = self._every, self._stride
        pair, group = (every.which * len(self._states) + self._state).unique(return_inverse=True)
        size = torch.zeros(len(pair), dtype=torch.float64).index_add(0, group, torch.ones(len(group)).double())
        mass = torch.zeros(len(pair), dtype=torch.float64).index_add(0, group, every.mass())
        count, rows = every.count_edits(self._keys())
        total, keys = every.count_edits(self._keys(group))
        mean = total / size[keys // stride]
        first = (every.mass()[rows // stride] * torch.xlogy(count, count)).sum()
        return float(first - (mass[keys // stride] * torch.xlogy(mean, mean)).sum())

    @property
    def _stride(self) -> int:
        return self._entries * self.path.vocab_size

    def _keys(self, group: Tensor | None = None) -> Tensor:
        """For every remaining edit a key of its configuration, or of the group of that, its entry and its symbol."""
        row, entry, symbol = self._every.edits
        row = row if group is None else group[row]
        return row * self._stride + entry * self.path.vocab_size + symbol


@dataclass(frozen=True)
class _Configurations:
    """All configurations: the index `which` [N] of z, the string x [N, C], the factor `weight` [N] of κ^s (1 − κ)^r, the
    numbers s `shown` and r `remaining` [N] of columns, and (configuration, entry, symbol) of all remaining `edits`."""

    which: Tensor
    x: Tensor
    weight: Tensor
    shown: Tensor
    remaining: Tensor
    edits: tuple[Tensor, Tensor, Tensor]

    def mass(self) -> Tensor:
        """∫ weight κ^s (1 − κ)^(r − 1) dκ = weight B(s + 1, r), for r ≥ 1; else 0."""
        s, r = self.shown.double() + 1, self.remaining.double().clamp(min=1)
        beta = (torch.lgamma(s) + torch.lgamma(r) - torch.lgamma(s + r)).exp()
        return torch.where(self.remaining > 0, self.weight * beta, 0.0)

    @staticmethod
    def count_edits(keys: Tensor) -> tuple[Tensor, Tensor]:
        """How often each key occurs, and the keys."""
        found, count = keys.unique(return_counts=True)
        return count.double(), found


def _configurations(pairs: tuple[Tensor, Tensor, Tensor, Tensor], strings: Strings) -> _Configurations:
    x_0, z, weight, which = pairs
    patterns = 2 ** (x_0 != z).sum(1)
    if (number := int(patterns.sum())) > MOST:
        raise ValueError(
            f"data and prior have {number} configurations, more than {MOST}: give fewer or shorter strings"
        )
    row = torch.arange(len(z)).repeat_interleave(patterns)
    pattern = torch.arange(len(row)) - (patterns.cumsum(0) - patterns)[row]
    x_0, z = x_0[row], z[row]
    differs = x_0 != z
    shows = differs & ((pattern[:, None] >> (differs.cumsum(1) - 1).clamp(min=0)) & 1 == 1)
    remains, x = differs & ~shows, torch.where(shows, z, x_0)
    entry = strings.entries_of(x)
    configuration, column = remains.nonzero().unbind(1)
    return _Configurations(
        which[row],
        strings.trimmed(strings.packed(x)),
        weight[row],
        shows.sum(1),
        remains.sum(1),
        (configuration, entry[configuration, column], z[configuration, column]),
    )


def _aligned_pairs(path: EditPath, data: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_0, z, probability, index of z) of every aligned pair, [P, C] and [P]."""
    sources, chances = _sources(path, len(data))
    which = torch.arange(len(data)).repeat_interleave(len(sources))
    source, z = sources.repeat(len(data), 1), data[which]
    weight = weights[which] * chances.repeat(len(data))
    if path.alignment != "random":
        align = alignments.left if path.alignment == "left" else alignments.optimal
        return *align(source, z, path.blank_token_id), weight, which
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    lengths, columns = (path.strings.lengths(source), path.strings.lengths(z)), max(source.shape[1], z.shape[1])
    ways = {(m, n): math.comb(max(m, n), min(m, n)) for m, n in torch.stack(lengths, 1).unique(dim=0).tolist()}
    counts = {pair: int(((lengths[0] == pair[0]) & (lengths[1] == pair[1])).sum()) for pair in ways}
    _refuse(sum(ways[pair] * counts[pair] for pair in ways), "aligned pairs")
    for m, n in ways:
        rows = ((lengths[0] == m) & (lengths[1] == n)).nonzero().squeeze(1)
        placements = torch.zeros(ways[m, n], columns, dtype=torch.bool)
        for i, chosen in enumerate(itertools.combinations(range(max(m, n)), min(m, n))):
            placements[i, list(chosen)] = True
        drawn, rows = placements.repeat(len(rows), 1), rows.repeat_interleave(len(placements))
        all_of_them = (torch.arange(columns) < max(m, n)).expand_as(drawn)
        where = (drawn, all_of_them) if m < n else (all_of_them, drawn)
        x_0, data_row = (
            alignments.spread(part[rows], place, path.blank_token_id)
            for part, place in zip((source, z), where, strict=True)
        )
        found.append((x_0, data_row, weight[rows] / len(placements), which[rows]))
    x_0, z, weight, which = (torch.cat(parts) for parts in zip(*found, strict=True))
    return x_0, z, weight, which


def _sources(path: EditPath, number: int) -> tuple[Tensor, Tensor]:
    """Every string of the prior [X, M], and its probability; they are combined with `number` strings of data."""
    if path.lengths is None:
        return torch.full((1, 0), path.blank_token_id), torch.ones(1, dtype=torch.float64)
    symbols = path.prior_symbols
    allowed = {n: chance for n, chance in enumerate(path.lengths) if chance > 0}
    longest = max(allowed)
    _refuse(number * sum(len(symbols) ** n for n in allowed), "pairs of strings")
    rows = [string for n in allowed for string in itertools.product(symbols, repeat=n)]
    padded = [[*string, *[path.blank_token_id] * (longest - len(string))] for string in rows]
    chances = [allowed[len(string)] / len(symbols) ** len(string) for string in rows]
    return torch.tensor(padded, dtype=torch.long).view(len(rows), longest), torch.tensor(chances, dtype=torch.float64)


def _refuse(number: int, what: str) -> None:
    if number > MOST:
        raise ValueError(f"data and prior have {number} {what}, more than {MOST}: give fewer or shorter strings")


def _ratio(edits: Tensor, probability: Tensor) -> Tensor:
    """Σ A / p, [B, E·K], 0 where p is."""
    p = probability[:, None]
    return torch.where(p > 0, edits / torch.where(p > 0, p, 1.0), 0.0)
