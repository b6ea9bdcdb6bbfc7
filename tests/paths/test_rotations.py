"""`SO3Path`: distributions, the Kolmogorov equation on SO(3), generators at a time and over steps, and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from gm_discrete import GeodesicSO3Path, GMConfig, GMModel, Path, SO3Path, conditional_loss, quaternions, simulate
from gm_discrete.generators import Flow, Jump
from gm_discrete.paths.concentration import ExponentialConcentration, OddsConcentration
from gm_discrete.paths.exact_rotations import kolmogorov_residual
from tests.helpers.distributions import rng
from tests.helpers.euclid import kolmogorov, noise_of_ks
from tests.helpers.rotations import (
    ALL,
    BOTH,
    CENTERS,
    IDENTITY,
    angle_cdf,
    equal_rotations,
    exact,
    rotations,
    times,
)

PATHS: list[SO3Path] = [SO3Path(ALL, 4.0), SO3Path(ALL, ExponentialConcentration())]
NAN = math.nan


# ---- concentrations


@pytest.mark.parametrize("concentration", [OddsConcentration(), OddsConcentration(0.7), ExponentialConcentration()])
def test_concentration__grows_from_0_to_infinity_with_its_derivative(concentration: Any) -> None:
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    difference = (concentration.value(t + 1e-6) - concentration.value(t - 1e-6)) / 2e-6
    torch.testing.assert_close(concentration.derivative(t), difference, rtol=1e-6, atol=0)
    ends = concentration.value(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [0.0, math.inf]
    at = concentration.at(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert bool(at.k.isfinite().all() & at.slope.isfinite().all())


# ---- distributions


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.4])
def test_sample__has_the_distribution_of_the_path(path: SO3Path, t: float) -> None:
    z, other = rotations(1, seed=1)[0], rotations(1, seed=2)[0]
    x = path.sample(z.expand(4000, 1, 4), times(t, 4000), rng(3))
    k = max(float(path.concentration.value(torch.tensor(t).double())), 1e-9)
    for reference in (z, other):
        cdf = angle_cdf(k, z[None], torch.tensor([math.inf]), torch.ones(1).double(), reference)
        assert kolmogorov(quaternions.half_angle(x, reference), cdf)[0] < noise_of_ks(4000)


def test_sample__at_1_is_the_data() -> None:
    z = rotations(20, 3, dtype=torch.float32)
    assert equal_rotations(SO3Path().sample(z, torch.ones(20), rng()), z, 1e-5)


# ---- the Kolmogorov equation


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("t", [0.1, 0.25, 0.4])
def test_generators__solve_the_kolmogorov_equation(path: SO3Path, degree: int, t: float) -> None:
    """Flow and diffusion to the tables' error; jumps to that of the lattice over landings, 10⁻² in degree 4."""
    found = kolmogorov_residual(path, t, degree)
    assert found["flow"] < 1e-4
    assert found["diffusion"] < 1e-4
    assert found["jump"] < (2e-3 if degree == 2 else 1.2e-2)


class Wrong(SO3Path):
    """A path whose conditional generator is off by a factor."""

    part, factor = "flow", 1.0

    def conditional(self, *arguments: Any, **options: Any) -> Any:
        generator: Any = super().conditional(*arguments, **options)
        parts = dict(generator.parts)
        for name, part in parts.items():
            if isinstance(part, Flow) and name == self.part:
                parts[name] = replace(part, velocity=self.factor * part.velocity)
            if isinstance(part, Jump) and name == self.part:
                parts[name] = replace(part, intensity=self.factor * part.intensity)
        return replace(generator, parts=parts)


@pytest.mark.parametrize(("part", "factor"), [("flow", 0.9), ("jump", 1.1)])
def test_kolmogorov_residual__of_a_wrong_generator_is_its_error(part: str, factor: float) -> None:
    path = Wrong(ALL)
    path.part, path.factor = part, factor
    found, right = kolmogorov_residual(path, 0.5), kolmogorov_residual(SO3Path(ALL), 0.5)
    assert right[part] < 1e-3 < 0.02 < found[part]
    assert all(found[name] == right[name] for name in found if name != part)


@pytest.mark.parametrize("degree", [1, 3, 0, -2])
def test_kolmogorov_residual__odd_degree(degree: int) -> None:
    with pytest.raises(ValueError, match=f"degree={degree}"):
        kolmogorov_residual(SO3Path(), 0.5, degree)


# ---- generators


@pytest.mark.parametrize("t_next", [None, 0.6, 1.0])
def test_conditional__is_the_marginal_of_atoms(t_next: float | None) -> None:
    from gm_discrete.generators.rotation_belief import RotationMixture

    path, z, x = SO3Path(ALL), rotations(6, 2, seed=4), rotations(6, 2, seed=5)
    end = None if t_next is None else times(t_next, 6)
    rows = RotationMixture.atoms(z.reshape(-1, 4)).rows.view(6, 2, 6)
    a: Any = path.conditional(z, x, times(0.5, 6), end)
    b: Any = path.marginal(rows, x, times(0.5, 6), end)
    torch.testing.assert_close(a.parts["flow"].velocity, b.parts["flow"].velocity)
    torch.testing.assert_close(a.parts["flow"].mean, b.parts["flow"].mean)
    torch.testing.assert_close(a.parts["jump"].intensity, b.parts["jump"].intensity)
    torch.testing.assert_close(a.parts["jump"].probability, b.parts["jump"].probability)
    torch.testing.assert_close(a.parts["diffusion"].drift, b.parts["diffusion"].drift)


def test_conditional__flow_points_along_the_geodesic_and_reaches_the_data() -> None:
    path, z, x = SO3Path(), rotations(50, 1, seed=6), rotations(50, 1, seed=7)
    flow: Any = path.conditional(z, x, times(0.5, 50)).parts["flow"]
    torch.testing.assert_close((flow.velocity * x).sum(-1), torch.zeros(50, 1).double(), atol=1e-9, rtol=0)
    cosine = torch.cosine_similarity(flow.velocity, quaternions.towards(x, z), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(50, 1).double())
    last: Any = path.conditional(z, x, times(0.5, 50), times(1.0, 50)).parts["flow"]
    assert equal_rotations(quaternions.move(x, 0.5 * last.mean), z, 1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-6, math.pi - 1e-6, math.pi])
@pytest.mark.parametrize("t", [0.0, 0.5, 0.995])
def test_generators__in_float32_near_no_turn_and_half_a_turn(angle: float, t: float) -> None:
    path = SO3Path(ALL)
    z, x = IDENTITY.float()[None, None], quaternions.exp(torch.tensor([[[angle, 0.0, 0.0]]]))
    generator: Any = path.conditional(z, x, times(t, 1), times(min(1, t + 0.1), 1))
    for name in ("flow", "diffusion"):
        part = generator.parts[name]
        value = part.velocity if name == "flow" else part.drift
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all() & part.mean.isfinite().all())
    assert bool(generator.parts["jump"].intensity.isfinite().all())
    assert 0 <= float(generator.parts["jump"].probability) <= 1


def test_generators__are_those_of_minus_x() -> None:
    model, x = exact(SO3Path(BOTH)), rotations(20, 1, seed=8)
    a, b = (model.generator(state, times(0.6, 20), times(0.7, 20)).parts for state in (x, -x))
    torch.testing.assert_close(a["flow"].mean, -b["flow"].mean)  # pyright: ignore
    torch.testing.assert_close(a["jump"].probability, b["jump"].probability)  # pyright: ignore


def test_output__of_no_network_covers_all_rotations_evenly() -> None:
    from gm_discrete.generators.rotation_belief import RotationMixture

    path = SO3Path()
    rows = path.output("belief", torch.zeros(1, 48), torch.zeros(1, 4), torch.zeros(1))
    log_prob = RotationMixture.from_rows(rows).log_prob(rotations(500, 1, seed=9))
    assert float(log_prob.abs().max()) < 0.8


def test_turned__rotates_the_belief() -> None:
    from gm_discrete.generators.rotation_belief import RotationMixture
    from tests.helpers.rotations import mixture

    path, belief, by, z = SO3Path(num_components=3), mixture(5, 3), rotations(5, seed=10), rotations(5, seed=11)
    turned = RotationMixture.from_rows(path.turned("belief", belief.rows, by))
    torch.testing.assert_close(turned.log_prob(quaternions.multiply(by, z)), belief.log_prob(z))


# ---- JSON, names


@pytest.mark.parametrize(
    "path",
    [SO3Path(), SO3Path(ALL, 3.0, 5, 0.5, 0.01), SO3Path({"flow": [1, 0], "jump": [0, 1]}, ExponentialConcentration(50, 2)),
     GeodesicSO3Path(), GeodesicSO3Path(0.01)], ids=repr,
)  # fmt: skip
def test_paths__come_back_from_json(path: Path) -> None:
    again = Path.from_dict(json.loads(json.dumps(path.to_dict(), sort_keys=True)))
    assert again == path
    assert repr(again) == repr(path)


# ---- bad input


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: SO3Path({"walk": 1.0}), "walk"),
        (lambda: SO3Path({"flow": 0.5, "jump": 0.6}), r"'jump': 0\.6.*sum 1"),
        (lambda: SO3Path({"flow": [1, 0], "jump": [0, 0.5]}), "sum 1"),
        (lambda: SO3Path({}), r"generators=\{\}"),
        (lambda: SO3Path(concentration=0.0), "concentration=0"),
        (lambda: SO3Path(concentration=-1.0), "concentration=-1"),
        (lambda: SO3Path(concentration=NAN), "concentration=nan"),
        (lambda: ExponentialConcentration(200, 100), "power=100"),
        (lambda: SO3Path(num_components=0), "num_components=0"),
        (lambda: SO3Path(noise=-1.0), "noise=-1"),
        (lambda: SO3Path(stop=0.0), "stop=0"),
        (lambda: GeodesicSO3Path(stop=0.7), "stop=0.7"),
        (lambda: SO3Path(concentration="nothing"), "nothing"),  # pyright: ignore
        (lambda: SO3Path(ALL).reweighted({"flow": 0.5}), "sum 1"),
    ],
)
def test_path__refuses_arguments_by_name_and_value(make: Callable[[], Any], found: str) -> None:
    with pytest.raises((ValueError, TypeError), match=found):
        make()


REFLECTION, SCALED = torch.diag(torch.tensor([1.0, 1.0, -1.0])), 1.1 * torch.eye(3)
BAD: list[tuple[Any, str]] = [
    (torch.zeros(2, 3, 4), r"quaternion of length 0 at \[0, 0\]"),
    (2 * rotations(2, 3), "length 2 at"),
    (REFLECTION.expand(2, 3, 3, 3), r"no rotation at \[0, 0\]"),
    (SCALED.expand(2, 3, 3, 3), r"no rotation at \[0, 0\]"),
    (torch.full((2, 3, 4), NAN), "not finite"),
    (torch.full((2, 3, 3, 3), NAN), "not finite"),
    (rotations(2, 3)[..., :3], r"shape \(2, 3, 3\)"),
    (rotations(3), r"shape \(3, 4\)"),
    (rotations(2, 3, 2), r"shape \(2, 3, 2, 4\)"),
    (torch.zeros(2, 3, 4, dtype=torch.long), "int64"),
]


@pytest.mark.parametrize(("value", "found"), BAD)
def test_simulate_and_loss__refuse_what_are_no_rotations(value: Any, found: str) -> None:
    model = exact(SO3Path())
    with pytest.raises(ValueError, match=f"^x_0.*{found}"):
        simulate(model, value, [0.0, 1.0])
    with pytest.raises(ValueError, match=f"^z.*{found}"):
        conditional_loss(model, value)


def test_sample__names_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"^z .*length 0"):
        SO3Path().sample(torch.zeros(1, 1, 4), torch.ones(1))
    with pytest.raises(ValueError, match="diverge at t = 1"):
        SO3Path().conditional(rotations(1, 1), rotations(1, 1), torch.ones(1))
    with pytest.raises(ValueError, match="x_0"):
        SO3Path().sample(rotations(1, 1), torch.ones(1), x_0=rotations(1, 1))


def test_config__refuses_images_of_rotations_and_other_divergences() -> None:
    with pytest.raises(ValueError, match="image_shape"):
        GMConfig(path=SO3Path(), image_shape=[4, 2, 2])
    for bad in ({"belief": "squared"}, {"walk": "squared"}, "cross_entropy", {"flow": "squared"}):
        with pytest.raises(ValueError, match="divergence"):
            GMConfig(path=SO3Path(), divergence=bad)
    with pytest.raises(ValueError, match="divergence='cross_entropy'"):
        conditional_loss(exact(SO3Path(BOTH)), rotations(2, 1), divergence={"jump": "cross_entropy"})


def test_generate__refuses_dormand_prince() -> None:
    model = GMModel(
        GMConfig(path=SO3Path(), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=2)
    )
    with pytest.raises(ValueError, match="dopri5"):
        model.generate(batch_size=1, num_steps=2, sampler="dopri5")


def test_centers__are_checked() -> None:
    from gm_discrete import ExactRotationModel

    with pytest.raises(ValueError, match=r"^concentration="):
        ExactRotationModel(SO3Path(), CENTERS, -1.0)
    with pytest.raises(ValueError, match=r"^weights="):
        ExactRotationModel(SO3Path(), CENTERS, 1.0, torch.ones(3))
    with pytest.raises(ValueError, match=r"^centers"):
        ExactRotationModel(SO3Path(), 2 * CENTERS)
    with pytest.raises(TypeError, match="SO3Path"):
        ExactRotationModel(GeodesicSO3Path(), CENTERS)  # pyright: ignore[reportArgumentType]
