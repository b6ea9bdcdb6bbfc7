"""The `>>>` examples of the docstrings run, and the names that users meet first have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[1] / "gm_discrete"
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8") and file.name != "__main__.py"
)
FIRST_NAMES = {
    "gm_discrete": [
        "GMConfig", "GMModel", "GMGenerationConfig",
        "MaskedPath", "UniformPath", "MixturePath", "MetricPath", "GaussianPath", "ProductPath", "FinitePath",
        "LinearSchedule", "CosineSchedule", "CondOTSchedule", "Bins",
        "conditional_loss", "LogitNormalTimeSampler", "UniformTimeSampler",
        "likelihood_bound", "any_order_likelihood", "flow_likelihood", "field_likelihood",
        "simulate", "time_grid", "TauLeaping", "Adaptive", "DetailedBalance", "ReMDM", "ClassifierGuidance", "Blocks",
        "ExactModel", "check_kolmogorov",
    ],
    "gm_discrete.data": ["character_tokenizer", "pack", "fit_codecs", "table_path", "TokenCollator"],
    "gm_discrete.training": ["GMTrainer", "EMACallback"],
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_examples__run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(module), optionflags=options)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in FIRST_NAMES.items() for name in names]
)
def test_examples__names_that_users_meet_first_have_one(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    assert ">>> " in (inspect.getdoc(thing) or ""), f"{module}.{name} has no example"
