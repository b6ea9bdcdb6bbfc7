"""Edit processes: strings that grow, shrink and change by insertions, deletions and substitutions of one symbol.

An edit path is a mixture path in aligned columns (Edit Flows, Havasi et al. 2025, arXiv 2506.09018). A source string x_0 and
a data string z are written under each other, with blanks ε where one of them has no symbol:

    x_0   ε  k  i  t  t  e  n  ε                 each column shows z with probability κ(t), else x_0;
    z     a  s  i  ε  t  e  n  s                 the state x_t is what remains when the blanks are removed

A column that shows x_0 and differs from z is an edit that remains: ε → a inserts, k → s substitutes, t → ε deletes. The
columns follow a coupled mixture path, in which every remaining edit has the rate h = κ'/(1 − κ). The network reads the
string alone. The marginal generator is the mean over all columns that have this string: an edit e of x has the rate

    R(e|x) = h · n(e|x),    n(e|x) = E[number of columns whose remaining edit is e | X_t = x].

It solves the Kolmogorov equation of the strings, as for every function f of a string E[L_t f(X_t)] is the same with the
rates of the columns and with their mean. Several columns may hold one edit, as where two equal symbols are missing in a
gap; their rates add up. So the loss compares, for every edit of the string,

    D = Σ_e [ a(e) log(a(e)/R(e)) − a(e) + R(e) ],    a(e) = h · number of columns whose remaining edit is e.

Its minimiser is the mean R(e|x), and its time integral bounds −log p(z) from above (see `likelihood_bound`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_discrete.arguments import choice, listed, numbers, readable, whole
from gm_discrete.generators import Jump
from gm_discrete.generators.edit_kernels import EditKernel, KnownEdits
from gm_discrete.generators.kernels import Categorical, Kernel, Readout, TensorReadout
from gm_discrete.generators.rows import categorical_from_prior
from gm_discrete.generators.strings import Strings
from gm_discrete.paths import alignments
from gm_discrete.paths.base import check_times, uniform
from gm_discrete.paths.discrete import DiscretePath
from gm_discrete.paths.schedules import At, Schedule, ScheduleAt, TimeLike

LENGTH = 32
"""Symbols of a typical string, for the unit of the network's output alone: which number it is hardly matters."""


class EditPath(DiscretePath):
    """Path on strings of any length, whose generator inserts, deletes and substitutes symbols.

    States are strings in tensors [B, L], followed by blanks (see `generators.strings`). How many blanks there are never
    matters.

    Args:
        vocab_size: K, the blank included.
        prior: `"empty"`, where all strings start without a symbol, and edits only insert; or `"uniform"`: symbols are
            uniform over all but the blank.
        lengths: for the uniform prior: the probabilities of the lengths 0, 1, …, or numbers proportional to them.
        alignment: how source and data are aligned: `"optimal"` with the fewest edits, `"left"` symbol by symbol from the
            start, `"random"` with the symbols of the shorter string in random columns of the longer one. With the empty
            prior all are the same.
        schedule: κ.
        special_token_ids: symbols (masks, markers) that the uniform prior never draws; they may occur in data.
        blank_token_id: the id of the blank, which is never inserted; the last one by default. The id with which a tokenizer
            pads serves well.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.

    >>> path = EditPath(vocab_size=10)  # digits 0 to 8; the blank is 9
    >>> z, t = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([0.5])
    >>> x = path.sample(z, t, torch.Generator().manual_seed(51))
    >>> x, path.strings.packed(x)
    (tensor([[9, 9, 4, 9, 5]]), tensor([[4, 5, 9, 9, 9]]))
    >>> path.conditional(z, x, t).intensity[0, :6]  # two symbols are missing at the start, and one between 4 and 5
    tensor([0., 4., 0., 2., 0., 0.], dtype=torch.float64)
    """

    type_name = "edits"
    known_rates = ("edits",)
    is_mixture = True
    default_divergence = "generalized_kl"
    spacing = "linear"

    def __init__(
        self,
        vocab_size: int,
        prior: str = "empty",
        lengths: Sequence[float] | Tensor | None = None,
        alignment: str = "optimal",
        schedule: Schedule | dict | None = None,
        blank_token_id: int | None = None,
        special_token_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(vocab_size, schedule, rates="edits")
        last = self.vocab_size - 1
        self.prior_name = choice("prior", prior, ("empty", "uniform"))
        self.alignment = choice("alignment", alignment, ("optimal", "random", "left"))
        self.blank_token_id = last if blank_token_id is None else whole("blank_token_id", blank_token_id, 0, last)
        if (lengths is None) == (self.prior_name == "uniform"):
            raise ValueError(
                f"lengths={lengths!r} and prior={prior!r}: the uniform prior needs the probabilities of the lengths 0, 1, "
                "…, and the empty one has no lengths"
            )
        tokens = listed("special_token_ids", special_token_ids)
        self.special_token_ids = tuple(whole("special_token_ids", token, 0, last) for token in tokens)
        if not self.prior_symbols:
            raise ValueError(f"special_token_ids={self.special_token_ids} leave none of {vocab_size} symbols")
        self.lengths = None
        if lengths is not None:
            found = numbers("lengths", lengths, least=0)
            total = math.fsum(found)
            if not 0 < total < math.inf:
                raise ValueError(f"lengths={list(found)} must have a positive, finite sum")
            self.lengths = tuple(number / total for number in found)

    def to_dict(self) -> dict:
        return {
            "type": self.own_type(),
            "vocab_size": self.vocab_size,
            "prior": self.prior_name,
            "lengths": None if self.lengths is None else list(self.lengths),
            "alignment": self.alignment,
            "schedule": self.schedule.to_dict(),
            "blank_token_id": self.blank_token_id,
            "special_token_ids": list(self.special_token_ids),
        }

    def __repr__(self) -> str:
        lengths = "" if self.lengths is None else f", lengths up to {len(self.lengths) - 1}"
        return (
            f"EditPath(vocab_size={self.vocab_size}, prior={self.prior_name!r}{lengths}, alignment={self.alignment!r}, "
            f"schedule={self.schedule!r}, blank_token_id={self.blank_token_id})"
        )

    @cached_property
    def strings(self) -> Strings:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Strings(self.blank_token_id)

    @cached_property
    def prior_symbols(self) -> list[int]:
        """The symbols that the uniform prior draws."""
        never = {self.blank_token_id, *self.special_token_ids}
        return [symbol for symbol in range(self.vocab_size) if symbol not in never]

    def packed(self, x: Tensor) -> Tensor:
        """Strings [B, W] without blanks between symbols, as the network reads them.

        With the empty prior W is that of x, which holds no more columns than data. Columns of an alignment may be many more:
        with other priors W is the length of the longest string, for which the host waits.
        """
        x = self.strings.packed(x)
        return x if self.inserts_only else self.strings.trimmed(x)

    @property
    def inserts_only(self) -> bool:
        """Whether no edit deletes or substitutes, as where all strings start empty."""
        return self.prior_name == "empty"

    @property
    def heads(self) -> dict[str, int]:
        return {"tokens": self.vocab_size, "edits": 1 if self.inserts_only else 3}

    def at(self, t: TimeLike, per_kappa: bool = False) -> ScheduleAt:
        return self.schedule.at(t, per_kappa)

    # Distributions

    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Strings x_0 in a tensor of the given shape [B, L]; of longer ones only the first L symbols."""
        noise = uniform((*shape[:1], shape[1] + 1), rng, device)
        blanks = torch.full(tuple(shape), self.blank_token_id, dtype=torch.long, device=noise.device)
        if self.lengths is None:
            return blanks
        chances = torch.tensor(self.lengths, dtype=torch.float64, device=noise.device)
        length = categorical_from_prior(chances, noise[:, 0])
        symbols = torch.tensor(self.prior_symbols, device=noise.device)
        symbol = symbols[(noise[:, 1:] * len(symbols)).long().clamp(max=len(symbols) - 1)]
        here = torch.arange(shape[1], device=noise.device) < length[:, None]
        return torch.where(here, symbol, blanks)

    def align(
        self,
        z: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Aligned pairs (x_0, z), each [B, C], of data strings z [B, L] and their sources.

        Args:
            x_0: sources [B, M]; by default draws from the prior.
            rank, world_size: noise is that of the global batch, of which this process has the rows of its rank.
        """
        if self.inserts_only and x_0 is None:
            return torch.full_like(z, self.blank_token_id), z
        if self.inserts_only and x_0 is not None and readable(x_0) and bool((x_0 != self.blank_token_id).any()):
            raise ValueError(
                "x_0 holds symbols, and with prior='empty' nothing is deleted or substituted: use prior='uniform'"
            )
        z, batch = self.strings.packed(z), z.shape[0]
        rows = slice(rank * batch, (rank + 1) * batch)
        if x_0 is None:
            assert self.lengths is not None
            x_0 = self.prior((batch * world_size, len(self.lengths) - 1), rng, z.device)[rows]
        x_0 = self.strings.packed(x_0)
        if self.alignment == "random":
            noise = uniform((batch * world_size, max(z.shape[1], x_0.shape[1])), rng, z.device)[rows]
            return alignments.random(x_0, z, self.blank_token_id, noise)
        align = alignments.left if self.alignment == "left" else alignments.optimal
        return align(x_0, z, self.blank_token_id)

    def aligned(
        self,
        z: Tensor,
        scored: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """An aligned pair of data and source, all of whose columns are scored.

        Raises:
            ValueError: symbols are not scored, and so must not change, where deletions and substitutions happen.
        """
        if self.inserts_only and x_0 is None:
            blank = z == self.blank_token_id
            nothing = ~scored.any(1, keepdim=True)  # is to be inserted, which has to be learnt, too
            return z, scored | (nothing & blank), None
        kept = ~scored & (z != self.blank_token_id)
        if readable(kept) and bool(kept.any()):
            raise ValueError(
                "scored leaves out symbols, which stay as they are; with prior='uniform' all symbols are noised: score "
                "whole strings, or use prior='empty'"
            )
        x_0, z = self.align(z, rng, x_0, rank, world_size)
        return z, torch.ones_like(z, dtype=torch.bool), x_0

    def sample(
        self,
        z: Tensor,
        t: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        *,
        check: bool = True,
    ) -> Tensor:
        """x_t ~ p_t(·|z), with blanks in the columns that show none of the symbols.

        Args:
            z: data strings [B, L]; with x_0, both are an aligned pair (see `align`), whose columns x_t has, too.
            x_0: by default a string of the prior. For the empty prior the columns are then those of z; for the uniform one
                they are gone, and x_t is a string followed by blanks: align first where they are needed, as `conditional`
                needs them.
        """
        if check:
            self.check(z, t, "z")
            self.check_source(x_0, z, t)
        if x_0 is None and not self.inserts_only:
            x_0, z = self.align(z, rng)
            return self.strings.packed(self.sample(z, t, rng, x_0, check=False))
        shown = uniform(z.shape, rng, z.device) < self.schedule.kappa(t)[:, None]
        return torch.where(shown, z, self.blank_token_id if x_0 is None else x_0)

    def check_source(self, x_0: Tensor | None, z: Tensor, t: Tensor) -> None:
        if x_0 is None:
            return
        if not isinstance(x_0, Tensor) or x_0.shape != z.shape:
            found = tuple(x_0.shape) if isinstance(x_0, Tensor) else repr(x_0)
            raise ValueError(f"x_0 must be aligned with z of shape {tuple(z.shape)}, got {found}: use path.align(z)")
        self.check(x_0, t, "x_0")

    def noise_probability(self, z: Tensor, t: Tensor, x_0: Tensor | None = None) -> Tensor:
        """P(x ≠ z) of every column of an aligned pair, float64 [B, C]."""
        differs = z != (self.blank_token_id if x_0 is None else x_0)
        return self.schedule.complement(t)[:, None] * differs

    def sample_noise(self, z: Tensor, t: Tensor, u: Tensor, x_0: Tensor | None = None) -> Tensor:
        """What columns [n] show that do not show z."""
        return torch.full_like(z, self.blank_token_id) if x_0 is None else x_0

    # Generators

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Jump:
        """The edits that remain, each of rate h: a jump of the entries of x's string (see `packed`).

        Args:
            z, x: data and state, column by column, [B, C] (see `align` and `sample`).
        """
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        entry = self.strings.entries_of(x)
        shape = torch.Size((x.shape[0], 2 * (self.packed(x).shape[1] + 1)))
        kernel, now = KnownEdits(entry, z, x != z, shape, self.vocab_size, self.blank_token_id), self.at(t)
        probability = None
        if t_next is not None:
            chance = self.schedule.jump_probability(now.t, self.schedule.at(t_next).t)[:, None]
            probability = 1 - (1 - chance) ** kernel.number
        open_ = kernel.number > 0
        intensity = torch.where(open_, now.hazard[:, None] * kernel.number, 0.0)
        return Jump(intensity, kernel, probability, strings=self.strings)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Jump:
        """The prediction, a jump of the entries [B, E] of x's string.

        With outputs o of the network, the expected number of insertions in a gap and the probabilities that a symbol is
        still to be deleted or substituted are

            n_ins = (1 − κ) e^{o_ins} m/(1 + κ m),   (P_del, P_sub) = (w_del, w_sub)/(1 + w_del + w_sub),  w = (1 − κ) e^o,

        and the rates h n_ins, h P_del, h P_sub. All numbers vanish like 1 − κ, as they must, so that rates stay finite as
        κ → 1. Of a string with m symbols κ m are shown, and in each of the gaps between them (1 − κ) m/(1 + κ m) are missing
        on average; so outputs are of order 1. m is a constant here, `LENGTH`.

        Args:
            readout: `readout("edits")` is [B, L + 1, 3], the outputs o_ins, o_del, o_sub of every network position, or
                [B, L + 1, 1] where nothing but insertions happens; `readout("tokens", where)` logits [n, K] of what an edit
                writes at the entries `where`, −∞ for the blank, and at a symbol for that symbol. Or a tensor [B, E, K]: the
                expected number n(e|x) of every edit itself, at gaps of insertions, at symbols of substitutions and, at the
                blank, deletions.
            x: strings [B, L].
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        x, now = self.packed(x), self.at(t)
        entries = self.strings.gapped(x)
        if isinstance(readout, Tensor):
            return self._from_expected(readout, entries, now, t_next)
        shape = entries.shape
        raw = readout("edits").double()
        left, kappa = now.complement[:, None], now.kappa[:, None]
        # Numbers of edits, divided by 1 − κ: they stay finite, and times κ' they are the rates.
        insert = raw[..., 0].exp() * (LENGTH / (1 + kappa * LENGTH))
        move, log_delete = torch.zeros_like(insert), torch.zeros_like(insert)
        log_write = torch.zeros_like(insert)
        if not self.inserts_only:
            odds = raw[..., 1:].exp().sum(-1)
            move = odds / (1 + left * odds)
            log_delete, log_write = F.logsigmoid(raw[..., 1] - raw[..., 2]), F.logsigmoid(raw[..., 2] - raw[..., 1])
        position = torch.arange(x.shape[1] + 1, device=x.device)
        here = position <= self.strings.lengths(x)[:, None]
        expected = torch.stack([torch.where(here & (position > 0), move, 0.0), torch.where(here, insert, 0.0)], 2)
        never = torch.full_like(log_delete, -torch.inf)
        log_delete = torch.stack([never if self.inserts_only else log_delete, never], 2).flatten(1)
        log_write = torch.stack([log_write, torch.zeros_like(log_write)], 2).flatten(1)
        symbols = Categorical(readout, shape, self.vocab_size, x.device, excluded=(self.blank_token_id,))
        kernel = EditKernel(symbols, log_delete, log_write, self.blank_token_id, entries)
        return EditPosterior(self, expected.flatten(1), kernel, now).jump(t_next)

    def _from_expected(self, expected: Tensor, entries: Tensor, now: ScheduleAt, t_next: TimeLike | None) -> Jump:
        """The generator of given numbers of edits n(e|x), [B, E, K]."""
        if expected.shape != (*entries.shape, self.vocab_size):
            wanted = [*entries.shape, self.vocab_size]
            raise ValueError(f"readout has shape {list(expected.shape)}; expected edits [B, E, K] are {wanted}")
        delete = expected[..., self.blank_token_id]
        write = expected.clone()
        write[..., self.blank_token_id] = 0
        written = write.sum(-1)
        total = written + delete
        symbols = Categorical(
            TensorReadout(torch.where(written[..., None] > 0, write, 1.0).log()), entries.shape, self.vocab_size,
            entries.device, excluded=(self.blank_token_id,),
        )  # fmt: skip
        none, some = torch.full_like(total, -torch.inf), torch.where(total > 0, total, 1.0).log()
        log_delete, log_write = (
            torch.where(part > 0, torch.where(part > 0, part, 1.0).log() - some, none) for part in (delete, written)
        )
        kernel = EditKernel(symbols, log_delete, log_write, self.blank_token_id, entries)
        left = torch.where(total > 0, now.complement[:, None], 1.0)  # at t = 1 no edits are left
        return EditPosterior(self, total / left, kernel, now).jump(t_next)

    # Losses

    def compared(self, x: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of the strings x [B, C], and which of them count if the columns `scored` do, bool [B, E].

        A gap counts if the symbol before it, the one after it or a column between them is scored.
        """
        count, width = F.pad(scored.long().cumsum(1), (1, 0)), x.shape[1]
        column = torch.arange(width, device=x.device).expand(x.shape)
        place = self.strings.places(x)
        symbol = F.pad(torch.full_like(x, width), (0, 1), value=width).scatter(1, place, column)
        symbol[:, width] = width  # where columns without a symbol went
        before, after = F.pad(symbol[:, :width], (1, 0)), symbol  # the start stands before the first column
        gap = count.gather(1, (after + 1).clamp(max=width)) > count.gather(1, before)
        own = F.pad(scored, (0, 1)).gather(1, F.pad(symbol[:, :width], (1, 0), value=width))
        x = self.packed(x)
        return self.strings.gapped(x), torch.stack([own, gap], 2)[:, : x.shape[1] + 1].flatten(1)

    def number(self, z: Tensor, scored: Tensor) -> Tensor:
        return (scored & (z != self.blank_token_id)).sum()


@dataclass(frozen=True)
class EditPosterior:
    """The expected number of remaining edits at (x, t), and the generators that the path makes of it.

    Attributes:
        expected: n/(1 − κ) at every entry, float64 [B, E].
        kernel: what they write.
    """

    path: EditPath
    expected: Tensor
    kernel: EditKernel
    t: ScheduleAt

    @property
    def belief(self) -> Kernel:
        """The distribution of what is written at each entry."""
        return self.kernel.belief

    @property
    def number(self) -> Tensor:
        """n, the expected number of edits that remain at each entry, float64 [B, E]."""
        return self.expected * self.t.complement[:, None]

    def over(self, t_next: Tensor, belief: Kernel | None = None) -> Jump:
        if belief is not None:
            raise ValueError("belief: rates of edits do not follow from a belief alone; leave it out")
        return self.jump(t_next)

    def jump(self, t_next: TimeLike | None = None) -> Jump:
        """The generator at t, or that of the step [t, t_next], in which an entry has one edit at most.

        Its probability is min(1, n (κ_s − κ_t)/(1 − κ_t)): exact for a symbol, and for a gap with at most one insertion.
        """
        probability = None
        if t_next is not None:
            end = t_next.t if isinstance(t_next, At) else t_next
            chance = self.path.schedule.jump_probability(self.t.t, end)[:, None]
            probability = (self.number * chance).clamp(max=1)
        intensity = self.expected * self.t.derivative[:, None]
        return Jump(intensity, self.kernel, probability, self, strings=self.path.strings)

    def corrector(self) -> Jump:
        raise ValueError(
            "a corrector is not defined for an EditPath: redraw strings by generate(start_from=Draft(x, t))"
        )
