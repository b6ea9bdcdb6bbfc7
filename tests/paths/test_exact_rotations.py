"""Exact models of rotations, alone and as a field of a product: their distributions, jointly with other fields."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import ExactProductModel, GaussianPath, MaskedPath, ProductPath, SO3Path, quaternions, simulate
from tests.helpers.distributions import LEAST_P, chi_square, rng
from tests.helpers.euclid import kolmogorov, noise_of_ks, normal_cdf
from tests.helpers.rotations import (
    BOTH,
    CENTERS,
    REFERENCES,
    SPREAD,
    WEIGHTS,
    angle_cdf,
    exact,
    grid,
    rotations,
    smooth_cdf,
    times,
)

SYMBOLS = torch.tensor([[0], [0], [1]])
PLACES = torch.tensor([[[-1.0, 0.0, 0.5]], [[1.0, 0.5, 0.0]], [[0.0, -1.0, 1.0]]], dtype=torch.float64)
STD = 0.3


def product(independent: bool = False) -> ExactProductModel:
    """Component k has a rotation, a translation and a symbol, which are independent given k."""
    path = ProductPath(
        rotation=SO3Path(BOTH), translation=GaussianPath(num_channels=3), residue=MaskedPath(3),
        independent_times=independent,
    )  # fmt: skip
    data = {"rotation": CENTERS, "translation": PLACES, "residue": SYMBOLS}
    return ExactProductModel(path, data, {"translation": STD}, WEIGHTS, {"rotation": SPREAD})


def start(model: ExactProductModel, number: int) -> dict[str, Tensor]:
    x = model.path.prior({"rotation": (number, 1, 4), "translation": (number, 1, 3), "residue": (number, 1)}, rng(1))
    return {name: value.double() if value.is_floating_point() else value for name, value in x.items()}


def test_sample__has_the_distribution_of_the_data() -> None:
    z = exact(SO3Path()).sample(4000, rng(1))[:, 0]
    for reference in REFERENCES:
        cdf = smooth_cdf(SO3Path(), 1.0, reference)
        assert kolmogorov(quaternions.half_angle(z, reference), cdf)[0] < noise_of_ks(4000)


def test_evidence__is_the_distribution_of_the_noisy_data() -> None:
    """Its integral is 1, and its mean of an angle is that of the series of harmonics."""
    model, x = exact(SO3Path()), grid(4000)[:, None]
    found = (model.weights.log() + model.log_evidence(x, times(0.5, 4000))).logsumexp(1).exp()
    assert float(found.mean()) == pytest.approx(1, abs=2e-3)
    alpha = quaternions.half_angle(x[:, 0], REFERENCES[2])
    below = (found * (alpha < 0.8)).mean()
    assert float(below) == pytest.approx(
        float(smooth_cdf(model.path, 0.5, REFERENCES[2])(torch.tensor([0.8]))), abs=5e-3
    )


def test_generator__of_atoms_and_of_a_mixture_of_them_by_hand() -> None:
    """The velocity is the mean of conditional ones with the weights of Bayes' rule."""
    model, x, t = exact(SO3Path(), smooth=False), rotations(10, 1, seed=2), times(0.4, 10)
    k = model.path.at(t).k
    log_weights = WEIGHTS.log() + torch.stack(
        [(k * (x[:, 0] * m).sum(1)).cosh().log() for m in CENTERS[:, 0]], 1
    )  # log cosh(k x·m), up to Z(k)
    weights = log_weights.softmax(1)
    parts: list[Any] = [model.path.conditional(m.expand(10, 1, 4), x, t).parts["flow"] for m in CENTERS]
    expected = sum(weights[:, j, None, None] * parts[j].velocity for j in range(3))
    flow: Any = model.generator(x, t).parts["flow"]
    torch.testing.assert_close(flow.velocity, expected, rtol=1e-4, atol=1e-5)


def given_kind(t: float, kind: int) -> Tensor:
    """Posterior weights of the components given the symbol (2 is the mask)."""
    hidden = 1 - t
    likelihood = torch.where(SYMBOLS[:, 0] == kind, 1 - hidden, 0.0) if kind < 2 else torch.full((3,), hidden)
    weight = WEIGHTS * likelihood
    return weight / weight.sum()


def test_product__has_the_joint_distribution_before_the_end_and_at_it() -> None:
    """Symbols, and given each symbol the angle from a rotation and a coordinate of the translation."""
    model, number, t = product(), 1500, 0.5
    states = simulate(
        model, start(model, number), torch.linspace(0, 1, 33).double(), rng(2), return_info=True, save_at=[16, -1]
    ).states
    for x, time in zip(states, (t, 1.0), strict=True):
        kinds = torch.stack([(WEIGHTS * torch.where(SYMBOLS[:, 0] == k, time, 0.0)).sum() for k in range(2)])
        counts = torch.bincount(x["residue"][:, 0], minlength=3)
        assert chi_square(counts, torch.cat([kinds, (1 - kinds.sum())[None]])) > LEAST_P
        k = math.inf if time == 1 else float(SO3Path().concentration.value(torch.tensor(time).double()))
        for kind in range(3 if time < 1 else 2):
            rows, weight = x["residue"][:, 0] == kind, given_kind(time, kind)
            bound = noise_of_ks(int(rows.sum())) + 0.04
            cdf = angle_cdf(k, CENTERS[:, 0], SPREAD, weight, REFERENCES[0])
            assert kolmogorov(quaternions.half_angle(x["rotation"][rows, 0], REFERENCES[0]), cdf)[0] < bound
            std = math.sqrt((time * STD) ** 2 + (1 - time) ** 2)
            place = PLACES[:, 0, 0] * time
            found, _ = kolmogorov(
                x["translation"][rows, 0, 0],
                lambda y, w=weight, p=place, s=std: (w * normal_cdf((y[:, None] - p) / s)).sum(1),
            )
            assert found < bound


def test_product__fields_move_by_the_old_state() -> None:
    """One step from one state: what the rotation becomes does not depend on the order of the fields."""
    model = product()
    x = start(model, 50)
    rotation = simulate(model, x, [0.2, 0.6], rng(3))["rotation"]
    generator: Any = model.generator(x, times(0.2, 50), times(0.6, 50)).factors["rotation"]
    flow = generator.parts["flow"]
    moved = quaternions.move(x["rotation"], 0.4 * 0.5 * flow.mean)  # of weight 1/2
    stayed = quaternions.half_angle(moved, rotation)[:, 0] < 1e-6
    assert 0.2 < float(stayed.double().mean()) < 0.95  # the others jumped


@pytest.mark.parametrize("observed", ["residue", "translation", "rotation"])
def test_product__independent_times_condition_on_an_observed_field(observed: str) -> None:
    """The weights of the components given one field follow Bayes' rule."""
    model, number = product(independent=True), 600
    x = start(model, number)
    value = {"rotation": CENTERS[1, 0], "translation": PLACES[1, 0] + 0.1, "residue": SYMBOLS[1]}[observed]
    x[observed] = value.expand_as(x[observed]).clone()
    fixed = {name: torch.full_like(state, name == observed, dtype=torch.bool) for name, state in x.items()}
    steps = torch.linspace(0, 1, 25).double()
    grids = {name: torch.ones_like(steps) if name == observed else steps for name in x}
    end = simulate(model, x, grids, rng(4), fixed=fixed)
    if observed == "residue":
        weight = given_kind(1.0, 0)
    elif observed == "translation":
        weight = WEIGHTS * torch.exp(-(value - PLACES[:, 0]).square().sum(1) / (2 * STD**2))
    else:
        from tests.helpers.rotations import density

        weight = WEIGHTS * density(CENTERS[:, 0], SPREAD, value)
    weight = weight / weight.sum()
    assert torch.equal(end[observed], x[observed])
    if observed != "rotation":
        cdf = angle_cdf(math.inf, CENTERS[:, 0], SPREAD, weight, REFERENCES[0])
        d, _ = kolmogorov(quaternions.half_angle(end["rotation"][:, 0], REFERENCES[0]), cdf)
        assert d < noise_of_ks(number) + 0.04
    if observed != "residue":
        one = float((weight * (SYMBOLS[:, 0] == 1)).sum())
        counts = torch.bincount(end["residue"][:, 0], minlength=2)
        assert abs(float(counts[1]) / number - one) < 4.5 * math.sqrt(max(one * (1 - one), 1e-3) / number) + 0.02
