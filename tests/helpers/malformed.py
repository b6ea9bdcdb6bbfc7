"""Malformed arguments, who raised an error, and whether what was accepted works."""

from __future__ import annotations

import ast
import json
import math
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

import gm_discrete
from gm_discrete import (
    Bins,
    Corrector,
    EditPath,
    ExactGaussianModel,
    ExactModel,
    FieldTimeSampler,
    FinitePath,
    GaussianPath,
    LogitNormalTimeSampler,
    MaskedPath,
    Path,
    ProductPath,
    Sampler,
    Schedule,
    TauLeaping,
    UniformPath,
    simulate,
)
from gm_discrete.arguments import LARGEST
from gm_discrete.configurable import Configurable
from gm_discrete.data.scalers import Scaler
from gm_discrete.objective import draw_times

NAN, INF = math.nan, math.inf
VALUES: list[Any] = [
    "x", "", b"x", NAN, INF, -INF, -1, -0.5, 0, 1, 2, 3, 0.5, 1.5, 10**12, 10**400, 1e300, -1e300, 1e-300, 1e20, True,
    None, [], [NAN], [1], [[1]], [1, 2], [0.5, 0.5], [-1.0, 2.0], ["a", "b"], [None], (), {}, {"type": "nothing"}, {"x": 1},
    {1: 2}, object(), lambda: 0, 1j, torch.tensor(NAN), torch.empty(0), torch.ones(2, 2), float,
    [0.0, 1e-320, 1.0], [0, [1]],
]  # fmt: skip
"""In place of any argument of a constructor."""

LONG, META = torch.long, torch.device("meta")
TENSORS: list[Any] = [
    torch.zeros(2, 3), torch.zeros(2, 3, dtype=LONG), torch.full((2, 3), 99), torch.full((2, 3), -1),
    torch.full((2, 3), NAN),
    torch.zeros(3, 2, dtype=LONG), torch.zeros(2, 1, dtype=LONG), torch.zeros(1, 3, dtype=LONG), torch.zeros(2, dtype=LONG),
    torch.zeros(2, 3, 1), torch.zeros(2, 3, 2), torch.zeros(2, 1, 1), torch.full((2, 3, 1), INF),
    torch.zeros(0, 3, dtype=LONG),
    torch.zeros(2, 0, dtype=LONG), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.cfloat),
    torch.zeros(2, 3, dtype=LONG, device=META), torch.zeros(2, 3, 1, device=META), torch.zeros(()), torch.zeros(2),
    torch.full((2,), 0.5), torch.full((2,), NAN), torch.full((2,), 1.5), torch.full((2,), -0.1), torch.ones(2),
    torch.zeros(3),
    torch.full((2,), 7), torch.full((2,), -2), torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.int32),
    torch.zeros(2, device=META),
    [[0, 1, 2], [0, 1, 2]], "rawr", 0.5, 7, {}, {"x": torch.zeros(2, 3)}, object(), [], -1.0, NAN,
]  # fmt: skip
"""In place of any argument of an entry point."""


@cache
def _raises(file: str) -> list[range]:
    """The lines of the raise statements of a file."""
    nodes = ast.walk(ast.parse(File(file).read_text(encoding="utf-8")))
    return [range(node.lineno, (node.end_lineno or 0) + 1) for node in nodes if isinstance(node, ast.Raise)]


def is_ours(error: Exception) -> bool:
    """Whether it is a ValueError or TypeError that a `raise` of the library made, and names something."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    inside = File(gm_discrete.__file__).parent in File(frame.filename).parents
    statement = inside and any(frame.lineno in lines for lines in _raises(frame.filename))
    return isinstance(error, ValueError | TypeError) and statement and len(str(error)) > 10


def check_works(made: Any) -> None:
    """An object that a constructor has accepted comes back from its JSON, and its numbers are finite."""
    if isinstance(made, Configurable):
        text = json.dumps(made.to_dict(), allow_nan=False)
        again: Any = type(made).from_dict(json.loads(text))
        if isinstance(made, Path):
            again.load_tables(made.tables())
        assert again == made
    if isinstance(made, ProductPath):
        for path in made.factors.values():
            check_works(path)
    elif isinstance(made, FinitePath):
        _check_finite_path(made)
    elif isinstance(made, EditPath):
        x_0, z = made.align(torch.zeros(2, 3, dtype=torch.long), torch.Generator().manual_seed(0))
        t = torch.tensor([0.3, 0.6])
        x = made.sample(z, t, torch.Generator().manual_seed(0), x_0)
        assert _finite(made.conditional(z, x, t).rates(x))
    elif isinstance(made, Path):
        z, t = torch.full((1, 1, 1), getattr(made, "low", 0.0)), torch.tensor([0.5])
        x = made.sample(z, t, torch.Generator().manual_seed(0))
        generator: Any = made.conditional(z, x, t)
        assert all(
            _finite(getattr(part, "velocity", getattr(part, "intensity", x))) for part in generator.parts.values()
        )
    elif isinstance(made, Schedule):
        t = made.inverse(torch.tensor([1e-6, 0.5, 1 - 1e-6]).double())
        assert _finite(made.hazard(t), made.derivative(t))
        torch.testing.assert_close(made.kappa(t), torch.tensor([1e-6, 0.5, 1 - 1e-6]).double(), rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(made.kappa(t) + made.complement(t), torch.ones(3).double())
    elif isinstance(made, Bins):
        centers = made.centers(torch.device("cpu")).float()
        assert bool((centers.diff() > 0).all())
    elif isinstance(made, Sampler | Corrector):
        _check_sampler(made)
    elif isinstance(made, Scaler):
        values = made.inverse(torch.tensor([-1.0, 0.0, 1.0]))
        assert _finite(values, made.transform(values), made.log_derivative(values))
    elif isinstance(made, LogitNormalTimeSampler | FieldTimeSampler):
        t = draw_times(MaskedPath(3), 16, torch.Generator().manual_seed(0), torch.device("cpu"), made)
        assert bool(((t > 0) & (t < 1)).all())


def check_finite(result: Any) -> None:
    """All tensors of a result are finite numbers or, for likelihoods, at least numbers."""
    for value in result.values() if isinstance(result, Mapping) else [result]:
        if isinstance(value, Tensor):
            assert _finite(value)


def _finite(*values: Tensor) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _check_finite_path(path: FinitePath) -> None:
    if path.vocab_size > 64:
        assert path.vocab_size <= LARGEST
        return
    z, t = torch.zeros(2, 1, dtype=torch.long), path.schedule.inverse(torch.tensor([0.2, 0.8]).double())
    p = path.clean_probs(z[:, 0], t)
    torch.testing.assert_close(p.sum(1), torch.ones(2).double())
    assert _finite(path.conditional(z, z, t).rates(z))


def _check_sampler(made: Any) -> None:
    rng, corrector = torch.Generator().manual_seed(0), made if isinstance(made, Corrector) else None
    sampler: Sampler = TauLeaping() if isinstance(made, Corrector) else made
    models: list[Any] = [ExactModel(path, torch.tensor([[0, 1], [1, 0]])) for path in (MaskedPath(3), UniformPath(3))]
    models.append(ExactGaussianModel(GaussianPath(), torch.zeros(1, 2, 1)))
    fitting = [
        m for m in models if (corrector is None or m.path.is_masked) and (corrector or not sampler.misfit(m.path))
    ]
    assert fitting
    for model in fitting:
        x_0 = model.path.prior((2, 2) if model.path.is_discrete else (2, 2, 1), rng)
        if (
            not isinstance(sampler, str)
            and getattr(sampler, "order", "random") != "random"
            and not model.path.is_masked
        ):
            continue
        assert _finite(simulate(model, x_0, [0.0, 0.5, 1.0], rng, sampler, corrector=corrector))
