"""L f(x) = Σ_y R(y, x) (f(y) − f(x)), and its dense rates."""

import dataclasses

import pytest
import torch
from torch import Tensor

from gm_discrete import Jump
from gm_discrete.generators.kernels import Categorical, Dirac, TensorReadout
from tests.helpers.chains import index_of, joint_rates
from tests.helpers.distributions import PATHS, chain

every_path = pytest.mark.parametrize("name", PATHS)
CPU = torch.device("cpu")


def at(model, t: float) -> tuple[Tensor, Tensor]:  # every state, and as many times
    states = model.states()
    return states, torch.full((len(states),), t, dtype=torch.float64)


@every_path
@pytest.mark.parametrize("target", [True, False])
def test_jump__rates_are_those_of_a_markov_chain(name: str, target: bool) -> None:
    """Non-negative off the diagonal, rows of sum 0."""
    model = chain(name)
    states, t = at(model, 0.4)
    z = model.data.flip(0)[torch.arange(len(states)) % len(model.data)]
    generator = model.path.conditional(z, states, t) if target else model.generator(states, t)
    rates = generator.rates(states)
    assert rates.shape == (*states.shape, model.path.vocab_size)
    assert bool(rates.isfinite().all())
    assert float(rates.sum(-1).abs().max()) < 1e-14
    off = rates.scatter(-1, states[..., None], 0.0)
    assert float(off.min()) >= 0
    assert float(off.max()) > 0


def test_jump__rates_are_intensity_times_kernel() -> None:
    """The self-move of a candidate that lands where it stands is no rate, and an idle position needs no kernel at all."""
    x, intensity = torch.tensor([[0, 2]]), torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[[0.5, 0.2, 0.3], [torch.nan] * 3]], dtype=torch.float64).log()
    kernel = Categorical(TensorReadout(logits), x.shape, 3, CPU)
    expected = torch.tensor([[[-1.0, 0.4, 0.6], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(Jump(intensity, kernel).rates(x), expected, rtol=1e-15, atol=1e-15)


@every_path
def test_jump__action_is_the_sum_over_the_neighbours(name: str) -> None:
    """Against the joint rate matrix of all states: (L f)(x) = Σ_y R(y, x) f(y), for a function without any structure."""
    model = chain(name)
    states, t = at(model, 0.7)
    f = torch.randn(len(states), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = f @ joint_rates(model, 0.7)
    action = model.generator(states, t).action(lambda y: f[index_of(y, model.path.vocab_size)], states)
    torch.testing.assert_close(action, expected, rtol=1e-12, atol=1e-12)


def test_jump__action_of_a_sum_over_positions_is_the_drift_of_each() -> None:
    """f(x) = x_1 + … + x_L, and a target that jumps to z: L f = h Σ (z_l − x_l)."""
    x, z = torch.tensor([[0, 2, 1]]), torch.tensor([[1, 2, 0]])
    generator = Jump(torch.full((1, 3), 3.0, dtype=torch.float64), Dirac(z, 3))
    action = generator.action(lambda y: y.double().sum(1), x)
    assert action.tolist() == [3.0 * (1 + 0 - 1)]
    assert generator.action(lambda y: torch.ones(len(y), dtype=torch.float64), x).tolist() == [0.0]


def test_generators__are_immutable() -> None:
    jump = Jump(torch.ones(1, 1), Dirac(torch.zeros(1, 1, dtype=torch.long), 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        jump.intensity = torch.zeros(1, 1)
