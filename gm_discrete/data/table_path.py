"""The path of a table: a field for each of its columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gm_discrete.data.scalers import Categories, Codec, Scaler
from gm_discrete.generators.landings import Bins
from gm_discrete.paths import GaussianPath, MaskedPath, ProductPath, UniformPath


def table_path(
    codecs: Mapping[str, Codec],
    numbers: Mapping[str, Any] | None = None,
    symbols: str = "masked",
    bins: int = 64,
    independent_times: bool = False,
) -> ProductPath:
    """A field for each column of a table: Gaussian paths for numbers, masked or uniform ones for categories.

    Args:
        codecs: scalers and categories by column (see `data.fit_codecs`).
        numbers: arguments of every `GaussianPath`. By default a flow of a belief over bins of all that the scaler gives,
            or of 5 standard deviations where that has no bound.
        symbols: `"masked"` or `"uniform"`.
        bins: their number.
        independent_times: as of the class.
    """
    if symbols not in ("masked", "uniform"):
        raise ValueError(f"symbols={symbols!r} must be 'masked' or 'uniform'")
    if bins < 2:
        raise ValueError(f"bins={bins} must be at least 2")
    given, paths = {"prediction": "belief", **(numbers or {})}, {}
    for name, codec in codecs.items():
        if isinstance(codec, Categories):
            alone = symbols == "masked" or len(codec) == 1  # uniform noise needs two symbols
            paths[name] = MaskedPath(len(codec) + 1) if alone else UniformPath(len(codec))
        elif isinstance(codec, Scaler):
            reach = codec.reach if math.isfinite(codec.reach) else 5.0
            reach = reach * bins / (bins - 1)  # the outermost values in the middle of a bin
            paths[name] = GaussianPath(**{"bins": Bins(-reach, reach, bins), **given})
        else:
            raise TypeError(f"codecs[{name!r}] is a {type(codec).__name__}; give a scaler or categories")
    return ProductPath(paths, independent_times=independent_times)
