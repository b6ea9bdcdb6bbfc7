"""Where a jump between real numbers lands: the jump of the Gaussian path N(αz, σ²), in closed form, and bins.

For p_t(x|z) = N(αz, σ²) with w = (x − αz)/σ, h = −σ'/σ and ζ = −(α'/σ') z,

    ∂_t log p_t(x|z) = h (1 + ζw − w²).

The jump with intensity λ = [−∂_t log p]₊ and landing density J ∝ [∂_t p]₊ solves the path's Kolmogorov equation. In w,
J ∝ (1 + ζw − w²) φ(w) between w± = (ζ ± √(ζ² + 4))/2, whose antiderivative is (w − ζ) φ(w): masses of bins, the
distribution function and the mean rate need no quadrature. Per coordinate; for CondOT ζ = z and h = 1/(1 − t). Source:
Generator Matching (Holderrieth et al., ICLR 2025), section on the geometric average path.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gm_discrete.arguments import number, readable, whole
from gm_discrete.configurable import Configurable
from gm_discrete.generators.kernels import BeliefKernel, Kernel

BISECTIONS = 44
"""w is found to 2⁻⁴⁴ of an interval that is at least 2 wide."""

ROUNDING = 1e-6
"""Tolerance for numbers in float32: relative to the range that they must lie in, or to the sum 1."""

GREATEST = 1e15
"""The greatest size of numbers: squares of such numbers are finite in float32."""

MOST_BINS = 2**16
"""A network predicts a number for each bin."""
FITTED = 10**6
"""Numbers of which quartiles are computed."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, are evenly spread: the second coordinate of a lattice for quadrature."""


def roots(zeta: Tensor) -> tuple[Tensor, Tensor]:
    """(w₋, w₊), between which the density grows; computed by w₋ w₊ = −1, where the difference would cancel."""
    far = (zeta.abs() + (zeta * zeta + 4).sqrt()) / 2
    return torch.where(zeta >= 0, -1 / far, -far), torch.where(zeta >= 0, far, 1 / far)


def gain(w: Tensor, zeta: Tensor) -> Tensor:
    """∫_{w₋}^{w} (1 + ζv − v²) φ(v) dv for w cut to [w₋, w₊]."""
    low, high = roots(zeta)
    w = torch.minimum(torch.maximum(w, low), high)
    return _antiderivative(w, zeta) - _antiderivative(low, zeta)


def total_gain(zeta: Tensor) -> Tensor:
    """C(ζ), the gain over all of [w₋, w₊]: the mean rate of jumps, per unit of h."""
    return gain(torch.full_like(zeta, torch.inf), zeta)


def landing_quantile(u: Tensor, zeta: Tensor) -> Tensor:
    """The w at which the gain has reached the fraction u of its total, by bisection."""
    low, high = roots(zeta)
    aim = u * total_gain(zeta) + _antiderivative(low, zeta)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = _antiderivative(middle, zeta) < aim
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _antiderivative(w: Tensor, zeta: Tensor) -> Tensor:
    return (w - zeta) * torch.exp(-w * w / 2) / math.sqrt(2 * math.pi)


def ends(low_name: str, low: float, high_name: str, high: float) -> tuple[float, float]:
    """The ends of an interval of float32 numbers.

    Raises:
        TypeError, ValueError: they are no finite numbers, or do not increase; the message names them.
    """
    low, high = (
        number(name, end, least=-GREATEST, most=GREATEST) for name, end in ((low_name, low), (high_name, high))
    )
    if not low < high:
        raise ValueError(f"{low_name}={low} must be below {high_name}={high}")
    return low, high


class Bins(Configurable):
    """Equal bins of [low, high], over which a network predicts the distribution of a number.

    Args:
        low, high: ends, low < high.
        number: how many bins.

    >>> bins = Bins(-1.0, 1.0, number=4)
    >>> bins.index(torch.tensor([-0.9, 0.1]))
    tensor([0, 2])
    >>> bins.centers(torch.device("cpu"))
    tensor([-0.7500, -0.2500,  0.2500,  0.7500], dtype=torch.float64)
    """

    type_name = "bins"
    argument = "bins"

    def __init__(self, low: float = -1.0, high: float = 1.0, number: int = 64) -> None:
        self.low, self.high = ends("low", low, "high", high)
        self.number = whole("number", number, least=2, most=MOST_BINS)
        self.width = (self.high - self.low) / self.number
        float32 = torch.finfo(torch.float32)
        if self.width < max(4 * float32.eps * max(abs(self.low), abs(self.high)), float32.tiny):
            raise ValueError(
                f"low={low}, high={high}, number={number}: bins of width {self.width:g} cannot be told apart in float32; "
                "give fewer, move the data towards 0, or take a smaller unit"
            )
        self.std = self.width / math.sqrt(12)  # of a number that is uniform within one bin

    @classmethod
    def covering(cls, low: float, high: float, number: int = 64) -> Bins:
        """Bins whose outermost centres are `low` and `high`, such as those of black and white.

        >>> Bins.covering(0.0, 1.0, number=5)
        Bins(low=-0.125, high=1.125, number=5)
        """
        half = (high - low) / (2 * max(number - 1, 1))
        return cls(low - half, high + half, number)

    @classmethod
    def fit(cls, data: Tensor, number: int | None = None, margin: float = 0.05) -> Bins:
        """Bins that cover the data and a margin on either side.

        Args:
            data: of any shape; NaN is left out.
            number: how many; by default 64, or up to 256 where the data have long tails, so that the middle half of the
                data is spread over 10 bins at least.
            margin: as a fraction of the data's range.

        Raises:
            ValueError: there are no numbers, some are infinite, or the margin is negative.

        >>> Bins.fit(torch.tensor([0.0, 10.0, float("nan")]), margin=0.1)
        Bins(low=-1.0, high=11.0, number=64)
        """
        values = data.detach().flatten().double()
        values = values[~values.isnan()]
        if not len(values) or not bool(values.isfinite().all()):
            found = f"{int(values.isinf().sum())} infinite ones" if len(values) else "none"
            raise ValueError(f"data must hold finite numbers (NaN: missing), to which bins are fitted; found {found}")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin} must be a fraction of the data's range, ≥ 0")
        low, high = float(values.min()), float(values.max())
        if number is None:
            middle = values[:: -(-len(values) // FITTED)].quantile(values.new_tensor([0.25, 0.75])).diff().item()
            number = 64 if middle <= 0 else min(max(64, math.ceil(10 * (high - low) * (1 + 2 * margin) / middle)), 256)
        beyond = margin * (high - low) or 0.5 * (low == high)
        return cls(low - beyond, high + beyond, number)

    def centers(self, device: torch.device) -> Tensor:
        """[number], float64."""
        return self.low + (torch.arange(self.number, dtype=torch.float64, device=device) + 0.5) * self.width

    def edges(self, device: torch.device) -> Tensor:
        """[number + 1], float64."""
        return torch.linspace(self.low, self.high, self.number + 1, dtype=torch.float64, device=device)

    def index(self, value: Tensor) -> Tensor:
        """The bin of each value, long; values outside of [low, high] are put into the outermost bins."""
        return ((value - self.low) / self.width).long().clamp(0, self.number - 1)

    def value(self, index: Tensor, u: Tensor) -> Tensor:
        """The point at the fraction u of each bin."""
        return self.low + (index + u) * self.width


class Landing(BeliefKernel):
    """J(·|z) with z from a belief over cells: the cell is drawn from the belief, z within the cell, and then the landing.

    Its probabilities are those of the cells.

    Args:
        belief: distribution over the cells at each coordinate.
        x: state; only its shape and device are used.
        values: (cells [n], uniforms [n], where [n]) → z [n].
        land: (z [n], uniforms [n], where [n]) → landing [n], the quantile of J(·|z).
    """

    def __init__(
        self,
        belief: Kernel,
        x: Tensor,
        values: Callable[[Tensor, Tensor, Tensor], Tensor],
        land: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        self._belief, self.x, self.values, self.land = belief, x, values, land
        self.shape, self.vocab_size = x.shape, belief.vocab_size

    def sample(self, rng: torch.Generator | None, where: Tensor) -> Tensor:
        cells = self.belief.sample(rng, where)
        within, landing = self._uniform(rng, where), self._uniform(rng, where)
        return self.land(self.values(cells, within, where), landing, where)

    def log_probs(self, where: Tensor) -> Tensor:
        return self.belief.log_probs(where)

    def nodes(self, where: Tensor, number: int = 48) -> tuple[Tensor, Tensor]:
        """Landings and their weights [n, cells · number] for a quadrature of smooth functions."""
        u = (torch.arange(number, dtype=torch.float64, device=self.device) + 0.5) / number
        within, cells = u * number * GOLDEN % 1, self.vocab_size  # a lattice of (z in its cell, landing)
        index = torch.arange(cells, device=self.device)[None, :, None].expand(len(where), cells, number).flatten()
        each = where[:, None, None].expand(len(where), cells, number).flatten()
        quantile = u.expand(len(where), cells, number).flatten()
        z = self.values(index, within.repeat(len(where) * cells), each)
        points = self.land(z, quantile, each).view(len(where), -1)
        weights = self.log_probs(where).double().exp()[:, :, None].expand(-1, -1, number) / number
        return points, weights.reshape(len(where), -1)


def check_within(bins: Bins, value: Tensor, name: str) -> None:
    """
    Raises:
        ValueError: a value lies outside of the bins (checked on the CPU only, as it would stall other devices).
    """
    if readable(value) and value.numel():
        low, high = float(value.min()), float(value.max())
        slack = ROUNDING * (bins.high - bins.low)
        if low < bins.low - slack or high > bins.high + slack:
            raise ValueError(
                f"{name} goes from {low:.4g} to {high:.4g}; the bins cover only {bins.low:.4g} to {bins.high:.4g}: "
                "give Bins(low, high, number) that cover it"
            )
