"""The Dormand–Prince method of ordinary differential equations, for pure flows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gm_discrete.generators import Flow, terms
from gm_discrete.process import State, Times
from gm_discrete.samplers.base import CONTINUOUS, Chain, Sampler
from gm_discrete.samplers.euclidean import bounds, drift, euler_maruyama, within


class DormandPrince(Sampler):
    """A pure flow by the Dormand–Prince pair with step control (package torchdiffeq), to t = 1 − ε, and one step more.

    ε is the path's `stop`. The whole batch is one system; its evaluations count for every sequence.

    Args:
        tolerance: relative and absolute.

    Raises:
        TypeError: the generator is more than a flow.
        ImportError: torchdiffeq is not installed.
    """

    type_name: ClassVar[str] = "dopri5"
    chooses_times: ClassVar[bool] = True
    states: ClassVar[frozenset[str]] = frozenset({CONTINUOUS})

    def __init__(self, tolerance: float = 1e-5) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be positive")
        self.tolerance = float(tolerance)

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        try:
            from torchdiffeq import odeint
        except ImportError as error:
            raise ImportError("dopri5 needs the package torchdiffeq: pip install gm_discrete[ode]") from error
        state, free = x[""], chain.free[""]
        start, end = float(t[""][0]), float(t_next[""][0])
        until = min(end, 1 - getattr(chain.path, "stop", 0.005)) if end >= 1 else end
        limits: tuple[float, float] | None = None

        def velocity(time: Tensor, y: Tensor) -> Tensor:
            nonlocal limits
            now = time.clamp(max=until).expand(len(y)).double()
            generator = chain.generators({"": within(y, limits)}, {"": now})[""]
            limits = bounds(generator)
            if any(not isinstance(part, Flow) and bool(torch.as_tensor(w).any()) for w, part in terms(generator)):
                raise TypeError(
                    "dopri5 solves flows only; the generator also jumps or diffuses: use sampler='heun' or 'adaptive'"
                )
            chain.count(chain.movable(""))
            return torch.where(free, drift(generator, y), 0.0)

        if start < until:
            times = torch.tensor([start, until], dtype=torch.float64, device=state.device)
            # A step that led beyond the end would ask for times that no path has.
            solution: Any = odeint(
                velocity, state, times, rtol=self.tolerance, atol=self.tolerance, method="dopri5",
                options={"step_t": times[1:]},
            )  # fmt: skip
            # The solution's last value is interpolated, which rounds also what does not move.
            state = torch.where(free, within(solution[-1].to(state.dtype), limits), state)
        if until == end:
            return {"": state}
        late = torch.full_like(t[""], max(start, until))
        generator = chain.generators({"": state}, {"": late}, t_next)[""]
        return {"": euler_maruyama(chain, "", state, generator, late, t_next[""])}
