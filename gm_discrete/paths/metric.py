"""Metric-induced paths p_t(x|z) ∝ p0(x) e^{−β(t) d(x, z)}: noise that falls off with the distance from the data symbol.

Their kinetic-optimal rate β' p_t(y|z) [d(x, z) − d(y, z)]₊ moves a token only closer to its z. Source: Shaul et al. 2024
(arXiv 2412.03487, section 4.2); with the prior p0 it is the tilted path, the geometric path of a finite set.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gm_discrete.arguments import flag, number, numbers
from gm_discrete.generators import DominatingProcess
from gm_discrete.paths.finite import CERTAIN, FinitePath
from gm_discrete.paths.schedules import Schedule


class MetricPath(FinitePath):
    """p_t(x|z) = p0(x) e^{−β d(x, z)} / Σ_y p0(y) e^{−β d(y, z)}, β = c (κ/(1 − κ))^a, so that β(0) = 0 and β(1) = ∞.

    Candidate events have the rate β'(t) max_z d(x, z), which needs no network, and are thinned by z ~ π: O(K) a position.

    The distances, or the embeddings that define them, are a table of the path: `to_dict` holds only its shape. A path built
    from such a dict needs `load_tables` before its probabilities can be computed. A `GMModel` stores the table with its
    weights, and loads it.

    Args:
        vocab_size: K.
        distance: d [K, K], `distance[x][z]`, 0 on the diagonal and positive elsewhere; or:
        embeddings: K different rows [K, D], stored in float32, with d(x, z) = ‖e_x − e_z‖^power.
        normalize: whether to scale the embeddings to unit length first.
        power: of the embeddings' distance.
        prior: p0 [K], positive; uniform by default.
        schedule: κ.
        c, a: how fast β grows.
        rates: `"kinetic"`; there are no others.

    >>> path = MetricPath(3, embeddings=[[0.0], [1.0], [2.0]])
    >>> path.probs(torch.tensor([0]), torch.tensor([0.5]))
    tensor([[0.7214, 0.2654, 0.0132]], dtype=torch.float64)
    >>> path.to_dict()["embeddings"], path.tables()["embeddings"].shape
    ({'shape': [3, 1]}, torch.Size([3, 1]))
    """

    type_name = "metric"
    rounding = 0.0
    spacing = "linear"

    def __init__(
        self,
        vocab_size: int,
        distance: Sequence[Sequence[float]] | Tensor | dict | None = None,
        embeddings: Sequence[Sequence[float]] | Tensor | dict | None = None,
        normalize: bool = False,
        power: float = 2.0,
        prior: Sequence[float] | Tensor | None = None,
        schedule: Schedule | dict | None = None,
        c: float = 1.0,
        a: float = 1.0,
        rates: str = "kinetic",
    ) -> None:
        if rates == "positive_part":
            raise ValueError("rates='positive_part' is no longer supported: use 'kinetic', which carries the same path")
        super().__init__(vocab_size, schedule, rates)
        if (distance is None) == (embeddings is None):
            raise ValueError("give distance [K, K] or embeddings [K, D], one of them")
        self.normalize = flag("normalize", normalize)
        # (κ/(1 − κ))^a and distances must be finite at every κ that float64 tells from 0 and 1.
        self.power, self.a = (number(*pair, least=0.01, most=16) for pair in (("power", power), ("a", a)))
        self.c = number("c", c, least=1e-6, most=1e6)
        size = self.vocab_size
        weights = [1 / size] * size if prior is None else numbers("prior", prior)
        if len(weights) != size or min(weights) <= 0 or not math.isclose(sum(weights), 1, abs_tol=1e-5):
            raise ValueError(f"prior must hold vocab_size={size} positive probabilities of sum 1")
        self._prior, self._weights = (None if prior is None else weights), weights
        self._name, value = ("embeddings", embeddings) if distance is None else ("distance", distance)
        self._table: Tensor | None = None  # what `tables` returns
        self._rows: Tensor | None = None  # the same in float64, and normalised
        if isinstance(value, dict) and value.keys() == {"shape"}:
            self._shape = [int(size) for size in value["shape"]]
            self._check_shape(self._shape)
        else:
            table = _tensor(value, self._name)
            self._shape = list(table.shape)
            self._set(table)

    # The table

    def tables(self) -> dict[str, Tensor]:
        return {} if self._table is None else {self._name: self._table}

    def table_shapes(self) -> dict[str, list[int]]:
        return {self._name: list(self._shape)}

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        super().load_tables(tables)
        self._set(tables[self._name].detach().cpu())

    def _set(self, table: Tensor) -> None:
        self._check_shape(list(table.shape))
        stored = table.float() if self._embedded else table.double()
        rows = stored.double()
        if not bool(rows.isfinite().all()):
            row = int((~rows.isfinite()).nonzero()[0, 0])
            raise ValueError(f"{self._name} must be finite, and row {row} holds NaN or infinity; give numbers")
        if not self._embedded:
            wrong = (rows.diagonal() != 0).diag() | (rows + rows.new_ones(len(rows)).diag() <= 0)
            if bool(wrong.any()):
                x, z = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"distance[{x}][{z}]={float(rows[x, z])}, but distance must be 0 from a symbol to itself and positive "
                    "between two symbols"
                )
        elif self.normalize:
            lengths = rows.norm(dim=1, keepdim=True)
            if not bool((lengths > 0).all()):
                row = int((lengths == 0).nonzero()[0, 0])
                raise ValueError(
                    f"embeddings hold a row of length 0, number {row}, which normalize=True cannot scale to length 1; give "
                    "another row, or normalize=False"
                )
            rows = rows / lengths
        if self._embedded:
            _, group, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
            if len(counts) < self.vocab_size:
                first, second = (group == counts.argmax()).nonzero()[:2, 0].tolist()
                raise ValueError(
                    f"embeddings hold the same row twice, as {first} and as {second}; give each symbol a row of its own, as "
                    "distances between two symbols must be positive"
                )
        self._table, self._rows = stored, rows
        self._cache.clear()

    def _check_shape(self, shape: list[int]) -> None:
        wanted = [self.vocab_size, shape[-1] if self._embedded and shape else self.vocab_size]
        if shape != wanted:
            raise ValueError(f"{self._name} must have the shape {wanted}, got {shape}")

    @property
    def _embedded(self) -> bool:
        return self._name == "embeddings"

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(rows of the distance or the embeddings, log p0 [K], a bound on max_z d(x, z) [K]) on the device."""
        if (found := self._cache.get(("tensors", device))) is None:
            if self._rows is None:
                raise ValueError(
                    f"this MetricPath was built from a config, which holds only the shape {self._shape} of its "
                    f"{self._name}: call path.load_tables({{{self._name!r}: …}}), or use the path of a loaded GMModel"
                )
            rows = self._rows.to(device)
            if not self._embedded:
                reach = rows.amax(1)
            else:  # ‖e_x − e_z‖ ≤ ‖e_x − m‖ + max_z ‖e_z − m‖
                apart = (rows - rows.mean(0)).norm(dim=1)
                reach = (apart + apart.max()) ** self.power
            prior = torch.tensor(self._weights, dtype=torch.float64, device=device).log()
            self._cache["tensors", device] = found = rows, prior, reach
        return found

    def distances(self, z: Tensor) -> Tensor:
        """d(x, z) for symbols z [n] and every x: rows [n, K]."""
        rows = self._tensors(z.device)[0]
        if not self._embedded:
            return rows.T[z]
        if self.power == 2:  # |a|² + |b|² − 2ab rounds; distances must stay positive all the same
            squares = rows.square().sum(1)
            values = (squares[z, None] + squares - 2 * rows[z] @ rows.T).clamp(min=torch.finfo(rows.dtype).tiny)
        else:
            values = torch.cdist(rows[z], rows, compute_mode="donot_use_mm_for_euclid_dist") ** self.power
        return values.scatter(1, z[:, None], 0.0)

    # The path

    def beta(self, t: Tensor) -> Tensor:
        """β = c (κ/(1 − κ))^a."""
        return self.c * (self.schedule.kappa(t) / self.schedule.complement(t)) ** self.a

    def beta_derivative(self, t: Tensor) -> Tensor:
        """β' = c a (κ/(1 − κ))^(a−1) κ'/(1 − κ)², in 1/time."""
        now = self.at(t)
        odds = now.kappa / now.complement
        rate = self.c * self.a * odds ** (self.a - 1) * now.derivative / now.complement**2
        return torch.where(rate.isnan(), torch.inf, rate)

    def probs(self, z: Tensor, t: Tensor) -> Tensor:
        distances = self.distances(z)
        tilt = torch.where(distances > 0, self.beta(t)[:, None] * distances, 0.0)
        return (self._tensors(z.device)[1] - tilt).softmax(1)

    def derivative(self, z: Tensor, t: Tensor) -> Tensor:
        """ṗ = −β' p (d − E_p d)."""
        p, distances = self.probs(z, t), self.distances(z)
        return -self.beta_derivative(t)[:, None] * p * (distances - (p * distances).sum(1, keepdim=True))

    def intensity(self, x: Tensor, t: Tensor) -> Tensor:
        """β' max_z d(x, z) ≥ Σ_y β' p_t(y|z) [d(x, z) − d(y, z)]₊."""
        return self.beta_derivative(t)[:, None] * self._tensors(x.device)[2][x]

    def event_probability(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """1 − e^{−(β(s) − β(t)) max_z d(x, z)}, which also bounds the probability of moving in the step."""
        passed = torch.where(t_next > t, self.beta(t_next) - self.beta(t), 0.0)
        return -torch.expm1(-passed[:, None] * self._tensors(x.device)[2][x])

    def dominating_process(self, x: Tensor) -> DominatingProcess:
        def time(beta: Tensor) -> Tensor:
            odds = (beta / self.c) ** (1 / self.a)
            return self.schedule.inverse((odds / (1 + odds)).nan_to_num(1.0).clamp(max=1 - 2**-53))

        return DominatingProcess(self._tensors(x.device)[2][x], self.beta, time, self.beta_derivative)

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """−β d(x, z), in O(K). The normaliser of p_t(·|z) depends on z and t only, and is left to the network."""
        distances = self.distances(x) if self._embedded else self._tensors(x.device)[0][x]
        tilt = torch.where(distances > 0, self.beta(t)[:, None] * distances, 0.0)
        return -tilt.clamp(max=CERTAIN)

    def to_dict(self) -> dict[str, Any]:
        shape = {"shape": list(self._shape)}
        return {
            "type": self.own_type(),
            "vocab_size": self.vocab_size,
            "distance": None if self._embedded else shape,
            "embeddings": shape if self._embedded else None,
            "normalize": self.normalize,
            "power": self.power,
            "prior": self._prior,
            "schedule": self.schedule.to_dict(),
            "c": self.c,
            "a": self.a,
            "rates": self.rates,
        }

    def __repr__(self) -> str:
        return f"MetricPath(vocab_size={self.vocab_size}, {self._name}=…, schedule={self.schedule!r})"


def _tensor(value: Any, name: str) -> Tensor:
    """A table of numbers on the CPU: models are built under the device "meta" when they are loaded, paths must not be.

    Version 0.1 wrote tables into its JSON, as lists or as base64 of their bytes.
    """
    if isinstance(value, dict):
        if not {"base64", "dtype", "shape"} <= value.keys():
            raise ValueError(
                f"{name} must be a table of numbers, or {{'shape': [K, …]}}; got a dict of {sorted(value)}"
            )
        content = np.frombuffer(base64.b64decode(value["base64"]), dtype=value["dtype"]).reshape(value["shape"])
        return torch.tensor(content, device="cpu")
    try:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a table of numbers: {error}") from error
