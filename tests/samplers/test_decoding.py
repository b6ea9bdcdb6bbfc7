"""Decoding orders: what each keeps of the law and what it leaves, how many positions go at once, and which."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import CosineSchedule, MaskedPath, MixturePath, UniformPath, simulate, time_grid
from gm_discrete.samplers.decoding import SCORES, entropy, place
from tests.helpers.chains import EnumeratedChain, index_of
from tests.helpers.distributions import LEAST_P, SIGMAS, chi_square

MASK, N = 3, 20_000


class Told:
    """Independent tokens with a law of their own each, in place of a network."""

    def __init__(self, probs: Tensor) -> None:
        self.path = MaskedPath(probs.shape[1] + 1)
        self.probs = torch.nn.functional.pad(probs, (0, 1))

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
        return self.path.marginal(self.probs.log().expand(len(x), -1, -1), x, t, t_next)


def drawn(model: Any, rows: int = N, length: int = 3, steps: int = 12, seed: int = 0, **options: Any) -> Any:
    times = [0, 1] if options.get("method") == "entropy_bounded" else time_grid(model.path, steps)
    start = torch.full((rows, length), model.path.mask_token_id)
    rng = torch.Generator().manual_seed(seed)
    return simulate(model, start, times, rng, return_info=True, **options)


def p_value(model: EnumeratedChain, x: Tensor) -> float:
    return chi_square(torch.bincount(index_of(x, 3), minlength=27), model.law)


@pytest.mark.parametrize("schedule", [None, CosineSchedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    "options",
    [
        {"order": "margin"},
        {"order": "entropy"},
        {"order": "confidence", "order_temperature": 1e9},
        {"method": "entropy_bounded", "entropy_bound": 1e-9},
        {"method": "entropy_bounded", "entropy_bound": 1e-9, "order": "margin"},
        {"method": "entropy_bounded", "entropy_bound": 1e-9, "order": "random"},
    ],
    ids=str,
)
def test_positions_chosen_by_the_state_alone_keep_the_law_of_an_exact_posterior(options: dict, schedule: Any) -> None:
    model = EnumeratedChain(MaskedPath(4, schedule=schedule), 3, 3)
    run = drawn(model, **options)
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


@pytest.mark.parametrize("options", [{}, {"method": "entropy_bounded", "entropy_bound": 1e-9}], ids=["grid", "bounded"])
def test_confidence_has_the_law_of_its_definition_which_is_not_that_of_the_model(options: dict) -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    law = one_by_one(model, "confidence")
    assert law.sum() == pytest.approx(1)
    assert (law - model.law).abs().sum() / 2 > 0.2
    run = drawn(model, order="confidence", **options)
    assert chi_square(torch.bincount(index_of(run.x, 3), minlength=27), law) > LEAST_P


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_the_definition_of_orders_by_the_state_alone_gives_back_the_law(order: str) -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    assert (one_by_one(model, order) - model.law).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("order", "expected"), [("confidence", [0.7, 0.1]), ("margin", [0.5, 0.1]), ("entropy", [-0.801819, -0.943348])]
)
def test_scores(order: str, expected: list[float]) -> None:
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64)
    found = SCORES[order](probs.log(), torch.tensor([1, 2]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_entropy_of_what_is_certain_is_zero() -> None:
    rows = torch.tensor([[0.0, -torch.inf], [math.log(0.5)] * 2], dtype=torch.float64)
    torch.testing.assert_close(entropy(rows), torch.tensor([0.0, math.log(2)], dtype=torch.float64))


def test_places_count_from_the_highest_score_and_keep_ties_in_order() -> None:
    score = torch.tensor([[0.1, 0.9, -torch.inf, 0.9]])
    assert place(score).tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize(("order", "first"), [("confidence", 2), ("margin", 2), ("entropy", 2)])
def test_the_surest_position_goes_first(order: str, first: int) -> None:
    model = Told(torch.tensor([[0.5, 0.5], [0.7, 0.3], [1.0, 0.0]]))
    start, rng = torch.full((200, 3), 2), torch.Generator().manual_seed(0)
    run = simulate(model, start, torch.linspace(0, 1, 4), rng, order=order, save_at=[1], return_info=True)
    assert (run.states[0] != 2).nonzero()[:, 1].unique().tolist() == [first]


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 16, 50])
def test_a_step_reveals_the_laws_mean_number_and_hardly_varies(steps: int) -> None:
    length = 16
    model = Told(torch.full((length, 2), 0.5))
    start, rng = torch.full((4000, length), 2), torch.Generator().manual_seed(1)
    run = simulate(
        model, start, time_grid(model.path, steps), rng, order="entropy", save_at=range(steps + 1), return_info=True
    )
    revealed = torch.stack([(state != 2).sum(1) for state in run.states]).double()
    expected = length * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    spread = revealed.std(1) / math.sqrt(4000)
    assert ((revealed.mean(1) - expected).abs() <= SIGMAS * spread + 1e-9).all()
    assert (revealed.var(1) < 3).all()  # of the law's own number 4 halfway
    assert (revealed[-1] == length).all()
    assert (run.network_calls <= min(steps, length)).all()


def test_a_random_order_at_a_temperature_without_limit_is_even() -> None:
    model = Told(torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.99, 0.01]]))
    start, rng = torch.full((6000, 3), 2), torch.Generator().manual_seed(2)
    grid = torch.linspace(0, 1, 4)
    run = simulate(model, start, grid, rng, order="margin", order_temperature=1e9, save_at=[1], return_info=True)
    first = (run.states[0] != 2).nonzero()[:, 1].bincount(minlength=3)
    assert chi_square(first, torch.ones(3)) > LEAST_P


def test_the_bound_on_entropy_decides_how_many_go_at_once() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.99, 0.01], [0.8, 0.2]])
    each = torch.special.entr(probs).sum(1).sort().values  # of four independent positions
    model = Told(probs)
    for n in range(1, 5):  # Σ of the n − 1 least uncertain ones: exactly that allows n in the first step
        bound = float(each[: n - 1].sum()) + 1e-6
        path, rng = model.path, torch.Generator().manual_seed(3)
        seen: list[Tensor] = []
        plain = model.generator

        def recorded(x: Tensor, t: Tensor, t_next: Tensor | None = None, plain: Any = plain, seen: Any = seen) -> Any:
            seen.append(x)
            return plain(x, t, t_next)

        watched = type("Watched", (), {"path": path, "generator": staticmethod(recorded)})()
        simulate(watched, torch.full((50, 4), 2), [0, 1], rng, "entropy_bounded", entropy_bound=bound)
        assert ((seen[1] != 2).sum(1) == n).all()


def test_all_goes_at_once_where_the_bound_allows_it() -> None:
    model = Told(torch.full((6, 2), 0.5))
    assert (drawn(model, 100, 6, method="entropy_bounded", entropy_bound=100.0).network_calls == 1).all()
    assert (drawn(model, 100, 6, method="entropy_bounded", entropy_bound=1e-9).network_calls == 6).all()


def test_bounded_steps_are_the_same_whether_somebody_looks_or_not() -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    start = torch.full((N, 3), MASK)
    rng = torch.Generator().manual_seed(5)
    run = simulate(model, start, torch.linspace(0, 1, 8), rng, "entropy_bounded", entropy_bound=1e-9, return_info=True)
    assert (run.network_calls == 3).all()
    assert p_value(model, run.x) > LEAST_P


def test_fixed_positions_stay_and_count_for_nothing() -> None:
    model = Told(torch.full((6, 2), 0.5))
    start, fixed = torch.full((100, 6), 2), torch.zeros(100, 6, dtype=torch.bool)
    start[:, 1], fixed[:, 1] = 0, True
    fixed[:, 4] = True  # a mask that is to stay
    for options in ({"order": "confidence"}, {"method": "entropy_bounded"}):
        x = simulate(model, start, torch.linspace(0, 1, 9), torch.Generator().manual_seed(0), fixed=fixed, **options)
        assert (x[:, 1] == 0).all()
        assert (x[:, 4] == 2).all()
        assert (x[:, [0, 2, 3, 5]] < 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "best"}, "random, confidence, margin, entropy"),
        ({"order": "confidence", "method": "euler"}, "order is an option of tau_leaping and entropy_bounded"),
        ({"order_temperature": 1.0}, "noise of the scores of an order"),
        ({"order": "margin", "order_temperature": -1.0}, "must be ≥ 0"),
        ({"method": "entropy_bounded", "entropy_bound": 0.0}, "must be positive"),
        ({"entropy_bound": 0.1}, "entropy_bound is an option of entropy_bounded"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(EnumeratedChain(MaskedPath(4), 3, 3), 2, **options)


@pytest.mark.parametrize("path", [UniformPath(3), MixturePath(3, [0.5, 0.3, 0.2], rates="mixture")])
@pytest.mark.parametrize("options", [{"order": "confidence"}, {"method": "entropy_bounded"}], ids=str)
def test_orders_are_of_masks(path: Any, options: dict) -> None:
    model = EnumeratedChain(path, 3, 3)
    with pytest.raises(ValueError, match="random"):
        simulate(model, torch.zeros(2, 3, dtype=torch.long), [0, 0.5, 1], **options)
