"""Two processes that were trained apart on one path, as one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gm_discrete.arguments import numbers
from gm_discrete.generators import Factor, Generator, Product, Superposition, over
from gm_discrete.generators.landings import ROUNDING
from gm_discrete.paths.base import Path
from gm_discrete.process import Process, check_call


class SuperposedModel:
    """The process L = w_a L_a + w_b L_b, for `simulate` (see `superpose`)."""

    def __init__(self, models: Sequence[Process], weights: Sequence[float]) -> None:
        self.models, self.weights = tuple(models), tuple(float(weight) for weight in weights)
        smooth = [model.path for model in models if model.path.spacing == "linear"]
        # Its grid is that of a superposition, unless all of them only jump.
        self.path: Path = (smooth or [models[0].path])[0]

    def check(self, x: Tensor, name: str, **conditioning: object) -> None:
        """Checks what goes to the generators of both processes (see `process.check_call`)."""
        for model in self.models:
            check_call(model, x, name, conditioning)

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Superposition:
        """The superposition at (x, t), or of the step [t, t_next]."""
        named = zip(("model_a", "model_b"), self.models, strict=True)
        parts = [_factor(name, model.generator(x, t, t_next, **conditioning)) for name, model in named]
        return self._joined(parts, t)

    def _joined(self, parts: Sequence[Factor], t: Tensor) -> Superposition:
        weights = {str(i): torch.full_like(t, weight) for i, weight in enumerate(self.weights)}
        able = all(getattr(part, "over", None) is not None for part in parts)

        def step(t_next: Tensor) -> Superposition:
            return self._joined([over(part, t_next) for part in parts], t)

        return Superposition({str(i): part for i, part in enumerate(parts)}, weights, step if able else None)


def superpose(model_a: Process, model_b: Process, weights: Sequence[float] = (0.5, 0.5)) -> SuperposedModel:
    """A process that moves by w_a L_a + w_b L_b, for two processes on the same path whose generators differ.

    Generators that solve the Kolmogorov equation of one path do so in any mixture (Generator Matching, proposition 3): a
    flow and a jump that were trained apart can be sampled together. A step evaluates both networks.

    Args:
        model_a, model_b: processes on equal paths of numbers, but for their `generators`.
        weights: (w_a, w_b), ≥ 0 of sum 1.

    Raises:
        ValueError: the weights are no mixture, or the paths differ in more than their generators.
    """
    weights = numbers("weights", weights)
    if len(weights) != 2 or min(weights) < 0 or abs(sum(weights) - 1) > ROUNDING:
        raise ValueError(f"weights={list(weights)} must be two numbers ≥ 0 of sum 1, such as (0.5, 0.5)")
    described = []
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        path = getattr(model, "path", None)
        if not isinstance(path, Path) or not hasattr(path, "generators"):
            raise ValueError(
                f"{name} has the path {path!r}, which has no generators that could be superposed: use a model on a "
                "GaussianPath or EuclideanMixturePath"
            )
        config = path.to_dict()
        keys = ("type", "num_channels", "schedule", "concentration", "low", "high", "block")
        described.append({key: config[key] for key in keys if key in config})
    if described[0] != described[1]:
        raise ValueError(
            f"the paths differ: that of model_a is {described[0]}, that of model_b {described[1]}; superpose models that "
            "were trained on one path"
        )
    return SuperposedModel((model_a, model_b), weights)


def _factor(name: str, generator: Generator) -> Factor:
    if isinstance(generator, Product):
        raise TypeError(
            f"{name} has a Product generator of the fields {', '.join(generator.factors)}; superpose mixes generators of "
            "one field: use a model on a GaussianPath or EuclideanMixturePath"
        )
    return generator
