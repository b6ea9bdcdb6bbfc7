from gm_discrete.samplers.banned import avoiding
from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.correctors import BackwardNoise, Corrector, DetailedBalance, EtaNoise, ReMDM
from gm_discrete.samplers.decoding import ORDERS
from gm_discrete.samplers.grids import SPACINGS, time_grid
from gm_discrete.samplers.guidance import ClassifierGuidance, ClassifierGuided, check_predictor
from gm_discrete.samplers.product import PRODUCT_STEPS, ProductChain, ProductStep
from gm_discrete.samplers.simulate import EUCLIDEAN_STEPS, GRID_FREE, STEPS, Simulation, make_step, simulate
from gm_discrete.samplers.superpose import SuperposedModel, superpose

__all__ = [
    "EUCLIDEAN_STEPS",
    "GRID_FREE",
    "ORDERS",
    "PRODUCT_STEPS",
    "SPACINGS",
    "STEPS",
    "BackwardNoise",
    "Chain",
    "ClassifierGuidance",
    "ClassifierGuided",
    "Corrector",
    "DetailedBalance",
    "EtaNoise",
    "ProductChain",
    "ProductStep",
    "ReMDM",
    "Simulation",
    "Step",
    "SuperposedModel",
    "avoiding",
    "check_predictor",
    "make_step",
    "simulate",
    "superpose",
    "time_grid",
]
