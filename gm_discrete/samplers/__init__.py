"""Samplers: `simulate` and its methods, correctors, guidance, grids."""

from gm_discrete.samplers.adaptive import Adaptive
from gm_discrete.samplers.banned import Avoiding
from gm_discrete.samplers.base import Chain, Sampler, kind_of, samplers_for
from gm_discrete.samplers.correctors import Corrector, DetailedBalance, ReMDM
from gm_discrete.samplers.decoding import ORDERS, EntropyBounded
from gm_discrete.samplers.dormand_prince import DormandPrince
from gm_discrete.samplers.euler import Euler
from gm_discrete.samplers.exact import FirstHitting, Uniformization
from gm_discrete.samplers.guidance import ClassifierGuidance
from gm_discrete.samplers.heun import Heun
from gm_discrete.samplers.simulate import (
    SPACINGS,
    Simulation,
    simulate,
    simulate_state,
    time_grid,
)
from gm_discrete.samplers.superpose import SuperposedModel, superpose
from gm_discrete.samplers.tau_leaping import TauLeaping
from gm_discrete.samplers.trapezoidal import Trapezoidal

SAMPLERS: dict[str, type[Sampler]] = {
    kind.type_name: kind
    for kind in (
        TauLeaping, Euler, Trapezoidal, FirstHitting, Uniformization, Adaptive, EntropyBounded, Heun, DormandPrince,
    )
}  # fmt: skip
"""Those of this library, by name."""

__all__ = [
    "ORDERS",
    "SAMPLERS",
    "SPACINGS",
    "Adaptive",
    "Avoiding",
    "Chain",
    "ClassifierGuidance",
    "Corrector",
    "DetailedBalance",
    "DormandPrince",
    "EntropyBounded",
    "Euler",
    "FirstHitting",
    "Heun",
    "ReMDM",
    "Sampler",
    "Simulation",
    "SuperposedModel",
    "TauLeaping",
    "Trapezoidal",
    "Uniformization",
    "kind_of",
    "samplers_for",
    "simulate",
    "simulate_state",
    "superpose",
    "time_grid",
]
