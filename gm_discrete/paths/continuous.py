"""What paths of continuous states share: a superposition of generators, its weights over time, and checks of a state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from gm_discrete.arguments import number, numbers, readable
from gm_discrete.generators import Factor, Superposition
from gm_discrete.generators.kernels import Kernel
from gm_discrete.generators.landings import ROUNDING
from gm_discrete.generators.rows import require
from gm_discrete.paths.base import Path, check_times
from gm_discrete.paths.schedules import At, TimeLike

Weights = Mapping[str, float | Sequence[float]]
"""Weight of each generator: a number, or numbers at evenly spaced times from 0 to 1, interpolated linearly."""


class ContinuousPath(Path):
    """A path on numbers or rotations, independent per entry given z, with generators that may be superposed.

    Args:
        generators: weights of the generators in the superposition that is sampled, of sum 1 at all times.
        stop: ε. The last step goes from 1 − ε to the data, because the rate of jumps is unbounded on [1 − ε, 1].

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
    """

    is_discrete = False
    known_generators: tuple[str, ...]
    num_channels: int
    """C of states [B, L, C]."""
    num_inputs: int
    """Numbers of a position in `normalized`."""
    placeholder: float | tuple[float, ...] = 0.0
    """A valid entry of a state, where nothing is observed."""

    def __init__(self, generators: Weights | None, stop: float) -> None:
        self.generators = self._checked({"flow": 1.0} if generators is None else generators)
        self.stop = number(
            "stop", stop, least=1e-6, below=0.5, cure=": the last step goes from t = 1 − stop to the data"
        )
        self.latest = 1 - self.stop / 4  # steps of a fine grid start after 1 − ε

    def _checked(self, generators: Weights) -> dict[str, float | list[float]]:
        if not isinstance(generators, Mapping) or not generators:
            raise TypeError(f'generators={generators!r} must be weights by name, such as {{"flow": 0.5, "jump": 0.5}}')
        if unknown := generators.keys() - set(self.known_generators):
            names, known = ", ".join(sorted(map(str, unknown))), ", ".join(self.known_generators)
            raise ValueError(f"generators {names} are unknown; choose among {known}")
        # In the order of the class, which is that of a model's heads: JSON may have reordered the dict.
        chosen = {name: generators[name] for name in self.known_generators if name in generators}
        plain = {
            name: numbers(f"generators[{name!r}]", weight)
            if isinstance(weight, Sequence) and not isinstance(weight, str)
            else number(f"generators[{name!r}]", weight)
            for name, weight in chosen.items()
        }
        # Straight lines between nodes sum to 1 everywhere if they do at every node.
        nodes = sorted(
            {i / max(len(w) - 1, 1) for w in plain.values() if isinstance(w, list) for i in range(len(w))} | {0.0, 1.0}
        )
        at = torch.stack([_line(w, torch.tensor(nodes, dtype=torch.float64, device="cpu")) for w in plain.values()])
        if float(at.min()) < 0 or not torch.allclose(at.sum(0), torch.ones_like(at[0]), atol=ROUNDING):
            raise ValueError(f"generators={plain} must have weights ≥ 0 of sum 1 at all times")
        return plain

    def weights(self, t: Tensor) -> dict[str, Tensor]:
        """The weight of each generator at times t [B]."""
        return {name: _line(weight, t) for name, weight in self.generators.items()}

    def reweighted(self, generators: Weights) -> ContinuousPath:
        """The same path, sampled with other weights of its generators, among those that the model has outputs for."""
        changed = copy(self)
        changed.generators = self._checked(generators)
        if not changed.heads.keys() <= self.heads.keys():
            missing = ", ".join(sorted(changed.heads.keys() - self.heads.keys()))
            raise ValueError(
                f"generators={dict(generators)} need {missing}, which are not outputs of this path's model"
            )
        return changed

    @property
    def spacing(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "geometric" if set(self.generators) == {"jump"} else "linear"

    state_name = "input_values"

    def time(self, u: Tensor) -> Tensor:
        return u

    def loss_mask(self, labels: Tensor) -> Tensor:
        return ~labels.isnan()

    def mask_labels(self, z: Tensor, scored: Tensor) -> Tensor:
        return z.masked_fill(~scored, torch.nan)

    @abstractmethod
    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        """Turns the raw output of a network, of unit size, into what `marginal` takes.

        Args:
            raw: of x's shape; or rows [n, size], with x and t [n, …] those of the entries.
        """

    @abstractmethod
    def normalized(self, x: Tensor, t: TimeLike) -> Tensor:
        """The state as network input, [B, L, inputs] or of x's shape, of unit size at all times."""

    def check(self, state: Tensor, t: TimeLike, name: str) -> None:
        if not isinstance(state, Tensor) or not state.is_floating_point() or state.dim() < 2:
            found = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else repr(state)
            raise ValueError(f"{name} must be a floating-point tensor {self.shapes}, got {found}")
        check_times(t, state)
        if torch.compiler.is_compiling():
            return
        if not readable(state):
            require(state.isfinite().all(), ValueError, f"{name} holds numbers that are not finite; give finite ones")
        elif not bool((finite := state.isfinite()).all()):
            at, found = (~finite).nonzero()[0].tolist(), float(state.detach()[~finite][0])
            raise ValueError(f"{name} holds numbers that are not finite, such as {found} at {at}; give finite ones")

    shapes = "[B, L, C] or [B, C, H, W]"
    """The shapes of states, for messages."""

    def check_pair(self, z: Tensor, x: Tensor, t: TimeLike, names: tuple[str, str] = ("z", "x")) -> None:
        super().check_pair(z, x, t, names)
        t = t.t if isinstance(t, At) else t
        if readable(t) and bool((t >= 1).any()):
            raise ValueError(f"t={float(t.max()):g}: the generators of p_t(·|z) diverge at t = 1; give times below 1")


def superposed(
    parts: Mapping[str, Factor],
    weights: Mapping[str, Tensor],
    t: Tensor,
    t_next: Tensor | None,
    finisher: str,
    over: Callable[[Tensor], Superposition],
    belief: Kernel | None = None,
) -> Superposition:
    """The superposition of the parts; a step that ends at t = 1 is taken by the part `finisher` alone."""
    last = torch.zeros_like(t, dtype=torch.bool) if t_next is None else t_next >= 1
    chosen = {name: torch.where(last, 0.0, weights[name]) if name in weights else torch.zeros_like(t) for name in parts}
    chosen[finisher] = torch.where(last, 1.0, chosen[finisher])
    return Superposition(parts, chosen, over, belief)


def shaped(values: Tensor, x: Tensor) -> Tensor:
    """Values [B], shaped and rounded to act on the state x [B, …]."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _line(weight: float | Sequence[float], t: Tensor) -> Tensor:
    if not isinstance(weight, Sequence):
        return torch.full_like(t, weight)
    if len(weight) < 2:
        raise ValueError(f"weights over time need at least two values, got {list(weight)}")
    heights = torch.tensor(list(weight), dtype=t.dtype, device=t.device)
    place = t * (len(weight) - 1)
    left = place.long().clamp(0, len(weight) - 2)
    return heights[left] + (place - left) * (heights[left + 1] - heights[left])
