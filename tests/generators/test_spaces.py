"""Spaces: steps, tangent vectors, and what an entry is."""

from __future__ import annotations

import torch

from gm_discrete.generators import quaternions
from gm_discrete.generators.spaces import NUMBERS, ROTATIONS, Interval, entries, spread
from tests.helpers.rotations import equal_rotations, rotations


def test_numbers__move_and_axes_are_those_of_a_vector_space() -> None:
    x = torch.tensor([[1.0, 2.0]])
    assert NUMBERS.move(x, x).tolist() == [[2.0, 4.0]]
    axes = [axis for axis, acceleration in NUMBERS.axes(x) if acceleration is None]
    assert torch.equal(torch.cat(axes), torch.eye(2))
    assert NUMBERS.tangent(x, x) is x
    assert NUMBERS.transported(x, x, 2 * x) is x


def test_interval__reflects_at_its_ends() -> None:
    space = Interval(-1.0, 1.0)
    moved = space.move(torch.zeros(5), torch.tensor([0.5, 1.5, 2.5, -1.25, 4.0]))
    torch.testing.assert_close(moved, torch.tensor([0.5, 0.5, -0.5, -0.75, 0.0]))


def test_rotations__move_is_a_geodesic() -> None:
    x, u = rotations(7, 1), 0.3 * torch.randn(7, 1, 4, generator=torch.Generator().manual_seed(1)).double()
    u = ROTATIONS.tangent(x, u)
    torch.testing.assert_close((u * x).sum(-1), torch.zeros(7, 1).double(), atol=1e-12, rtol=0)
    y = ROTATIONS.move(x, u)
    torch.testing.assert_close(quaternions.half_angle(x, y), u.norm(dim=-1))
    halfway = ROTATIONS.move(x, u / 2)
    again = ROTATIONS.move(halfway, ROTATIONS.transported(u / 2, x, halfway))  # its angular velocity is constant
    assert equal_rotations(again, y, 1e-9)


def test_rotations__axes_are_orthonormal_tangent_vectors_with_the_acceleration_of_great_circles() -> None:
    x, h = rotations(3, 2), 1e-3
    found = list(ROTATIONS.axes(x))
    assert len(found) == 6
    axes = torch.stack([axis.flatten(1) for axis, _ in found], 1)
    torch.testing.assert_close(axes @ axes.transpose(1, 2), torch.eye(6).double().expand(3, 6, 6))
    for axis, acceleration in found:
        assert acceleration is not None
        torch.testing.assert_close((axis * x).sum(-1), torch.zeros(3, 2).double(), atol=1e-12, rtol=0)
        second = (ROTATIONS.move(x, h * axis) - 2 * x + ROTATIONS.move(x, -h * axis)) / h**2
        torch.testing.assert_close(second, acceleration, atol=1e-5, rtol=0)


def test_entries__of_rotations_are_whole_rotations() -> None:
    mask = torch.tensor([[[True] * 4, [False] * 4]])
    assert entries(mask, ROTATIONS).tolist() == [[True, False]]
    assert entries(mask, NUMBERS) is mask
    assert spread(torch.ones(1, 2), mask).shape == (1, 2, 1)
