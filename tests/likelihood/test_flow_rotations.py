"""The likelihood of rotations under the flow, against the density of a smooth mixture."""

from __future__ import annotations

import math

import pytest
import torch

from gm_discrete import ExactRotationModel, SO3Path, flow_likelihood, quaternions
from tests.helpers.distributions import SIGMAS, rng
from tests.helpers.rotations import CENTERS, REFERENCES, WEIGHTS, data_density, density, exact

LOW = torch.tensor([4.0, 10.0, 30.0], dtype=torch.float64)
MODEL = ExactRotationModel(SO3Path(), CENTERS, LOW, WEIGHTS)
Z = MODEL.sample(24, rng(1))


def truth() -> torch.Tensor:
    return -(WEIGHTS * density(CENTERS[:, 0], LOW, Z)).sum(1).log()


def test_flow_likelihood__is_the_known_density() -> None:
    found = flow_likelihood(MODEL, Z, num_steps=50, trace="exact")
    torch.testing.assert_close(found.nats, truth(), rtol=0, atol=5e-3)
    assert float((found.nats - truth()).abs().mean()) < 1e-3
    assert found.x_0 is not None
    torch.testing.assert_close(found.x_0.norm(dim=-1), torch.ones(24, 1).double())


def test_flow_likelihood__of_uniform_data_is_0() -> None:
    model = ExactRotationModel(SO3Path(), CENTERS[:1], 0.0)
    found = flow_likelihood(model, Z, num_steps=5, trace="exact")
    torch.testing.assert_close(found.nats, torch.zeros(24).double(), rtol=0, atol=1e-4)


def test_flow_likelihood__hutchinson_is_unbiased() -> None:
    number = 60
    found = flow_likelihood(MODEL, Z[:1].expand(number, 1, 4), num_steps=25, rng=rng(2)).nats
    exactly = flow_likelihood(MODEL, Z[:1], num_steps=25, trace="exact").nats
    assert abs(float(found.mean() - exactly)) < SIGMAS * float(found.std()) / math.sqrt(number)


def test_flow_likelihood__takes_matrices_and_minus_q() -> None:
    a, b, c = (
        flow_likelihood(MODEL, z, num_steps=5, trace="exact").nats
        for z in (Z[:4], -Z[:4], quaternions.to_matrix(Z[:4]))
    )
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [2 * Z, Z[..., :3], torch.full_like(Z, torch.nan)])
def test_flow_likelihood__refuses_what_are_no_rotations(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^z"):
        flow_likelihood(MODEL, bad, num_steps=1)


def test_helpers__density_of_the_smooth_mixture_is_that_of_the_model() -> None:
    z = REFERENCES[:, None]
    found = exact(SO3Path()).log_evidence(z, torch.full((3,), 1 - 1e-9).double())
    torch.testing.assert_close((WEIGHTS * found.exp()).sum(1), data_density(z)[:, 0], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_flow_likelihood__at_the_centre_of_a_component(dtype: torch.dtype, turned: bool) -> None:
    """There the direction to the centre is not defined; and a float32 quaternion is not of length 1 in float64."""
    center = CENTERS[1:2] if turned else torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    k = torch.tensor([50.0]).double()
    model = ExactRotationModel(SO3Path(), center, k)
    found = flow_likelihood(model, center.to(dtype), num_steps=25, trace="exact")
    expected = -density(center[0].double(), k, center.double()[0]).log()
    torch.testing.assert_close(found.nats, expected, rtol=0, atol=2e-2)
    assert found.num_tokens.tolist() == [1]
