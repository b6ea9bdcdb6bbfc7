"""Product paths p_t(x|z) = Π_m p_t(x^m|z^m) on states of several fields, each with a path of its own.

The generator of a product path is the sum over its factors, L = Σ_m L^m (Generator Matching, proposition 5): each moves its
own field by the factor's conditional generator, averaged over the posterior of z^m given *all* fields, which are the input
of one network. Given z the fields are independent; in the marginal path they are not.

With independent times t = (t¹, t², …) the path is p_t(x|z) = Π_m p_{t^m}(x^m|z^m): at t^m = 0 field m is pure noise, at
t^m = 1 it is observed. Along any curve from (0, …) to (1, …) the rates times dt^m/ds carry the path, so that one model
samples any subset of the fields conditioned on any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

import torch
from torch import Tensor

from gm_discrete.arguments import listed
from gm_discrete.generators import Product
from gm_discrete.generators.kernels import Readout
from gm_discrete.paths.base import Path, different_sizes
from gm_discrete.paths.schedules import At, TimeLike

State = Mapping[str, Tensor]
"""A tensor for each field, [B, …]."""

FieldTimes = Tensor | Mapping[str, TimeLike]
"""Times [B] or [B, M] of a product, or those of each field by name (`ProductPath.times`, `ProductPath.at`)."""


class ProductPath(Path):
    """p_t(x|z) = Π_m p_t(x^m|z^m): `ProductPath(carat=GaussianPath(…), cut=MaskedPath(6))`.

    States, data, targets, readouts and generators are dicts by field. Times are [B], or with independent times [B, M], a
    column for each field in their order.

    Args:
        factors: paths by field, a mapping or pairs; in place of or before the keywords. Names of fields are any strings.
        independent_times: whether every field has a time of its own.
        paths: the path of each field, by its name.

    Raises:
        ValueError, TypeError: there is no field, one is given twice or has an invalid name, or a path is itself a product.

    >>> from gm_discrete import GaussianPath, MaskedPath
    >>> path = ProductPath(carat=GaussianPath(), cut=MaskedPath(6))
    >>> x = path.prior({"carat": (2, 1, 1), "cut": (2, 1)})
    >>> x["cut"].tolist()
    [[5], [5]]
    >>> path.heads
    {'carat:flow': 1, 'cut:tokens': 6}
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
        chosen = [*_pairs({} if factors is None else factors), *paths.items()]
        if not chosen:
            raise ValueError("a product needs fields: ProductPath(name=path, …)")
        self.factors: dict[str, Path] = {}
        for name, path in chosen:
            if name in self.factors:
                raise ValueError(f"field {name!r} is given twice; give each field one path")
            path = Path.from_dict(path) if isinstance(path, dict) else path
            if not isinstance(name, str) or not name:
                raise ValueError(f"{name!r} cannot be the name of a field; give a string that is not empty")
            if not isinstance(path, Path) or isinstance(path, ProductPath):
                raise TypeError(f"field {name!r} has {path!r}; give the path of a single field")
            if path.coupled:
                raise ValueError(f"field {name!r} has coupled=True: coupled paths cannot be fields of a product")
            if path.strings is not None:
                raise ValueError(
                    f"field {name!r} has {path!r}: strings cannot be fields of a product; train a model of strings "
                    "alone, or give the field a path on sequences of one length, such as MaskedPath"
                )
            self.factors[name] = path
        if not isinstance(independent_times, bool):
            raise TypeError(
                f"independent_times={independent_times!r} must be True or False; a field of that name is given in factors"
            )
        self.independent_times = independent_times
        self.latest = min(path.latest for path in self.factors.values())

    def to_dict(self) -> dict[str, Any]:
        factors = [[name, path.to_dict()] for name, path in self.factors.items()]  # pairs: JSON may sort a dict
        return {"type": self.own_type(), "factors": factors, "independent_times": self.independent_times}

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={path!r}" for name, path in self.factors.items())
        return f"ProductPath({fields}{', independent_times=True' if self.independent_times else ''})"

    @staticmethod
    def of_codecs(*_: object, **__: object) -> Never:
        raise AttributeError("ProductPath.of_codecs was renamed: use gm_discrete.data.table_path(codecs, …)")

    @property
    def fields(self) -> Mapping[str, Path]:
        return self.factors

    # Times

    def time(self, u: Tensor) -> Tensor:
        return u.double()

    def times(self, t: Tensor) -> dict[str, Tensor]:
        """The times [B] of each field, from t of shape [B] or [B, M].

        Raises:
            ValueError: t has another shape.
        """
        if not isinstance(t, Tensor):
            raise ValueError(f"t must be a tensor of times, got {t!r}")
        if t.dim() == 1:
            return dict.fromkeys(self.factors, t)
        if t.dim() != 2 or t.shape[1] != len(self.factors) or not self.independent_times:
            fitting = f"[B] or [B, {len(self.factors)}]" if self.independent_times else "[B]: the fields share one time"
            raise ValueError(f"t has shape {tuple(t.shape)}; this path takes {fitting}")
        return dict(zip(self.factors, t.unbind(1), strict=True))

    def joined(self, times: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `times`.

        Raises:
            ValueError: they differ, and the path has no independent times.
        """
        columns = [times[name] for name in self.factors]
        if self.independent_times:
            return torch.stack(columns, 1)
        if not all(column is columns[0] or torch.equal(column, columns[0]) for column in columns):
            raise ValueError("the fields share one time: give one grid, or train with independent_times=True")
        return columns[0]

    def at(self, t: FieldTimes) -> dict[str, At]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The times [B] of each field with the values of its schedule there, each computed once."""
        times: Mapping[str, TimeLike] = self.times(t) if isinstance(t, Tensor) else t
        return {name: path.at(times[name]) for name, path in self.factors.items()}

    # Distributions

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
        self, z: State, t: Tensor, rng: torch.Generator | None = None, x_0: None = None, *, check: bool = True
    ) -> dict[str, Tensor]:
        if check:
            self._check_names(z, "z")
        if x_0 is not None:
            raise ValueError("x_0 is given, but the fields of a product are not coupled")
        times = self.times(t)
        return {name: path.sample(z[name], times[name], rng, check=check) for name, path in self.factors.items()}

    # Generators

    def conditional(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: State, x: State, t: FieldTimes, t_next: FieldTimes | None = None, *, check: bool = True
    ) -> Product:
        if check:
            self._check_names(z, "z")
            self._check_names(x, "x")

        now, end = self.at(t), None if t_next is None else self.at(t_next)
        found: dict[str, Any] = {}
        for name, path in self.factors.items():
            then = None if end is None else end[name]
            found[name] = path.conditional(z[name], x[name], now[name], then, check=check)
        return Product(found)

    def marginal(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        readout: Mapping[str, Readout | Tensor],
        x: State,
        t: FieldTimes,
        t_next: FieldTimes | None = None,
        *,
        check: bool = True,
    ) -> Product:
        """The prediction, from the readout of each field (see the `marginal` of its path)."""
        if check:
            self._check_names(x, "x")
            self._check_names(readout, "readout")

        now, end = self.at(t), None if t_next is None else self.at(t_next)
        found: dict[str, Any] = {}
        for name, path in self.factors.items():
            then = None if end is None else end[name]
            found[name] = path.marginal(readout[name], x[name], now[name], then, check=check)
        return Product(found)

    # Networks and losses

    @property
    def heads(self) -> dict[str, int]:
        """Named `field:head`."""
        return {f"{name}:{head}": size for name, path in self.factors.items() for head, size in path.heads.items()}

    @property
    def default_divergence(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: path.default_divergence for name, path in self.factors.items()}

    def units(self, t: FieldTimes) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        times = self.at(t)
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

    def tables(self) -> dict[str, Tensor]:
        """Named `field:table`."""
        return {
            f"{field}:{name}": table for field, path in self.factors.items() for name, table in path.tables().items()
        }

    def table_shapes(self) -> dict[str, list[int]]:
        return {
            f"{field}:{name}": shape
            for field, path in self.factors.items()
            for name, shape in path.table_shapes().items()
        }

    def load_tables(self, tables: Mapping[str, Tensor]) -> None:
        super().load_tables(tables)
        for field, path in self.factors.items():
            path.load_tables({name: tables[f"{field}:{name}"] for name in path.table_shapes()})

    # Checks

    def check(self, state: State, t: FieldTimes, name: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._check_names(state, name)
        first, *others = (x for x in state.values() if isinstance(x, Tensor) and x.dim())
        if any(x.shape[0] != first.shape[0] for x in others):
            raise different_sizes(state, name)
        times = self.times(t) if isinstance(t, Tensor) else t
        for field, path in self.factors.items():
            path.check(state[field], times[field], f"{name}[{field!r}]")

    def _check_names(self, state: object, name: str) -> None:
        if not isinstance(state, Mapping) or state.keys() != self.factors.keys():
            found = ", ".join(sorted(state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"{name} must be a dict with the fields {', '.join(self.factors)}; got {found}")


def _pairs(factors: object) -> Sequence[Sequence[Any]]:
    """
    Raises:
        TypeError: they are neither a mapping nor pairs.
    """
    pairs = list(factors.items()) if isinstance(factors, Mapping) else listed("factors", factors)
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError(
            f"factors={factors!r} must be paths by the names of their fields, or pairs of a name and a path"
        )
    return pairs
