import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.data.scalers import SCALERS, Categories, QuantileScaler, Scaler, StandardScaler, decimals

KINDS = list(SCALERS.values())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy(count: int = 5000) -> Tensor:
    """Prices: log-normal, whole numbers."""
    return torch.exp(6 + torch.randn(count, generator=rng(), dtype=torch.float64)).round()


@pytest.mark.parametrize("kind", KINDS)
@given(
    numbers=st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=200),
    digits=st.integers(-2, 4),
    bounded=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_scaler__round_trip_of_dequantised_values_is_exact(
    kind: type[Scaler], numbers: list[int], digits: int, bounded: bool, seed: int
) -> None:
    values = torch.tensor(numbers, dtype=torch.float64) / 10**digits if digits > 0 else torch.tensor(numbers).double()
    values = values if digits >= 0 else values * 10**-digits
    scaler = kind.fit(values, digits=digits, bounded=bounded)
    states = scaler.transform(values, rng(seed))
    assert states.dtype == torch.float32
    assert states.isfinite().all()
    assert torch.equal(scaler.inverse(states), values)
    assert torch.equal(scaler.inverse(scaler.transform(values)), values)
    assert (states.abs() <= scaler.reach * (1 + 1e-6)).all()
    rebuilt = Configurable.from_dict(json.loads(json.dumps(scaler.to_dict())))
    assert rebuilt == scaler
    assert isinstance(rebuilt, Scaler)
    assert torch.equal(rebuilt.transform(values), scaler.transform(values))


@pytest.mark.parametrize("kind", KINDS)
@given(numbers=st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=100))
@settings(max_examples=60, deadline=None)
def test_scaler__round_trip_without_digits_is_to_single_precision(kind: type[Scaler], numbers: list[int]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64) / 7
    spread = float(values.max() - values.min())
    if not spread:
        return
    scaler = kind.fit(values)
    states = scaler.transform(values, rng())
    assert torch.equal(states, scaler.transform(values))  # there is no unit to dequantise
    # 1e-6 of the range is some ten units in the last place of a float32.
    assert (scaler.inverse(states) - values).abs().max() <= 3e-6 * (spread + float(values.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_scaler__log_derivative_is_that_of_transform(kind: type[Scaler]) -> None:
    scaler = kind.fit(heavy(), digits=0)
    points = torch.linspace(50, 3000, 41, dtype=torch.float64) + 0.013  # between the quantiles, where there is a slope
    step = 1e-4
    slope = (scaler.forward(points + step) - scaler.forward(points - step)) / (2 * step)
    torch.testing.assert_close(scaler.log_derivative(points), slope.log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scaler__density_of_values_has_mass_one(kind: type[Scaler]) -> None:
    """∫ p(f(v)) f′(v) dv over a grid is the mass that p has between f of its ends."""
    scaler = kind.fit(heavy(), digits=0)
    grid = torch.linspace(20, 2000, 2_000_001, dtype=torch.float64)
    x = scaler.forward(grid)
    density = torch.exp(-(x**2) / 2 - math.log(2 * math.pi) / 2 + scaler.log_derivative(grid))
    mass = torch.special.ndtr(x[-1]) - torch.special.ndtr(x[0])
    assert float(torch.trapezoid(density, grid)) == pytest.approx(float(mass), abs=1e-5)


def test_quantile_scaler__a_spike_takes_its_share_of_the_probability() -> None:
    """4 % of the rows at 0.300, the others on a grid of 0.001 from 0.200 to 4.999."""
    others = torch.randint(200, 5000, (9600,), generator=rng()) / 1000.0
    carats = torch.cat([others.double(), torch.full((400,), 0.3, dtype=torch.float64)]).round(decimals=3)
    share = float((carats == 0.3).double().mean())
    for count, tolerance in ((1001, 2e-3), (20_000, 1e-4)):  # quantiles, a step at either end, and edges of every value
        scaler = QuantileScaler.fit(carats, digits=3, bounded=True, count=count)
        assert (scaler.probabilities is None) == (count == 1001)
        states = scaler.transform(carats, rng())
        assert torch.equal(scaler.inverse(states), carats)
        ends = torch.tensor([0.2995, 0.3005], dtype=torch.float64)
        low, high = torch.special.ndtr(scaler.forward(ends)).tolist()
        assert high - low == pytest.approx(share, abs=tolerance)
        # The least and the greatest of 400 uniform draws miss an end by 3 % with probability 5e-6.
        spike = torch.special.ndtr(states[-400:].double())
        assert low <= float(spike.min()) < low + 0.03 * share + tolerance
        assert high - 0.03 * share - tolerance < float(spike.max()) <= high + 1e-6
        # Kolmogorov's distance to the normal distribution: 10,000 draws exceed 0.023 with probability 5e-5.
        ordered = torch.special.ndtr(states.double()).sort().values
        assert float((ordered - (torch.arange(10_000) + 0.5) / 10_000).abs().max()) < 0.023


def test_quantile_scaler__has_no_mass_between_few_values() -> None:
    durations = torch.tensor([0.25] * 10 + [0.5] * 60 + [1.0] * 29 + [16.0] * 1)
    scaler = QuantileScaler.fit(durations, digits=3)
    drawn = scaler.inverse(torch.randn(100_000, generator=rng()))
    # Three gaps of 1e-6, and the tails beyond, which are clamped to the ends.
    assert (~torch.isin(drawn, durations.double())).float().mean() < 1e-4
    assert float((drawn == 0.5).double().mean()) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_scaler__bounds_hold(kind: type[Scaler]) -> None:
    values = heavy()
    inside = kind.fit(values, digits=0, bounded=True)
    assert (inside.low, inside.high) == (float(values.min()), float(values.max()))
    wild = inside.inverse(torch.tensor([-40.0, 40.0]))
    assert wild.tolist() == [inside.low, inside.high]
    beyond = inside.transform(torch.tensor([-1e9, 1e9]))
    assert float(beyond.abs().max()) == pytest.approx(inside.reach, rel=1e-6)
    given = kind.fit(values, digits=0, low=1.0, high=1e6)
    assert (given.low, given.high) == (1.0, 1e6)
    assert inside.reach <= given.reach < math.inf
    assert StandardScaler(0.0, 1.0, low=0.0).reach == math.inf
    uniform = inside.dequantize(torch.tensor([inside.low, inside.high]), torch.tensor([0.0, 0.999999]).double())
    assert inside.low - 0.5 <= float(uniform[0]) <= float(uniform[1]) <= inside.high + 0.5


def test_quantile_scaler__states_stay_within_reach() -> None:
    scaler = QuantileScaler.fit(heavy(), digits=0)
    assert scaler.reach == pytest.approx(3.2905, abs=1e-4)
    states = scaler.transform(torch.tensor([-1e9, 1e9]))
    assert states.tolist() == pytest.approx([-scaler.reach, scaler.reach], rel=1e-6)
    assert "1001 from" in repr(scaler)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], 0),
        ([0.3, 0.25], 2),
        ([0.1, 0.0001], 4),
        ([1 / 3], None),
        (np.array([0.1, 0.25], np.float32), 2),
        ([1e17, -0.0], 0),
    ],
)
def test_decimals__are_found(values: Any, expected: int | None) -> None:
    assert decimals(values) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_scaler__bad_values_are_named(kind: type[Scaler]) -> None:
    with pytest.raises(ValueError, match=r"values .*nan"):
        kind.fit([1.0, math.nan])
    with pytest.raises(ValueError, match="values "):
        kind.fit([])
    with pytest.raises(ValueError, match=r"values .*3.*digits"):
        kind.fit([3.0, 3.0])
    with pytest.raises(ValueError, match=r"values .*low=2"):
        kind.fit([1.0, 9.0], low=2)
    scaler = kind.fit([1.0, 4.0, 9.0])
    with pytest.raises(ValueError, match=r"values .*inf"):
        scaler.transform(torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match=r"x .*nan"):
        scaler.inverse(torch.tensor([math.nan]))


def test_scaler__bad_arguments_are_named() -> None:
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"std="):
            StandardScaler(0.0, std)
    with pytest.raises(TypeError, match=r"digits=1\.5"):
        StandardScaler(0.0, 1.0, digits=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"low=2 .*high=1"):
        StandardScaler(0.0, 1.0, low=2, high=1)
    with pytest.raises(ValueError, match="high=inf"):
        StandardScaler(0.0, 1.0, high=math.inf)
    with pytest.raises(ValueError, match=r"quantiles .*\[2\.0, 2\.0\]"):
        QuantileScaler([1.0, 2.0, 2.0])
    with pytest.raises(ValueError, match=r"quantiles .*1 values"):
        QuantileScaler([1.0])
    with pytest.raises(ValueError, match=r"probabilities=\[0\.0, 0\.5\]"):
        QuantileScaler([1.0, 2.0], [0.0, 0.5])
    with pytest.raises(ValueError, match="count=1"):
        QuantileScaler.fit([1.0, 2.0], count=1)


@given(st.lists(st.none() | st.text(max_size=3) | st.integers(-5, 5), min_size=1))
@settings(deadline=None)
def test_categories__round_trip(values: list[Any]) -> None:
    categories = Categories.fit(values)
    ids = categories.encode(values)
    assert ids.dtype == torch.long
    assert categories.decode(ids) == values
    assert len(categories) == len(set(values))
    assert Configurable.from_dict(json.loads(json.dumps(categories.to_dict()))) == categories


def test_categories__are_in_their_natural_order() -> None:
    assert Categories.fit(["b", None, "a", math.nan, 10, 9]).names == [9, 10, "a", "b", None]
    assert Categories.fit(np.array([True, False])).names == [False, True]
    assert Categories.fit(torch.tensor([3, 1])).names == [1, 3]


def test_categories__unseen_values_are_named() -> None:
    categories = Categories(["a", "b"])
    with pytest.raises(ValueError, match=r"values .*'c', None \(3 of 4\).*'a', 'b'"):
        categories.encode(["a", "c", None, "c"])
    with pytest.raises(ValueError, match=r"ids .*2.*2 categories"):
        categories.decode([2])
    with pytest.raises(ValueError, match=r"names .*'a'"):
        Categories(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"names .*\(1,\) \(tuple\)"):
        Categories([(1,)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="values "):
        Categories.fit([])
