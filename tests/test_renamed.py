"""Names of version 0.1 raise errors that name what takes their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gm_discrete
from gm_discrete import (
    ExactGaussianModel,
    ExactModel,
    ExactProductModel,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    conditional_loss,
)
from gm_discrete.data import fit_codecs
from gm_discrete.data.scalers import Codec

Z = torch.tensor([[0, 1], [1, 0]])
POINTS = torch.zeros(2, 1, 1)
POSTERIOR: Any = ExactModel(MaskedPath(3), Z)
NETWORK: Any = GMModel(GMConfig(path=MaskedPath(3), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
PATH = ProductPath(a=MaskedPath(3))
T = torch.ones(2) / 2


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda **old: conditional_loss(POSTERIOR, Z, **old), "times: use time_sampler"),
        (lambda **old: ExactModel(MaskedPath(3), Z, **old), "law: use weights"),
        (lambda **old: ExactGaussianModel(GaussianPath(), POINTS, **old), "law: use weights"),
        (lambda **old: ExactProductModel(PATH, {"a": Z}, **old), "law: use weights"),
        (lambda **old: NETWORK.generator(Z, T, **old), "told: use network_time"),
    ],
)
def test_renamed__old_arguments_name_the_new_ones(call: Callable[..., object], names: str) -> None:
    with pytest.raises(TypeError, match=names):
        call(**{names.split(":")[0]: None})
    with pytest.raises(TypeError, match="takes no argument magic"):
        call(magic=1)


@pytest.mark.parametrize(
    ("package", "name", "cure"),
    [
        ("", "FieldTimes", "FieldTimeSampler"),
        (".likelihood", "flow_log_likelihood", "flow_likelihood"),
        (".data.scalers", "LogScaler", "QuantileScaler or StandardScaler"),
        (".data", "download_emoji", "recipes/datasets"),
        (".evaluation", "inception", "benchmarks/scores"),
    ],
)
def test_renamed__old_names_name_the_new_ones(package: str, name: str, cure: str) -> None:
    module: Any = __import__(f"gm_discrete{package}", fromlist=["_"])
    assert not hasattr(module, name)
    with pytest.raises(AttributeError, match=f"{name} .*{cure}"):
        getattr(module, name)
    with pytest.raises(ImportError, match=f"{name} .*{cure}"):
        exec(f"from gm_discrete{package} import {name}")
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = module.magic


def test_renamed__what_was_removed_names_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"scalers='log' .*standard, quantile"):
        fit_codecs({"price": [1.5, 2.5]}, scalers="log")
    for name in ("log", "log_scaler"):
        with pytest.raises(ValueError, match=f"type='{name}' .*'quantile_scaler' or 'standard_scaler'"):
            Codec.from_dict({"type": name})
    with pytest.raises(AttributeError, match=r"data\.table_path"):
        ProductPath.of_codecs({})


def test_renamed__dir_lists_the_lazy_names() -> None:
    assert set(gm_discrete.__all__) <= set(dir(gm_discrete))
