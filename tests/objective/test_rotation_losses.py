"""Losses of rotations: the exact posterior is a stationary point of each, and rounding leaves them finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gm_discrete import SO3Path
from gm_discrete.generators.rotation_belief import RotationMixture
from gm_discrete.objective import bregman
from tests.helpers.distributions import SIGMAS, rng
from tests.helpers.rotations import BOTH, CENTERS, SPREAD, WEIGHTS, exact, times

CHOICES: list[tuple[str, str]] = [("belief", "cross_entropy"), ("flow", "squared"), ("jump", "generalized_kl")]
NUMBER, BLOCKS = 8000, 20


def gradient(part: str, kind: str, shift: float = 0.0) -> torch.Tensor:
    """Of the conditional loss in the rows of the belief, for blocks of samples: [blocks, 18]."""
    path, noise = SO3Path(BOTH), rng(1)
    model, t = exact(path), times(0.4, NUMBER)
    z = model.sample(NUMBER, noise)
    x = path.sample(z, t, noise)
    truth = RotationMixture(WEIGHTS.log(), SPREAD, CENTERS[:, 0]).rows.clone()
    truth[0] += shift
    rows = truth.expand(NUMBER, 1, -1).clone().requires_grad_()
    target: Any = path.conditional(z, x, t)
    predicted: Any = path.marginal(rows, x, t)
    pair = (target.belief, predicted.belief) if part == "belief" else (target.parts[part], predicted.parts[part])
    loss = bregman.compare(*pair, x, kind=kind).plain
    assert loss is not None
    assert bool(loss.isfinite().all())
    (found,) = torch.autograd.grad(loss.sum(), rows)
    return found[:, 0].double().view(BLOCKS, -1, 18).mean(1)


@pytest.mark.parametrize(("part", "kind"), CHOICES)
def test_loss__is_stationary_at_the_exact_belief(part: str, kind: str) -> None:
    found = gradient(part, kind)
    error = found.std(0) / BLOCKS**0.5
    assert bool((found.mean(0).abs() < (SIGMAS + 2) * error + 1e-6).all())  # Student's t of 20 blocks


@pytest.mark.parametrize(("part", "kind"), CHOICES)
def test_loss__is_not_stationary_at_another_belief(part: str, kind: str) -> None:
    found = gradient(part, kind, shift=1.0)
    assert float(found.mean(0)[0]) > 4 * float(found.std(0)[0]) / BLOCKS**0.5


@pytest.mark.parametrize(("part", "kind"), CHOICES)
def test_loss__of_two_atoms_is_least_at_their_probabilities(part: str, kind: str) -> None:
    """The expectation over the posterior of z is a sum of two terms, which the true prior minimises at every x."""
    path, number, prior = SO3Path(BOTH), 4, 0.35
    atoms = CENTERS[:2, 0].double()
    x, t = path.prior((number, 1, 4), rng(2)).double(), times(0.6, number)
    guesses = torch.linspace(0.05, 0.95, 37).double()
    truth = torch.tensor([prior, 1 - prior]).double()
    belief = RotationMixture(truth.log(), torch.full((2,), 1e12).double(), atoms)
    posterior = belief.posterior(x[:, 0], path.at(t).k)[0].log_weights.softmax(-1)
    posterior = posterior[:, :2] + posterior[:, 2:]  # of z and −z
    risk = torch.zeros(number, len(guesses), dtype=torch.float64)
    for column, guess in enumerate(guesses):
        rows = RotationMixture(torch.stack([guess, 1 - guess]).log(), belief.concentration, atoms).rows
        predicted: Any = path.marginal(rows.expand(number, 1, -1), x, t)
        for atom in range(2):
            z = atoms[atom].expand(number, 1, 4)
            target: Any = path.conditional(z, x, t)
            pair = (
                (target.belief, predicted.belief) if part == "belief" else (target.parts[part], predicted.parts[part])
            )
            loss = bregman.compare(*pair, x, kind=kind).plain
            assert loss is not None
            risk[:, column] += posterior[:, atom] * loss.reshape(number, -1).sum(1)
    torch.testing.assert_close(guesses[risk.argmin(1)], torch.full((number,), prior).double(), rtol=0, atol=1e-9)
