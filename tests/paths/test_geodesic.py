"""`GeodesicSO3Path`: geodesics from noise to data, their velocity, and a model that trains on it."""

from __future__ import annotations

import math

import pytest
import torch

from gm_discrete import GeodesicSO3Path, GMConfig, GMModel, conditional_loss, quaternions, simulate
from tests.helpers.distributions import rng
from tests.helpers.euclid import kolmogorov, noise_of_ks
from tests.helpers.rotations import equal_rotations, rotations, times


class Known:
    """The process whose data are one sequence of rotations."""

    def __init__(self, z: torch.Tensor) -> None:
        self.path, self.z = GeodesicSO3Path(), z

    def generator(self, x: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor | None = None) -> object:
        return self.path.marginal(self.z.expand_as(x), x, t, t_next)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_sample__angles_to_the_data_are_those_of_noise_times_1_minus_t(t: float) -> None:
    """Half an angle α of noise has the distribution function (2/π)(α − ½ sin 2α)."""
    z = rotations(1, 1, seed=1).expand(4000, 1, 4)
    alpha = quaternions.half_angle(GeodesicSO3Path().sample(z, times(t, 4000), rng(1)), z) / (1 - t)
    assert kolmogorov(alpha, lambda a: 2 / math.pi * (a - (2 * a).sin() / 2))[0] < noise_of_ks(4000)


def test_conditional__velocity_is_the_slope_of_the_geodesic() -> None:
    path, z, noise, t, h = GeodesicSO3Path(), rotations(20, 1), rotations(20, 1, seed=2), 0.4, 1e-6
    away = quaternions.half_angle(z, noise)[..., None] * quaternions.towards(z, noise)
    before, x, after = (quaternions.move(z, (1 - s) * away) for s in (t - h, t, t + h))
    flow = path.conditional(z, x, times(t, 20)).parts["flow"]
    torch.testing.assert_close(flow.velocity, (after - before) / (2 * h), atol=1e-6, rtol=1e-6)  # pyright: ignore


@pytest.mark.parametrize("sampler", ["tau_leaping", "heun"])
def test_flow__to_one_rotation_is_straight_at_any_step(sampler: str) -> None:
    z, x_0 = rotations(1, 2, seed=3), rotations(10, 2, seed=4)
    model = Known(z)
    half = simulate(model, x_0, [0.0, 0.2, 0.5], sampler=sampler)  # pyright: ignore[reportArgumentType]
    middle = quaternions.move(x_0, quaternions.half_angle(x_0, z)[..., None] / 2 * quaternions.towards(x_0, z))
    assert equal_rotations(half, middle, 1e-9)
    assert equal_rotations(simulate(model, x_0, [0.0, 0.2, 1.0], sampler=sampler), z.expand(10, 2, 4), 1e-6)  # pyright: ignore


def test_model__trains_and_generates() -> None:
    torch.manual_seed(0)
    model = GMModel(
        GMConfig(path=GeodesicSO3Path(), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
                 max_position_embeddings=2)
    )  # fmt: skip
    z = rotations(1, 2, dtype=torch.float32).expand(32, 2, 4)
    optimizer, noise = torch.optim.Adam(model.parameters(), 4e-3), rng(1)
    losses = []
    for _ in range(300):
        loss = conditional_loss(model, z, rng=noise)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    x = model.generate(batch_size=20, num_steps=8, seed=0)
    assert float(quaternions.half_angle(x, z[:20]).median()) < 0.8  # of an untrained network it is 1
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20, 2), rtol=0, atol=1e-5)
