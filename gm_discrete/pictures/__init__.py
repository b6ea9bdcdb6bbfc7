"""Pictures of a trajectory: its states as an animation, its jumps and entropies as curves."""

from gm_discrete.pictures.animation import animate
from gm_discrete.pictures.curves import plot_trajectory

__all__ = ["animate", "plot_trajectory"]
