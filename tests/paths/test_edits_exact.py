"""Strings over 2 symbols, all enumerated: the edits of an exact posterior carry the distribution of the strings.

Everything is held against an enumeration of its own: `enumerated` lists data × sources × alignments × shown columns in plain
Python, and `edited` applies an edit to a list.
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import CosineSchedule, EditPath, MaskedPath, bregman, likelihood_bound
from gm_discrete.generators import Jump
from gm_discrete.paths import alignments
from gm_discrete.paths.exact_edits import ExactEditModel
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square, kappa_nodes, rng

LENGTHS = [1.0, 1.0, 2.0, 2.0, 1.0]
CASES = [(prior, alignment) for prior in ("empty", "uniform") for alignment in ("left", "optimal", "random")]
every_case = pytest.mark.parametrize(("prior", "alignment"), CASES)
TIMES = [0.02, 0.3, 0.5, 0.85, 0.99]
ROUNDING = 1e-9
"""Sums of up to 10⁵ products in float64, of rates up to 400."""
QUADRATURE = 1e-10
"""Of 60 nodes in v, κ = sin²(πu/2), u = sin²(πv/2): the integrand has logarithms at both ends."""


def path_of(prior: str, alignment: str, longest: int = 4, blank: int = 2, **options: Any) -> EditPath:
    lengths = LENGTHS[: longest + 1] if prior == "uniform" else None
    return EditPath(3, prior, lengths, alignment, blank_token_id=blank, **options)


def strings_up_to(longest: int, blank: int) -> list[list[int]]:
    symbols = [symbol for symbol in range(3) if symbol != blank]
    return [list(string) for n in range(longest + 1) for string in itertools.product(symbols, repeat=n)]


def tensor(strings: list[list[int]], blank: int, width: int | None = None) -> Tensor:
    width = max(map(len, strings)) if width is None else width
    rows = [[*string, *[blank] * (width - len(string))] for string in strings]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), width)


def model_of(path: EditPath, longest: int = 4) -> ExactEditModel:
    """All strings up to a length, with random weights."""
    data = strings_up_to(longest, path.blank_token_id)
    weights = torch.rand(len(data), generator=rng(1), dtype=torch.float64) ** 2
    return ExactEditModel(path, tensor(data, path.blank_token_id), weights)


@pytest.mark.parametrize(
    ("prior", "alignment", "gap"),
    [("empty", "optimal", 1.14), ("uniform", "left", 1.52), ("uniform", "optimal", 1.37), ("uniform", "random", 2.08)],
)
def test_bound_gap__is_what_the_page_on_strings_says(prior: str, alignment: str, gap: float) -> None:
    model = model_of(path_of(prior, alignment))
    assert round(model.entropy(), 2) == 2.97
    assert round(model.bound_gap(), 2) == gap


def aligned_pairs(path: EditPath, source: list[int], z: list[int]) -> list[tuple[float, list[int], list[int]]]:
    """(probability, x_0, z) of every alignment."""
    blank, m, n = path.blank_token_id, len(source), len(z)
    if path.alignment == "left":
        columns = list(itertools.zip_longest(source, z, fillvalue=blank))
        return [(1.0, [a for a, _ in columns], [b for _, b in columns])]
    if path.alignment == "optimal":
        pair = alignments.optimal(tensor([source], blank), tensor([z], blank), blank)
        return [(1.0, pair[0][0].tolist(), pair[1][0].tolist())]
    found, longer, shorter = [], max(m, n), min(m, n)
    for chosen in itertools.combinations(range(longer), shorter):
        row = [blank] * longer
        for column, symbol in zip(chosen, source if m < n else z, strict=True):
            row[column] = symbol
        pair = (row, z) if m < n else (source, row)
        found.append((1 / math.comb(longer, shorter), *pair))
    return found


@dataclass
class Enumerated:
    """Every data string × source × alignment × set of shown columns; columns with x_0 = z count in both ways.

    Attributes:
        weight: [N], of κ^shown (1 − κ)^hidden.
        shown, hidden: numbers of columns, [N].
        x, z: column by column, [N, C].
    """

    weight: Tensor
    shown: Tensor
    hidden: Tensor
    x: Tensor
    z: Tensor

    def probability(self, kappa: float) -> Tensor:
        return self.weight * kappa**self.shown * (1 - kappa) ** self.hidden


def enumerated(model: ExactEditModel) -> Enumerated:
    path, blank = model.path, model.path.blank_token_id
    sources = [(1.0, list[int]())]
    if path.lengths is not None:
        longest = len(path.lengths) - 1
        sources = [(path.lengths[len(s)] / 2 ** len(s), s) for s in strings_up_to(longest, blank)]
    weights, counts, rows_x, rows_z = [], [], [], []
    for row, weight in zip(model.data.tolist(), model.weights.tolist(), strict=True):
        for chance, source in sources:
            for share, x_0, z in aligned_pairs(path, source, symbols_of(row, blank)):
                for shown in itertools.product((False, True), repeat=len(z)):
                    weights.append(weight * chance * share)
                    counts.append((sum(shown), len(z) - sum(shown)))
                    rows_x.append([b if show else a for a, b, show in zip(x_0, z, shown, strict=True)])
                    rows_z.append(z)
    shown, hidden = torch.tensor(counts, dtype=torch.float64).unbind(1)
    weight = torch.tensor(weights, dtype=torch.float64)
    return Enumerated(weight, shown, hidden, tensor(rows_x, blank), tensor(rows_z, blank))


def remaining_edits(x: list[int], z: list[int], blank: int) -> list[tuple[int, int]]:
    """(entry, symbol) of every column that still differs."""
    found, symbols = [], 0
    for a, b in zip(x, z, strict=True):
        symbols += a != blank
        if a != b:
            found.append((2 * symbols + (a == blank), b))
    return found


def edited(string: list[int], entry: int, symbol: int, blank: int) -> list[int]:
    """The string after one edit."""
    place, gap = divmod(entry, 2)
    if gap:
        return [*string[:place], symbol, *string[place:]]
    return [*string[: place - 1], *([] if symbol == blank else [symbol]), *string[place:]]


def symbols_of(row: list[int], blank: int) -> list[int]:
    return [symbol for symbol in row if symbol != blank]


def at(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float64)


# ---- The model is what it says


@every_case
@pytest.mark.parametrize("blank", [0, 2])
def test_exact_edit_model__is_bayes_rule_over_all_configurations(prior: str, alignment: str, blank: int) -> None:
    model = model_of(path_of(prior, alignment, 3, blank), 3)
    every = enumerated(model)
    for kappa in (0.2, 0.9):
        p, edits = defaultdict[tuple[int, ...], float](float), defaultdict[Any, float](float)
        rows = zip(every.probability(kappa).tolist(), every.x.tolist(), every.z.tolist(), strict=True)
        for weight, x, z in rows:
            string = tuple(symbols_of(x, blank))
            p[string] += weight
            for edit in remaining_edits(x, z, blank):
                edits[string, edit] += weight
        strings = list(p)
        states = tensor([list(string) for string in strings], blank)
        assert len(strings) == len(model.states())
        found = model.marginal(kappa)[model.index(states)]
        torch.testing.assert_close(found, torch.tensor(list(p.values()), dtype=torch.float64), rtol=ROUNDING, atol=0)
        expected = torch.zeros(len(states), 2 * (states.shape[1] + 1), 3, dtype=torch.float64)
        for (string, (entry, symbol)), value in edits.items():
            expected[strings.index(string), entry, symbol] = value / p[string]
        found = model.expected_edits(states, at(kappa, states))
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@every_case
def test_exact_edit_model__times_may_differ_between_rows(prior: str, alignment: str) -> None:
    model = model_of(path_of(prior, alignment, 3), 3)
    x = model.states()
    t = torch.linspace(0.01, 0.99, len(x), dtype=torch.float64)
    alone = [model.expected_edits(x[i : i + 1], t[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(model.expected_edits(x, t), torch.cat(alone), rtol=1e-12, atol=0)


@every_case
def test_edit_path__samples_have_the_distribution_of_all_configurations(prior: str, alignment: str) -> None:
    """A χ² test of x_t, which a correct library fails for one seed in 10⁴."""
    model = model_of(path_of(prior, alignment))
    drawn = torch.multinomial(model.weights, 40_000, replacement=True, generator=rng(6))
    for t in (0.0, 0.4):
        z = model.data[drawn]
        x = model.path.sample(z, at(t, z), rng(7))
        counts = torch.bincount(model.index(x), minlength=len(model.states()) + 1)
        assert chi_square(counts[:-1], model.marginal(t)) > LEAST_P
        assert int(counts[-1]) == 0


# ---- Kolmogorov's equation


def slope(model: ExactEditModel, t: float) -> Tensor:
    """dp/dt for κ = t: the five-point formula, which is exact for polynomials of degree 4."""
    h = 1e-3
    f = [model.marginal(t + i * h) for i in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)


@every_case
@pytest.mark.parametrize("t", TIMES)
def test_marginal_generator__carries_the_strings(prior: str, alignment: str, t: float) -> None:
    """dp/dt = Σ_y p(y) R(x|y) − p(x) Σ_e R(e|x), every edit applied to a list."""
    model = model_of(path_of(prior, alignment))
    x, blank = model.states(), model.path.blank_token_id
    p, flow = model.marginal(t), torch.zeros(len(x) + 1, dtype=torch.float64)
    rates = model.generator(x, at(t, x)).rates(x)
    moves = ((rates > 0) & (p > 0)[:, None, None]).nonzero().tolist()
    rows = x.tolist()
    landings = [edited(symbols_of(rows[i], blank), entry, symbol, blank) for i, entry, symbol in moves]
    where = model.index(tensor(landings, blank))
    for (i, entry, symbol), to in zip(moves, where.tolist(), strict=True):
        flow[to] += p[i] * rates[i, entry, symbol]
        flow[i] -= p[i] * rates[i, entry, symbol]
    assert float((flow[:-1] - slope(model, t)).abs().max()) <= ROUNDING
    assert float(flow[-1]) == 0  # nothing goes where no state is


@every_case
def test_marginal_generator__acts_on_functions_of_strings(prior: str, alignment: str) -> None:
    """d/dt E f(X_t) = E L f(X_t) through `Jump.action`, with another schedule: κ'(t) times the slope in κ."""
    schedule = CosineSchedule()
    model, linear = model_of(path_of(prior, alignment, schedule=schedule)), model_of(path_of(prior, alignment))
    values = torch.randn(len(model.states()), generator=rng(3), dtype=torch.float64)
    values = torch.cat([values, torch.tensor([torch.nan])])  # where no state is
    x = model.states()
    for t in (0.1, 0.6):
        jump = model.generator(x, at(t, x))
        found = model.marginal(t) @ jump.action(lambda y: torch.nan_to_num(values[model.index(y)], nan=1e6), x)
        change = slope(linear, float(schedule.kappa(t))) @ values[:-1]
        assert abs(float(found - change * schedule.derivative(t))) <= ROUNDING


@every_case
def test_marginal_generator__is_the_mean_of_the_conditional_ones(prior: str, alignment: str) -> None:
    """p(x) R(e|x) = E[rates of `path.conditional`; X_t = x], summed over all configurations."""
    model = model_of(path_of(prior, alignment, 3), 3)
    path, every, t = model.path, enumerated(model), 0.4
    rates = path.conditional(every.z, every.x, at(t, every.x)).rates(every.x)
    where = model.index(path.strings.packed(every.x))
    mean = torch.zeros(len(model.states()), *rates.shape[1:], dtype=torch.float64)
    mean = mean.index_add(0, where, every.probability(t)[:, None, None] * rates)
    wide = alignments.widened(model.states(), every.x.shape[1], path.blank_token_id)
    expected = model.marginal(t)[:, None, None] * model.generator(wide, at(t, wide)).rates(wide)
    assert float((mean - expected).abs().max()) <= ROUNDING


@every_case
def test_rates__do_not_depend_on_padding(prior: str, alignment: str) -> None:
    model = model_of(path_of(prior, alignment, 3), 3)
    path, blank, x = model.path, model.path.blank_token_id, model.states()
    width = x.shape[1]
    rates = model.generator(x, at(0.3, x)).rates(x)
    for more in (1, 5):
        wide = alignments.widened(x, width + more, blank)
        assert torch.equal(model.index(wide), torch.arange(len(x)))
        found = model.generator(wide, at(0.3, wide)).rates(wide)
        assert torch.equal(found[:, : 2 * (width + 1)], rates)
        assert not bool(found[:, 2 * (width + 1) :].any())
        spread = torch.stack([x, torch.full_like(x, blank)], 2).flatten(1)  # blanks between the symbols
        assert torch.equal(model.generator(spread, at(0.3, x)).rates(spread)[:, : rates.shape[1]], rates)
    short = x[(path.strings.lengths(x) <= 1)]
    narrow = short[:, :1]
    found = model.generator(narrow, at(0.3, narrow)).rates(narrow)
    assert torch.equal(found, model.generator(short, at(0.3, short)).rates(short)[:, :4])


# ---- Losses


def conditional_divergence(model: ExactEditModel, every: Enumerated, t: float, predicted: Jump) -> Tensor:
    """D(conditional, predicted) at every configuration, [N], by the library's divergence."""
    target = model.path.conditional(every.z, every.x, at(t, every.x))
    entries, scored = model.path.compared(every.x, torch.ones_like(every.x, dtype=torch.bool))
    return bregman.divergence(target, predicted, entries, scored).sum(1)


@dataclass
class Rows:
    """The outputs of a network with parameters for every state: raw [S, W + 1, n] and logits [S, E, K], at states [B]."""

    raw: Tensor
    logits: Tensor
    never: Tensor
    where: Tensor

    def __call__(self, head: str, where: Tensor | None = None) -> Tensor:
        if head == "edits":
            return self.raw[self.where]
        rows = self.logits.masked_fill(self.never, -torch.inf)[self.where].flatten(0, 1)
        return rows.clone() if where is None else rows[where]


@every_case
def test_losses__conditional_and_marginal_have_one_gradient(prior: str, alignment: str) -> None:
    """E D(conditional, R_θ) over all configurations, and E Σ_e [R_θ(e) − h n(e|x) log R_θ(e)] over all strings."""
    model = model_of(path_of(prior, alignment, 3), 3)
    path, every, t = model.path, enumerated(model), 0.35
    width = every.x.shape[1]
    states = alignments.widened(model.states(), width, path.blank_token_id)
    here = torch.nn.functional.one_hot(path.strings.gapped(states), 3).bool()  # the blank at gaps
    never = here | (torch.arange(3) == path.blank_token_id)
    shapes = (len(states), width + 1, path.heads["edits"]), here.shape
    raw, logits = (torch.randn(shape, generator=rng(5), dtype=torch.float64).requires_grad_() for shape in shapes)

    where = model.index(path.strings.packed(every.x))
    predicted = path.marginal(Rows(raw, logits, never, where), every.x, at(t, every.x))
    loss = every.probability(t) @ conditional_divergence(model, every, t, predicted)
    found = torch.autograd.grad(loss, (raw, logits))

    rates = path.marginal(Rows(raw, logits, never, torch.arange(len(states))), states, at(t, states)).rates(states)
    target = model.generator(states, at(t, states)).rates(states)
    edits = (target > 0) & ~here
    each = rates.masked_fill(here, 0.0).sum((1, 2))
    each = each - (torch.where(edits, target, 0.0) * torch.where(edits, rates, 1.0).log()).sum((1, 2))
    expected = torch.autograd.grad(model.marginal(t) @ each, (raw, logits))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING)
        assert float(other.abs().max()) > 0.01


# ---- The bound


@every_case
def test_bound__exceeds_the_entropy_by_the_predicted_gap(prior: str, alignment: str) -> None:
    """∫ E D(conditional, marginal) dt over all configurations, by quadrature in κ, against H + gap."""
    model = model_of(path_of(prior, alignment, 3), 3)
    every, total = enumerated(model), 0.0
    for u, share in kappa_nodes(60):
        kappa, step = math.sin(math.pi * u / 2) ** 2, share * math.pi / 2 * math.sin(math.pi * u)
        predicted = model.generator(every.x, at(kappa, every.x))
        total += step * float(every.probability(kappa) @ conditional_divergence(model, every, kappa, predicted))
    assert abs(total - model.expected_bound()) <= QUADRATURE
    assert abs(total - model.entropy() - model.bound_gap()) <= QUADRATURE
    assert model.bound_gap() > 0.1


@every_case
def test_likelihood_bound__has_the_predicted_mean(prior: str, alignment: str) -> None:
    model = model_of(path_of(prior, alignment))
    z = model.data.repeat(20, 1)
    bound = likelihood_bound(model, z, num_samples=100, rng=rng(4))
    weights = model.weights.repeat(20) / 20
    mean, deviation = float(weights @ bound.nats), float((weights**2 @ bound.nats_stderr**2).sqrt())
    assert abs(mean - model.entropy() - model.bound_gap()) <= SIGMAS * deviation
    assert deviation < 0.02


@pytest.mark.parametrize(
    ("strings", "gap"), [([[0]], 0.0), ([[0, 1]], 0.0), ([[0, 0]], math.log(2)), ([[0], [1], [0, 1]], 0.0)]
)
def test_bound_gap__of_strings_that_can_be_followed_by_hand(strings: list[list[int]], gap: float) -> None:
    """From nothing to "00": of the first symbol one does not know whether it is the left one, which is worth log 2 nats.

    Where every string embeds in one way into each other the bound is the entropy.
    """
    model = ExactEditModel(path_of("empty", "left"), tensor(strings, 2))
    assert model.bound_gap() == pytest.approx(gap, abs=1e-12)
    assert model.expected_bound() == pytest.approx(math.log(len(strings)) + gap, abs=1e-12)


# ---- Arguments


def test_exact_edit_model__merges_equal_strings_and_leaves_out_impossible_ones() -> None:
    data, weights = torch.tensor([[0, 2, 1], [2, 0, 1], [1, 1, 1], [0, 0, 2]]), torch.tensor([1.0, 2.0, 0.0, 1.0])
    model = ExactEditModel(path_of("empty", "left"), data, weights)
    assert model.data.tolist() == [[0, 0], [0, 1]]
    assert model.weights.tolist() == [0.25, 0.75]
    assert model.marginal(1.0)[model.index(torch.tensor([[0, 1, 2], [0, 0, 2], [0, 2, 2]]))].tolist() == [0.75, 0.25, 0]


def test_exact_edit_model__has_no_edits_where_no_state_is() -> None:
    model = ExactEditModel(path_of("empty", "left"), torch.tensor([[0, 1]]))
    never = torch.tensor([[1, 0, 2], [0, 1, 0], [0, 0, 2]])
    assert model.index(never).tolist() == [len(model.states())] * 3
    assert not bool(model.expected_edits(never, at(0.5, never)).any())
    assert not bool(model.generator(never, at(0.5, never)).intensity.any())


def test_exact_edit_model__refuses_what_it_cannot_enumerate() -> None:
    data, path = torch.tensor([[0, 1]]), path_of("empty", "left")
    with pytest.raises(TypeError, match="path=MaskedPath"):
        ExactEditModel(MaskedPath(3), data)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"data has shape \(0, 2\)"):
        ExactEditModel(path, data[:0])
    with pytest.raises(ValueError, match="data"):
        ExactEditModel(path, data + 2)
    for weights in ([1.0, 1.0], [-1.0], [0.0], [math.nan]):
        with pytest.raises(ValueError, match="weights="):
            ExactEditModel(path, data, torch.tensor(weights))
    with pytest.raises(ValueError, match="configurations"):
        ExactEditModel(path, torch.zeros(1, 21).long())
    with pytest.raises(ValueError, match="pairs of strings"):
        ExactEditModel(EditPath(3, "uniform", [0.0] * 25 + [1.0], "left"), data)
    with pytest.raises(ValueError, match="aligned pairs"):
        ExactEditModel(EditPath(3, "uniform", [0.0] * 12 + [1.0], "random"), torch.zeros(2, 6).long())
    with pytest.raises(ValueError, match=r"t=.*0 to 2"):
        ExactEditModel(path, data).generator(data.repeat(2, 1), torch.tensor([0.0, 2.0]))


def test_edit_path__special_symbols_are_never_drawn() -> None:
    path = EditPath(5, "uniform", [0, 0, 1], special_token_ids=[1, 2])
    x = path.prior((500, 2), rng(1))
    assert set(x.flatten().tolist()) == {0, 3}
    assert EditPath.from_dict(path.to_dict()) == path
    model = ExactEditModel(path, torch.tensor([[1, 0]]))
    assert not bool((model.states()[model.marginal(0.0) > 0] == 1).any())
    with pytest.raises(ValueError, match="special_token_ids"):
        EditPath(3, special_token_ids=[0, 1])


def test_edit_path__sources_with_symbols_need_another_prior_than_the_empty_one() -> None:
    with pytest.raises(ValueError, match=r"x_0 holds symbols.*prior='uniform'"):
        EditPath(3).align(torch.tensor([[0, 1]]), x_0=torch.tensor([[1, 0]]))


def test_edit_path__rows_without_scored_columns_teach_that_nothing_is_inserted() -> None:
    """A prompt with an empty completion: its blanks count, and so does the gap after it."""
    path, z = EditPath(3), torch.tensor([[0, 1, 2, 2], [0, 1, 1, 2]])
    scored = torch.tensor([[False] * 4, [False, False, True, False]])
    z, chosen, _ = path.aligned(z, scored)
    gaps = path.compared(z, chosen)[1][:, 1::2]
    assert gaps.tolist() == [[False, False, True, False, False], [False, False, True, True, False]]


def test_likelihood_bound__of_empty_strings_alone_has_no_bits_per_token() -> None:
    model = ExactEditModel(EditPath(3), torch.tensor([[0, 1], [2, 2]]))
    bound = likelihood_bound(model, torch.tensor([[2, 2], [2, 2]]), num_samples=64, rng=rng(1))
    assert bool((bound.nats > 0).all())
    assert math.isnan(bound.bits_per_token)
    assert "nan" in repr(bound)
    uniform = ExactEditModel(path_of("uniform", "left", 2), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="paired"):
        likelihood_bound(uniform, torch.tensor([[0, 1]]), paired=True)
