"""Probability paths: how a data point is noised, and which generators carry that noising back to data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gm_discrete.configurable import Configurable
from gm_discrete.generators import Generator
from gm_discrete.generators.kernels import require


class Path(Configurable, ABC):
    """A conditional probability path p_t(·|z), from the prior at t = 0 to the data point z at t = 1.

    The marginal path is p_t = E_z p_t(·|z). Averaging a generator of p_t(·|z) over the posterior of z given x gives a
    generator of p_t (Generator Matching, proposition 1); a network that stands for that posterior gives the prediction.
    """

    default_divergence: str | Mapping[str, str]
    """The loss that a model is trained with unless told otherwise; by part where generators are superposed."""
    state_name = "input_ids"
    """What a noisy state is called where a network or a batch takes it."""
    latest = 1.0
    """The part of the path after which no training time is drawn."""
    spacing: str
    """How a grid of times is spaced unless told otherwise (see `samplers.time_grid`)."""

    is_discrete: bool
    """Whether states are symbols (long) or numbers (floating point). Undefined for a `ProductPath`, which may hold both."""

    @property
    def fields(self) -> Mapping[str, Path]:
        """The path of each field of a state: of a single field, named "", this one."""
        return {"": self}

    def times(self, t: Tensor) -> dict[str, Tensor]:
        """The time [B] of each field, for times t [B] (or [B, M] of a `ProductPath` with independent times)."""
        return {"": t}

    def joined(self, times: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `times`."""
        return times[""]

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, int]:
        """What a network has to state, by name: numbers per token, or per coordinate of a Euclidean state."""

    @abstractmethod
    def prior(
        self, shape: Sequence[int], rng: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """x_0 ~ p_0 of the given shape [B, …]."""

    @abstractmethod
    def sample(self, z: Tensor, t: Tensor, rng: torch.Generator | None = None, x_0: Tensor | None = None) -> Tensor:
        """x_t ~ p_t(·|z) for data z [B, …] at times t [B]; x_0 are the sources of a coupled path, and of no other."""

    @abstractmethod
    def conditional(self, z: Tensor, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Generator:
        """The target: the generator of p_t(·|z) at x, in closed form. With `t_next`, that of the step [t, t_next]."""

    @abstractmethod
    def marginal(self, readout: Any, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Generator:
        """The prediction: the generator of p_t at x, from what a network (or an exact posterior) says of z given x."""

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """The time at which the part u in [0, 1] of the path is passed; float64."""

    @abstractmethod
    def units(self, t: Tensor) -> Mapping[str, Tensor]:
        """Units [B], by part, in which generators are of order 1 at all times: what divergences are taken in."""

    @abstractmethod
    def loss_mask(self, labels: Tensor) -> Tensor:
        """bool, of the labels' shape: which are data, and not marked as "not scored"."""

    @abstractmethod
    def mask_labels(self, z: Tensor, scored: Tensor) -> Tensor:
        """Labels: the data z, marked where they are not scored."""

    def fill_unscored(self, x: Tensor) -> Tensor:
        """The state, where it stands for data that nobody looks at."""
        return x

    @abstractmethod
    def check(self, state: Tensor, t: Tensor, name: str) -> None:
        """
        Raises:
            ValueError: a state or a time is none of this path.
        """

    def check_source(self, x_0: Tensor | None, z: Tensor, t: Tensor) -> None:
        """
        Raises:
            ValueError: a coupled path got no sources of z's shape, or another path got some.
        """
        if x_0 is not None:
            raise ValueError("x_0 is given, but the path is not coupled: MixturePath(…, coupled=True)")


def uniform(shape: Sequence[int], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """Float64 uniforms in [0, 1), drawn on the generator's device."""
    return torch.rand(tuple(shape), generator=rng, device=rng.device if rng else device, dtype=torch.float64).to(device)


def check_times(t: Tensor, state: Tensor) -> None:
    """
    Raises:
        ValueError: t is not of shape [B] within [0, 1].
    """
    if not isinstance(t, Tensor) or t.shape != state.shape[:1]:
        found = tuple(t.shape) if isinstance(t, Tensor) else t
        raise ValueError(f"t must have shape [B] = [{state.shape[0]}], got {found}")
    if torch.compiler.is_compiling():  # a look at the values would cut the graph in two
        return
    if t.device.type != "cpu":  # a look at the values would stall the device
        require(((t >= 0) & (t <= 1)).all(), ValueError, "times must lie in [0, 1]")
    elif t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1] (0: prior, 1: data), got {t.min():.6g} to {t.max():.6g}")
