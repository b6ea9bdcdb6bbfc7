"""Grids: their spacings and ends, and the error they leave, by exact distributions."""

import math

import pytest
import torch
from torch import Tensor

from gm_discrete import CosineSchedule, LinearSchedule, MaskedPath, MetricPath, PowerSchedule, UniformPath, time_grid
from gm_discrete.paths.schedules import Schedule
from gm_discrete.samplers import SPACINGS
from tests.helpers.distributions import ALL_PATHS, chain, sampler_distributions, total_variation

# What is even along the grid, as a function of κ.
EVEN = {
    "linear": lambda kappa: kappa,
    "quadratic": lambda kappa: (1 - kappa).sqrt(),
    "geometric": lambda k: (1 - k).log(),
}


@pytest.mark.parametrize("schedule", [LinearSchedule(), PowerSchedule(2), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_time_grid__is_even_in_its_measure_of_kappa(spacing: str, schedule: Schedule, steps: int) -> None:
    """For any schedule; √ of rounding is 1e-8 at κ = 1. The last geometric step would be infinitely long."""
    grid = time_grid(UniformPath(3, schedule), steps, spacing)
    assert len(grid) == steps + 1
    assert (float(grid[0]), float(grid[-1])) == (0.0, 1.0)
    assert bool((grid.diff() > 0).all())
    endless = spacing == "geometric"
    even = EVEN[spacing](schedule.kappa(grid[:-1] if endless else grid)).diff()
    torch.testing.assert_close(even, even[:1].expand(len(even)), rtol=1e-9, atol=2e-8)
    if spacing == "geometric" and steps > 1:
        assert float(1 - schedule.kappa(grid[-2])) == pytest.approx(0.005)


@pytest.mark.parametrize("name", ALL_PATHS)
def test_time_grid__default_fits_the_path(name: str) -> None:
    """Even in κ for masks and metric paths, in √(1 − κ) for other mixtures and paths of one's own."""
    path = chain(name, 1).path
    spacing = "linear" if path.is_masked or isinstance(path, MetricPath) else "quadratic"
    assert torch.equal(time_grid(path, 5), time_grid(path, 5, spacing))


def test_time_grid__arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"spacing='even'.*linear, quadratic, geometric"):
        time_grid(MaskedPath(4), 4, "even")
    with pytest.raises(ValueError, match=r"spacing='logarithmic'.*use quadratic"):
        time_grid(MaskedPath(4), 4, "logarithmic")
    with pytest.raises(ValueError, match="num_steps=0"):
        time_grid(MaskedPath(4), 0)


def error(name: str, steps: int, spacing: str) -> float:
    """Total variation of the distribution of tau-leaping from the data, on L = 3."""
    model = chain(name)
    law: Tensor = sampler_distributions(model, time_grid(model.path, steps, spacing).tolist(), "tau_leaping")[-1]
    return total_variation(law, model.joint_marginal(1.0))


@pytest.mark.parametrize("name", ["uniform mixture", "uniform reversal", "blur kinetic", "growing kinetic"])
@pytest.mark.parametrize("steps", [16, 32, 64])
def test_time_grid__quadratic_is_best_for_uniform_noise_and_paths_of_ones_own(name: str, steps: int) -> None:
    errors = {spacing: error(name, steps, spacing) for spacing in SPACINGS}
    assert errors["quadratic"] < 0.8 * errors["linear"]
    assert errors["quadratic"] < errors["geometric"]


@pytest.mark.parametrize("steps", [16, 32, 64])
def test_time_grid__linear_is_best_for_masks(steps: int) -> None:
    errors = {spacing: error("masked", steps, spacing) for spacing in SPACINGS}
    assert errors["linear"] < min(errors["quadratic"], errors["geometric"])
    assert not math.isnan(sum(errors.values()))
