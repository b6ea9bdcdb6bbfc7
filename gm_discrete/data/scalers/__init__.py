"""Maps between natural values and the entries of a state: scalers for numbers, ids for categories."""

from gm_discrete.data.scalers.base import Codec, Scaler, StandardScaler, decimals
from gm_discrete.data.scalers.categories import Categories
from gm_discrete.data.scalers.quantile import QuantileScaler

SCALERS: dict[str, type[Scaler]] = {"standard": StandardScaler, "quantile": QuantileScaler}
"""By name."""

__all__ = [
    "SCALERS",
    "Categories",
    "Codec",
    "QuantileScaler",
    "Scaler",
    "StandardScaler",
    "decimals",
]
