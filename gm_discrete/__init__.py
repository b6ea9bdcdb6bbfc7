"""Continuous-time Markov models of sequences: generator matching, trained and sampled the Hugging Face way."""

from gm_discrete import bregman
from gm_discrete.generators import Jump
from gm_discrete.likelihood import LikelihoodBound, likelihood_bound
from gm_discrete.models import GMConfig, GMGenerationConfig, GMModel
from gm_discrete.objective import LogitNormalTimes, UniformTimes, conditional_loss
from gm_discrete.paths import FinitePath, MaskedPath, MetricPath, MixturePath, UniformPath
from gm_discrete.paths.check import ExactModel, KolmogorovResidual, check_kolmogorov
from gm_discrete.samplers import BackwardNoise, DetailedBalance, EtaNoise, ReMDM, simulate, time_grid
from gm_discrete.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PowerSchedule,
    SquaredSineSchedule,
)

__version__ = "0.1.0"

__all__ = [
    "BackwardNoise",
    "CosineSchedule",
    "DetailedBalance",
    "EtaNoise",
    "ExactModel",
    "ExponentialSchedule",
    "FinitePath",
    "GMConfig",
    "GMGenerationConfig",
    "GMModel",
    "Jump",
    "KolmogorovResidual",
    "LikelihoodBound",
    "LinearSchedule",
    "LogitNormalTimes",
    "MaskedPath",
    "MetricPath",
    "MixturePath",
    "PowerSchedule",
    "ReMDM",
    "SquaredSineSchedule",
    "UniformPath",
    "UniformTimes",
    "bregman",
    "check_kolmogorov",
    "conditional_loss",
    "likelihood_bound",
    "simulate",
    "time_grid",
]
