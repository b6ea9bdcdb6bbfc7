"""Steps of several fields: all move from the old state, what is fixed stays, calls are counted, and options are checked."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Adaptive,
    DetailedBalance,
    ExactProductModel,
    GaussianPath,
    MaskedPath,
    ProductPath,
    SquaredSineSchedule,
    UniformPath,
    simulate,
)
from gm_discrete.generators import Product
from gm_discrete.samplers import SAMPLERS, Sampler, samplers_for
from tests.helpers.euclid import numbers, rng
from tests.helpers.symbol_and_number import Mixed

ON_GRIDS = ["tau_leaping", "euler", "heun"]
"""Which take a grid for each field."""
every_method = pytest.mark.parametrize("method", [*ON_GRIDS, "adaptive"])
KIND, SIZE = MaskedPath(3), GaussianPath()
KIND_OF_THREE = MaskedPath(4)
MASK = 2


class Coupled:
    """Numbers move by the symbol, u = −gain[symbol] · number, and symbols by the number's sign: z = 1[number > 0] for sure.

    From 0.3 to 0.6 a number beside a mask changes its sign (1 − 0.3 · 5 = −1/2), and beside any other symbol it does not.
    """

    GAIN = numbers(1.0, 2.0, 5.0)

    def __init__(self, path: ProductPath) -> None:
        self.path, self.seen, self.asked = path, [], 0

    def velocity(self, kind: Tensor, size: Tensor) -> Tensor:
        return -self.GAIN[kind] * size

    def generator(self, x: Any, t: Tensor, t_next: Tensor | None = None) -> Product:
        self.seen.append((x, t))
        belief = torch.nn.functional.one_hot((x["size"] > 0).long(), 3).double().log()
        said = {"kind": belief, "size": self.velocity(x["kind"], x["size"])}
        return self.path.marginal(said, x, t, t_next)


def start(n: int = 400) -> dict[str, Tensor]:
    """Masks, but for every fourth symbol, and numbers of either sign."""
    kind = torch.full((n, 1), MASK)
    kind[::4] = torch.arange(len(kind[::4]))[:, None] % 2
    return {"kind": kind, "size": torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]}


ORDERS = {"symbol first": ["kind", "size"], "number first": ["size", "kind"]}
every_order = pytest.mark.parametrize("order", ORDERS)


def coupled(order: str = "symbol first", independent: bool = False) -> Coupled:
    paths = {"kind": KIND, "size": SIZE}
    return Coupled(ProductPath({name: paths[name] for name in ORDERS[order]}, independent_times=independent))


@every_order
@every_method
def test_samplers__all_fields_move_from_the_old_state(order: str, method: str) -> None:
    """Numbers by the symbols that were there, and symbols to where the numbers were; to rounding."""
    model, x_0, t = coupled(order), start(), 0.3
    x_0 = {name: x_0[name] for name in reversed(ORDERS[order])}
    s = 0.6
    if method == "adaptive":
        sampler: Any = Adaptive(tolerance=0.09, max_expected_changes=0.5)
        x = simulate(model, x_0, [t, 0.9], rng(1), sampler)
        # the state of the next evaluation, after a first step of √0.09
        assert [float(time[0]) for _, time in model.seen[:2]] == pytest.approx([t, s], abs=1e-12)
        x = model.seen[1][0]
    else:
        x = simulate(model, x_0, [t, s], rng(1), method)
    kind, size = x["kind"], x["size"]
    masked = x_0["kind"] == MASK
    leapt = masked & (kind != MASK)
    assert 50 < int(leapt.sum()) < 250  # P = 3/7 of 300
    assert torch.equal(kind[~masked], x_0["kind"][~masked])
    assert torch.equal(kind[leapt], (x_0["size"] > 0).long()[leapt])
    velocity = model.velocity(x_0["kind"], x_0["size"])
    if method == "heun":  # the mean of both ends, the second at the predicted number and the symbol that has leapt
        velocity = (velocity + model.velocity(kind, x_0["size"] + (s - t) * velocity)) / 2
    torch.testing.assert_close(size, x_0["size"] + (s - t) * velocity, rtol=0, atol=1e-12)
    if method != "adaptive":
        assert len(model.seen) == (2 if method == "heun" else 1)
        assert all(torch.equal(model.seen[0][0][name], x_0[name]) for name in x_0)


@every_order
@pytest.mark.parametrize("method", ON_GRIDS)
def test_samplers__every_field_moves_over_its_own_interval(order: str, method: str) -> None:
    """A symbol from 0.3 to 0.6 and a number from 0.1 to 0.2, which is its velocity times 0.1."""
    model, x_0 = coupled(order, True), start()
    x = simulate(model, x_0, {"size": [0.1, 0.2], "kind": [0.3, 0.6]}, rng(1), method)
    columns = {name: model.seen[0][1][:, i] for i, name in enumerate(ORDERS[order])}
    assert float(columns["kind"][0]) == 0.3
    assert float(columns["size"][0]) == 0.1
    leapt = (x_0["kind"] == MASK) & (x["kind"] != MASK)
    assert abs(int(leapt.sum()) - 300 * 3 / 7) < 4.5 * math.sqrt(300 * 12 / 49)
    velocity = model.velocity(x_0["kind"], x_0["size"])
    if method == "heun":
        velocity = (velocity + model.velocity(x["kind"], x_0["size"] + 0.1 * velocity)) / 2
        assert {float(model.seen[1][1][0, i]) for i in range(2)} == {0.2, 0.6}
    torch.testing.assert_close(x["size"], x_0["size"] + 0.1 * velocity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ON_GRIDS)
@pytest.mark.parametrize("still", ["kind", "size"])
def test_samplers__a_field_whose_time_stands_still_does_not_move(method: str, still: str) -> None:
    model, x_0 = coupled(independent=True), start()
    x = simulate(
        model, x_0, {name: [0.3, 0.3, 0.3] if name == still else [0.3, 0.4, 0.5] for name in x_0}, rng(1), method
    )
    assert torch.equal(x[still], x_0[still])
    other = "size" if still == "kind" else "kind"
    assert not torch.equal(x[other], x_0[other])


def test_heun__is_of_second_order_while_another_field_is_observed() -> None:
    """A symbol at its time 1 ends no step of the numbers: twice the steps, a quarter of a flow's error, within 15 %."""
    law = Mixed(KIND_OF_THREE, SIZE, independent=True)
    x_0 = {"kind": torch.zeros(101, 1).long(), "size": torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]}
    exact = law.sizes_given(0, 1.0, 0.9)
    errors = []
    for steps in (32, 64):
        s = torch.linspace(0, 0.9, steps + 1, dtype=torch.float64)
        x = simulate(law.model, x_0, {"kind": torch.ones_like(s), "size": s}, rng(), "heun")
        errors.append(float((exact(x["size"][:, 0]) - torch.special.ndtr(x_0["size"][:, 0])).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


# ---- longer fields: what is fixed, and what is counted


def longer(numbers_too: bool = True, kind: Any = None) -> ExactProductModel:
    """Five data points of three symbols, two symbols, and two numbers."""
    data = {
        "a": torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1], [0, 0, 0], [2, 1, 1]]),
        "b": torch.tensor([[0, 1]] * 3 + [[1, 1]] * 2),
    }
    paths: dict[str, Any] = {"a": kind or MaskedPath(4), "b": MaskedPath(3)}
    std = {}
    if numbers_too:
        data["c"] = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2, 1)
        paths["c"], std = GaussianPath({"flow": 0.5, "jump": 0.5}), {"c": 0.2}
    return ExactProductModel(ProductPath(paths), data, std)


def prior(model: ExactProductModel, n: int) -> dict[str, Tensor]:
    shapes = {"a": (n, 3), "b": (n, 2), "c": (n, 2, 1)}
    x = model.path.prior({name: shapes[name] for name in model.path.factors}, rng(1))
    return {name: state.double() if state.is_floating_point() else state for name, state in x.items()}


GRID = torch.linspace(0, 1, 21, dtype=torch.float64)


@every_method
@pytest.mark.parametrize("kind", [None, UniformPath(3)], ids=["masked", "uniform"])
def test_samplers__fixed_entries_stay_to_the_bit(method: str, kind: Any) -> None:
    """Entries of every field, of some rows all; what is not named is free."""
    model = longer(kind=kind)
    x_0 = prior(model, 60)
    x_0["a"][:, 1] = 2
    fixed = {"a": torch.zeros(60, 3).bool(), "c": torch.zeros(60, 2, 1).bool()}
    fixed["a"][:, 1], fixed["c"][:, 0], fixed["c"][:20] = True, True, True
    x = simulate(model, x_0, GRID, rng(2), method, fixed)
    for name, held in fixed.items():
        assert torch.equal(x[name][held], x_0[name][held])
        assert bool((x[name][~held] != x_0[name][~held]).any())
    assert torch.equal(x["c"][:20], x_0["c"][:20])
    if kind is None:
        assert int(x["a"].max()) < 3
    assert int(x["b"].max()) < 2
    assert bool(x["c"].isfinite().all())
    shown: list[dict[str, Tensor]] = []

    class Watched:
        path = model.path

        def generator(self, x: Any, *times: Any) -> Product:
            shown.append(x)
            return model.generator(x, *times)

    simulate(Watched(), x_0, GRID, rng(2), method, fixed)
    assert len(shown) >= len(GRID) - 1
    assert all(torch.equal(y[name][held], x_0[name][held]) for y in shown for name, held in fixed.items())
    everything = {name: torch.ones_like(state, dtype=torch.bool) for name, state in x_0.items()}
    result = simulate(model, x_0, GRID, rng(2), method, everything, return_info=True)
    assert all(torch.equal(result.x[name], x_0[name]) for name in x_0)
    assert not result.network_calls.any()
    assert not result.jumps.any()


@every_method
def test_samplers__calls_are_counted_where_a_symbol_has_an_event(method: str) -> None:
    """Every event of a mask is a jump: a sequence counts a call in the steps in which one of its fields jumps, no other."""
    model = longer(numbers_too=False)
    steps: Any = range(len(GRID))
    result = simulate(model, prior(model, 80), GRID, rng(3), method, save_at=steps, return_info=True)
    changed = torch.zeros(80, dtype=torch.long)
    jumps = torch.zeros(80, dtype=torch.long)
    for before, after in pairwise(result.states):
        moved = torch.cat([before[name] != after[name] for name in before], 1)
        changed, jumps = changed + moved.any(1), jumps + moved.sum(1)
    assert torch.equal(result.jumps, jumps)
    assert jumps.tolist() == [5] * 80
    if method == "adaptive":  # of several steps within one of the grid
        assert bool((result.network_calls >= changed).all())
        assert bool((result.network_calls <= jumps).all())
    else:
        assert torch.equal(result.network_calls, changed)
        assert int(result.network_calls.max()) < 20


@every_method
def test_samplers__with_numbers_every_evaluation_counts_once(method: str) -> None:
    class Counting:
        def __init__(self) -> None:
            self.exact, self.asked = longer(), 0
            self.path = self.exact.path

        def generator(self, *arguments: Any) -> Product:
            self.asked += 1
            return self.exact.generator(*arguments)

    model = Counting()
    result = simulate(model, prior(model.exact, 6), GRID, rng(4), method, return_info=True)
    if method == "adaptive":  # every sequence at its own pace
        assert model.asked / 2 < int(result.network_calls.max()) <= model.asked
    else:
        assert result.network_calls.tolist() == [model.asked] * 6
    expected = {"tau_leaping": 20, "euler": 20, "heun": 39}
    assert model.asked == expected.get(method, model.asked)
    held = {"c": torch.ones(6, 2, 1).bool()}  # numbers that do not move ask for nothing
    x_0 = prior(model.exact, 6)
    rest = simulate(model, x_0, GRID, rng(4), method, held, return_info=True)
    assert bool((rest.network_calls <= rest.jumps).all())


# ---- adaptive steps


@pytest.mark.parametrize(
    ("most", "tolerance", "first"), [(0.5, 0.04, 0.1), (4.0, 0.04, 0.2), (0.25, 0.04, 0.05), (4.0, 0.01, 0.1)]
)
def test_adaptive__a_sequence_goes_as_far_as_its_most_careful_field(
    most: float, tolerance: float, first: float
) -> None:
    """The first step from 0: √tolerance for numbers, and M/√(n E) = M/5 for the n = E = 5 masks of both fields together."""
    seen: list[Tensor] = []

    class Watched:
        exact = longer()
        path = exact.path

        def generator(self, x: Any, t: Tensor, t_next: Tensor | None = None) -> Product:
            seen.append(t)
            return self.exact.generator(x, t, t_next)

    sampler = Adaptive(most, tolerance)
    simulate(Watched(), prior(Watched.exact, 30), [0.0, 1.0], rng(5), sampler)
    assert seen[1].tolist() == pytest.approx([first] * 30, abs=1e-12)
    assert any(len(t.unique()) > 1 for t in seen)  # at a pace of their own
    moving = torch.stack(seen)
    later = moving[1:] > moving[:-1]
    arrived = moving[1:] == 0.0  # waiting for the others
    assert bool((later | arrived).all())


def test_adaptive__more_care_in_either_field_takes_more_steps() -> None:
    def calls(sampler: Sampler) -> float:
        model = longer()
        run = simulate(model, prior(model, 30), [0.0, 1.0], rng(6), sampler, return_info=True)
        return float(run.network_calls.double().mean())

    loose = calls(Adaptive(2.0, 0.05))
    assert calls(Adaptive(0.1, 0.05)) > 2 * loose
    assert calls(Adaptive(2.0, 0.0005)) > 2 * loose


def test_samplers__of_single_fields_and_correctors_are_refused_for_products() -> None:
    model = longer()
    x_0 = prior(model, 2)
    for name in SAMPLERS.keys() - set(samplers_for(model.path)):
        with pytest.raises(ValueError, match=rf"sampler='{name}'.*product.*adaptive, .*tau_leaping"):
            simulate(model, x_0, GRID, rng(), name)
    with pytest.raises(ValueError, match=r"DetailedBalance.*product"):
        simulate(model, x_0, GRID, rng(), corrector=DetailedBalance())


def test_simulate__arguments_that_do_not_fit_a_product_are_named() -> None:
    model, grids = longer(), {"a": GRID, "b": GRID, "c": GRID**2}
    x_0 = prior(model, 2)
    with pytest.raises(ValueError, match="the fields share one time"):
        simulate(model, x_0, grids, rng())
    assert simulate(model, x_0, dict.fromkeys(x_0, GRID), rng(1))["c"].isfinite().all()  # which are one
    with pytest.raises(ValueError, match=r"fixed.*\bd\b.*a, b, c"):
        simulate(model, x_0, GRID, rng(), fixed={"d": x_0["a"].bool()})
    with pytest.raises(ValueError, match=r"fixed\['a'\].*\(2, 2\).*\(2, 3\)"):
        simulate(model, x_0, GRID, rng(), fixed={"a": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="times must increase within"):
        simulate(model, x_0, {**grids, "b": GRID.flip(0)}, rng())
    with pytest.raises(ValueError, match=r"x_0.*a, b, c"):
        simulate(model, {"a": x_0["a"]}, GRID, rng())
    with pytest.raises(ValueError, match=r"times.*a, b; the fields are a, b, c"):
        simulate(model, x_0, {"a": GRID, "b": GRID}, rng())
    own = coupled(independent=True)
    with pytest.raises(ValueError, match=r"adaptive.*one grid"):
        simulate(own, start(), {"kind": [0.0, 1.0], "size": [0.1, 1.0]}, rng(), "adaptive")
    single = Mixed(KIND_OF_THREE, SIZE).model.fields["kind"]
    with pytest.raises(ValueError, match=r"x_0.*tensor.*MaskedPath.*dict of kind"):
        simulate(single, {"kind": torch.full((2, 1), 3)}, GRID, rng())


class Up(Sampler):
    """A sampler of one's own."""

    def step(self, chain: Any, x: Any, t: Any, t_next: Any) -> Any:
        return {**x, "size": x["size"] + 1}


def test_simulate__a_sampler_of_ones_own_and_on_step() -> None:
    """`on_step` sees the state and the times, of grids by field a row of them; and ends the run."""
    model, x_0, seen = coupled(independent=True), start(8), []

    def watch(x: Any, t: Any) -> bool:
        seen.append(t.tolist())
        return len(seen) == 2

    grids = {"kind": [0.1, 0.2, 0.3, 0.4], "size": [0.3, 0.3, 0.4, 0.6]}
    x = simulate(model, x_0, grids, rng(), Up(), on_step=watch)
    assert seen == [[0.2, 0.3], [0.3, 0.4]]
    torch.testing.assert_close(x["size"], x_0["size"] + 2, rtol=0, atol=1e-12)
    assert torch.equal(x["kind"], x_0["kind"])


def test_tau_leaping__schedule_of_each_field_is_its_own() -> None:
    """Masks are revealed with the probability of their own κ: 0.5 and 0.146 at t = 1/2 and 1/4 of sin²."""
    n, path = 4000, ProductPath(a=MaskedPath(3), b=MaskedPath(3, schedule=SquaredSineSchedule()))
    model = ExactProductModel(path, {name: torch.tensor([[0], [1]]) for name in ("a", "b")})
    x = simulate(model, path.prior({"a": (n, 1), "b": (n, 1)}), [0.0, 0.25], rng(7))
    for name, chance in (("a", 0.25), ("b", math.sin(math.pi / 8) ** 2)):
        share = float((x[name] < 2).double().mean())
        assert abs(share - chance) < 4.5 * math.sqrt(chance * (1 - chance) / n)
