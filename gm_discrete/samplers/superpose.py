"""Two models, trained apart on one path, as one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Superposition
from gm_discrete.generators.landings import ROUNDING


class SuperposedModel:
    """L = w_a L_a + w_b L_b, for `simulate` (see `superpose`)."""

    def __init__(self, models: Sequence[Any], weights: Sequence[float]) -> None:
        self.models, self.weights = tuple(models), tuple(float(weight) for weight in weights)
        smooth = [model.path for model in models if model.path.spacing == "linear"]
        self.path = (smooth or [models[0].path])[0]  # whose grid is that of a superposition, unless all are jumps

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Superposition:
        """The superposition at (x, t), or of the step [t, t_next]."""
        parts = [model.generator(x, t, t_next, **conditioning) for model in self.models]
        return self._joined(parts, t)

    def _joined(self, parts: Sequence[Any], t: Tensor) -> Superposition:
        weights = {str(i): torch.full_like(t, weight) for i, weight in enumerate(self.weights)}
        able = all(getattr(part, "over", None) is not None for part in parts)

        def over(t_next: Tensor) -> Superposition:
            return self._joined([part.over(t_next) for part in parts], t)

        return Superposition({str(i): part for i, part in enumerate(parts)}, weights, over if able else None)


def superpose(model_a: Any, model_b: Any, weights: Sequence[float] = (0.5, 0.5)) -> SuperposedModel:
    """A model that moves by w_a L_a + w_b L_b, for models of the same path with generators of their own each.

    Generators that solve the Kolmogorov equation of one path do so in any mixture (Generator Matching, proposition 3): a
    flow and a jump that were trained apart can be sampled together. A step asks both networks.

    Args:
        model_a, model_b: anything with `.path` and `.generator(x, t, t_next)`.
        weights: (w_a, w_b), ≥ 0 of sum 1.

    Raises:
        ValueError: the weights are no mixture, or the paths differ in more than their generators.
    """
    if len(weights) != 2 or min(weights) < 0 or abs(sum(weights) - 1) > ROUNDING:
        raise ValueError(f"weights={list(weights)} must be two numbers ≥ 0 of sum 1")
    laws = []
    for model in (model_a, model_b):
        path: Any = getattr(model, "path", None)
        if not hasattr(path, "generators"):
            raise ValueError(f"{path!r} is no Euclidean path, whose generators could be superposed")
        law = path.to_dict()
        laws.append(
            {name: law[name] for name in ("type", "num_channels", "schedule", "low", "high", "block") if name in law}
        )
    if laws[0] != laws[1]:
        raise ValueError(f"the models follow different paths, {laws[0]} and {laws[1]}: their mixture follows neither")
    return SuperposedModel((model_a, model_b), weights)
