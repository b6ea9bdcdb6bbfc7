"""One simulation: what stays the same throughout, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Generator, Jump, Posterior
from gm_discrete.generators.kernels import Kernel, map_rows


@dataclass
class Chain:
    """A model and the batch of B states that is simulated with it: sequences [B, L], or Euclidean states [B, …].

    Attributes:
        model: anything with `.generator(x, t, t_next=None, **conditioning)`.
        free: bool, of the state's shape: entries that may move.
        rng: source of all noise.
        conditioning: passed on to the generator.
        calls: [B], evaluations of the network. jumps: [B], changes of an entry by jumps.
        error: [B], a bound on the total variation of what an exact method cuts off; `None` where none is known.
        memory: what a method keeps from one step to the next.
    """

    model: Any
    free: Tensor
    rng: torch.Generator | None
    conditioning: dict[str, Any]
    calls: Tensor = field(init=False)
    jumps: Tensor = field(init=False)
    error: Tensor | None = field(init=False, default=None)
    memory: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.calls = torch.zeros(len(self.free), dtype=torch.long, device=self.free.device)
        self.jumps = torch.zeros_like(self.calls)

    @property
    def path(self) -> Any:
        """The model's path, which only some methods need.

        Raises:
            TypeError: it has none.
        """
        path = getattr(self.model, "path", None)
        if path is None:
            raise TypeError(f"this method needs a path; {type(self.model).__name__} has no attribute .path")
        return path

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Generator:
        """The model's generator at (x, t), or of the step [t, t_next]."""
        return self.model.generator(x, t, t_next, **self.conditioning)

    def jump(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        """The model's generator, which is to be a jump between symbols."""
        generator = self.generator(x, t, t_next)
        if not isinstance(generator, Jump) or x.is_floating_point():
            raise TypeError(
                f"this step simulates jumps between symbols; the model's generator is a {type(generator).__name__} on "
                f"{x.dtype}: use euler, heun, tau_leaping or adaptive"
            )
        return generator

    def posterior(self, x: Tensor, t: Tensor) -> Posterior:
        """The model's belief at (x, t)."""
        posterior = self.jump(x, t).posterior
        if posterior is None:
            raise TypeError("this method needs generators made by a path: path.marginal(readout, x, t, t_next)")
        return posterior

    def uniform(self, *shape: int) -> Tensor:
        """Float64 uniforms in [0, 1)."""
        device = self.rng.device if self.rng is not None else self.free.device
        return torch.rand(shape, generator=self.rng, device=device, dtype=torch.float64).to(self.free.device)

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers of x's shape and precision."""
        device = self.rng.device if self.rng is not None else x.device
        return torch.randn(x.shape, generator=self.rng, device=device, dtype=x.dtype).to(x.device)

    def events(self, probability: Tensor) -> Tensor:
        """Which free entries have an event, bool of the state's shape."""
        return (self.uniform(*self.free.shape) < probability) & self.free

    def count(self, jump: Jump, events: Tensor) -> None:
        """Counts one evaluation for the sequences that have an event, or were read to find out."""
        asked = events.any(1)
        self.calls += asked if jump.read is None else asked | jump.read

    def land(self, x: Tensor, kernel: Kernel, events: Tensor) -> Tensor:
        """The state after jumps at the events, drawn from the kernel there only."""
        where = events.flatten().nonzero().squeeze(1)
        if len(where) == 0:
            return x
        landings = kernel.sample(self.rng, where).to(x.dtype)
        return self.moved(x, x.flatten().index_put((where,), landings).view_as(x))

    def moved(self, x: Tensor, x_next: Tensor) -> Tensor:
        """`x_next`, whose changes are counted."""
        self.jumps += (x_next != x).flatten(1).sum(1)
        return x_next


def leaving(kernel: Kernel, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(1 − k(x) at the positions (bool [B, L]) and 0 elsewhere, [B, L]; which sequences had to be read for it, [B]).

    What `needs_network` leaves out is left for sure, which no network has to say.
    """
    open_ = needs_network(kernel, x, positions)
    values = (positions & ~open_).double()
    where = open_.flatten().nonzero().squeeze(1)
    if len(where):
        flat = x.flatten()
        leave = map_rows(lambda rows: kernel.leave(flat[rows], rows), kernel.prepare(where))
        values = values.flatten().index_put((where,), leave).view_as(values)
    return values, open_.any(1)


def needs_network(kernel: Kernel, x: Tensor, positions: Tensor) -> Tensor:
    """Those of the positions, bool [B, L], where no excluded symbol (a mask) stands, which is left for sure."""
    for symbol in getattr(kernel, "excluded", ()):
        positions = positions & (x != symbol)
    return positions


Step = Callable[[Chain, Tensor, Tensor, Tensor], Tensor]
"""(chain, x [B, L], t [B], t_next [B]) → x at t_next. A step may have options, which are keywords with defaults."""
