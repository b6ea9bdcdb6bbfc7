"""Decoding orders: what each keeps of the distribution and what it leaves, how many positions go at once, and which."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    EntropyBounded,
    MaskedPath,
    MixturePath,
    Sampler,
    TauLeaping,
    UniformPath,
    simulate,
    time_grid,
)
from gm_discrete.samplers.decoding import SCORES, entropy, place
from tests.helpers.chains import EnumeratedChain, index_of
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square

MASK, N = 3, 20_000


class Independent:
    """Independent tokens with a distribution of their own each, in place of a network."""

    def __init__(self, probs: Tensor) -> None:
        self.path = MaskedPath(probs.shape[1] + 1)
        self.probs = torch.nn.functional.pad(probs, (0, 1))

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
        return self.path.marginal(self.probs.log().expand(len(x), -1, -1), x, t, t_next)


def drawn(model: Any, sampler: Sampler, rows: int = N, length: int = 3, steps: int = 12) -> Any:
    times = [0.0, 1.0] if sampler.chooses_times else time_grid(model.path, steps)
    start = torch.full((rows, length), model.path.mask_token_id)
    return simulate(model, start, times, torch.Generator().manual_seed(0), sampler, return_info=True)


def p_value(model: EnumeratedChain, x: Tensor) -> float:
    return chi_square(torch.bincount(index_of(x, 3), minlength=27), model.weights)


@pytest.mark.parametrize("schedule", [None, CosineSchedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    "sampler",
    [
        TauLeaping("margin"),
        TauLeaping("entropy"),
        TauLeaping("confidence", order_temperature=1e9),
        EntropyBounded(1e-9),
        EntropyBounded(1e-9, order="margin"),
        EntropyBounded(1e-9, order="random"),
    ],
    ids=str,
)
def test_orders__by_the_state_alone_preserve_the_distribution_of_an_exact_posterior(
    sampler: Sampler, schedule: Any
) -> None:
    model = EnumeratedChain(MaskedPath(4, schedule=schedule), 3, 3)
    run = drawn(model, sampler)
    assert (run.network_calls == 3).all()  # one position at a time, though nobody said so
    assert p_value(model, run.x) > LEAST_P


def one_by_one(model: EnumeratedChain, order: str) -> Tensor:
    """The law [27] of revealing the position of highest score first, by enumeration."""
    states = {(MASK,) * 3: 1.0}
    for _ in range(3):
        after: dict[tuple[int, ...], float] = {}
        for state, mass in states.items():
            x, free = torch.tensor([state]), [i for i in range(3) if state[i] == MASK]
            rows = model.logits(x, torch.full((1,), 0.5, dtype=torch.float64))[0].log_softmax(-1)
            # Every position draws a symbol; the one of highest score keeps it.
            for symbols in itertools.product(range(3), repeat=len(free)):
                chance = math.exp(sum(float(rows[i, y]) for i, y in zip(free, symbols, strict=True)))
                if chance == 0:
                    continue
                scores = [SCORES[order](rows[i : i + 1], torch.tensor([y])) for i, y in zip(free, symbols, strict=True)]
                best = max(range(len(free)), key=lambda j: float(scores[j]))
                new = tuple(symbols[best] if i == free[best] else state[i] for i in range(3))
                after[new] = after.get(new, 0.0) + mass * chance
        states = after
    law = torch.zeros(27, dtype=torch.float64)
    for state, mass in states.items():
        law[index_of(torch.tensor([state]), 3)] += mass
    return law


@pytest.mark.parametrize("sampler", [TauLeaping("confidence"), EntropyBounded(1e-9, "confidence")], ids=str)
def test_confidence__has_the_distribution_of_its_definition_which_is_not_that_of_the_model(sampler: Sampler) -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    law = one_by_one(model, "confidence")
    assert law.sum() == pytest.approx(1)
    assert (law - model.weights).abs().sum() / 2 > 0.2
    run = drawn(model, sampler)
    assert chi_square(torch.bincount(index_of(run.x, 3), minlength=27), law) > LEAST_P


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_orders__definition_by_the_state_alone_gives_back_the_distribution(order: str) -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    assert (one_by_one(model, order) - model.weights).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("order", "expected"), [("confidence", [0.7, 0.1]), ("margin", [0.5, 0.1]), ("entropy", [-0.801819, -0.943348])]
)
def test_scores__of_two_rows(order: str, expected: list[float]) -> None:
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64)
    found = SCORES[order](probs.log(), torch.tensor([1, 2]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_entropy__of_a_certain_symbol_is_zero() -> None:
    rows = torch.tensor([[0.0, -torch.inf], [math.log(0.5)] * 2], dtype=torch.float64)
    torch.testing.assert_close(entropy(rows), torch.tensor([0.0, math.log(2)], dtype=torch.float64))


def test_place__counts_from_the_highest_score_and_keeps_ties_in_order() -> None:
    score = torch.tensor([[0.1, 0.9, -torch.inf, 0.9]])
    assert place(score).tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize(("order", "first"), [("confidence", 2), ("margin", 2), ("entropy", 2)])
def test_orders__surest_position_goes_first(order: str, first: int) -> None:
    model = Independent(torch.tensor([[0.5, 0.5], [0.7, 0.3], [1.0, 0.0]]))
    start, rng = torch.full((200, 3), 2), torch.Generator().manual_seed(0)
    run = simulate(model, start, torch.linspace(0, 1, 4), rng, TauLeaping(order), save_at=[1], return_info=True)
    assert (run.states[0] != 2).nonzero()[:, 1].unique().tolist() == [first]


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 16, 50])
def test_orders__a_step_reveals_the_mean_number_and_hardly_varies(steps: int) -> None:
    length = 16
    model = Independent(torch.full((length, 2), 0.5))
    start, rng = torch.full((4000, length), 2), torch.Generator().manual_seed(1)
    run = simulate(
        model,
        start,
        time_grid(model.path, steps),
        rng,
        TauLeaping("entropy"),
        save_at=range(steps + 1),
        return_info=True,
    )
    revealed = torch.stack([(state != 2).sum(1) for state in run.states]).double()
    expected = length * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    spread = revealed.std(1) / math.sqrt(4000)
    assert ((revealed.mean(1) - expected).abs() <= SIGMAS * spread + 1e-9).all()
    assert (revealed.var(1) < 3).all()  # of the law's own number 4 halfway
    assert (revealed[-1] == length).all()
    assert (run.network_calls <= min(steps, length)).all()


def test_order_temperature__without_limit_is_a_random_order() -> None:
    model = Independent(torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.99, 0.01]]))
    start, rng = torch.full((6000, 3), 2), torch.Generator().manual_seed(2)
    grid = torch.linspace(0, 1, 4)
    run = simulate(model, start, grid, rng, TauLeaping("margin", 1e9), save_at=[1], return_info=True)
    first = (run.states[0] != 2).nonzero()[:, 1].bincount(minlength=3)
    assert chi_square(first, torch.ones(3)) > LEAST_P


def test_entropy_bounded__bound_decides_how_many_are_revealed_at_once() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.99, 0.01], [0.8, 0.2]])
    each = torch.special.entr(probs).sum(1).sort().values  # of four independent positions
    model = Independent(probs)
    for n in range(1, 5):  # Σ of the n − 1 least uncertain ones: exactly that allows n in the first step
        bound = float(each[: n - 1].sum()) + 1e-6
        path, rng = model.path, torch.Generator().manual_seed(3)
        seen: list[Tensor] = []
        plain = model.generator

        def recorded(x: Tensor, t: Tensor, t_next: Tensor | None = None, plain: Any = plain, seen: Any = seen) -> Any:
            seen.append(x)
            return plain(x, t, t_next)

        watched = type("Watched", (), {"path": path, "generator": staticmethod(recorded)})()
        simulate(watched, torch.full((50, 4), 2), [0, 1], rng, EntropyBounded(bound))
        assert ((seen[1] != 2).sum(1) == n).all()


def test_entropy_bounded__all_are_revealed_at_once_where_the_bound_allows_it() -> None:
    model = Independent(torch.full((6, 2), 0.5))
    assert (drawn(model, EntropyBounded(100.0), 100, 6).network_calls == 1).all()
    assert (drawn(model, EntropyBounded(1e-9), 100, 6).network_calls == 6).all()


def test_entropy_bounded__steps_do_not_depend_on_the_grid() -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    start = torch.full((N, 3), MASK)
    rng = torch.Generator().manual_seed(5)
    run = simulate(model, start, torch.linspace(0, 1, 8), rng, EntropyBounded(1e-9), return_info=True)
    assert (run.network_calls == 3).all()
    assert p_value(model, run.x) > LEAST_P


def test_orders__fixed_positions_stay_and_do_not_count() -> None:
    model = Independent(torch.full((6, 2), 0.5))
    start, fixed = torch.full((100, 6), 2), torch.zeros(100, 6, dtype=torch.bool)
    start[:, 1], fixed[:, 1] = 0, True
    fixed[:, 4] = True  # a mask that is to stay
    for sampler in (TauLeaping("confidence"), EntropyBounded()):
        x = simulate(model, start, torch.linspace(0, 1, 9), torch.Generator().manual_seed(0), sampler, fixed)
        assert (x[:, 1] == 0).all()
        assert (x[:, 4] == 2).all()
        assert (x[:, [0, 2, 3, 5]] < 2).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TauLeaping, {"order": "best"}, "order='best'.*random, confidence, margin, entropy"),
        (EntropyBounded, {"order": "best"}, "order='best'.*random, confidence, margin, entropy"),
        (TauLeaping, {"order_temperature": 1.0}, "order_temperature=1.0.*order='confidence'"),
        (TauLeaping, {"order": "margin", "order_temperature": -1.0}, "order_temperature=-1.0"),
        (EntropyBounded, {"entropy_bound": 0.0}, "entropy_bound=0.0"),
    ],
)
def test_orders__options_out_of_range_are_named(kind: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("path", [UniformPath(3), MixturePath(3, [0.5, 0.3, 0.2], rates="mixture")])
@pytest.mark.parametrize("sampler", [TauLeaping("confidence"), EntropyBounded()], ids=str)
def test_orders__need_a_masked_path(path: Any, sampler: Sampler) -> None:
    model = EnumeratedChain(path, 3, 3)
    with pytest.raises(ValueError, match=r"order='confidence'|entropy_bounded"):
        simulate(model, torch.zeros(2, 3, dtype=torch.long), [0, 0.5, 1], sampler=sampler)


def test_orders__say_whether_they_preserve_the_distribution() -> None:
    assert TauLeaping().keeps_distribution
    assert not TauLeaping("entropy").keeps_distribution
    assert not EntropyBounded().keeps_distribution
