"""Alignments reproduce both strings in order; `optimal` has the fewest edits, and `random` every placement equally often."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gm_discrete.arguments import READABLE
from gm_discrete.paths import alignments
from tests.helpers.distributions import LEAST_P, chi_square, rng

BLANK = 50


def uniforms(x_0: Tensor, z: Tensor, seed: int = 0) -> Tensor:
    shape = len(z), max(x_0.shape[1], z.shape[1])
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64)


def at_random(x_0: Tensor, z: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    return alignments.random(x_0, z, blank, uniforms(x_0, z))


ALIGNMENTS = {"left": alignments.left, "optimal": alignments.optimal, "random": at_random}
every_alignment = pytest.mark.parametrize("align", ALIGNMENTS.values(), ids=list(ALIGNMENTS))
Align = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def batch(strings: Sequence[Sequence[int]], width: int = 0) -> Tensor:
    """Packed strings [B, L]."""
    width = max([width, *map(len, strings)])
    return torch.tensor([[*string, *[BLANK] * (width - len(string))] for string in strings], dtype=torch.long).view(
        len(strings), width
    )


def drawn(number: int, symbols: int, longest: int, seed: int) -> list[list[int]]:
    lengths = torch.randint(longest + 1, (number,), generator=rng(seed)).tolist()
    return [torch.randint(symbols, (n,), generator=rng(seed + 1 + i)).tolist() for i, n in enumerate(lengths)]


def without_blanks(rows: Tensor) -> list[list[int]]:
    return [[symbol for symbol in row if symbol != BLANK] for row in rows.tolist()]


def levenshtein(a: Sequence[int], b: Sequence[int]) -> int:
    """The textbook's table, row by row."""
    row = list(range(len(b) + 1))
    for i, symbol in enumerate(a, start=1):
        before, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (symbol != other)))
    return row[-1]


def check_pair(sources: list[list[int]], data: list[list[int]], x_0: Tensor, z: Tensor) -> None:
    assert x_0.shape == z.shape
    assert x_0.dtype == z.dtype == torch.long
    assert without_blanks(x_0) == sources
    assert without_blanks(z) == data
    padding = (x_0 == BLANK) & (z == BLANK)
    assert not bool((padding[:, :-1] & ~padding[:, 1:]).any())  # these columns come last


EVERY = [list(string) for n in range(5) for string in itertools.product(range(2), repeat=n)]
PAIRS = list(itertools.product(EVERY, EVERY))  # 961


@every_alignment
def test_alignments__reproduce_every_pair_of_short_strings(align: Align) -> None:
    sources, data = [a for a, _ in PAIRS], [b for _, b in PAIRS]
    check_pair(sources, data, *align(batch(sources), batch(data), BLANK))


@every_alignment
@pytest.mark.parametrize("symbols", [1, 2, 9])
def test_alignments__reproduce_random_strings(align: Align, symbols: int) -> None:
    sources, data = drawn(40, symbols, 30, seed=1), drawn(40, symbols, 20, seed=100)
    check_pair(sources, data, *align(batch(sources), batch(data), BLANK))
    check_pair(data, sources, *align(batch(data), batch(sources), BLANK))


@every_alignment
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (3, 0), (5, 2)])
def test_alignments__of_empty_strings(align: Align, m: int, n: int) -> None:
    """Strings of no symbols, in tensors of no columns or of some."""
    for width in (0, 2):
        sources, data = [[1] * m, [], []], [[2] * n, [], [3][:n]]
        check_pair(sources, data, *align(batch(sources, width), batch(data, width), BLANK))
    x_0, z = align(torch.empty(0, m).long(), torch.empty(0, n).long(), BLANK)
    assert x_0.shape == z.shape
    assert len(z) == 0


@every_alignment
def test_alignments__do_not_depend_on_blanks_or_on_the_other_sequences(align: Align) -> None:
    """Wider tensors have the same columns, and so has a sequence alone. `random` reads the same uniforms for a column."""
    sources, data = drawn(20, 3, 7, seed=5), drawn(20, 3, 9, seed=50)
    noise = torch.rand(20, 30, generator=rng(2), dtype=torch.float64)

    def columns(rows: slice, widths: tuple[int, int]) -> Tensor:
        strings = batch(sources[rows], widths[0]), batch(data[rows], widths[1])
        pair = alignments.random(*strings, BLANK, noise[rows]) if align is at_random else align(*strings, BLANK)
        return torch.stack([alignments.widened(part, 40, BLANK) for part in pair])

    expected = columns(slice(20), (0, 0))
    for widths in ((12, 25), (25, 12), (7, 30)):
        assert torch.equal(columns(slice(20), widths), expected)
    for i in range(20):
        assert torch.equal(columns(slice(i, i + 1), (0, 0)), expected[:, i : i + 1])


def test_left__keeps_positions() -> None:
    x_0, z = alignments.left(batch([[0, 1], [2, 3, 4]]), batch([[5, 6, 7], [8]]), BLANK)
    assert x_0.tolist() == [[0, 1, BLANK], [2, 3, 4]]
    assert z.tolist() == [[5, 6, 7], [8, BLANK, BLANK]]


@pytest.mark.parametrize(("symbols", "longest"), [(2, 4), (2, 40), (5, 40), (30, 25)])
def test_optimal__has_as_few_edits_as_levenshteins_distance(symbols: int, longest: int) -> None:
    sources, data = [a for a, _ in PAIRS], [b for _, b in PAIRS]
    if longest > 4:
        sources, data = drawn(60, symbols, longest, seed=7), drawn(60, symbols, longest, seed=70)
    x_0, z = alignments.optimal(batch(sources), batch(data), BLANK)
    assert (x_0 != z).sum(1).tolist() == [levenshtein(a, b) for a, b in zip(sources, data, strict=True)]


def test_optimal__is_the_same_without_reading_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the loops run in torch, nothing is cut to what the batch needs, and the columns are the same."""
    sources, data = batch(drawn(30, 3, 12, seed=3), 14), batch(drawn(30, 3, 9, seed=30), 9)
    expected = alignments.optimal(sources, data, BLANK)
    monkeypatch.setattr("gm_discrete.arguments.READABLE", READABLE - {"cpu"})
    found = alignments.optimal(sources, data, BLANK)
    assert found[0].shape[1] == 14 + 9 > expected[0].shape[1]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(alignments.widened(one, 23, BLANK), other)


def test_optimal__breaks_ties_as_documented() -> None:
    """From the last column to the first: a deletion where it is optimal, else an insertion, else two symbols."""
    for a, b in PAIRS:
        i, j, columns = len(a), len(b), []
        while i or j:
            distance = levenshtein(a[:i], b[:j])
            if i and levenshtein(a[: i - 1], b[:j]) + 1 == distance:
                i, column = i - 1, (a[i - 1], BLANK)
            elif j and levenshtein(a[:i], b[: j - 1]) + 1 == distance:
                j, column = j - 1, (BLANK, b[j - 1])
            else:
                i, j, column = i - 1, j - 1, (a[i - 1], b[j - 1])
            columns.insert(0, column)
        x_0, z = alignments.optimal(batch([a]), batch([b]), BLANK)
        assert list(zip(x_0[0].tolist(), z[0].tolist(), strict=True)) == columns


@pytest.mark.parametrize(("m", "n"), [(2, 5), (5, 2), (0, 3), (3, 3), (1, 6)])
def test_random__has_every_placement_equally_often(m: int, n: int) -> None:
    """A χ² test of all placements, which a correct library fails for one seed in 10⁴."""
    number, longer, shorter = 20_000, max(m, n), min(m, n)
    sources, data = torch.arange(m).repeat(number, 1), torch.arange(10, 10 + n).repeat(number, 1)
    sources = alignments.widened(sources, 7, BLANK)
    x_0, z = alignments.random(sources, data, BLANK, uniforms(sources, data))
    where = ((x_0 if m < n else z) != BLANK).long()
    assert not bool(where[:, longer:].any())
    code = (where * 2 ** torch.arange(where.shape[1])).sum(1)
    placements = torch.tensor(
        [sum(2**column for column in chosen) for chosen in itertools.combinations(range(longer), shorter)]
    )
    counts = (code[:, None] == placements).sum(0)
    assert int(counts.sum()) == number
    assert len(counts) == math.comb(longer, shorter)
    assert chi_square(counts, torch.ones(len(counts))) > LEAST_P


def test_random__refuses_too_few_uniforms() -> None:
    with pytest.raises(ValueError, match=r"uniforms .*\(2, 3\).*\[2, 4\]"):
        alignments.random(torch.zeros(2, 4).long(), torch.zeros(2, 2).long(), BLANK, torch.rand(2, 3))


@every_alignment
def test_alignments__refuse_other_shapes(align: Align) -> None:
    with pytest.raises(ValueError, match=r"x_0 and z .*\(2, 4\).*\(3, 4\)"):
        align(torch.zeros(2, 4).long(), torch.zeros(3, 4).long(), BLANK)
