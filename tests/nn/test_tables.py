"""`PathTables`: distances and embeddings of a path travel with the weights, unrounded, and never in config.json."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path as File

import pytest
import torch
from torch import Tensor

from gm_discrete import GMConfig, GMModel, MaskedPath, MetricPath, ProductPath
from gm_discrete.paths import Path

K = 6
POINTS = torch.randn(K, 3, generator=torch.Generator().manual_seed(1))
DISTANCE = (torch.arange(K)[:, None] - torch.arange(K)).abs().double() / 3  # not a number of bfloat16, nor of float32
PATHS: dict[str, Path] = {
    "embeddings": MetricPath(K, embeddings=POINTS),
    "distance": MetricPath(K, distance=DISTANCE),
    "fields": ProductPath(a=MetricPath(K, distance=DISTANCE), b=MaskedPath(4), c=MetricPath(K, embeddings=POINTS)),
}
every_path = pytest.mark.parametrize("name", PATHS)


def network(name: str) -> GMModel:
    model = GMModel(GMConfig(path=PATHS[name], hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model.eval()


@torch.no_grad()
def logits(model: GMModel) -> Tensor:
    x, t = torch.randint(4, (3, 1), generator=torch.Generator().manual_seed(3)), torch.tensor([0.2, 0.5, 0.8]).double()
    if "" in model.path.fields:
        return model(input_ids=x, time=t).logits
    return torch.cat(list(model(fields=dict.fromkeys(model.path.fields, x), time=t).logits.values()), -1)


@every_path
def test_path_tables__are_saved_with_the_weights(tmp_path: File, name: str) -> None:
    model = network(name)
    model.save_pretrained(tmp_path)
    assert len((tmp_path / "config.json").read_text(encoding="utf-8")) < 5000
    again, report = GMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.path == model.path
    assert again.path is again.path_tables.path is not again.config.build_path()
    assert torch.equal(logits(again), logits(model))
    shapes = {
        key.removeprefix("path_tables."): list(v.shape) for key, v in model.state_dict().items() if "tables" in key
    }
    assert shapes == model.path.table_shapes()


@every_path
def test_path_tables__keep_their_precision_in_bfloat16(tmp_path: File, name: str) -> None:
    model = network(name)
    deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "cast")
    model.save_pretrained(tmp_path / "whole")
    for again in (
        GMModel.from_pretrained(tmp_path / "cast"),
        GMModel.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16),
    ):
        assert again.dtype == torch.bfloat16
        assert again.path == model.path


@every_path
def test_path_tables__come_from_a_state_dict(tmp_path: File, name: str) -> None:
    """A model of the config alone has a path without tables, which names what it lacks, until weights are loaded."""
    model = network(name)
    model.config.save_pretrained(tmp_path)
    bare = GMModel(GMConfig.from_pretrained(tmp_path)).eval()
    with pytest.raises(ValueError, match=r"load_tables"):
        logits(bare)
    bare.load_state_dict(model.state_dict())
    assert bare.path == model.path
    assert torch.equal(logits(bare), logits(model))


def test_path_tables__of_version_0_1_are_read_from_the_config(tmp_path: File) -> None:
    """There the table stood in config.json, and not among the weights."""
    model = network("embeddings")
    model.path_tables = torch.nn.Module()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["path"]["embeddings"] = POINTS.tolist()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    again, report = GMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again.path_tables.get_buffer("embeddings"), POINTS)
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "new")
    assert torch.equal(logits(GMModel.from_pretrained(tmp_path / "new")), logits(model))


def test_path_tables__follow_copies() -> None:
    model = network("distance")
    copied = deepcopy(model)
    assert copied.path is copied.path_tables.path is copied.state_fields[""].path is not model.path
    assert torch.equal(logits(copied), logits(model))


@every_path
def test_path_tables__are_not_shared_by_models_of_one_config(name: str) -> None:
    config = network(name).config
    first, second = GMModel(config), GMModel(config)
    before = {key: table.clone() for key, table in first.path.tables().items()}
    second.load_state_dict({key: v * 2 if "path_tables" in key else v for key, v in second.state_dict().items()})
    for key, table in before.items():
        assert torch.equal(first.path.tables()[key], table)
        assert torch.equal(second.path.tables()[key], 2 * table)
    for model in (first, second):
        assert all(model.state_fields[field].path is path for field, path in model.path.fields.items())


@every_path
def test_path_tables__are_optional_in_a_state_dict(name: str) -> None:
    """Version 0.1 kept them in the config alone."""
    model, again = network(name), GMModel(network(name).config).eval()
    again.load_state_dict({key: v for key, v in model.state_dict().items() if "path_tables" not in key})
    assert torch.equal(logits(again), logits(model))
