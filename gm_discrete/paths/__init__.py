from gm_discrete.paths.base import Path
from gm_discrete.paths.mixture import MaskedPath, MixturePath, TokenMixturePath, UniformPath

__all__ = ["MaskedPath", "MixturePath", "Path", "TokenMixturePath", "UniformPath"]
