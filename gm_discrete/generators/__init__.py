"""Generators of Markov processes, and what they are made of: kernels, beliefs, landings."""

from gm_discrete.generators.base import (
    Diffusion,
    DominatingProcess,
    Factor,
    Flow,
    Generator,
    Jump,
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
    "Posterior",
    "Product",
    "Superposition",
    "over",
    "terms",
]
