from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.correctors import BackwardNoise, Corrector, DetailedBalance, EtaNoise, ReMDM
from gm_discrete.samplers.grids import SPACINGS, time_grid
from gm_discrete.samplers.simulate import GRID_FREE, STEPS, Simulation, make_step, simulate

__all__ = [
    "GRID_FREE",
    "SPACINGS",
    "STEPS",
    "BackwardNoise",
    "Chain",
    "Corrector",
    "DetailedBalance",
    "EtaNoise",
    "ReMDM",
    "Simulation",
    "Step",
    "make_step",
    "simulate",
    "time_grid",
]
