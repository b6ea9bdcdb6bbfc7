"""Generator matching for sequences: discrete diffusion, flows and jumps, trained and sampled the Hugging Face way."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gm_discrete.generators import Diffusion, Flow, Jump, Product, Superposition, quaternions
from gm_discrete.generators.landings import Bins
from gm_discrete.likelihood import (
    Likelihood,
    any_order_bound,
    any_order_likelihood,
    field_likelihood,
    flow_likelihood,
    likelihood_bound,
)
from gm_discrete.objective import (
    FieldTimeSampler,
    LogitNormalTimeSampler,
    UniformTimeSampler,
    bregman,
    conditional_loss,
)
from gm_discrete.paths import (
    EditPath,
    EuclideanMixturePath,
    FinitePath,
    GaussianPath,
    GeodesicSO3Path,
    MaskedPath,
    MetricPath,
    MixturePath,
    Path,
    ProductPath,
    SO3Path,
    UniformPath,
)
from gm_discrete.paths.affine import AffineSchedule, CondOTSchedule, TrigonometricSchedule
from gm_discrete.paths.check import ExactModel, KolmogorovResidual, check_kolmogorov
from gm_discrete.paths.concentration import Concentration, ExponentialConcentration, OddsConcentration
from gm_discrete.paths.exact import ExactGaussianModel, ExactProductModel
from gm_discrete.paths.exact_edits import ExactEditModel
from gm_discrete.paths.exact_rotations import ExactRotationModel, kolmogorov_residual
from gm_discrete.paths.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PowerSchedule,
    Schedule,
    SquaredSineSchedule,
)
from gm_discrete.process import Process
from gm_discrete.renamed import missing_name
from gm_discrete.samplers import (
    Adaptive,
    ClassifierGuidance,
    Corrector,
    DetailedBalance,
    DormandPrince,
    EntropyBounded,
    Euler,
    FirstHitting,
    Heun,
    ReMDM,
    Sampler,
    Simulation,
    TauLeaping,
    Trapezoidal,
    Uniformization,
    simulate,
    superpose,
    time_grid,
)

if TYPE_CHECKING:
    from gm_discrete.generation.blocks import Blocks
    from gm_discrete.generation.draft import Draft
    from gm_discrete.generation.processors import AllowedTokens
    from gm_discrete.models import GMConfig, GMGenerationConfig, GMModel

__version__ = "0.2.0"

__all__ = [
    "Adaptive",
    "AffineSchedule",
    "AllowedTokens",
    "Bins",
    "Blocks",
    "ClassifierGuidance",
    "Concentration",
    "CondOTSchedule",
    "Corrector",
    "CosineSchedule",
    "DetailedBalance",
    "Diffusion",
    "DormandPrince",
    "Draft",
    "EditPath",
    "EntropyBounded",
    "EuclideanMixturePath",
    "Euler",
    "ExactEditModel",
    "ExactGaussianModel",
    "ExactModel",
    "ExactProductModel",
    "ExactRotationModel",
    "ExponentialConcentration",
    "ExponentialSchedule",
    "FieldTimeSampler",
    "FinitePath",
    "FirstHitting",
    "Flow",
    "GMConfig",
    "GMGenerationConfig",
    "GMModel",
    "GaussianPath",
    "GeodesicSO3Path",
    "Heun",
    "Jump",
    "KolmogorovResidual",
    "Likelihood",
    "LinearSchedule",
    "LogitNormalTimeSampler",
    "MaskedPath",
    "MetricPath",
    "MixturePath",
    "OddsConcentration",
    "Path",
    "PowerSchedule",
    "Process",
    "Product",
    "ProductPath",
    "ReMDM",
    "SO3Path",
    "Sampler",
    "Schedule",
    "Simulation",
    "SquaredSineSchedule",
    "Superposition",
    "TauLeaping",
    "Trapezoidal",
    "TrigonometricSchedule",
    "UniformPath",
    "UniformTimeSampler",
    "Uniformization",
    "any_order_bound",
    "any_order_likelihood",
    "bregman",
    "check_kolmogorov",
    "conditional_loss",
    "field_likelihood",
    "flow_likelihood",
    "kolmogorov_residual",
    "likelihood_bound",
    "quaternions",
    "simulate",
    "superpose",
    "time_grid",
]

_LAZY = {
    "AllowedTokens": "generation.processors",
    "Blocks": "generation.blocks",
    "Draft": "generation.draft",
    "GMConfig": "models",
    "GMGenerationConfig": "models",
    "GMModel": "models",
}

_RENAMED = {
    "BackwardNoise": "ReMDM or DetailedBalance",
    "EtaNoise": "ReMDM or DetailedBalance",
    "FieldLikelihood": "Likelihood, which field_likelihood returns",
    "FieldTimes": "FieldTimeSampler",
    "FlowLikelihood": "Likelihood, which flow_likelihood returns; its .nats is −log p",
    "LikelihoodBound": "Likelihood",
    "LogitNormalTimes": "LogitNormalTimeSampler",
    "Predictor": "ClassifierGuidance",
    "PredictorGuided": "ClassifierGuidance(…).guided(process)",
    "UniformTimes": "UniformTimeSampler",
    "flow_log_likelihood": "flow_likelihood, whose .nats is −log p",
}
"""What to use in place of names of version 0.1."""


def __getattr__(name: str) -> Any:
    """The model classes and their options, imported on first access: they import transformers."""
    if name in _LAZY:
        return getattr(import_module(f"gm_discrete.{_LAZY[name]}"), name)
    raise missing_name(__name__, name, _RENAMED)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
