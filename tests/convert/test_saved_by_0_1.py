"""Model folders that version 0.1 wrote (tests/data_0_1) load with the code of today, and compute the same outputs."""

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

import gm_discrete.models  # noqa: F401  # registers the model with the Auto classes
from gm_discrete import GMModel, MetricPath
from gm_discrete.convert import convert, main

HERE = File(__file__).parents[1] / "data_0_1"
FOLDERS = sorted(folder.name for folder in HERE.iterdir() if folder.is_dir())
CLOSE = 2e-5  # float32 of another CPU, whose products of matrices sum in another order
every_folder = pytest.mark.parametrize("name", FOLDERS)


def nested(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """The tensors under a prefix, with the fields of a state in a dict of their own."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if first == prefix:
            target = found
            for part in rest[:-1]:
                target = target.setdefault(part, {})
            target[rest[-1]] = tensor
    return found


def flat(value: Any, prefix: str) -> dict[str, Tensor]:
    if isinstance(value, Mapping):
        return {name: tensor for key, each in value.items() for name, tensor in flat(each, f"{prefix}.{key}").items()}
    return {prefix: value}


def check_outputs(model: torch.nn.Module, folder: File) -> None:
    """The forward of the model gives what 0.1 gave, relative to outputs of size 1 to 100."""
    saved = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        output = model(**nested(saved, "in"))
    expected = nested(saved, "out")
    assert expected
    for part, value in expected.items():
        found, wanted = flat(output[part], part), flat(value, part)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=CLOSE, atol=CLOSE)


def copied(name: str, at: File, **changes: Any) -> File:
    """A copy of a folder, with entries of its config's path changed."""
    shutil.copytree(HERE / name, at)
    config = json.loads((at / "config.json").read_text(encoding="utf-8"))
    config["path"] |= changes
    (at / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return at


def test_saved_by_0_1__every_kind_of_model_is_there() -> None:
    assert len(FOLDERS) == 13
    paths = [json.loads((HERE / name / "config.json").read_text(encoding="utf-8"))["path"]["type"] for name in FOLDERS]
    assert {"masked", "uniform", "mixture", "metric", "gaussian", "product"} == set(paths)
    for folder in FOLDERS:
        assert sum(file.stat().st_size for file in (HERE / folder).iterdir()) < 60_000


@every_folder
def test_saved_by_0_1__loads_and_computes_the_same(name: str) -> None:
    model, info = AutoModel.from_pretrained(HERE / name, output_loading_info=True)
    assert isinstance(model, GMModel)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not [key for key in info["missing_keys"] if not key.startswith("path_tables")]
    check_outputs(model.eval(), HERE / name)


@every_folder
def test_saved_by_0_1__is_rewritten_by_convert(name: str, tmp_path: File) -> None:
    """As today's `save_pretrained` writes it: outputs stay, and tables leave the JSON."""
    returned = GMModel.from_pretrained(convert(HERE / name, tmp_path / "new"))
    check_outputs(returned, HERE / name)
    check_outputs(AutoModel.from_pretrained(tmp_path / "new").eval(), HERE / name)
    path = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))["path"]
    if path["type"] == "metric":
        kind = "embeddings" if path["embeddings"] else "distance"
        assert path[kind].keys() == {"shape"}


def test_saved_by_0_1__command_rewrites_a_folder(tmp_path: File, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(HERE / "uniform"), str(tmp_path / "new")])
    check_outputs(AutoModel.from_pretrained(tmp_path / "new").eval(), HERE / "uniform")
    with pytest.raises(SystemExit):
        main([str(HERE / "uniform"), str(tmp_path / "other"), "--family", "mdlm"])
    assert "family='mdlm'" in capsys.readouterr().err


def test_saved_by_0_1__tables_in_base64_are_read(tmp_path: File) -> None:
    """0.1 wrote tables of more than 2¹⁶ numbers so."""
    path = AutoConfig.from_pretrained(HERE / "metric_embeddings").path
    rows = torch.tensor(
        json.loads((HERE / "metric_embeddings" / "config.json").read_text(encoding="utf-8"))["path"]["embeddings"]
    )
    content = rows.numpy().astype("<f4").tobytes()
    table = {"dtype": "<f4", "shape": list(rows.shape), "base64": base64.b64encode(content).decode()}
    folder = copied("metric_embeddings", tmp_path / "copy", embeddings=table)
    check_outputs(AutoModel.from_pretrained(folder).eval(), HERE / "metric_embeddings")
    assert path["embeddings"] == {"shape": [6, 3]}


def test_saved_by_0_1__rates_that_are_gone_are_named(tmp_path: File) -> None:
    folder = copied("metric_embeddings", tmp_path / "copy", rates="positive_part")
    with pytest.raises(ValueError, match="rates='positive_part'"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="rates='positive_part'"):
        convert(folder, tmp_path / "new")
    with pytest.raises(ValueError, match="rates='positive_part'"):
        MetricPath(3, embeddings=[[0.0], [1.0], [2.0]], rates="positive_part")
