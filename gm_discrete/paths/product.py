"""Product paths p_t(x|z) = Π_m p_t(x^m|z^m) on states of several fields, each with a path of its own.

The generator of a product path is the sum over its factors, L = Σ_m L^m (Generator Matching, proposition 5): each moves its
own field by the factor's conditional generator, averaged over the posterior of z^m given *all* fields, which a network reads
together. Given z the fields are independent; in the marginal path they are not.

With independent times t = (t¹, t², …) the path is p_t(x|z) = Π_m p_{t^m}(x^m|z^m): at t^m = 0 field m tells nothing, at
t^m = 1 it is known. Along any curve from (0, …) to (1, …), the rates times dt^m/ds carry it, so that one model gives any
subset of fields given any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Product
from gm_discrete.paths.base import Path

State = Mapping[str, Tensor]
"""A tensor for each field, [B, …]."""

RESERVED = ("factors", "independent_times", "type")


class ProductPath(Path):
    """p_t(x|z) = Π_m p_t(x^m|z^m): `ProductPath(carat=GaussianPath(…), cut=MaskedPath(6))`.

    States, data, targets, readouts and generators are dicts by field. Times are [B], or with independent times [B, M], a
    column for each field in their order.

    Args:
        factors: paths by field, a mapping or pairs; in place of or before the keywords.
        independent_times: whether every field has a time of its own.
        paths: the path of each field, by its name.

    Raises:
        ValueError, TypeError: there is no field, a name cannot be one, or a path is none of a single field.
    """

    type_name = "product"
    state_name = "fields"
    spacing = "linear"

    def __init__(
        self,
        factors: Mapping[str, Any] | Sequence[Sequence[Any]] | None = None,
        *,
        independent_times: bool = False,
        **paths: Path,
    ) -> None:
        pairs: Any = factors or {}
        given: dict[str, Any] = {**dict(pairs), **paths}
        if not given:
            raise ValueError("a product needs fields: ProductPath(name=path, …)")
        self.factors: dict[str, Path] = {}
        for name, path in given.items():
            path = Path.from_dict(path) if isinstance(path, dict) else path
            if not name or "." in name or ":" in name or name in RESERVED:
                raise ValueError(f"{name!r} cannot be the name of a field: it is empty, reserved, or holds '.' or ':'")
            if not isinstance(path, Path) or isinstance(path, ProductPath):
                raise TypeError(f"field {name!r} has {path!r}; give the path of a single field")
            if getattr(path, "coupled", False):
                raise ValueError(f"field {name!r} has a coupled path, whose sources a product has no place for")
            self.factors[name] = path
        self.independent_times = bool(independent_times)

    def to_dict(self) -> dict[str, Any]:
        factors = [[name, path.to_dict()] for name, path in self.factors.items()]  # pairs: JSON may sort a dict
        return {"type": self.type_name, "factors": factors, "independent_times": self.independent_times}

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={path!r}" for name, path in self.factors.items())
        return f"ProductPath({fields}{', independent_times=True' if self.independent_times else ''})"

    @property
    def fields(self) -> Mapping[str, Path]:
        return self.factors

    # Times

    @property
    def latest(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(path.latest for path in self.factors.values())

    def time(self, u: Tensor) -> Tensor:
        return u.double()

    def times(self, t: Tensor) -> dict[str, Tensor]:
        """By field, the times [B] among t, [B] or [B, M].

        Raises:
            ValueError: t has another shape.
        """
        if t.dim() == 1:
            return dict.fromkeys(self.factors, t)
        if t.dim() != 2 or t.shape[1] != len(self.factors) or not self.independent_times:
            fitting = f"[B] or [B, {len(self.factors)}]" if self.independent_times else "[B]: the fields share one time"
            raise ValueError(f"t has shape {tuple(t.shape)}; this path takes {fitting}")
        return dict(zip(self.factors, t.unbind(1), strict=True))

    def joined(self, times: Mapping[str, Tensor]) -> Tensor:
        """The t that holds the given times by field.

        Raises:
            ValueError: they differ, and the path has no independent times.
        """
        columns = [times[name] for name in self.factors]
        if self.independent_times:
            return torch.stack(columns, 1)
        if not all(column is columns[0] or torch.equal(column, columns[0]) for column in columns):
            raise ValueError("the fields share one time: give one grid, or train with independent_times=True")
        return columns[0]

    # The law

    def prior(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        shape: Mapping[str, Sequence[int]],
        rng: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """x_0 ~ p_0, of the given shapes [B, …] by field."""
        self._check_names(shape, "shape")
        return {name: path.prior(shape[name], rng, device) for name, path in self.factors.items()}

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: State, t: Tensor, rng: torch.Generator | None = None, x_0: None = None
    ) -> dict[str, Tensor]:
        self._check_names(z, "z")
        if x_0 is not None:
            raise ValueError("x_0 is given, but no field of a product is coupled")
        times = self.times(t)
        return {name: path.sample(z[name], times[name], rng) for name, path in self.factors.items()}

    # Generators

    def conditional(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: State, x: State, t: Tensor, t_next: Tensor | None = None
    ) -> Product:
        self._check_names(z, "z")
        self._check_names(x, "x")
        return self._product(lambda name, path, *times: path.conditional(z[name], x[name], *times), t, t_next)

    def marginal(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, readout: Mapping[str, Any], x: State, t: Tensor, t_next: Tensor | None = None
    ) -> Product:
        """The prediction, from the readout of each field (see the `marginal` of its path)."""
        self._check_names(x, "x")
        self._check_names(readout, "readout")
        return self._product(lambda name, path, *times: path.marginal(readout[name], x[name], *times), t, t_next)

    def _product(self, factor: Any, t: Tensor, t_next: Tensor | None) -> Product:
        now, then = self.times(t), None if t_next is None else self.times(t_next)
        return Product(
            {
                name: factor(name, path, now[name], None if then is None else then[name])
                for name, path in self.factors.items()
            }
        )

    # What networks work with

    @property
    def heads(self) -> dict[str, int]:
        """By `field:head`."""
        return {f"{name}:{head}": size for name, path in self.factors.items() for head, size in path.heads.items()}

    @property
    def default_divergence(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: path.default_divergence for name, path in self.factors.items()}

    def units(self, t: Tensor) -> dict[str, Tensor]:
        times = self.times(t)
        return {
            f"{name}:{part}": unit
            for name, path in self.factors.items()
            for part, unit in path.units(times[name]).items()
        }

    def loss_mask(self, labels: State) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {name: path.loss_mask(labels[name]) for name, path in self.factors.items()}

    def mask_labels(self, z: State, scored: State) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {name: path.mask_labels(z[name], scored[name]) for name, path in self.factors.items()}

    def fill_unscored(self, x: State) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {name: path.fill_unscored(x[name]) for name, path in self.factors.items()}

    def check(self, state: State, t: Tensor, name: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._check_names(state, name)
        times = self.times(t)
        for field, path in self.factors.items():
            path.check(state[field], times[field], f"{name}[{field!r}]")

    def check_known(self, value: Any, name: str) -> None:
        """
        Raises:
            ValueError: a dict of some of the fields, such as masks, is none, or names others.
        """
        if value is not None and (not isinstance(value, Mapping) or value.keys() - self.factors.keys()):
            found = ", ".join(sorted(value)) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{name} must be a dict by field, of {', '.join(self.factors)}; got {found}")

    def _check_names(self, state: Any, name: str) -> None:
        if not isinstance(state, Mapping) or state.keys() != self.factors.keys():
            found = ", ".join(sorted(state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"{name} must be a dict with the fields {', '.join(self.factors)}; got {found}")
