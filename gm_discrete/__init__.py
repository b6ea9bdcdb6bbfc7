"""Continuous-time Markov models of sequences: generator matching, trained and sampled the Hugging Face way."""

from gm_discrete import bregman
from gm_discrete.generators import Jump
from gm_discrete.likelihood import LikelihoodBound, likelihood_bound
from gm_discrete.models import GMConfig, GMGenerationConfig, GMModel
from gm_discrete.objective import LogitNormalTimes, UniformTimes, conditional_loss
from gm_discrete.paths import MaskedPath, MixturePath, UniformPath
from gm_discrete.samplers import simulate
from gm_discrete.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PowerSchedule,
    SquaredSineSchedule,
)

__version__ = "0.1.0"

__all__ = [
    "CosineSchedule",
    "ExponentialSchedule",
    "GMConfig",
    "GMGenerationConfig",
    "GMModel",
    "Jump",
    "LikelihoodBound",
    "LinearSchedule",
    "LogitNormalTimes",
    "MaskedPath",
    "MixturePath",
    "PowerSchedule",
    "SquaredSineSchedule",
    "UniformPath",
    "UniformTimes",
    "bregman",
    "conditional_loss",
    "likelihood_bound",
    "simulate",
]
