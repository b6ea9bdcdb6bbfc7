"""Tables of the von Mises–Fisher distribution of rotations: radial speed, angles and their quantiles, landings, peaks.

Rows of the tables of two arguments are uniform in asinh k up to `TOP`; beyond it the limits for large k are used. All are
interpolated linearly. They are built once for each device, on the CPU in float64, in a quarter of a second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gm_discrete.generators.von_mises_fisher_density import boundary, log_density, slope_at

TOP = 1e3
"""The largest concentration of the tables. Above it the relative error of the limits is of the order 1/k² ≤ 1e-6."""

END = 36.0
"""−log(1 − u) at the last column of the quantiles: that of the greatest float64 below 1, 36.7, is nearly there."""

ROWS, COLUMNS = 1025, 257
"""Linear interpolation then has errors below 1e-5 in the radial speed (measured against quadrature). The tables of functions
of α have more columns, since these change within 1/k of α = π/2."""


class Tables(NamedTuple):
    """The tables, [1, 1, ROWS, columns]. Columns are uniform in [0, 1].

    Attributes:
        speed: Ψ(√2 sin(α/2), k), see `scaled_speed`.
        logit: logit G(α; k) − logit G(α; 0); the column is √2 sin(α/2).
        quantile: sin(α/2) (1 + k²)^¼/column at the angle's quantile u; the column is (−log(1 − u)/END)^⅓.
        landing: sin(α/2)/sin(α*/2) at the landing's quantile u; the column is 1 − √(1 − u^⅓).
        peak: log k*, [N], where log((1 − 2s)/s) is `peak_at`, s = 1 − cos α.
        peak_at: the abscissae, [N].
    """

    speed: Tensor
    logit: Tensor
    quantile: Tensor
    landing: Tensor
    peak: Tensor
    peak_at: Tensor


def lookup(table: Tensor, column: Tensor, k: Tensor) -> Tensor:
    """The entry [...] of a table at a column in [0, 1] and a concentration."""
    row = (k.asinh() * (2 / math.asinh(TOP)) - 1).clamp(max=1)
    at = torch.stack(torch.broadcast_tensors(2 * column - 1, row), -1)
    if not at.numel():
        return at[..., 0]
    found = torch.nn.functional.grid_sample(
        table, at.reshape(1, 1, -1, 2), mode="bilinear", padding_mode="border", align_corners=True
    )
    return found.reshape(at.shape[:-1])


@functools.cache
def tables(device: torch.device) -> Tables:
    """The tables on a device."""
    with torch.inference_mode(False), torch.no_grad():
        if device.type != "cpu":
            return Tables(*(table.to(device) for table in tables(torch.device("cpu"))))
        k = _uniform(ROWS, math.asinh(TOP)).sinh()[:, None]
        peak = torch.linspace(math.log(1e-3), math.log(TOP), 8193, dtype=torch.float64, device="cpu")
        s = 2 * (boundary(peak.exp()) / 2).sin().square()
        return Tables(_speeds(), *_angles(k), _landings(k), peak, ((1 - 2 * s) / s).log())


def _uniform(number: int, end: float = 1.0) -> Tensor:
    return torch.linspace(0, end, number, dtype=torch.float64, device="cpu")


def _chebyshev(number: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Nodes in [0, 1], and the matrix that interpolates values there at n uniform points."""
    angle, degree = _uniform(number, math.pi), torch.arange(number, dtype=torch.float64, device="cpu")
    inverse = torch.linalg.inv((angle[:, None] * degree).cos())

    def matrix(n: int) -> Tensor:
        return ((2 * _uniform(n) - 1).clamp(-1, 1).acos()[:, None] * degree).cos() @ inverse

    return (angle.cos() + 1) / 2, matrix


def _gauss(number: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on [0, 1], by the eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    n = torch.arange(1, number, dtype=torch.float64, device="cpu")
    off = n / (4 * n * n - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes + 1) / 2, vectors[0].square()


def _speeds() -> Tensor:
    """`scaled_speed` on a grid: it is analytic, so that 72 × 64 Chebyshev nodes determine it."""
    (m, rows), (x, columns) = _chebyshev(72), _chebyshev(64)
    k = (m * math.asinh(TOP)).sinh().clamp(min=1e-4)  # Ψ is even in k and in v: the ends may be moved by a little
    v = (x / math.sqrt(2)).clamp(min=1e-5, max=(1 - 1e-6) / math.sqrt(2))
    coarse = scaled_speed(v, k[:, None])
    return (rows(ROWS) @ coarse @ columns(4 * COLUMNS - 3).T)[None, None]


def scaled_speed(v: Tensor, k: Tensor) -> Tensor:
    """Ψ = −(dα/dk) √(1 + k²)/(tanh(k cos α) tan(α/2)), where v = sin(α/2), by quadrature.

    −dα/dk is (1/g(α)) ∫₀^α slope g, and also (1/g(α)) ∫_α^{π/2} −slope g. Inside the boundary the first is used, outside
    it the second: neither cancels. Ψ is smooth, between (1 + cos α)/4 for small k and 1 − 1/(4k) for large k.
    """
    node, weight = _gauss(48)
    v, k = v[..., None], k[..., None]
    s, c = 2 * v * v, 1 - 2 * v * v
    sine = 2 * v * (1 - v * v).sqrt()

    def density(c_: Tensor) -> Tensor:  # f there, divided by f at α
        return (k * (c_ - c)).exp() * (1 + (-2 * k * c_).exp()) / (1 + (-2 * k * c).exp())

    w = v * node  # inside: sin²α dα = 8 w² √(1 − w²) dw
    inner = v * slope_at(2 * w * w, k) * density(1 - 2 * w * w) * 8 * w * w * (1 - w * w).sqrt()
    width = torch.minimum(c, 40 / k)  # outside, over cos α: what is beyond is e⁻⁴⁰ of the rest
    there = s + width * node
    outer = -width * slope_at(there, k) * density(1 - there) * (there * (2 - there)).sqrt()
    inside = s <= 2 * (boundary(k) / 2).sin().square()
    speed = (torch.where(inside, inner, outer) * weight).sum(-1, keepdim=True) / sine.square()
    return (speed * (1 + k * k).sqrt() / ((k * c).tanh() * v / (1 - v * v).sqrt())).squeeze(-1)


def logit_uniform(v: Tensor) -> Tensor:
    """logit G(α; 0), v = sin(α/2): of the uniform distribution, where G = (2α − sin 2α)/π."""
    alpha = 2 * v.asin()
    x = (2 * alpha).square()
    # from 0.1 on the subtraction loses three digits at most; below it the next term is 1e-9 of the first
    below = torch.where(alpha < 0.1, 2 * alpha * x * (1 - x * (1 - x / 42) / 20) / 6, 2 * alpha - (2 * alpha).sin())
    beta = (1 - 2 * v * v).clamp(min=0).asin()
    return (below / (2 * beta + (2 * beta).sin())).log()


def _angles(k: Tensor) -> tuple[Tensor, Tensor]:
    """The tables `logit` and `quantile`."""
    fraction = _uniform(4 * COLUMNS - 3)
    v, below, above = _cumulated(k, math.sqrt(0.5), fraction, lambda s: torch.ones_like(s))
    logit = (below / above).log() - logit_uniform(v)
    center = log_density(torch.zeros_like(k), k)
    end = -log_density(torch.full_like(k, math.pi / 2), k)
    logit = torch.cat([center, logit[:, 1:-1], end], -1)
    # the cells shrink towards the end, and at small k, where that is α = π/2, resolve −log(1 − G)
    v, below, above = _cumulated(
        k, (20 / k).clamp(max=0.5).sqrt(), 1 - (1 - fraction) ** 2, lambda s: torch.ones_like(s)
    )
    total = below + above
    tail = torch.where(below < above, -(-below / total).log1p(), -(above / total).log())
    column = (tail / END).clamp(max=2).pow(1 / 3)
    v = _inverse(column, v)[:, 1:] / _uniform(COLUMNS)[1:]
    first = (0.75 * math.pi * END * (-center).exp()).pow(1 / 3) / 2  # G = f(0; k) (4/π) α³/3 for small α
    quantile = torch.cat([first, v], -1) * (1 + k * k).pow(0.25)
    return logit[None, None], quantile[None, None]


def _landings(k: Tensor) -> Tensor:
    end = (boundary(k) / 2).sin()
    fraction = _uniform(2 * COLUMNS - 1)
    v, below, above = _cumulated(k, end, fraction, lambda s: slope_at(s, k.clamp(min=1e-6)).clamp(min=0))
    total = below + above
    rest = torch.where(below < above, 1 - (below / total).pow(1 / 3), -((-above / total).log1p() / 3).expm1())
    return _inverse(1 - rest.clamp(min=0).sqrt(), v / end)[None, None]


def _cumulated(
    k: Tensor, end: Tensor | float, fraction: Tensor, factor: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(v, ∫₀^v, ∫_v^end) [ROWS, COLUMNS] of factor · g over v = sin(α/2) ∈ end · fraction, by Simpson's rule in every cell.

    Args:
        fraction: ends and centres of the cells, from 0 to 1, a smooth function of their number.
    """
    v = end * fraction.expand(len(k), -1)
    s = 2 * v * v
    even = (1 + (-2 * k * (1 - s)).exp()) * (-k * s).exp()
    spacing = torch.gradient(fraction, edge_order=2)[0]
    values = factor(s) * even * s * (2 - s) / (1 - v * v).sqrt() * spacing
    cells = values[:, :-1:2] + 4 * values[:, 1::2] + values[:, 2::2]
    zero = torch.zeros_like(k)
    below = torch.cat([zero, cells.cumsum(-1)], -1)
    above = torch.cat([cells.flip(-1).cumsum(-1).flip(-1), zero], -1)
    return v[:, ::2], below, above


def _inverse(x: Tensor, y: Tensor) -> Tensor:
    """y at uniform x in [0, 1], of increasing rows x."""
    at = _uniform(COLUMNS).expand(len(x), COLUMNS).contiguous()
    right = torch.searchsorted(x.contiguous(), at).clamp(1, x.shape[-1] - 1)
    low, high = x.gather(-1, right - 1), x.gather(-1, right)
    weight = ((at - low) / (high - low)).clamp(0, 1)
    return torch.lerp(y.gather(-1, right - 1), y.gather(-1, right), weight)
