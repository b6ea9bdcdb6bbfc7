"""Samplers of strings: their distributions against enumerated edit processes, and what stays fixed."""

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Adaptive,
    ExactModel,
    MaskedPath,
    SquaredSineSchedule,
    TauLeaping,
    Uniformization,
    simulate,
)
from gm_discrete.generators import Jump
from gm_discrete.generators.edit_kernels import KnownEdits
from gm_discrete.generators.strings import Strings
from gm_discrete.samplers.base import Chain
from gm_discrete.samplers.edits import edit, entries_free
from tests.helpers.distributions import LEAST_P, chi_square, rng
from tests.helpers.strings import BLANK, LONGEST, PATHS, exact, frequencies

SAMPLES = 10_000
STRINGS = Strings(BLANK)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_uniformization__of_strings_has_the_distribution_of_the_path(name: str) -> None:
    """p_t at t = 0.4, and the data at t = 1, of which 1e-5 at most is cut off: seldom one of 5,000 samples."""
    model = exact(name, schedule=SquaredSineSchedule())
    longest = model.states().shape[1]  # symbols to be deleted and inserted ones may be there together
    x_0 = model.path.prior((SAMPLES // 2, LONGEST), rng(1))
    run = simulate(
        model, x_0, [0.0, 0.4, 1.0], rng(2), Uniformization(1e-5), save_at=[1, 2], max_length=longest, return_info=True
    )
    for x, t in zip(run.states, (0.4, 1.0), strict=True):
        counts, law = (frequencies(model, x) * len(x)).round(), model.marginal(t)
        assert chi_square(counts[law > 0], law[law > 0]) > LEAST_P
        assert counts[law > 0].sum() >= len(x) - 2  # where something was cut off, a string may be none of the data
    assert run.error_bound is not None
    assert 0 < float(run.error_bound.max()) < 1.001e-5  # and its rounding


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_tau_leaping__of_strings_converges_at_first_order(name: str) -> None:
    """Twice as many steps halve the distance from the data, by a factor between 1.45 and 2.4 with its noise."""
    model = exact(name)
    law, number = model.marginal(1.0), SAMPLES
    distances = []
    for steps in (4, 8, 16):
        x_0 = model.path.prior((number, LONGEST), rng(3))
        x = simulate(model, x_0, torch.linspace(0, 1, steps + 1), rng(steps))
        squared = (frequencies(model, x) - law).square().sum() - (law * (1 - law)).sum() / number
        distances.append(float(squared.clamp(min=0).sqrt()))
    first, second, third = distances
    assert 1.45 < first / second < 2.4
    assert 1.45 < second / third < 2.4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empty", "optimal"])
def test_adaptive__of_strings_comes_closer_with_smaller_steps(name: str) -> None:
    """A fifth of the expected edits, a third of the distance at most; strings that are done need no further calls."""
    model, number = exact(name), 4000
    law, distances = model.marginal(1.0), []
    for most in (1.0, 0.2):
        x_0 = model.path.prior((number, LONGEST), rng(4))
        run = simulate(model, x_0, [0.0, 1.0], rng(5), Adaptive(max_expected_changes=most), return_info=True)
        distances.append(float((frequencies(model, run.x) - law).abs().sum()) / 2)
        assert len(run.network_calls.unique()) > 1
    assert distances[1] < distances[0] / 3


def edits(entries: list[int], symbols: list[int], width: int) -> Jump:
    """A jump that makes these edits of one string for certain."""
    entry, symbol = torch.tensor([entries]), torch.tensor([symbols])
    shape = torch.Size((1, 2 * (width + 1)))
    kernel = KnownEdits(entry, symbol, torch.ones_like(entry).bool(), shape, 3, BLANK)
    chance = (kernel.number > 0).double()
    return Jump(chance, kernel, chance, strings=STRINGS)


def chain_of(x: Tensor, fixed: Tensor | None = None, max_length: int | None = None) -> Chain:
    fixed = torch.zeros_like(x, dtype=torch.bool) if fixed is None else fixed
    return Chain(None, {"": entries_free(fixed, x, STRINGS)}, rng(), max_length=max_length)  # pyright: ignore


def test_edit__all_edits_of_a_step_act_on_the_old_string() -> None:
    """0 1 0 with an insertion before each of its symbols, the first one deleted and the last one substituted."""
    x = torch.tensor([[0, 1, 0]])
    after = edit(chain_of(x), "", x, edits([1, 2, 3, 5, 6, 7], [1, BLANK, 1, 0, 1, 0], 3))
    assert after.tolist() == [[1, 1, 1, 0, 1, 0]]


def test_edit__counts_changes_and_calls() -> None:
    x = torch.tensor([[0, 1, 0]])
    chain = chain_of(x)
    edit(chain, "", x, edits([1, 2, 6], [1, BLANK, 1], 3))
    assert chain.jumps.tolist() == [3]
    assert chain.calls.tolist() == [1]


def test_edit__length_is_limited() -> None:
    x = torch.tensor([[0, 1, 0]])
    counts = set()
    for _ in range(20):
        after = edit(chain_of(x, max_length=5), "", x, edits([1, 3, 5, 7], [1, 1, 1, 1], 3))
        assert int(STRINGS.lengths(after)) == 5
        counts.add(tuple(after[0].tolist()))
    assert len(counts) == 1  # of one seed
    assert int(STRINGS.lengths(edit(chain_of(x, max_length=3), "", x, edits([1, 7], [1, 1], 3)))) == 3


def test_edit__fixed_symbols_move_with_the_string() -> None:
    """Fixed: 1 0 at the end. An insertion before them shifts them; nothing is inserted between them afterwards."""
    x = torch.tensor([[0, 1, 0]])
    fixed = torch.tensor([[False, True, True]])
    chain = chain_of(x, fixed)
    x = edit(chain, "", x, edits([1, 3], [1, 1], 3))
    assert x.tolist() == [[1, 0, 1, 1, 0]]
    x = edit(chain, "", x, edits(list(range(1, 12)), [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0], 5))
    assert x.tolist() == [[0, 0, 0, 1, 0, 0, 0, 1, 0, 0]]
    free = chain.free[""][0]
    symbols, gaps = free[::2], free[1::2]
    assert (~symbols).nonzero().flatten().tolist() == [0, 8, 9]  # the start, and the fixed ones
    assert (~gaps).nonzero().flatten().tolist() == [8]


@pytest.mark.parametrize("method", ["tau_leaping", "euler", "adaptive", "uniformization"])
@pytest.mark.parametrize("name", PATHS)
def test_simulate__fixed_symbols_of_strings_stay(name: str, method: str) -> None:
    """1 0 at the start stays there, and a fixed 1 after it, wherever it moves."""
    model = exact(name)
    x_0 = torch.tensor([[1, 0, 0, 1]]).repeat(200, 1)
    fixed = torch.tensor([[True, True, False, True]]).repeat(200, 1)
    grid = [0.1, 1.0] if method in ("adaptive", "uniformization") else torch.linspace(0.1, 1, 17)
    x = simulate(model, x_0, grid, rng(7), method, fixed=fixed, max_length=8)
    assert bool((x[:, :2] == torch.tensor([1, 0])).all())
    assert all(1 in row[2:] for row in x.tolist())


@pytest.mark.parametrize("name", PATHS)
def test_simulate__blanks_after_strings_do_not_matter(name: str) -> None:
    """The same strings in a wider tensor: the same rates, and with the same times of candidates the same number of calls."""
    model = exact(name)
    x, t = torch.tensor([[0, 1, 2, 2], [1, 2, 2, 2]]), torch.tensor([0.3, 0.6])
    wide = torch.nn.functional.pad(x, (0, 3), value=BLANK)
    narrow = x[:, :2]
    rates = [model.generator(states, t).rates(states) for states in (narrow, x, wide)]
    for other in rates[1:]:
        assert torch.equal(other[:, : rates[0].shape[1]], rates[0])
        assert bool((other[:, rates[0].shape[1] :] == 0).all())


def test_samplers__that_do_not_fit_strings_are_named() -> None:
    model = exact("empty")
    with pytest.raises(ValueError, match=r"sampler='trapezoidal' does not simulate strings.*adaptive.*uniformization"):
        simulate(model, model.path.prior((1, 4)), [0.0, 1.0], sampler="trapezoidal")
    with pytest.raises(ValueError, match="max_length is missing"):
        simulate(model, model.path.prior((1, 4)), [0.0, 1.0], sampler="uniformization")
    with pytest.raises(ValueError, match="max_length"):
        simulate(model, model.path.prior((1, 4)), [0.0, 1.0], max_length=0)
    assert TauLeaping().misfit(model.path) is None


def test_simulate__strings_may_have_limits_of_their_own() -> None:
    """One symbol and three symbols at most, in turn: both limits are reached, and none is exceeded."""
    model = exact("empty")
    limits = torch.tensor([1, 3]).repeat(200)
    for sampler in ("tau_leaping", "uniformization"):
        x = simulate(model, model.path.prior((400, 1)), torch.linspace(0, 1, 9), rng(8), sampler, max_length=limits)
        lengths = model.path.strings.lengths(x)
        assert [int(lengths[row::2].max()) for row in (0, 1)] == [1, 3]
    for wrong in (limits[:2], limits.float()):
        with pytest.raises(ValueError, match=r"max_length must be an integer or a long tensor \[B\] of 400"):
            simulate(model, model.path.prior((400, 1)), [0.0, 1.0], max_length=wrong)


# ---- What a string may be, and what limits it


def test_simulate__fixed_symbols_keep_their_symbol_when_blanks_stand_before_them() -> None:
    """ε 0 1 with the 0 fixed is 0 1 with the 0 fixed."""
    model = exact("optimal")
    grid = torch.linspace(0.1, 1, 9)
    x_0, fixed = torch.tensor([[BLANK, 0, 1]]).repeat(100, 1), torch.tensor([[False, True, False]]).repeat(100, 1)
    other, held = torch.tensor([[0, 1, BLANK]]).repeat(100, 1), torch.tensor([[True, False, False]]).repeat(100, 1)
    x = simulate(model, x_0, grid, rng(1), fixed=fixed)
    assert bool((x[:, 0] == 0).all())
    assert torch.equal(x, simulate(model, other, grid, rng(1), fixed=held))


def test_simulate__entries_of_strings_with_blanks_before_symbols_are_refused() -> None:
    x_0 = torch.tensor([[BLANK, 0, 1]])
    with pytest.raises(ValueError, match="fixed holds entries"):
        simulate(exact("optimal"), x_0, [0.1, 1.0], fixed=torch.zeros(1, 8, dtype=torch.bool))


def test_edit__deletions_of_a_step_make_room_for_its_insertions() -> None:
    """A string as long as it may be: one symbol is deleted, and so one inserted; a second insertion has no room."""
    x = torch.tensor([[0, 1, 0]])
    after = edit(chain_of(x, max_length=3), "", x, edits([2, 7], [BLANK, 1], 3))
    assert after.tolist() == [[1, 0, 1]]
    chain = chain_of(x, max_length=3)
    after = edit(chain, "", x, edits([2, 5, 7], [BLANK, 1, 1], 3))
    assert int(STRINGS.lengths(after)) == 3
    assert chain.jumps.tolist() == [2]


def test_simulate__max_length_is_checked() -> None:
    strings = exact("optimal")
    x_0 = torch.tensor([[0, 1], [1, BLANK]])
    with pytest.raises(ValueError, match="max_length=1 of row 0"):
        simulate(strings, x_0, [0.0, 1.0], max_length=1)
    with pytest.raises(ValueError, match="max_length=0 of row 1"):
        simulate(strings, x_0, [0.0, 1.0], max_length=torch.tensor([2, 0]))
    masked = ExactModel(MaskedPath(3), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="max_length=2 limits strings"):
        simulate(masked, masked.path.prior((1, 2)), [0.0, 1.0], max_length=2)


def test_adaptive__counts_only_insertions_that_there_is_room_for() -> None:
    """Without room nothing is expected, and one step goes to the end."""
    model = exact("empty")
    x_0 = torch.tensor([[0, 1]]).repeat(8, 1)
    run = simulate(model, x_0, [0.2, 1.0], rng(1), "adaptive", max_length=2, return_info=True)
    assert torch.equal(run.x, x_0)
    assert run.network_calls.tolist() == [1] * 8
