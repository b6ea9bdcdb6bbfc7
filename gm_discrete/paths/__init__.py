from gm_discrete.paths.base import Path
from gm_discrete.paths.concentration import Concentration, ExponentialConcentration, OddsConcentration
from gm_discrete.paths.continuous import ContinuousPath
from gm_discrete.paths.discrete import DiscretePath
from gm_discrete.paths.edits import EditPath
from gm_discrete.paths.euclidean import EuclideanPath
from gm_discrete.paths.euclidean_mixture import EuclideanMixturePath
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.gaussian import GaussianPath
from gm_discrete.paths.geodesic import GeodesicSO3Path
from gm_discrete.paths.metric import MetricPath
from gm_discrete.paths.mixture import MaskedPath, MixturePath, TokenMixturePath, UniformPath
from gm_discrete.paths.product import ProductPath
from gm_discrete.paths.rotations import RotationPath, SO3Path
from gm_discrete.paths.schedules import At, TimeLike

__all__ = [
    "At",
    "Concentration",
    "ContinuousPath",
    "DiscretePath",
    "EditPath",
    "EuclideanMixturePath",
    "EuclideanPath",
    "ExponentialConcentration",
    "FinitePath",
    "GaussianPath",
    "GeodesicSO3Path",
    "MaskedPath",
    "MetricPath",
    "MixturePath",
    "OddsConcentration",
    "Path",
    "ProductPath",
    "RotationPath",
    "SO3Path",
    "TimeLike",
    "TokenMixturePath",
    "UniformPath",
]
