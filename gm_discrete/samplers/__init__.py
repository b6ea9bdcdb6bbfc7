from gm_discrete.samplers.simulate import Simulation, simulate
from gm_discrete.samplers.steps import STEPS

__all__ = ["STEPS", "Simulation", "simulate"]
