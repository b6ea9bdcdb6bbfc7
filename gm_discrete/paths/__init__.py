from gm_discrete.paths.base import Path
from gm_discrete.paths.finite import FinitePath
from gm_discrete.paths.metric import MetricPath
from gm_discrete.paths.mixture import MaskedPath, MixturePath, TokenMixturePath, UniformPath

__all__ = ["FinitePath", "MaskedPath", "MetricPath", "MixturePath", "Path", "TokenMixturePath", "UniformPath"]
