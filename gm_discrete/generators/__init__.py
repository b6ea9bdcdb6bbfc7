"""Generators of Markov processes, and what they are made of: kernels, beliefs, landings."""

from gm_discrete.generators import quaternions
from gm_discrete.generators.base import (
    Diffusion,
    DominatingProcess,
    Factor,
    Flow,
    Generator,
    Jump,
    LazyParts,
    Posterior,
    Product,
    Superposition,
    over,
    terms,
)

__all__ = [
    "Diffusion",
    "DominatingProcess",
    "Factor",
    "Flow",
    "Generator",
    "Jump",
    "LazyParts",
    "Posterior",
    "Product",
    "Superposition",
    "over",
    "quaternions",
    "terms",
]
