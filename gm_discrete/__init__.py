"""Continuous-time Markov models of sequences: generator matching, trained and sampled the Hugging Face way."""

from gm_discrete import bregman
from gm_discrete.field_likelihood import FieldLikelihood, field_likelihood
from gm_discrete.flow_likelihood import FlowLikelihood, flow_log_likelihood
from gm_discrete.generators import Diffusion, Flow, Jump, Product, Superposition
from gm_discrete.landings import Bins
from gm_discrete.likelihood import LikelihoodBound, likelihood_bound
from gm_discrete.models import GMConfig, GMGenerationConfig, GMModel
from gm_discrete.objective import FieldTimes, LogitNormalTimes, UniformTimes, conditional_loss
from gm_discrete.order_likelihood import any_order_bound, any_order_likelihood
from gm_discrete.paths import (
    EuclideanMixturePath,
    FinitePath,
    GaussianPath,
    MaskedPath,
    MetricPath,
    MixturePath,
    ProductPath,
    UniformPath,
)
from gm_discrete.paths.check import ExactModel, KolmogorovResidual, check_kolmogorov
from gm_discrete.paths.exact import ExactGaussianModel, ExactProductModel
from gm_discrete.samplers import (
    BackwardNoise,
    DetailedBalance,
    EtaNoise,
    Predictor,
    PredictorGuided,
    ReMDM,
    simulate,
    superpose,
    time_grid,
)
from gm_discrete.schedules import (
    CondOTSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PowerSchedule,
    SquaredSineSchedule,
    TrigonometricSchedule,
)

__version__ = "0.1.0"

__all__ = [
    "BackwardNoise",
    "Bins",
    "CondOTSchedule",
    "CosineSchedule",
    "DetailedBalance",
    "Diffusion",
    "EtaNoise",
    "EuclideanMixturePath",
    "ExactGaussianModel",
    "ExactModel",
    "ExactProductModel",
    "ExponentialSchedule",
    "FieldLikelihood",
    "FieldTimes",
    "FinitePath",
    "Flow",
    "FlowLikelihood",
    "GMConfig",
    "GMGenerationConfig",
    "GMModel",
    "GaussianPath",
    "Jump",
    "KolmogorovResidual",
    "LikelihoodBound",
    "LinearSchedule",
    "LogitNormalTimes",
    "MaskedPath",
    "MetricPath",
    "MixturePath",
    "PowerSchedule",
    "Predictor",
    "PredictorGuided",
    "Product",
    "ProductPath",
    "ReMDM",
    "SquaredSineSchedule",
    "Superposition",
    "TrigonometricSchedule",
    "UniformPath",
    "UniformTimes",
    "any_order_bound",
    "any_order_likelihood",
    "bregman",
    "check_kolmogorov",
    "conditional_loss",
    "field_likelihood",
    "flow_log_likelihood",
    "likelihood_bound",
    "simulate",
    "superpose",
    "time_grid",
]
