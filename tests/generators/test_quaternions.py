"""Rotations as unit quaternions: matrices, exponential map and geodesics, also near the angles 0 and π."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gm_discrete.generators import quaternions as Q
from tests.helpers.distributions import LEAST_P, rng
from tests.helpers.euclid import kolmogorov

DTYPES = [torch.float32, torch.float64]
ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.5, 2.0, math.pi - 1e-3, math.pi - 1e-6, math.pi]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def tolerance(dtype: torch.dtype) -> float:
    return 16 * torch.finfo(dtype).eps


def axes(number: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Axes, of which the first six are those of coordinates and their negatives."""
    drawn = torch.randn(number, 3, generator=rng(seed), dtype=torch.float64)
    axis = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64), drawn])[:number]
    return (axis / axis.norm(dim=-1, keepdim=True)).to(dtype)


def vectors(dtype: torch.dtype) -> Tensor:
    """Rotation vectors of every angle about several axes, [angles, axes, 3]."""
    return torch.tensor(ANGLES, dtype=dtype)[:, None, None] * axes(20, dtype)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(q, z, half angle between them), every angle at several places; z of either sign."""
    vector = vectors(dtype)
    q = Q.uniform(vector.shape[:-1], rng(3), dtype=dtype)
    sign = torch.where(torch.rand(q.shape[:-1], generator=rng(4)) < 0.5, -1.0, 1.0).to(dtype)[..., None]
    half = torch.tensor(ANGLES, dtype=dtype)[:, None].expand(q.shape[:-1]) / 2
    return q, sign * Q.multiply(q, Q.exp(vector)), half


def assert_same_rotation(a: Tensor, b: Tensor, atol: float) -> None:
    torch.testing.assert_close(torch.where((a * b).sum(-1, keepdim=True) < 0, -a, a), b, rtol=0, atol=atol)


@every_dtype
def test_multiply__is_the_product_of_the_matrices(dtype: torch.dtype) -> None:
    a, b = Q.uniform((50,), rng(), dtype=dtype), Q.uniform((50,), rng(1), dtype=dtype)
    product = Q.to_matrix(a) @ Q.to_matrix(b)
    torch.testing.assert_close(Q.to_matrix(Q.multiply(a, b)), product, rtol=0, atol=tolerance(dtype))
    torch.testing.assert_close(Q.to_matrix(Q.conjugate(a)), Q.to_matrix(a).mT, rtol=0, atol=tolerance(dtype))


@every_dtype
def test_rotate__is_the_matrix_times_the_vector(dtype: torch.dtype) -> None:
    q, v = Q.uniform((5, 1), rng(), dtype=dtype), torch.randn(1, 7, 3, generator=rng(1), dtype=dtype)
    expected = torch.einsum("nij,mj->nmi", Q.to_matrix(q.squeeze(1)), v.squeeze(0))
    torch.testing.assert_close(Q.rotate(q, v), expected, rtol=0, atol=4 * tolerance(dtype))


@every_dtype
def test_exp__has_the_matrix_of_the_matrix_exponential(dtype: torch.dtype) -> None:
    v = vectors(dtype).double()
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    found = Q.to_matrix(Q.exp(v.to(dtype))).double()
    torch.testing.assert_close(found, torch.linalg.matrix_exp(cross), rtol=0, atol=tolerance(dtype))


@every_dtype
def test_log__inverts_exp(dtype: torch.dtype) -> None:
    """Relative to the vector also near 0; near π the vector or its negative."""
    v = vectors(dtype)
    q = Q.exp(v)
    found = Q.log(q)
    below = slice(0, ANGLES.index(math.pi) - 1)  # where the sign of the axis is no matter of rounding
    torch.testing.assert_close(found[below], v[below], rtol=4 * tolerance(dtype), atol=1e-19)
    torch.testing.assert_close(Q.log(-q)[below][1:], found[below][1:], rtol=0, atol=0)
    assert_same_rotation(Q.exp(found), q, tolerance(dtype))
    assert float(found.norm(dim=-1).max()) <= math.pi * (1 + tolerance(dtype))


@every_dtype
def test_from_matrix__inverts_to_matrix(dtype: torch.dtype) -> None:
    for q in (Q.exp(vectors(dtype)), Q.uniform((200,), rng(), dtype=dtype)):
        matrix = Q.to_matrix(q)
        found = Q.from_matrix(matrix)
        assert found.dtype == dtype
        assert bool((found[..., 0] >= 0).all())
        assert_same_rotation(found, q, tolerance(dtype))
        torch.testing.assert_close(Q.to_matrix(found), matrix, rtol=0, atol=tolerance(dtype))


def test_from_matrix__keeps_nan() -> None:
    matrix = torch.eye(3).repeat(3, 1, 1)
    matrix[1, 0, 2] = math.nan
    found = Q.from_matrix(matrix)
    assert found.isnan().any(-1).tolist() == [False, True, False]
    assert found[2].tolist() == [1, 0, 0, 0]


@every_dtype
def test_half_angle__is_exact_near_0_and_near_a_right_angle(dtype: torch.dtype) -> None:
    q, z, half = pairs(dtype)
    found = Q.half_angle(q, z)
    torch.testing.assert_close(found, half, rtol=tolerance(dtype), atol=tolerance(dtype))
    assert bool((found <= math.pi / 2 * (1 + tolerance(dtype))).all())
    assert bool((Q.half_angle(q, -q) == 0).all())


@every_dtype
def test_towards__leads_to_the_nearer_of_z_and_its_negative(dtype: torch.dtype) -> None:
    q, z, half = pairs(dtype)
    u = Q.towards(q, z)
    torch.testing.assert_close((u * q).sum(-1), torch.zeros_like(half), rtol=0, atol=tolerance(dtype))
    apart = half > 1e-2 if dtype == torch.float32 else half > 1e-10  # nearer, the axis is that of rounding
    torch.testing.assert_close(u.norm(dim=-1)[apart], torch.ones_like(half[apart]), rtol=0, atol=tolerance(dtype))
    assert_same_rotation(Q.move(q, half[..., None] * u), z, 2 * tolerance(dtype))
    middle = Q.move(q, half[..., None] / 2 * u)
    torch.testing.assert_close(Q.half_angle(q, middle), half / 2, rtol=0, atol=2 * tolerance(dtype))
    torch.testing.assert_close(Q.half_angle(middle, z), half / 2, rtol=0, atol=2 * tolerance(dtype))


@every_dtype
def test_towards__is_0_where_the_two_are_one(dtype: torch.dtype) -> None:
    q = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]], dtype=dtype)
    assert bool((Q.towards(q, q) == 0).all())
    assert bool((Q.towards(q, -q) == 0).all())


@every_dtype
def test_move__turns_by_twice_the_length(dtype: torch.dtype) -> None:
    """To the right of q: the rotation vector is that of the rotating frame."""
    v = vectors(dtype)
    q = Q.uniform(v.shape[:-1], rng(), dtype=dtype)
    u = Q.multiply(q, torch.cat([torch.zeros_like(v[..., :1]), v / 2], -1))
    torch.testing.assert_close(Q.move(q, u), Q.multiply(q, Q.exp(v)), rtol=0, atol=tolerance(dtype))
    assert torch.equal(Q.move(q, torch.zeros_like(q)), Q.normalized(q))


@every_dtype
def test_tangent__is_the_orthogonal_projection(dtype: torch.dtype) -> None:
    q, u = Q.uniform((50,), rng(), dtype=dtype), torch.randn(50, 4, generator=rng(1), dtype=dtype)
    found = Q.tangent(q, u)
    torch.testing.assert_close((found * q).sum(-1), torch.zeros(50, dtype=dtype), rtol=0, atol=tolerance(dtype))
    torch.testing.assert_close(Q.tangent(q, found), found, rtol=0, atol=tolerance(dtype))
    torch.testing.assert_close(
        ((u - found) * found).sum(-1), torch.zeros(50, dtype=dtype), rtol=0, atol=8 * tolerance(dtype)
    )


@every_dtype
def test_transported__keeps_angular_velocity_and_length(dtype: torch.dtype) -> None:
    source, target = Q.uniform((50,), rng(), dtype=dtype), Q.uniform((50,), rng(1), dtype=dtype)
    velocity = torch.randn(50, 3, generator=rng(2), dtype=dtype)
    embedded = torch.cat([torch.zeros_like(velocity[:, :1]), velocity], -1)
    found = Q.transported(Q.multiply(source, embedded), source, target)
    torch.testing.assert_close(found, Q.multiply(target, embedded), rtol=0, atol=4 * tolerance(dtype))
    torch.testing.assert_close(
        (found * target).sum(-1), torch.zeros(50, dtype=dtype), rtol=0, atol=4 * tolerance(dtype)
    )
    torch.testing.assert_close(found.norm(dim=-1), velocity.norm(dim=-1), rtol=0, atol=4 * tolerance(dtype))


def test_transported__keeps_the_velocity_of_a_geodesic() -> None:
    q, z, half = pairs(torch.float64)
    u = Q.towards(q, z)
    middle = Q.move(q, half[..., None] / 3 * u)
    ahead = Q.towards(middle, z)
    apart = half > 1e-2
    torch.testing.assert_close(Q.transported(u, q, middle)[apart], ahead[apart], rtol=0, atol=1e-12)


def test_uniform__is_the_haar_measure() -> None:
    """The angle has the density (1 − cos ω)/π, around every rotation."""
    q = Q.uniform((20000,), rng(), dtype=torch.float64)
    for center in (torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, -0.5, 0.5, 0.5])):
        omega = 2 * Q.half_angle(q, center.double())
        assert kolmogorov(omega, lambda w: (w - w.sin()) / math.pi)[1] > LEAST_P
    assert torch.equal(Q.uniform((3, 2), rng(5)), Q.uniform((3, 2), rng(5)))
    assert Q.uniform((3, 2)).shape == (3, 2, 4)
    Q.check_quaternions(Q.uniform((100,)), "q")


def test_normalized__takes_0_for_the_identity() -> None:
    found = Q.normalized(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.6, 0.0, 0.8]]))


@pytest.mark.parametrize("function", [Q.exp, Q.log, Q.to_matrix])
def test_functions__have_finite_gradients_at_the_identity(function) -> None:
    start = torch.zeros(3) if function is Q.exp else torch.tensor([1.0, 0.0, 0.0, 0.0])
    start.requires_grad_()
    (grad,) = torch.autograd.grad(function(start).sum(), start)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("length", [0.0, 0.5, 1.1])
def test_check_quaternions__rejects_other_lengths(length: float) -> None:
    q = Q.uniform((2, 3), rng())
    q[1, 2] *= length
    with pytest.raises(ValueError, match="rotation") as caught:
        Q.check_quaternions(q, "rotation")
    assert f"{length:.4g}" in str(caught.value)
    assert "[1, 2]" in str(caught.value)


def test_check_quaternions__lets_rounding_and_nan_through() -> None:
    q = Q.uniform((100,), rng())
    Q.check_quaternions(q.bfloat16(), "q")
    q[3] = math.nan
    Q.check_quaternions(q, "q")


@pytest.mark.parametrize(
    "wrong", [torch.diag(torch.tensor([1.0, 1.0, -1.0])), 2 * torch.eye(3), torch.zeros(3, 3), -torch.eye(3)]
)
def test_from_matrix__rejects_reflections_and_what_is_no_rotation(wrong: Tensor) -> None:
    matrix = torch.stack([torch.eye(3), wrong])
    with pytest.raises(ValueError, match="frames") as caught:
        Q.from_matrix(matrix, "frames")
    assert "[1]" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "word"), [(torch.eye(4), "(4, 4)"), (torch.eye(3, dtype=torch.int64), "int64"), ([[1.0]], "[[1.0]]")]
)
def test_from_matrix__rejects_other_arguments(wrong, word: str) -> None:
    with pytest.raises(ValueError, match="frames") as caught:
        Q.from_matrix(wrong, "frames")
    assert word in str(caught.value)
