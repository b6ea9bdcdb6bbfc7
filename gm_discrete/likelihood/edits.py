"""The bound on −log p of strings: the divergence of the rates of edits, at states drawn in aligned columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.likelihood.noise import Noise
from gm_discrete.objective import bregman
from gm_discrete.paths import EditPath
from gm_discrete.paths.base import uniform
from gm_discrete.paths.finite import FinitePath
from gm_discrete.process import Process, factors


def edit_draws(
    model: Process,
    z: Tensor,
    scored: Tensor,
    num_samples: int,
    rng: torch.Generator | None,
    conditioning: Mapping[str, Any],
    paired: bool = False,
) -> Tensor:
    """S draws of ∫ E Σ_e [a log(a/R) − a + R] dt, [B, S]; a(e) and R(e) are the known and predicted rates of an edit e.

    Every draw aligns the data with a source of its own. The density of the times, and the column that is noise for certain,
    are those of other paths (see `likelihood/noise.py`).

    Args:
        z: strings [B, L], with blanks where they are padded; scored: bool of its shape.
        paired: the same times for every row.
    """
    path, draws = cast(EditPath, model.path), []
    offset = uniform((1,) if paired else (len(z),), rng, z.device).expand(len(z))
    for j in range(num_samples):
        data, mask, x_0 = path.aligned(z, scored, rng)
        # Noise needs κ and the noise of single columns, which an edit path defines as other discrete paths do.
        noise = Noise({"": cast(FinitePath, path)}, {"": data}, {"": mask}, rng, x_0, paired)
        x, t, weight = noise.times((j + offset) / num_samples)
        predicted = factors(model.generator(x[""], t, **conditioning))[""]
        entries, where = path.compared(x[""], mask)
        loss = bregman.divergence(path.conditional(data, x[""], t), predicted, entries, where)
        draws.append((weight * loss.sum(1)).double())
    return torch.stack(draws, 1)
