from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.correctors import BackwardNoise, Corrector, DetailedBalance, EtaNoise, ReMDM
from gm_discrete.samplers.grids import SPACINGS, time_grid
from gm_discrete.samplers.product import PRODUCT_STEPS, ProductChain, ProductStep
from gm_discrete.samplers.simulate import EUCLIDEAN_STEPS, GRID_FREE, STEPS, Simulation, make_step, simulate
from gm_discrete.samplers.superpose import SuperposedModel, superpose

__all__ = [
    "EUCLIDEAN_STEPS",
    "GRID_FREE",
    "PRODUCT_STEPS",
    "SPACINGS",
    "STEPS",
    "BackwardNoise",
    "Chain",
    "Corrector",
    "DetailedBalance",
    "EtaNoise",
    "ProductChain",
    "ProductStep",
    "ReMDM",
    "Simulation",
    "Step",
    "SuperposedModel",
    "make_step",
    "simulate",
    "superpose",
    "time_grid",
]
