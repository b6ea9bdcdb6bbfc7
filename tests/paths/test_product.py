"""Products of paths: their JSON, times, shapes, distributions by field, and the Kolmogorov forward equation of their
generators."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Bins,
    EuclideanMixturePath,
    ExactProductModel,
    GaussianPath,
    LinearSchedule,
    MaskedPath,
    MixturePath,
    Product,
    ProductPath,
    SquaredSineSchedule,
    UniformPath,
)
from gm_discrete.paths import Path
from tests.helpers.distributions import LEAST_P, SIGMAS
from tests.helpers.euclid import finer, kolmogorov, normal_cdf, numbers, panels, rng, times
from tests.helpers.symbol_and_number import KINDS, LAW, MEANS, Mixed

KIND, SIZE = MaskedPath(4), GaussianPath({"flow": 0.5, "diffusion": 0.5})
BINS = Bins(-4, 4)


def path(**options: Any) -> ProductPath:
    return ProductPath(kind=KIND, size=SIZE, **options)


# ---- JSON, names


@pytest.mark.parametrize("sort_keys", [False, True])
def test_product_path__round_trip_keeps_the_fields_and_their_order(sort_keys: bool) -> None:
    """JSON may sort keys, and heads, columns of times and positions come in the order of the fields."""
    factors = {"z": UniformPath(5), "b": GaussianPath({"jump": 0.5, "flow": 0.5}, bins=Bins(-2, 2, 8)), "a": KIND}
    original = ProductPath(factors, independent_times=True)
    again = Path.from_dict(json.loads(json.dumps(original.to_dict(), sort_keys=sort_keys)))
    assert isinstance(again, ProductPath)
    assert list(again.factors) == ["z", "b", "a"]
    assert again == original
    assert again.independent_times
    assert list(again.heads) == list(original.heads) == ["z:tokens", "b:belief", "a:tokens"]
    assert again != ProductPath(dict(reversed(factors.items())), independent_times=True)
    assert again != ProductPath(factors)
    assert "independent_times=True" in repr(again)


def test_product_path__factors_come_as_a_mapping_as_pairs_or_as_keywords() -> None:
    pairs = [("kind", KIND), ["size", SIZE.to_dict()]]
    assert ProductPath(pairs) == ProductPath(dict(pairs)) == ProductPath({"kind": KIND}, size=SIZE) == path()


@pytest.mark.parametrize("name", ["a.b", "a:b", "type", "factors", "independent_times", "100%2E"])
def test_product_path__any_name_of_a_field(name: str) -> None:
    product = ProductPath({name: KIND}, independent_times=True)
    assert Path.from_dict(json.loads(json.dumps(product.to_dict()))) == product
    assert list(product.fields) == [name]


@pytest.mark.parametrize("name", ["", 7])
def test_product_path__refuses_names_that_are_none(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(repr(name))):
        ProductPath({name: KIND})
    with pytest.raises(TypeError, match=r"independent_times=.*factors"):
        ProductPath(a=KIND, independent_times=KIND)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ({}, ValueError, "a product needs fields"),
        ({"a": 3}, TypeError, "'a'.*\\b3\\b"),
        ({"a": ProductPath(b=KIND)}, TypeError, "field 'a' has ProductPath.*of a single field"),
        ({"a": MixturePath(3, coupled=True)}, ValueError, "field 'a' has coupled=True"),
    ],
)
def test_product_path__names_what_cannot_be_a_factor(
    factors: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ProductPath(factors)


# ---- times


def test_product_path__times_are_by_field() -> None:
    t, columns = numbers(0.1, 0.7), torch.tensor([[0.1, 0.2], [0.7, 1.0]]).double()
    assert {name: time.tolist() for name, time in path().times(t).items()} == {"kind": [0.1, 0.7], "size": [0.1, 0.7]}
    own = path(independent_times=True)
    found = own.times(columns)
    assert torch.equal(found["kind"], columns[:, 0])
    assert torch.equal(found["size"], columns[:, 1])
    assert torch.equal(own.times(t)["size"], t)  # one time for all
    assert torch.equal(own.joined({"size": columns[:, 1], "kind": columns[:, 0]}), columns)  # whatever their order
    assert torch.equal(path().joined({"kind": t, "size": t.clone()}), t)


def test_product_path__names_times_that_do_not_fit() -> None:
    columns = torch.full((3, 2), 0.5).double()
    with pytest.raises(ValueError, match=r"\(3, 2\).*\[B\]"):
        path().times(columns)
    for wrong in (columns[:, :1], torch.zeros(3, 3), torch.zeros(3, 2, 1), torch.zeros(())):
        with pytest.raises(ValueError, match=r"this path takes \[B\] or \[B, 2\]"):
            path(independent_times=True).times(wrong)
    with pytest.raises(ValueError, match="the fields share one time: give one grid"):
        path().joined({"kind": numbers(0.1), "size": numbers(0.2)})


def test_product_path__latest_is_that_of_the_field_which_stops_first() -> None:
    stops = ProductPath(a=KIND, b=GaussianPath(stop=0.02), c=GaussianPath(stop=0.04))
    assert stops.latest == GaussianPath(stop=0.04).latest == 0.99
    assert ProductPath(a=KIND).latest == 1.0
    assert torch.equal(stops.time(numbers(0.3)), numbers(0.3))


# ---- distributions by field


def test_product_path__samples_have_the_distributions_of_their_fields() -> None:
    """At times of their own; given z the fields are independent, so that x^1 is no noisier where x^2 is."""
    n, schedule = 20_000, LinearSchedule()
    product = ProductPath(kind=UniformPath(4, schedule), size=GaussianPath(), independent_times=True)
    z = {"kind": torch.full((n, 1), 2), "size": torch.full((n, 1), 0.7)}
    x = product.sample(z, torch.tensor([[0.5, 0.8]]).double().expand(n, 2), rng(1))
    same = x["kind"] == 2
    chance = 0.5 + 0.5 / 4
    assert abs(float(same.double().mean()) - chance) < SIGMAS * math.sqrt(chance * (1 - chance) / n)
    for part in (x["size"], x["size"][same], x["size"][~same]):
        assert kolmogorov(part, lambda y: normal_cdf((y - 0.8 * 0.7) / 0.2))[1] > LEAST_P
    one = ProductPath(product.factors).sample(z, times(0.5, n), rng(1))
    assert kolmogorov(one["size"], lambda y: normal_cdf((y - 0.35) / 0.5))[1] > LEAST_P


def test_product_path__prior_is_that_of_each_field() -> None:
    shapes = {"kind": (5000, 3), "size": (5000, 2, 1)}
    x = path().prior(shapes, rng(2))
    assert list(x) == ["kind", "size"]
    assert bool((x["kind"] == 3).all())
    assert x["size"].shape == shapes["size"]
    assert kolmogorov(x["size"], normal_cdf)[1] > LEAST_P
    with pytest.raises(ValueError, match=r"shape .*kind, size.*kind"):
        path().prior({"kind": (5, 3)})


def test_product_path__scored_entries_are_marked_and_found_by_field() -> None:
    z = {"kind": torch.tensor([[0, 1], [2, 0]]), "size": torch.tensor([[[0.5]], [[-1.0]]])}
    scored = {"kind": torch.tensor([[True, False], [False, True]]), "size": torch.tensor([[[False]], [[True]]])}
    labels = path().mask_labels(z, scored)
    assert labels["kind"].tolist() == [[0, -100], [-100, 0]]
    assert labels["size"].flatten().isnan().tolist() == [True, False]
    found = path().loss_mask(labels)
    assert all(torch.equal(found[name], scored[name]) for name in z)
    assert path().fill_unscored({"kind": z["kind"], "size": 9 * z["size"]})["size"].abs().max() == 1.0  # the bins'


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(2, 1), "x .*kind, size.*Tensor"),
        ({"kind": torch.zeros(2, 1)}, "x .*kind, size.*kind"),
        ({"kind": 0, "size": 0, "more": 0}, "got kind, more, size"),
        ({"kind": torch.full((2, 1), 9), "size": torch.zeros(2, 1)}, r"x\['kind'\] holds ids from 9 to 9"),
        ({"kind": torch.zeros(2, 1).long(), "size": torch.full((2, 1), torch.nan)}, r"x\['size'\].*not finite"),
        ({"kind": torch.zeros(2, 1).long(), "size": torch.zeros(2).long()}, r"x\['size'\] must be a floating-point"),
        (
            {"kind": torch.zeros(3, 1).long(), "size": torch.zeros(2, 1)},
            r"x has fields of different batch sizes, kind 3, size 2",
        ),
    ],
)
def test_product_path__names_states_that_do_not_fit(state: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path().check(state, times(0.5, 2), "x")


def test_product_path__refuses_a_source() -> None:
    z = {"kind": torch.zeros(2, 1).long(), "size": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match="x_0 is given"):
        path().sample(z, times(0.5, 2), rng(), z)  # type: ignore[arg-type]


def test_product_path__units_heads_and_divergences_are_those_of_the_factors() -> None:
    t = torch.tensor([[0.2, 0.6]]).double()
    own = path(independent_times=True)
    units = own.units(t)
    assert units.keys() == {"kind:jump", "size:flow"}
    assert torch.equal(units["kind:jump"], KIND.units(t[:, 0])["jump"])
    assert torch.equal(units["size:flow"], SIZE.units(t[:, 1])["flow"])
    assert own.heads == {"kind:tokens": 4, "size:flow": 1}
    assert own.default_divergence == {"kind": "generalized_kl", "size": {"flow": "squared"}}


# ---- Kolmogorov forward equation: d/dt E f = E L f


FUNCTIONS = [
    lambda x: torch.sin(1.3 * x["size"][:, 0] + 0.4 + 0.7 * x["kind"][:, 0]),
    lambda x: torch.exp(-((x["size"][:, 0] - 0.3 * x["kind"][:, 0]) ** 2)) * (1 + (x["kind"][:, 0] == 1)),
    lambda x: (x["kind"][:, 0] == 2) * torch.cos(x["size"][:, 0]) + 0.5 * (x["kind"][:, 0] == 0),
]
"""Smooth and bounded in the number, and no sums of a function of each field."""


def grid(vocab: int, nodes: int = 60) -> tuple[dict[str, Tensor], Tensor]:
    """States of a symbol and a number, and the weights of a quadrature on them: panels of length 1/2 on [−9, 9]."""
    x, weight = panels(torch.linspace(-9, 9, 37).tolist(), nodes // 10)
    kind = torch.arange(vocab).repeat_interleave(len(x))[:, None]
    return {"kind": kind, "size": x.repeat(vocab)[:, None]}, weight.repeat(vocab)


def change(density: Any, x: dict[str, Tensor], weight: Tensor, t: float) -> Tensor:
    """d/dt E f of each of the functions, by forward differentiation of the density."""
    time = torch.tensor(t, dtype=torch.float64)
    slope = torch.func.jvp(density, (time,), (torch.ones_like(time),))[1]
    return torch.stack([(slope * weight * f(x)).sum() for f in FUNCTIONS])


def action(generator: Product, p: Tensor, x: dict[str, Tensor], weight: Tensor) -> Tensor:
    """E L f. States without probability have no posterior."""
    values = [torch.where(p > 0, p * generator.action(f, x), 0.0) for f in FUNCTIONS]
    return torch.stack([(value * weight).sum() for value in values])


KIND_PATHS = {
    "masked": MaskedPath(4, schedule=SquaredSineSchedule()),
    "uniform reversal": UniformPath(3),
    "uniform mixture": UniformPath(3, SquaredSineSchedule(), rates="mixture"),
}
every_kind = pytest.mark.parametrize("name", KIND_PATHS)


@every_kind
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_product_path__conditional_solves_its_kolmogorov_equation(name: str, k: int, t: float) -> None:
    """Of component k alone, whose number is known to be m_k: to rounding, as the integrands are analytic."""
    mixed = Mixed(KIND_PATHS[name], SIZE)
    x, weight = grid(mixed.vocab, 120)

    def density(time: Tensor) -> Tensor:
        alpha, sigma = SIZE.schedule.alpha(time), SIZE.schedule.sigma(time)
        w = (x["size"][:, 0] - alpha * MEANS[k]) / sigma
        return mixed.kinds(time)[k][x["kind"][:, 0]] * torch.exp(-w * w / 2) / math.sqrt(2 * math.pi) / sigma

    p = density(torch.tensor(t, dtype=torch.float64))
    assert float((p * weight).sum()) == pytest.approx(1, abs=1e-9)
    z = {"kind": KINDS[k].expand(len(p), 1), "size": MEANS[k].expand(len(p), 1)}
    expected = change(density, x, weight, t)
    torch.testing.assert_close(
        action(mixed.path.conditional(z, x, times(t, len(p))), p, x, weight), expected, rtol=0, atol=1e-8
    )
    assert float(expected.abs().max()) > 0.05


@every_kind
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_product_path__marginal_solves_its_kolmogorov_equation(name: str, t: float) -> None:
    """Each factor averaged over the posterior given both fields. Given its own field alone, it does not."""
    mixed = Mixed(KIND_PATHS[name], SIZE)
    x, weight = grid(mixed.vocab)
    density = lambda time: mixed.density(x["kind"][:, 0], x["size"][:, 0], time)  # noqa: E731
    p, expected = density(t), change(density, x, weight, t)
    assert float((p * weight).sum()) == pytest.approx(1, abs=1e-9)
    found = action(mixed.model.generator(x, times(t, len(p))), p, x, weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    alone = {field: model.generator(x[field], times(t, len(p))) for field, model in mixed.model.fields.items()}
    assert float((action(Product(alone), p, x, weight) - expected).abs().max()) > 1e-2


@every_kind
def test_product_path__each_factor_solves_its_own_equation_at_independent_times(name: str) -> None:
    """∂/∂t^m E f = E L^m f with the other times fixed: along any curve the rates times dt^m/ds carry the path."""
    mixed, t, s = Mixed(KIND_PATHS[name], SIZE, independent=True), 0.6, 0.3
    x, weight = grid(mixed.vocab)
    kind, size = x["kind"][:, 0], x["size"][:, 0]
    densities = {"kind": (lambda time: mixed.density(kind, size, time, s), t),
                 "size": (lambda time: mixed.density(kind, size, t, time), s)}  # fmt: skip
    p = mixed.density(kind, size, t, s)
    generator = mixed.model.generator(x, numbers(t, s).expand(len(p), 2))
    for field, (density, time) in densities.items():
        expected = change(density, x, weight, time)
        found = action(Product({field: generator.factors[field]}), p, x, weight)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
        assert float(expected.abs().max()) > 1e-2


@pytest.mark.slow
def test_product_path__marginal_with_jumps_solves_the_kolmogorov_equation() -> None:
    """Landings of 100 nodes: n^(−3/2) = 1e-3 of the landing's own change; the slopes are 0.02 to 0.5."""
    t, mixed = 0.6, Mixed(MaskedPath(4), GaussianPath({"flow": 0.3, "jump": 0.7}, bins=BINS))
    x, weight = grid(mixed.vocab, 20)
    density = lambda time: mixed.density(x["kind"][:, 0], x["size"][:, 0], time)  # noqa: E731
    p, expected = density(t), change(density, x, weight, t)
    generator = mixed.model.generator(x, times(t, len(p)))
    jumps = Product({**generator.factors, "size": finer(generator.factors["size"], 100)})
    torch.testing.assert_close(action(jumps, p, x, weight), expected, rtol=0, atol=1e-3)
    assert float(expected.abs().min()) > 0.02


def test_exact_product_model__two_discrete_fields_by_enumeration() -> None:
    """Of different paths and lengths, for a function without any structure, to rounding."""
    paths = {"a": UniformPath(3), "b": MaskedPath(3, schedule=SquaredSineSchedule())}
    product, t, s = ProductPath(paths, independent_times=True), 0.4, 0.7
    data = {"a": torch.tensor([[0], [1], [2], [1]]), "b": torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]])}
    model = ExactProductModel(product, data, weights=LAW)
    b = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    x = {"a": torch.arange(3).repeat_interleave(9)[:, None], "b": b.repeat(3, 1)}
    table = torch.rand(3, 3, 3, generator=rng(3), dtype=torch.float64)

    def f(x: dict[str, Tensor]) -> Tensor:
        return table[x["a"][:, 0], x["b"][:, 0], x["b"][:, 1]]

    def law(t: Tensor, s: Tensor) -> Tensor:
        total = torch.zeros(27, dtype=torch.float64)
        for k, weight in enumerate(LAW):
            noise = {"a": torch.full((3,), 1 / 3, dtype=torch.float64), "b": numbers(0, 0, 1)}
            share = weight
            for name, time in (("a", t), ("b", s)):
                kappa = paths[name].schedule.kappa(time)
                for i in range(x[name].shape[1]):
                    here = x[name][:, i]
                    share = share * ((1 - kappa) * noise[name][here] + kappa * (here == data[name][k, i]))
            total = total + share
        return total

    now = tuple(numbers(t, s))
    p, generator = law(*now), model.generator(x, numbers(t, s).expand(27, 2))
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    for name, direction in (("a", (1.0, 0.0)), ("b", (0.0, 1.0))):
        slope = torch.func.jvp(law, now, tuple(numbers(*direction)))[1]
        acted = torch.where(p > 0, p * Product({name: generator.factors[name]}).action(f, x), 0.0)
        assert float((slope * f(x)).sum()) == pytest.approx(float(acted.sum()), abs=1e-12)
        assert abs(float(acted.sum())) > 1e-3
    # a short step of each field: the symbols' probabilities of the interval agree with their rates
    again = generator.factors["a"].posterior.over(times(t + 1e-6, 27))  # type: ignore[union-attr]
    torch.testing.assert_close(again.chance / 1e-6, generator.factors["a"].intensity, rtol=1e-4, atol=0)


def test_exact_product_model__generator_is_finite_at_an_impossible_state() -> None:
    """Steps of finite length may lead where p_t is 0: what is asked there must not be NaN, or all numbers would be."""
    product = ProductPath(a=MaskedPath(3), b=MaskedPath(3), size=SIZE)
    data = {"a": torch.tensor([[0], [1]]), "b": torch.tensor([[0], [1]]), "size": numbers(-1, 1)[:, None]}
    model = ExactProductModel(product, data, {"size": 0.2})
    x = {"a": torch.tensor([[0]]), "b": torch.tensor([[1]]), "size": torch.zeros(1, 1).double()}
    flow: Any = model.generator(x, numbers(0.5), numbers(0.6)).factors["size"]
    assert bool(flow.parts["flow"].velocity.isfinite().all())


def test_exact_product_model__refuses_other_kinds_of_fields() -> None:
    with pytest.raises(TypeError, match=r"field '.*' has .*Gaussian"):
        ExactProductModel(ProductPath(a=EuclideanMixturePath()), {"a": torch.zeros(2, 1)})


@pytest.mark.parametrize("factors", [[("a", MaskedPath(3)), ("a", MaskedPath(4))], {"a": MaskedPath(3)}])
def test_product_path__a_field_given_twice(factors: Any) -> None:
    with pytest.raises(ValueError, match="field 'a' is given twice"):
        ProductPath(factors, a=MaskedPath(4))
    with pytest.raises(ValueError, match="field 'a' is given twice"):
        ProductPath([*dict(factors).items()] * 2)
