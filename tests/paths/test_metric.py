"""p_t(x|z) ∝ p0(x) e^{−β(t) d(x, z)}: distances and configs, distributions from end to end, losses, and the cost of
many symbols."""

import base64
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    ExponentialSchedule,
    FinitePath,
    GMConfig,
    GMModel,
    LinearSchedule,
    MaskedPath,
    MetricPath,
    PowerSchedule,
    ProductPath,
    SquaredSineSchedule,
    bregman,
    conditional_loss,
    likelihood_bound,
    simulate,
)
from gm_discrete.generators.kernels import Dirac
from gm_discrete.paths import Path
from tests.generators.test_transport import CPU, DISTANCE
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import LEAST_P, chi_square, kappa_nodes

PRIOR = [0.1, 0.2, 0.3, 0.4]
ROWS = [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [-1.0, 0.5]]
SCHEDULES = [LinearSchedule(), PowerSchedule(3), CosineSchedule(), SquaredSineSchedule(), ExponentialSchedule(2)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name)

PATHS: dict[str, MetricPath] = {
    "distance": MetricPath(4, distance=DISTANCE, prior=PRIOR, schedule=CosineSchedule()),
    "uniform prior": MetricPath(4, distance=DISTANCE, c=0.3),
    "embeddings": MetricPath(4, embeddings=ROWS, c=0.5, a=2),
    "normalised": MetricPath(4, embeddings=ROWS, normalize=True, power=1.0, prior=PRIOR, schedule=PowerSchedule(2)),
}
every_path = pytest.mark.parametrize("name", PATHS)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(name: str, length: int = 2) -> ExactModel:
    """All sequences, with uneven weights."""
    data = torch.cartesian_prod(*[torch.arange(4)] * length).view(-1, length)
    return ExactModel(PATHS[name], data, torch.rand(len(data), generator=rng(1)) ** 3)


# ---- distances


def test_metric_path__distance_is_from_x_to_z() -> None:
    """`distance[x][z]` = d(x, z), which need not be symmetric: d(0, 1) = 1 and d(1, 0) = 1.5."""
    path = MetricPath(4, distance=DISTANCE)
    rows = path.distances(torch.tensor([1, 0]))  # of z = 1 and z = 0, from every x
    assert rows.tolist() == [[1, 0, 3, 1], [0, 1.5, 2, 3]]
    evidence = path.log_evidence(torch.tensor([0, 1]), times(0.5, 2))  # of x = 0 and x = 1, for every z
    assert evidence.tolist() == [[0, -1, -2.5, -4], [-1.5, 0, -1, -2]]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_metric_path__embeddings_are_equivalent_to_their_distances(normalize: bool, power: float) -> None:
    """d = ‖e_x − e_z‖^power, of unit vectors if normalised: by loops, and as the path of that matrix."""
    path = MetricPath(4, embeddings=ROWS, normalize=normalize, power=power)
    rows = [[v / (math.hypot(*row) if normalize else 1) for v in row] for row in ROWS]
    expected = torch.tensor([[math.dist(a, b) ** power for a in rows] for b in rows], dtype=torch.float64)
    z = torch.arange(4)
    torch.testing.assert_close(path.distances(z), expected, rtol=1e-12, atol=1e-14)
    assert path.distances(z).diagonal().tolist() == [0.0] * 4
    same = MetricPath(4, distance=expected.T)
    t = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.table(t), same.table(t), rtol=0, atol=1e-12)
    torch.testing.assert_close(path.log_evidence(z, t), same.log_evidence(z, t), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_metric_path__distances_do_not_depend_on_where_the_embeddings_lie(power: float, offset: float) -> None:
    """Moved by m, they keep all but what e + m has already lost to rounding, m · 1e-16 of ‖e_x − e_z‖."""
    here, there = (
        MetricPath(4, embeddings=torch.tensor(ROWS, dtype=torch.float64) + m, power=power) for m in (0, offset)
    )
    z = torch.arange(4)
    torch.testing.assert_close(there.distances(z), here.distances(z), rtol=1e-14 * offset, atol=0)
    x = torch.arange(4)[None]
    reach = there.intensity(x, times(0.5, 1))[0] / there.beta_derivative(times(0.5, 1))
    assert bool((there.distances(z).amax(0) <= reach * (1 + 1e-9)).all())


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_metric_path__distinguishes_neighbours_in_float32(power: float) -> None:
    """Embeddings that differ in the last bit are at some distance, although |a|² + |b|² − 2ab is nothing but rounding:
    d > 0, no more than the bound on it, and at t = 1 every token is its data symbol."""
    for seed in range(20):
        rows = torch.randn(6, 7, generator=rng(seed))
        rows[3] = rows[1]
        rows[3, 0] = torch.nextafter(rows[1, 0], torch.tensor(torch.inf))
        path = MetricPath(6, embeddings=rows, power=power)
        d = path.distances(torch.arange(6))
        assert float((d + torch.eye(6)).min()) > 0
        assert torch.equal(path.table(times(1.0, 1))[0], torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_metric_path__refuses_two_symbols_with_one_embedding(seed: int, power: float) -> None:
    """Whatever the rounding of |a|² + |b|² − 2ab: such symbols would never be told apart."""
    rows = torch.randn(6, 7, generator=rng(seed), dtype=torch.float64)
    rows[3] = rows[1]
    with pytest.raises(ValueError, match=r"embeddings.*row"):
        MetricPath(6, embeddings=rows, power=power)


def test_metric_path__normalize_is_for_embeddings() -> None:
    """A matrix of distances is taken as it is, or the request is refused; it is not changed in silence."""
    try:
        path = MetricPath(4, distance=DISTANCE, normalize=True)
    except ValueError:
        return
    assert torch.equal(path.distances(torch.arange(4)).T, torch.tensor(DISTANCE, dtype=torch.float64))


# ---- configs and errors


def from_config(path: MetricPath) -> MetricPath:
    """The path of `to_dict` after a round trip through JSON, with its table loaded beside it."""
    copy = Path.from_dict(json.loads(json.dumps(path.to_dict())))
    assert isinstance(copy, MetricPath)
    copy.load_tables(path.tables())
    return copy


@every_path
@every_schedule
def test_metric_path__travels_as_json_and_a_table(name: str, schedule: Any) -> None:
    given = PATHS[name]
    path = Path.from_dict(given.to_dict() | {"schedule": schedule.to_dict()})
    path.load_tables(given.tables())
    copy = from_config(path)
    assert copy == path
    assert hash(copy) == hash(path)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.equal(copy.table(t), path.table(t))
    x = torch.arange(4)[None]
    assert torch.equal(copy.intensity(x, times(0.3, 1)), path.intensity(x, times(0.3, 1)))
    assert "MetricPath(vocab_size=4" in repr(path)


@pytest.mark.parametrize(("name", "columns"), [("distance", 300), ("embeddings", 40)])
def test_metric_path__json_holds_only_the_shape_of_its_table(name: str, columns: int) -> None:
    rows = torch.rand(300, columns, generator=rng(), dtype=torch.float64) + 0.1
    if name == "distance":
        rows.fill_diagonal_(0)
    path = MetricPath(300, **{name: rows})
    config = path.to_dict()
    assert config[name] == {"shape": [300, columns]}
    assert len(json.dumps(config)) < 400
    assert path.tables().keys() == path.table_shapes().keys() == {name}
    assert path.tables()[name].dtype == (torch.float64 if name == "distance" else torch.float32)
    assert path.table_shapes()[name] == [300, columns]
    copy, z = from_config(path), torch.tensor([0, 17, 299])
    assert torch.equal(copy.distances(z), path.distances(z))
    if name == "distance":
        assert torch.equal(copy.distances(z), rows.T[z])
    assert MetricPath(300, **{name: rows + 0.01 * rows.square()}) != path


@every_path
def test_metric_path__without_its_table_has_shapes_but_no_probabilities(name: str) -> None:
    path = Path.from_dict(PATHS[name].to_dict())
    assert path.heads == {"tokens": 4}
    assert path.tables() == {}
    assert path.table_shapes() == PATHS[name].table_shapes()
    assert path != PATHS[name]
    assert path == Path.from_dict(PATHS[name].to_dict())
    assert "vocab_size=4" in repr(path)
    x, t = torch.arange(4)[None], times(0.5, 1)
    for use in (
        lambda: path.prior((1, 4)),
        lambda: path.sample(x, t),
        lambda: path.conditional(x, x, t),
        lambda: path.dominating_process(x),
        lambda: path.add_evidence(torch.zeros(4, 4), x[0], times(0.5, 4)),
    ):
        with pytest.raises(ValueError, match=r"only the shape \[4, \d\].*load_tables"):
            use()


@every_path
def test_metric_path__load_tables_replaces_all_that_was_computed_before(name: str) -> None:
    """Probabilities, rates and the dominating process are kept per device, and must be those of the new table."""
    other = "embeddings" if "embeddings" in PATHS[name].tables() else "distance"
    path, x, t = from_config(PATHS[name]), torch.arange(4)[None], times(0.5, 1)
    before = path.table(t), path.intensity(x, t), path.dominating_process(x).weight
    table = PATHS[name].tables()[other]
    path.load_tables({other: 2 * table + (0 if other == "distance" else torch.eye(4, 2))})
    for old, new in zip(before, (path.table(t), path.intensity(x, t), path.dominating_process(x).weight), strict=True):
        assert not torch.allclose(old, new)
    path.load_tables({other: table})
    assert torch.equal(path.table(t), before[0])
    assert path == PATHS[name]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, r"tables=\{\}.*embeddings.*\[4, 2\]"),
        ({"distance": torch.rand(4, 4)}, r"tables=\{'distance': \[4, 4\]\}.*embeddings"),
        ({"embeddings": torch.rand(4, 3)}, r"tables=\{'embeddings': \[4, 3\]\}.*\[4, 2\]"),
        ({"embeddings": torch.rand(4, 2), "more": torch.rand(1)}, "more"),
        ({"embeddings": torch.full((4, 2), math.nan)}, "embeddings must be finite"),
        ({"embeddings": torch.ones(4, 2)}, "embeddings.*row"),
    ],
)
def test_metric_path__refuses_tables_that_are_not_its_own(tables: dict[str, torch.Tensor], message: str) -> None:
    path = MetricPath(4, embeddings=ROWS)
    with pytest.raises(ValueError, match=message):
        path.load_tables(tables)
    assert path == MetricPath(4, embeddings=ROWS)  # unchanged


def test_metric_path__refuses_a_shape_that_is_not_its_own() -> None:
    for name, shape in (("distance", [4, 3]), ("embeddings", [3, 2]), ("embeddings", [4])):
        with pytest.raises(ValueError, match=f"{name} must have the shape"):
            MetricPath(4, **{name: {"shape": shape}})
    with pytest.raises(ValueError, match=r"embeddings.*rows"):
        MetricPath(4, embeddings={"rows": ROWS})


@pytest.mark.parametrize("name", ["distance", "embeddings"])
def test_metric_path__reads_tables_in_the_json_of_0_1(name: str) -> None:
    """A list of lists, or the bytes in base64: distances in float64, embeddings in float32."""
    rows = torch.tensor(DISTANCE if name == "distance" else ROWS, dtype=torch.float64) / 3
    path = MetricPath(4, **{name: rows})
    given = path.tables()[name]
    content = given.numpy().astype(f"<f{given.element_size()}")
    encoded = base64.b64encode(content.tobytes()).decode()
    forms = [given.tolist(), {"dtype": content.dtype.str, "shape": list(content.shape), "base64": encoded}]
    for form in forms:
        copy = Path.from_dict(json.loads(json.dumps(path.to_dict() | {name: form, "rates": "kinetic"})))
        assert copy == path
        assert torch.equal(copy.tables()[name], given)


def test_product_path__tables_are_named_by_field() -> None:
    path = ProductPath(word=MetricPath(4, embeddings=ROWS), other=MaskedPath(3), place=MetricPath(4, distance=DISTANCE))
    assert path.table_shapes() == {"word:embeddings": [4, 2], "place:distance": [4, 4]}
    copy = Path.from_dict(json.loads(json.dumps(path.to_dict())))
    assert copy.tables() == {}
    with pytest.raises(ValueError, match=r"tables=.*word:embeddings"):
        copy.load_tables({"word:embeddings": torch.tensor(ROWS)})
    copy.load_tables(path.tables())
    assert copy == path
    assert MaskedPath(3).tables() == MaskedPath(3).table_shapes() == {}
    MaskedPath(3).load_tables({})


def test_metric_path__lists_and_tensors_are_the_same_path() -> None:
    for name, rows in (("distance", DISTANCE), ("embeddings", ROWS)):
        paths = [MetricPath(4, **{name: v}) for v in (rows, tuple(map(tuple, rows)), torch.tensor(rows))]
        assert paths[0] == paths[1] == paths[2]
        json.dumps(paths[2].to_dict())
    uniform = MetricPath(4, distance=DISTANCE, prior=[0.25] * 4)
    assert torch.equal(uniform.table(times(0.4, 1)), MetricPath(4, distance=DISTANCE).table(times(0.4, 1)))


def test_metric_path__paths_that_differ_are_not_equal() -> None:
    ways = [{}, {"c": 2}, {"a": 2}, {"prior": PRIOR}, {"schedule": CosineSchedule()}]
    paths = [MetricPath(4, distance=DISTANCE, **way) for way in ways]
    paths += [MetricPath(4, embeddings=ROWS, **way) for way in ({}, {"normalize": True}, {"power": 1})]
    assert all(a != b for i, a in enumerate(paths) for b in paths[:i])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "distance .*embeddings"),
        ({"distance": DISTANCE, "embeddings": ROWS}, "one of them"),
        ({"distance": [[0, 1], [1, 0]]}, r"distance.*\[4, 4\].*\[2, 2\]"),
        ({"distance": torch.rand(4, 3)}, r"distance.*\[4, 4\].*\[4, 3\]"),
        ({"embeddings": torch.rand(3, 2)}, r"embeddings.*\[4, 2\].*\[3, 2\]"),
        ({"embeddings": torch.full((4, 2), math.nan)}, "embeddings must be finite"),
        ({"embeddings": torch.rand(4)}, "embeddings.*shape"),
        ({"distance": 1 - 0.5 * torch.eye(4)}, "distance.* 0 "),
        ({"distance": torch.zeros(4, 4)}, "positive between two symbols"),
        ({"distance": torch.eye(4) - 1}, "positive between two symbols"),
        ({"embeddings": [[0.0, 0], [1, 0], [2, 2], [3, 1]], "normalize": True}, "a row of length 0"),
        ({"embeddings": ROWS, "power": 0}, "power=0 must be"),
        ({"embeddings": ROWS, "power": math.inf}, "power=inf must be"),
        ({"distance": DISTANCE, "c": -1.0}, "c=-1.0 must be"),
        ({"distance": DISTANCE, "a": math.nan}, "a=nan must be"),
        (
            {"distance": DISTANCE, "prior": [0.5, 0.5, 0, 0]},
            "prior.*vocab_size=4",
        ),
        ({"distance": DISTANCE, "prior": [1.0]}, "prior must hold vocab_size=4"),
        ({"distance": DISTANCE, "prior": [0.5] * 4}, "of sum 1"),
        ({"distance": DISTANCE, "rates": "mixture"}, "rates='mixture' must be 'kinetic'"),
        ({"distance": DISTANCE, "rates": "positive_part"}, "rates='positive_part'"),
        ({"embeddings": [[0.0, 1], [1], [2, 2], [3, 1]]}, "embeddings"),
        ({"distance": [0.0, 1, 2, 3]}, "distance"),
    ],
)
def test_metric_path__names_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricPath(4, **arguments)


# ---- distributions


@every_path
@given(t=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)))
@settings(max_examples=20)
def test_metric_path__probs_are_the_tilted_prior(name: str, t: float) -> None:
    """p0(x) e^{−β d}/Z by loops, β = c (κ/(1 − κ))^a; at t = 0 the prior and at t = 1 the data symbol, to the last bit."""
    path = PATHS[name]
    z = torch.arange(4)
    rows = path.probs(z, times(t, 4))
    kappa = float(path.schedule.kappa(t))
    prior = path._prior or [0.25] * 4
    if t == 1:
        assert torch.equal(rows, torch.eye(4, dtype=torch.float64))
    elif kappa < 1 - 1e-6:
        beta = path.c * (kappa / (1 - kappa)) ** path.a
        d = path.distances(z)
        for k in range(4):
            weights = [p * math.exp(-beta * float(v)) for p, v in zip(prior, d[k], strict=True)]
            expected = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
            torch.testing.assert_close(rows[k], expected, rtol=1e-6, atol=1e-13)
    single = path.probs(z, times(t, 4).float())
    assert bool(single.isfinite().all())
    if t in (0, 1):
        assert torch.equal(single, rows)


@every_schedule
@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_metric_path__beta_derivative_is_that_of_beta(schedule: Any, a: float) -> None:
    path = MetricPath(4, distance=DISTANCE, schedule=schedule, c=0.7, a=a)
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    slope = torch.func.jvp(path.beta, (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(path.beta_derivative(t), slope, rtol=1e-11, atol=0)
    assert float(path.beta(times(0.0, 1))) == 0
    assert float(path.beta(times(1.0, 1))) == math.inf


@every_path
@pytest.mark.parametrize("t", [0.0, 0.2, 0.9])
def test_metric_path__closed_derivative_is_that_of_probs(name: str, t: float) -> None:
    """−β' p (d − E_p d), against forward-mode differentiation of the distribution."""
    path = PATHS[name]
    z = torch.arange(4)
    slope = path.derivative(z, times(t, 4))
    torch.testing.assert_close(slope, FinitePath.derivative(path, z, times(t, 4)), rtol=1e-11, atol=1e-13)


@every_schedule
@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_metric_path__rate_at_the_start_is_not_nan(schedule: Any, a: float) -> None:
    """0, finite or +∞ (where an Euler step leaps instead), never 0/0."""
    path, x = MetricPath(4, distance=DISTANCE, schedule=schedule, a=a), torch.arange(4)[None]
    jump = path.marginal(torch.zeros(1, 4, 4), x, times(0.0, 1))
    assert not bool(jump.intensity.isnan().any())
    step = path.marginal(torch.zeros(1, 4, 4), x, times(0.0, 1), times(1.0, 1))
    assert float((step.probability - 1).abs().max()) == 0
    assert step.kernel.sample(rng(), torch.arange(4)).shape == (4,)


@pytest.mark.parametrize("schedule", [LinearSchedule(), PowerSchedule(2)], ids=repr)
@pytest.mark.parametrize("method", ["euler", "tau_leaping"])
def test_metric_path__infinite_or_undefined_rate_at_the_start_loses_no_jumps(schedule: Any, method: str) -> None:
    """a = 1/2: β' is infinite at t = 0, or ∞ · 0. The distribution at t = 0.5 after one step of a single token is p_0.5."""
    path = MetricPath(4, distance=DISTANCE, schedule=schedule, a=0.5)
    model = ExactModel(path, torch.arange(4)[:, None], torch.tensor([1.0, 2.0, 4.0, 8.0]))
    x = simulate(model, path.prior((20_000, 1), rng()), [0.0, 0.5], rng(1), method)
    assert chi_square(torch.bincount(x[:, 0], minlength=4), model.marginal(0.5)) > LEAST_P


@pytest.mark.slow
@every_path
@pytest.mark.parametrize("method", ["tau_leaping", "uniformization"])
def test_metric_path__simulated_single_tokens_have_the_distribution_p_t(name: str, method: str) -> None:
    """L = 1, where the step of a kinetic path is exact: at an intermediate time and at the end."""
    model = chain(name, 1)
    grid = [0.0, 0.5, 1.0] if method == "uniformization" else [0.0, 0.3, 0.5, 1.0]
    middle = len(grid) - 2
    n = 20_000 if method == "tau_leaping" else 4_000
    info = simulate(model, model.path.prior((n, 1), rng(5)), grid, rng(6), method, save_at=[middle], return_info=True)
    for x, t in ((info.states[0], grid[middle]), (info.x, 1.0)):
        assert chi_square(torch.bincount(x[:, 0], minlength=4), model.marginal(t)) > LEAST_P


# ---- losses


def expected_losses(model: ExactModel, logits: Tensor, t: float, kind: str, noise: float = 0.0) -> Tensor:
    """E_{z, x} D(F(x|z), F_θ(x)), summed over all z and x."""
    states, path = model.states(), model.path
    time = times(t, len(states))
    joint = model.likelihood(states, time) * model.weights
    predicted = path.marginal(logits, states, time)
    total = torch.zeros((), dtype=torch.float64)
    for z, weight in zip(model.data, joint.T, strict=True):
        loss = bregman.divergence(path.conditional(z.expand_as(states), states, time), predicted, states, kind=kind)
        total = total + (weight * loss.sum(1)).sum()
    return total


@every_path
@pytest.mark.parametrize("kind", ["generalized_kl", "cross_entropy"])
def test_metric_path__losses_are_minimal_at_the_exact_posterior(name: str, kind: str) -> None:
    """Every perturbation adds to the loss, and at second order: a hundredth of it for a tenth of the perturbation."""
    model, t = chain(name), 0.3
    exact = model.logits(model.states(), times(t, 16))
    least = float(expected_losses(model, exact, t, kind))
    for seed in range(3):
        noise = torch.randn(exact.shape, generator=rng(seed), dtype=torch.float64)
        more = [float(expected_losses(model, exact + size * noise, t, kind)) - least for size in (0.1, 0.01)]
        assert more[1] > 0
        assert more[0] / more[1] == pytest.approx(100, rel=0.15)


@every_path
def test_metric_path__conditional_and_marginal_loss_have_the_same_gradient(name: str) -> None:
    """Generator Matching, proposition 2, for the rates of metric paths. 2.5e-8 is what a series near u = 0 may cost."""
    model, t = chain(name), 0.3
    states = model.states()
    noise = torch.randn(16, 2, 4, generator=rng(2), dtype=torch.float64)
    exact = model.logits(states, times(t, 16))
    theta = (exact + noise).requires_grad_()
    marginal = model.path.marginal(exact, states, times(t, 16))
    values = bregman.divergence(marginal, model.path.marginal(theta, states, times(t, 16)), states).sum(1)
    losses = (model.marginal(t) * values).sum(), expected_losses(model, theta, t, "generalized_kl")
    first, second = (torch.autograd.grad(loss, theta)[0] for loss in losses)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    assert float(first.abs().max()) > 1e-4
    assert float(losses[1]) > float(losses[0]) > 0  # Jensen


@every_path
def test_metric_path__divergence_is_the_sum_over_the_rates(name: str) -> None:
    path = PATHS[name]
    z, t = torch.randint(4, (20, 3), generator=rng()), torch.rand(20, generator=rng(1)).double() * 0.8 + 0.1
    x = path.sample(z, t, rng(2))
    logits = torch.randn(20, 3, 4, generator=rng(3), dtype=torch.float64)
    target, predicted = path.conditional(z, x, t), path.marginal(logits, x, t)
    rate, rate_hat = (jump.rates(x).scatter(2, x[..., None], 0.0) for jump in (target, predicted))
    terms = torch.where(rate > 0, rate * (rate.clamp(min=1e-300) / rate_hat).log(), 0.0) - rate + rate_hat
    scale = float(target.intensity.max())
    values = bregman.divergence(target, predicted, x)
    torch.testing.assert_close(values, terms.nan_to_num(0.0).sum(2), rtol=1e-7, atol=1e-13 * scale)
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), z.flatten(), reduction="none").view_as(z)
    values = bregman.divergence(target, predicted, x, kind="cross_entropy")
    torch.testing.assert_close(values, entropy, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distance", "embeddings"])
def test_metric_path__bound_of_the_exact_posterior_lies_above_the_entropy_and_is_estimated_without_bias(
    name: str,
) -> None:
    """∫ E D dt over κ by quadrature: no less than the entropy, as of every Markov process, and what draws average to."""
    model = chain(name)
    entropy = float(-(model.weights * model.weights.log()).sum())
    bound = 0.0
    for kappa, weight in kappa_nodes(60):
        t = model.path.schedule.inverse(kappa)
        loss = expected_losses(model, model.logits(model.states(), t.expand(16)), float(t), "generalized_kl")
        bound += weight * float(loss / model.path.schedule.derivative(t))
    assert entropy < bound < 3 * entropy
    z = model.data[torch.multinomial(model.weights, 3000, replacement=True, generator=rng(3))]
    estimate = likelihood_bound(model, z, num_samples=4, rng=rng(4))
    nats = estimate.nats
    assert abs(float(nats.mean()) - bound) < 4.5 * float(nats.std()) / math.sqrt(len(nats))
    assert estimate.kind == "kinetic"


# ---- many symbols


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation made, views of shared memory not counted."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def test_metric_path__two_thousand_symbols_cost_rows_and_no_tables() -> None:
    """K = 2000, 48 tokens: sampling p_t, a training step and a simulated step make nothing larger than [n, K]."""
    K = 2000
    path = MetricPath(K, embeddings=torch.randn(K, 8, generator=rng()), normalize=True)
    config = GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = GMModel(config)
    z = torch.randint(K, (3, 16), generator=rng(1))
    with Largest() as most:
        loss = conditional_loss(model, z, rng=rng(2))
        loss.backward()
        simulate(model, z, [0.3, 0.6], rng(3))
        simulate(model, z, [0.6, 1.0], rng(3), "euler")
        path.dominating_process(z)
    assert math.isfinite(float(loss))
    assert 16 * K <= most.elements <= 48 * K


def test_metric_path__chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = MetricPath(30, embeddings=torch.randn(30, 3, generator=rng()))
    z, t = torch.randint(30, (4, 6), generator=rng(1)), torch.tensor([0.1, 0.3, 0.5, 0.9])
    logits = torch.randn(4, 6, 30, generator=rng(2))

    def everything() -> list[Tensor]:
        x = path.sample(z, t, rng(3))
        rows = logits.clone().requires_grad_()
        target, predicted = path.conditional(z, x, t), path.marginal(rows, x, t)
        losses = [bregman.divergence(target, predicted, x, kind=kind) for kind in ("generalized_kl", "cross_entropy")]
        step = path.marginal(logits, x, t, t + 0.1).kernel.sample(rng(4), torch.arange(24))
        return [x, step, *losses, *torch.autograd.grad(losses[0].sum() + losses[1].sum(), rows)]

    whole = everything()
    set_chunks(95, monkeypatch)
    for a, b in zip(whole, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32 logits, summed in other groups


def test_metric_path__model_adds_the_evidence_of_the_noisy_symbol() -> None:
    """The evidence alone, an untrained network's belief: −β d(x, z) + const, so that π is near x and sure as κ → 1."""
    path = MetricPath(4, embeddings=ROWS)
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).eval()
    x = torch.arange(4)[None]
    for t in (0.0, 0.5, 0.999999, 1.0):
        pi = model(input_ids=x, time=times(t, 1)).logits.softmax(-1)[0]
        expected = (-path.log_evidence(torch.arange(4), times(t, 4))).neg().softmax(1)
        torch.testing.assert_close(pi.double(), expected, rtol=1e-5, atol=1e-6)
    x, t = torch.zeros(1, 1, dtype=torch.long), times(0.4, 1)
    assert path.conditional(x, x, t).kernel.belief.device == CPU
    assert isinstance(path.conditional(x, x, t).kernel.belief, Dirac)
