"""`generate`: from a request to samples."""

from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.config import GMGenerationConfig, TransformersOptions, refuse_unknown
from gm_discrete.generation.observers import Streamer
from gm_discrete.generation.outputs import GMGenerateOutput, Samples, Trajectory
from gm_discrete.generation.processors import AllowedTokens
from gm_discrete.generation.request import Request
from gm_discrete.generation.run import generate

__all__ = [
    "AllowedTokens",
    "Blocks",
    "GMGenerateOutput",
    "GMGenerationConfig",
    "Request",
    "Samples",
    "Streamer",
    "Trajectory",
    "TransformersOptions",
    "generate",
    "refuse_unknown",
]
