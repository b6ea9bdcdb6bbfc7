"""Paths whose probabilities are rounded: what is rounding counts as zero, and no rate is made of it."""

import pytest
import torch
from torch import Tensor

from gm_discrete import ExactModel, FinitePath, check_kolmogorov, simulate, time_grid
from tests.helpers.distributions import LEAST_P, chi_square, rng
from tests.helpers.walks import WalkPath, neighbours

LATE = 1 - torch.logspace(-9, -3, 25, dtype=torch.float64)


def test_walk_path__has_probabilities_of_rounding_size() -> None:
    p = WalkPath(8).probs(torch.zeros(len(LATE), dtype=torch.long), LATE)
    assert float(p.min()) < 0
    assert bool(((p > 0) & (p < 1e-15)).any())


def test_finite_path__rates_are_not_ratios_of_rounding() -> None:
    """A token at distance d of its data symbol leaves at the rate d/(1 − κ) at most, d ≤ 4 on a ring of 8."""
    path, x = WalkPath(8), torch.arange(8).repeat(len(LATE), 1)
    rates = path.conditional(torch.zeros_like(x), x, LATE).rates(x)
    leaving = -rates.diagonal(dim1=1, dim2=2) * (1 - LATE)[:, None]
    assert float(leaving.max()) < 4.5
    assert float(path.intensity(x, LATE).mul((1 - LATE)[:, None]).max()) < 4.5


def test_finite_path__negative_probabilities_of_rounding_size_count_as_zero() -> None:
    path, z = WalkPath(8), torch.zeros(len(LATE), dtype=torch.long)
    p = path.clean_probs(z, LATE)
    assert float(p.min()) == 0
    assert float(p[p > 0].min()) >= path.rounding
    torch.testing.assert_close(p, path.probs(z, LATE), rtol=0, atol=1e-13)


def test_finite_path__larger_negative_probabilities_are_refused_with_their_amount() -> None:
    class Negative(WalkPath):
        def probs(self, z: Tensor, t: Tensor) -> Tensor:
            return super().probs(z, t) - 1e-3

    with pytest.raises(ValueError, match=r"negative, got -0\.001 at t=1"):
        Negative(8).sample(torch.zeros(1, 2, dtype=torch.long), torch.ones(1))


def test_check_kolmogorov__looks_at_the_candidates_near_the_ends() -> None:
    """A dominating process that bounds the rates between κ = 0.02 and 0.98 alone."""
    assert check_kolmogorov(WalkPath(5), length=1).worst < 1e-10

    class Short(WalkPath):
        def _greatest_rate(self, t: Tensor) -> Tensor:
            late = t > 0.999
            return torch.where(late, super()._greatest_rate(t.clamp(max=0.999)), super()._greatest_rate(t))

        def intensity(self, x: Tensor, t: Tensor) -> Tensor:
            return FinitePath._greatest_rate(self, t)[:, None].expand(x.shape)

    with pytest.raises(ValueError, match=r"dominating_process of Short.* must bound its intensity.*t=0.99"):
        check_kolmogorov(Short(5), length=1)


def test_uniformization__of_a_walk_has_its_distribution() -> None:
    data = neighbours(8, 2)
    model = ExactModel(WalkPath(8), data)
    x = simulate(model, model.path.prior((500, 2), rng(1)), [0, 1], rng(2), "uniformization")
    found = torch.bincount(model.index(x), minlength=64)
    assert chi_square(found, model.marginal(1.0)) > LEAST_P


def test_time_grid__of_a_path_of_ones_own_ends_in_data() -> None:
    """With 16 steps even in κ, 0.77 of the samples are data; evenly in √(1 − κ), which is the default, nearly all."""
    data = neighbours(8, 6)
    model, share = ExactModel(WalkPath(8), data), {}
    for spacing in ("linear", None):
        x = simulate(model, model.path.prior((200, 6), rng(1)), time_grid(model.path, 16, spacing), rng(2))
        share[spacing] = float((x[:, None] == data).all(2).any(1).double().mean())
    assert share["linear"] < 0.85
    assert share[None] > 0.95
