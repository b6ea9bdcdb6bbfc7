"""`GMConfig`: type and range of every argument, names that do not exist, and keys that only files hold."""

from __future__ import annotations

import json
import math
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from gm_discrete import GaussianPath, GMConfig, GMGenerationConfig, GMModel, MaskedPath, ProductPath, UniformPath
from tests.helpers.networks import network

PAIR = ProductPath({"a": UniformPath(3), "b": UniformPath(4)})


@pytest.mark.parametrize("kind", ["a note", "quantization_config", "auto_map", "pretraining_tp"])
def test_save_pretrained__whatever_it_writes_is_loaded(tmp_path: File, kind: str) -> None:
    model, value = network(), {"AutoModel": "somewhere.Else"} if kind == "auto_map" else None
    name = kind.removeprefix("a ")
    setattr(model.config, name, value)
    model.save_pretrained(tmp_path)
    assert name in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for loaded in (AutoModel.from_pretrained(tmp_path), GMModel.from_pretrained(tmp_path)):
        assert getattr(loaded.config, name) == value
    config = AutoConfig.from_pretrained(tmp_path)
    assert GMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert getattr(GMConfig(**config.to_dict()), name) == value


def test_config__keys_of_dicts_without_a_version_are_kept() -> None:
    assert GMConfig.from_dict({"note": [1], "hidden_size": 64}).note == [1]


def test_generation_config__keys_of_files_are_kept_with_a_warning(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("gm_discrete.generation.config.logger.warning", warnings.append)
    config = GMGenerationConfig(num_steps=5)
    config.note = "x"  # type: ignore[attr-defined]
    config.save_pretrained(tmp_path)
    again = GMGenerationConfig.from_pretrained(tmp_path)
    assert (again.num_steps, again.note) == (5, "x")  # type: ignore[attr-defined]
    assert ["note='x'" in warning for warning in warnings] == [True]
    assert again.updated({"num_steps": 7}).num_steps == 7


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("hiden_size", "hidden_size"), ("num_layers", "num_hidden_layers"), ("time_condition", "time_conditioning")],
)
def test_config__misspelt_arguments_are_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"{given}; did you mean {nearest}"):
        GMConfig(**{given: 4})
    with pytest.raises(ValueError, match="hiden; did you mean hidden_act or hidden_size"):
        GMConfig(hiden=3)
    with pytest.raises(TypeError, match="num_step; did you mean num_steps"):
        GMGenerationConfig(num_step=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="num_step; did you mean num_steps"):
        network().generate(num_step=4)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"intermediate_size": 10**12}, "intermediate_size=10"),
    ({"num_classes": 10**12}, "num_classes=10"),
    ({"id2label": 5}, "id2label=5"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
    ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0"),
    ({"num_hidden_layers": True}, "num_hidden_layers=True"),
    ({"num_attention_heads": 0}, "num_attention_heads=0"),
    ({"max_position_embeddings": 0}, "max_position_embeddings=0"),
    ({"hidden_size": 0}, "hidden_size=0"),
    ({"hidden_size": "64"}, "hidden_size='64'"),
    ({"intermediate_size": -8}, "intermediate_size=-8"),
    ({"conv_kernel_size": -3}, "conv_kernel_size=-3"),
    ({"num_frequencies": -1}, "num_frequencies=-1"),
    ({"rope_theta": math.nan}, "rope_theta=nan"),
    ({"rope_theta": 0}, "rope_theta=0"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
    ({"initializer_range": math.inf}, "initializer_range=inf"),
    ({"hidden_dropout": 1.5}, "hidden_dropout=1.5"),
    ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no'"),
    ({"time_conditioning": 1}, "time_conditioning=1"),
    ({"noise_range": [1.0]}, r"noise_range=\[1.0\]"),
    ({"noise_range": ("a", 2)}, r"noise_range\[0\]='a'"),
    ({"backbone": None}, "backbone=None"),
    ({"hidden_act": 5}, "hidden_act=5"),
    ({"patch_size": "2"}, "patch_size='2'"),
    ({"image_shape": [1, 2.5, 4]}, r"image_shape=\[1, 2.5, 4\]"),
    ({"image_shape": 4}, "image_shape=4"),
    ({"block_size": 2.5}, "block_size=2.5"),
    ({"return_dict": "no"}, "return_dict='no'"),
    ({"output_hidden_states": 3}, "output_hidden_states=3"),
    ({"dtype": "flat16"}, "dtype='flat16'"),
    ({"dtype": torch.int8}, "dtype=torch.int8"),
    ({"loss_weights": 1.0}, "loss_weights=1.0"),
    ({"path": GaussianPath(), "loss_weights": {"flow": "much"}}, "loss_weights={'flow': 'much'}"),
    ({"path": GaussianPath(), "loss_weights": {"flow": math.inf}}, "loss_weights={'flow': inf}"),
    ({"path": PAIR, "fields": [3]}, r"fields=\[3\]"),
    ({"path": PAIR, "fields": {"a": 3}}, r"fields\['a'\]=3"),
    ({"path": PAIR, "fields": {"a": {"length": 2.5}}}, r"fields\['a'\]: length=2.5"),
    ({"path": PAIR, "aligned": "ab"}, "aligned='ab'"),
    ({"path": PAIR, "aligned": [["a", "b"], ["b"]]}, r"aligned=\[\['a', 'b'\], \['b'\]\]"),
    ({"path": PAIR, "loss_weights": {"c": 1.0}}, "loss_weights={'c': 1.0}"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_config__type_and_range_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        GMConfig(**{"path": MaskedPath(5)} | options)


def test_config__arguments_that_are_set_later_are_checked_and_derive_anew() -> None:
    config = GMConfig(path=MaskedPath(5), attn_implementation="eager", num_labels=3)
    with pytest.raises(ValueError, match="hidden_size=0"):
        config.hidden_size = 0
    config.path, config.vocab_size, config.mask_token_id = MaskedPath(7).to_dict(), 7, 6
    assert config.build_path() == MaskedPath(7)
    assert (config._attn_implementation, config.num_labels) == ("eager", 3)  # other attributes are left alone


def test_config__numbers_of_numpy_are_taken(tmp_path: File) -> None:
    config = GMConfig(path=MaskedPath(5), max_position_embeddings=np.int64(7), rope_theta=np.float32(100.0))
    config.save_pretrained(tmp_path)
    assert GMConfig.from_pretrained(tmp_path).max_position_embeddings == 7
