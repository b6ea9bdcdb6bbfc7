"""Grids of time steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gm_discrete.paths.base import Path

SPACINGS = ("linear", "quadratic", "geometric")


def time_grid(path: Path, num_steps: int, spacing: str | None = None) -> Tensor:
    """The times of a grid of N steps from 0 to 1, float64 [N + 1]. For continuous paths read t for κ.

    - `"linear"`: even in κ. The default for masked paths, where every token jumps once, evenly in κ, for general paths, and
      for continuous paths with a flow.
    - `"quadratic"`: even in √(1 − κ). The default for mixture paths with another prior: tokens are redrawn at rate 1 in
      s = −log(1 − κ), but change ever less, in proportion to 1 − κ: Σ (1 − κ) Δs² is least for Δs ∝ (1 − κ)^−½.
    - `"geometric"`: even in −log(1 − κ) as far as 1 − κ = ε, the path's `stop` (0.005 where it has none), and one last step.
      The default for continuous paths that only jump, at a rate that grows without bound.

    Args:
        path: whose schedule places the times.
        num_steps: N.
        spacing: by default that of the path.

    >>> from gm_discrete import MaskedPath, UniformPath, time_grid
    >>> time_grid(MaskedPath(5), 4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> time_grid(UniformPath(5), 4).tolist()
    [0.0, 0.4375, 0.75, 0.9375, 1.0]
    """
    if spacing is None:
        spacing = path.spacing
    if spacing not in SPACINGS:
        raise ValueError(f"spacing={spacing!r} must be one of {', '.join(SPACINGS)}")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    kappa = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if spacing == "quadratic":
        kappa = kappa * (2 - kappa)
    if spacing == "geometric" and num_steps > 1:
        last = math.log(getattr(path, "stop", 0.005))
        kappa[1:-1] = -torch.expm1(torch.linspace(0, last, num_steps, dtype=torch.float64))[1:]  # 0 stays 0, not −0
    return path.time(kappa)
