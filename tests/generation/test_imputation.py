"""The distribution of imputed values: with an exact posterior, that of the data given the observed values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Bins, GaussianPath, MaskedPath, UniformPath, simulate
from gm_discrete.generation.given import Observed
from gm_discrete.generation.run import NoisedObservations
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.euclid import kolmogorov, noise_of_ks, numbers, rng
from tests.helpers.symbol_and_number import Mixed

STEPS = 100
BIAS = 0.018
"""That of `test_product_distributions.py`, for 100 steps."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MaskedPath(4), UniformPath(3)], ids=["masked", "uniform"])
@pytest.mark.parametrize("weights", [{"flow": 1.0}, {"flow": 0.5, "jump": 0.5}], ids=["flow", "jumps"])
def test_noised_observations__imputed_values_have_their_conditional_distribution(
    kind: Any, weights: dict[str, float]
) -> None:
    """In a third of the sequences the symbol is observed, in a third the number, in the rest nothing. A model of one time,
    or without the times of observed fields, would take an observed number for noise: symbols next to 0.55 then have
    another distribution."""
    n, law = 3000, Mixed(kind, GaussianPath(weights, bins=Bins(-4, 4)), independent=True)
    rows = torch.arange(3 * n) // n
    x = law.start(3 * n)
    state = {"kind": torch.full((3 * n, 1), 1), "size": numbers(0.55).expand(3 * n, 1)}
    known = {"kind": (rows == 0)[:, None], "size": (rows == 1)[:, None]}
    observed = {name: Observed(state[name], state[name], known[name]) for name in state}
    x = {name: torch.where(known[name], state[name], x[name]) for name in x}
    grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)

    def ends(model: Any) -> dict[str, Tensor]:
        return simulate(model, x, grid, rng(3), "heun", known)

    end = ends(NoisedObservations(law.model, observed, known, rng(4)))
    assert all(torch.equal(end[name][known[name]], x[name][known[name]]) for name in x)
    assert kolmogorov(end["size"][rows == 0], law.sizes_given(1, 1.0))[0] < noise_of_ks(n) + BIAS
    given = law.density(torch.arange(3), numbers(0.55).expand(3), 1.0)
    counts = torch.bincount(end["kind"][rows == 1].flatten(), minlength=3)
    assert chi_square(counts, given / given.sum()) > LEAST_P
    rest = {name: end[name][rows == 2] for name in end}
    assert law.p_value(rest, 1.0) > LEAST_P
    for k in range(3):
        part = rest["size"][rest["kind"] == k]
        assert kolmogorov(part, law.sizes_given(k, 1.0))[0] < noise_of_ks(len(part)) + BIAS
    uninformed = ends(law.model)
    counts = torch.bincount(uninformed["kind"][rows == 1].flatten(), minlength=3)
    assert chi_square(counts, given / given.sum()) < LEAST_P
