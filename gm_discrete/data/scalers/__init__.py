"""Natural values ↔ entries of a state: numbers of unit size, and names by their number."""

from gm_discrete.data.scalers.base import Codec, LogScaler, Scaler, StandardScaler, decimals
from gm_discrete.data.scalers.categories import Categories
from gm_discrete.data.scalers.quantile import QuantileScaler

SCALERS: dict[str, type[Scaler]] = {"standard": StandardScaler, "log": LogScaler, "quantile": QuantileScaler}
"""By name."""

__all__ = [
    "SCALERS",
    "Categories",
    "Codec",
    "LogScaler",
    "QuantileScaler",
    "Scaler",
    "StandardScaler",
    "decimals",
]
