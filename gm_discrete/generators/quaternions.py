"""Rotations as unit quaternions (w, x, y, z), and as points of the sphere S³ in R⁴.

q and −q are one rotation. The rotation by the angle ω about the axis n is q = (cos ω/2, n sin ω/2), and acts on a vector as
v → q v q̄. On S³, rotations whose relative angle is ω ∈ [0, π] are α = ω/2 ∈ [0, π/2] apart. Tangent vectors u at q are the
vectors of R⁴ orthogonal to q; their length is the speed on S³, which is half the angular velocity. All functions take
quaternions [..., 4], broadcast, and keep the precision of their arguments also near α = 0 and α = π/2. Shapes are not
checked.

Source: Solà 2017, Quaternion kinematics for the error-state Kalman filter (arXiv 1711.02508).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-2
"""How far from 1 the length of a quaternion may be, and from orthogonality a matrix, to be taken for rounding (bfloat16 has
errors up to 2⁻⁸ in each number)."""


def length(v: Tensor) -> Tensor:
    """|v| [..., 1] of vectors, with the gradient 0 at v = 0."""
    square = v.square().sum(-1, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product a b: the rotation b, and then a.

    >>> i, j = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    >>> multiply(i, j)
    tensor([0., 0., 0., 1.])
    """
    w, v = a[..., :1], a[..., 1:]
    r, u = b[..., :1], b[..., 1:]
    vector = w * u + r * v + torch.linalg.cross(*torch.broadcast_tensors(v, u))
    return torch.cat([w * r - (v * u).sum(-1, keepdim=True), vector], -1)


def conjugate(q: Tensor) -> Tensor:
    """The inverse rotation."""
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def normalized(q: Tensor) -> Tensor:
    """q/|q|; the identity where q is 0."""
    size = length(q)
    identity = torch.zeros_like(q)
    identity[..., 0] = 1
    return torch.where(size == 0, identity, q / torch.where(size == 0, 1.0, size))  # NaN stays NaN


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """q v q̄ for vectors v [..., 3]."""
    w, u = torch.broadcast_tensors(q[..., :1], v)[0], torch.broadcast_tensors(q[..., 1:], v)[0]
    v = v.expand(u.shape)
    turned = 2 * torch.linalg.cross(u, v)
    return v + w * turned + torch.linalg.cross(u, turned)


def exp(v: Tensor) -> Tensor:
    """The rotation by the rotation vector v [..., 3]: about v, by the angle |v|."""
    half = length(v) / 2
    return torch.cat([half.cos(), torch.sinc(half / torch.pi) * v / 2], -1)


def log(q: Tensor) -> Tensor:
    """The rotation vector [..., 3] of q, with an angle in [0, π]."""
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    sine = length(v)
    small = sine < 1e-20 if q.dtype == torch.float64 else sine < 1e-12
    return v * torch.where(small, 2.0, 2 * torch.atan2(sine, w) / torch.where(small, 1.0, sine))


def half_angle(a: Tensor, b: Tensor) -> Tensor:
    """α ∈ [0, π/2], shape `[...]`: half the angle between two rotations, by the lengths of their sum and difference."""
    near, far = length(a - b)[..., 0], length(a + b)[..., 0]
    return 2 * torch.atan2(torch.minimum(near, far), torch.maximum(near, far))


def move(q: Tensor, u: Tensor) -> Tensor:
    """The exponential map of S³: where the geodesic leads that leaves q with the tangent vector u [..., 4].

    >>> move(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, torch.pi / 4, 0.0, 0.0]))
    tensor([0.7071, 0.7071, 0.0000, 0.0000])
    """
    angle = length(u)
    return normalized(angle.cos() * q + torch.sinc(angle / torch.pi) * u)


def towards(q: Tensor, z: Tensor) -> Tensor:
    """The unit tangent vector [..., 4] at q of the geodesic to z or −z, whichever is nearer; 0 where q and z are one.

    `move(q, half_angle(q, z) · towards(q, z))` is ±z.
    """
    vector = sine(q, z)  # a product, which is exact where q and z are nearly equal
    size = length(vector)
    return vector / torch.where(size > 0, size, 1.0)


def sine(q: Tensor, z: Tensor) -> Tensor:
    """sin α times the unit tangent vector [..., 4] at q towards z or −z, whichever is nearer; smooth at q = z."""
    relative = multiply(conjugate(q), z)
    vector = torch.where(relative[..., :1] < 0, -relative[..., 1:], relative[..., 1:])
    return multiply(q, torch.cat([torch.zeros_like(vector[..., :1]), vector], -1))


def displacement(q: Tensor, z: Tensor) -> Tensor:
    """The logarithm map of S³: the tangent vector u [..., 4] at q with `move(q, u)` = z or −z, whichever is nearer.

    It is `half_angle(q, z) · towards(q, z)`, with its gradient also at q = z.
    """
    relative = multiply(conjugate(q), z)
    relative = torch.where(relative[..., :1] < 0, -relative, relative)
    vector, size = relative[..., 1:], length(relative[..., 1:])
    small = size < 1e-4  # where atan(s)/s is 1 up to 3e-9
    factor = torch.where(small, 1.0, torch.atan2(size, relative[..., :1]) / torch.where(small, 1.0, size))
    return multiply(q, torch.cat([torch.zeros_like(size), vector * factor], -1))


def tangent(q: Tensor, u: Tensor) -> Tensor:
    """The part of the vector u [..., 4] that is tangent to S³ at q."""
    return u - (u * q).sum(-1, keepdim=True) * q


def transported(u: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The tangent vector at `target` with the angular velocity, in the rotating frame, of one at `source`, u."""
    return multiply(target, multiply(conjugate(source), u))


def uniform(
    shape: Sequence[int],
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniformly distributed rotations (by the Haar measure), [*shape, 4]."""
    source = rng.device if rng else device or "cpu"
    return normalized(torch.randn((*shape, 4), generator=rng, device=source, dtype=dtype)).to(device or source)


def to_matrix(q: Tensor) -> Tensor:
    """The rotation matrices [..., 3, 3] of quaternions [..., 4].

    >>> to_matrix(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    tensor([[-1.,  0.,  0.],
            [ 0., -1.,  0.],
            [ 0.,  0.,  1.]])
    """
    w, x, y, z = q.unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def from_matrix(matrix: Tensor, name: str = "matrix") -> Tensor:
    """The unit quaternions [..., 4], with w ≥ 0, of rotation matrices [..., 3, 3]; NaN stays NaN.

    Of the four formulas by the trace and the diagonal the one with the greatest denominator is used (Shepperd 1978).

    Raises:
        ValueError: a matrix is no rotation; the message begins with `name`.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point() or matrix.shape[-2:] != (3, 3):
        found = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else repr(matrix)
        raise ValueError(f"{name} must be floating-point matrices [..., 3, 3], got {found}")
    check_matrices(matrix, name)
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    candidates = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = normalized(candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2))
    q = torch.where(q[..., :1] < 0, -q, q)
    return torch.where(matrix.isnan().flatten(-2).any(-1, keepdim=True), torch.nan, q)


def check_matrices(matrix: Tensor, name: str) -> None:
    """
    Raises:
        ValueError: a matrix [..., 3, 3] without NaN is not orthogonal, or is a reflection.
    """
    m = matrix.detach().double()
    defect = (m @ m.transpose(-1, -2) - torch.eye(3, dtype=m.dtype, device=m.device)).abs().flatten(-2).amax(-1)
    bad = (defect > TOLERANCE) | (torch.linalg.det(m.nan_to_num()) < 0)
    bad &= ~m.isnan().flatten(-2).any(-1)
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds a matrix that is no rotation at {at}, {m[bad][0].round(decimals=4).tolist()}: give orthogonal "
            "matrices of determinant 1"
        )


def check_quaternions(q: Tensor, name: str) -> None:
    """
    Raises:
        ValueError: a quaternion without NaN does not have length 1.
    """
    size = q.detach().double().norm(dim=-1)
    bad = (size - 1).abs() > TOLERANCE
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds a quaternion of length {float(size[bad][0]):.4g} at {at}: give unit quaternions (w, x, y, z), "
            "such as q / q.norm(dim=-1, keepdim=True)"
        )
