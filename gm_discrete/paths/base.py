"""Probability paths: how a data point is noised, and which generators carry that noising back to data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.generators import Jump
from gm_discrete.kernels import Readout
from gm_discrete.schedules import Schedule


class Path(Configurable, ABC):
    """A conditional probability path p_t(·|z), from the prior at t = 0 to the data point z at t = 1.

    The marginal path is p_t = E_z p_t(·|z). Averaging a generator of p_t(·|z) over the posterior of z given x gives a
    generator of p_t (Generator Matching, proposition 1); a network that stands for that posterior gives the prediction.
    """

    schedule: Schedule
    rates: str
    """Which of the generators that solve the path it is simulated and scored with."""
    default_divergence: str
    """The loss that a model is trained with unless told otherwise."""

    @abstractmethod
    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """x_0 ~ p_0 of the given shape [B, L]."""

    @abstractmethod
    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None, x_0: Tensor | None = None) -> Tensor:
        """x_t ~ p_t(·|z) for data z [B, L] at times t [B]; x_0 are the sources of a coupled path, and of no other."""

    @abstractmethod
    def conditional(self, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        """The target: the generator of p_t(·|z) at x, in closed form. With `t_next`, that of the step [t, t_next]."""

    @abstractmethod
    def marginal(self, readout: Readout | Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        """The prediction: the generator of p_t at x, when `readout` gives the logits of the posterior of z given x."""
