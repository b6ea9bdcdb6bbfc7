"""The probability path of a table: one field per column."""

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
    """The product path of a table: a Gaussian path per column of numbers, a masked or uniform one per column of categories.

    >>> from gm_discrete.data import fit_codecs
    >>> path = table_path(fit_codecs({"carat": [0.3, 0.5, 0.7], "cut": ["fair", "good", "fair"]}), bins=32)
    >>> {name: type(factor).__name__ for name, factor in path.fields.items()}
    {'carat': 'GaussianPath', 'cut': 'MaskedPath'}

    Args:
        codecs: scalers and categories by column (see `data.fit_codecs`).
        numbers: arguments of every `GaussianPath`. By default a flow, predicted by a histogram over bins that cover the
            range of the scaler, or 5 standard deviations on either side where the scaler has no bounds.
        symbols: the path of categories, `"masked"` or `"uniform"`.
        bins: number of bins.
        independent_times: give each field a time of its own (see `ProductPath`).

    Raises:
        TypeError: a codec is neither a scaler nor categories.
        ValueError: `symbols` is unknown, or `bins` is below 2.
    """
    if symbols not in ("masked", "uniform"):
        raise ValueError(f"symbols={symbols!r} must be 'masked' or 'uniform'")
    if bins < 2:
        raise ValueError(f"bins={bins} must be at least 2")
    options, paths = {"prediction": "belief", **(numbers or {})}, {}
    for name, codec in codecs.items():
        if isinstance(codec, Categories):
            alone = symbols == "masked" or len(codec) == 1  # uniform noise needs two symbols
            paths[name] = MaskedPath(len(codec) + 1) if alone else UniformPath(len(codec))
        elif isinstance(codec, Scaler):
            reach = codec.reach if math.isfinite(codec.reach) else 5.0
            paths[name] = GaussianPath(**{"bins": Bins.covering(-reach, reach, bins), **options})
        else:
            raise TypeError(f"codecs[{name!r}] is a {type(codec).__name__}; give a scaler or categories")
    return ProductPath(paths, independent_times=independent_times)
