"""Where the steps of a fixed grid are best put."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SPACINGS = ("linear", "quadratic", "logarithmic", "geometric")


def time_grid(path: Any, num_steps: int, spacing: str | None = None) -> Tensor:
    """Times from 0 to 1 of N steps, [N + 1]. Of Euclidean paths κ stands for t.

    - `"linear"`: even in κ. The default for masking, where every token jumps once, evenly in κ, for general paths, and for
      Euclidean flows.
    - `"quadratic"`: even in √(1 − κ). The default for mixture paths with another prior: tokens are redrawn at rate 1 in
      s = −log(1 − κ), but change ever less, in proportion to 1 − κ: Σ (1 − κ) Δs² is least for Δs ∝ (1 − κ)^−½.
    - `"logarithmic"`: even in −log(1 − κ) as far as log(2 N), and one last step.
    - `"geometric"`: even in −log(1 − κ) as far as 1 − κ = ε, the path's `stop` (0.005 where it has none), and one last step.
      The default for Euclidean jumps, whose rate grows without bound, where they are not superposed with a flow.

    Args:
        path: whose time is cut.
        num_steps: N.
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
    if spacing == "logarithmic" and num_steps > 1:
        kappa[1:-1] = -torch.expm1(-torch.linspace(0, math.log(2 * num_steps), num_steps, dtype=torch.float64))[1:]
    if spacing == "geometric" and num_steps > 1:
        last = math.log(getattr(path, "stop", 0.005))
        kappa[1:-1] = -torch.expm1(torch.linspace(0, last, num_steps, dtype=torch.float64))[1:]  # 0 stays 0, not −0
    return path.time(kappa)
