"""The geodesic path of rotations, for flows alone: x_t lies on the geodesic from a uniform rotation x_0 to the data z.

    x_t = exp_z((1 − t) log_z x_0),   u(x|z) = log_x z / (1 − t)

in half angles on S³. At t < 1 it reaches rotations within the angle (1 − t) π of z only, so that ∂_t log p_t is −∞ outside,
and it has no jump. The network predicts one clean rotation. Source: FrameFlow (Yim et al. 2023, arXiv 2310.05297).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from gm_discrete.generators import Flow, Superposition, quaternions
from gm_discrete.generators.kernels import Readout
from gm_discrete.generators.spaces import ROTATIONS
from gm_discrete.paths.base import check_times
from gm_discrete.paths.continuous import shaped, superposed
from gm_discrete.paths.rotations import RotationPath
from gm_discrete.paths.schedules import At, TimeLike


class GeodesicSO3Path(RotationPath):
    """Geodesics from uniform rotations to the data, with a flow.

    Args:
        stop: ε; the last step goes from 1 − ε to the prediction.

    >>> z, x = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    >>> flow = GeodesicSO3Path().conditional(z, x, torch.tensor([0.5])).parts["flow"]
    >>> round(flow.velocity.norm().item() / torch.pi, 4)  # α = π/2 in the time that is left, ½
    1.0
    """

    type_name = "geodesic_so3"
    known_generators = ("flow",)
    default_divergence = {"flow": "squared"}

    def __init__(self, stop: float = 0.005) -> None:
        super().__init__(None, stop)

    @property
    def heads(self) -> dict[str, int]:
        return {"flow": 4}

    def sample(
        self,
        z: Tensor,
        t: Tensor,
        rng: torch.Generator | None = None,
        x_0: Tensor | None = None,
        *,
        check: bool = True,
    ) -> Tensor:
        if check:
            self.check_source(x_0, z, t)
            self.check(z, t, "z")
        noise = self.prior(z.shape, rng, z.device).to(z.dtype)
        return quaternions.move(z, shaped(1 - t, z) * quaternions.displacement(z, noise))

    def conditional(
        self, z: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        if check:
            self.check_pair(z, x, t)
            check_times(t, x, t_next)
        return self.generator(z, x, t, t_next)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        """The prediction.

        Args:
            readout: `readout("flow")` → the clean rotations, unit quaternions [B·L, 4], or a tensor [B, L, 4] of them.
            x, t, t_next: state, times [B], and the end of the step.
            check: whether to check x and t.
        """
        if check:
            self.check(x, t, "x")
            check_times(t, x, t_next)
        clean = readout if isinstance(readout, Tensor) else readout("flow")
        return self.generator(clean.view(x.shape).to(x.dtype), x, t, t_next)

    def generator(self, clean: Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None) -> Superposition:
        """The flow towards `clean` [B, L, 4] at the speed that reaches it at t = 1."""
        now, end = self.at(t).t, None if t_next is None else self.at(t_next).t
        velocity = quaternions.displacement(x, clean) / shaped((1 - now).clamp(min=torch.finfo(now.dtype).eps), x)
        flow = Flow(velocity, None if end is None else velocity, ROTATIONS)  # constant on a geodesic
        again = partial(self.generator, clean, x, now)
        return superposed({"flow": flow}, self.weights(now), now, end, "flow", again)

    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        """1/(1 − t), in which the velocity is the tangent vector to z, in half angles."""
        t = t.t if isinstance(t, At) else t
        return {"flow": 1 / (1 - t)}

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        """x times the quaternions (1, 0, 0, 0) + raw, normalised: late predictions are near x, and need not repeat it."""
        identity = torch.zeros_like(raw)
        identity[..., 0] = 1
        return quaternions.multiply(x.to(raw.dtype), quaternions.normalized(identity + raw))

    def turned(self, head: str, output: Tensor, by: Tensor) -> Tensor:
        return output  # relative to x already
