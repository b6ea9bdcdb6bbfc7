"""The law of what is imputed: with an exact posterior in place of the network, that of the data given what is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Bins, GaussianPath, MaskedPath, UniformPath, simulate
from gm_discrete.generation.given import Cells, ObservedFields
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.euclid import kolmogorov, noise_of_ks, numbers, rng
from tests.helpers.symbol_and_number import Mixed

STEPS = 100
BIAS = 0.018
"""That of `test_product_laws.py`, of 100 steps."""


@pytest.mark.parametrize("kind", [MaskedPath(4), UniformPath(3)], ids=["masked", "uniform"])
@pytest.mark.parametrize("weights", [{"flow": 1.0}, {"flow": 0.5, "jump": 0.5}], ids=["flow", "jumps"])
def test_what_is_imputed_has_its_law_given_the_rest(kind: Any, weights: dict[str, float]) -> None:
    """By sequences: of some the symbol is known, of others the number, and of the rest nothing. A model of one time, or one
    that is not told, would take a known number for noise: symbols beside 0.55 then have another law."""
    n, law = 8000, Mixed(kind, GaussianPath(weights, bins=Bins(-4, 4)), independent=True)
    rows = torch.arange(3 * n) // n
    x = law.start(3 * n)
    state = {"kind": torch.full((3 * n, 1), 1), "size": numbers(0.55).expand(3 * n, 1)}
    known = {"kind": (rows == 0)[:, None], "size": (rows == 1)[:, None]}
    cells = {name: Cells(state[name], state[name], known[name]) for name in state}
    x = {name: torch.where(known[name], state[name], x[name]) for name in x}
    grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)

    def ends(model: Any) -> dict[str, Tensor]:
        return simulate(model, x, grid, rng(3), "heun", known)

    end = ends(ObservedFields(law.model, cells, rng(4)))
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
    untold = ends(law.model)
    counts = torch.bincount(untold["kind"][rows == 1].flatten(), minlength=3)
    assert chi_square(counts, given / given.sum()) < LEAST_P
