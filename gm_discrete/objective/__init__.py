"""The training objective: conditional generator matching, Bregman divergences, time samplers."""

from gm_discrete.objective.loss import (
    align_strings,
    conditional_loss,
    conditioning_of,
    corrupt,
    drop_classes,
    field_divergences,
    field_losses,
    generator_times,
    scored_positions,
    total_loss,
    unwrapped,
)
from gm_discrete.objective.times import (
    FieldTimeSampler,
    LogitNormalTimeSampler,
    TimeSampler,
    UniformTimeSampler,
    draw_times,
)

__all__ = [
    "FieldTimeSampler",
    "LogitNormalTimeSampler",
    "TimeSampler",
    "UniformTimeSampler",
    "align_strings",
    "conditional_loss",
    "conditioning_of",
    "corrupt",
    "draw_times",
    "drop_classes",
    "field_divergences",
    "field_losses",
    "generator_times",
    "scored_positions",
    "total_loss",
    "unwrapped",
]
