"""Maps between natural values and the entries of a state: scalers for numbers, ids for categories."""

from typing import TYPE_CHECKING

from gm_discrete.data.scalers.base import Codec, Scaler, StandardScaler, decimals
from gm_discrete.data.scalers.categories import Categories
from gm_discrete.data.scalers.dates import DatePart
from gm_discrete.data.scalers.quantile import QuantileScaler
from gm_discrete.renamed import missing_name

SCALERS: dict[str, type[Scaler]] = {"standard": StandardScaler, "quantile": QuantileScaler}
"""By name."""

__all__ = [
    "SCALERS",
    "Categories",
    "Codec",
    "DatePart",
    "QuantileScaler",
    "Scaler",
    "StandardScaler",
    "decimals",
]

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> None:
        raise missing_name(__name__, name, {"LogScaler": "QuantileScaler or StandardScaler"})
