from gm_discrete.paths.base import Path
from gm_discrete.paths.euclidean import EuclideanPath
from gm_discrete.paths.euclidean_mixture import EuclideanMixturePath
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.metric import MetricPath
from gm_discrete.paths.mixture import MaskedPath, MixturePath, TokenMixturePath, UniformPath
from gm_discrete.paths.product import ProductPath
from gm_discrete.paths.schedules import At, TimeLike

__all__ = [
    "At",
    "EuclideanMixturePath",
    "EuclideanPath",
    "FinitePath",
    "GaussianPath",
    "MaskedPath",
    "MetricPath",
    "MixturePath",
    "Path",
    "ProductPath",
    "TimeLike",
    "TokenMixturePath",
    "UniformPath",
]
