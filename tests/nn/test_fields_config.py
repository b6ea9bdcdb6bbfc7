"""Configs and states of several fields that do not fit are named; those that do survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from gm_discrete import GaussianPath, GMConfig, MaskedPath, ProductPath
from gm_discrete.data.scalers import Categories, Codec, StandardScaler
from tests.helpers.product_models import CASES, CODECS, data, network, noisy, row_path

PATH = ProductPath(a=MaskedPath(4), b=GaussianPath(), image=GaussianPath(num_channels=3))
SHAPE = {"image_shape": [3, 4, 6], "patch_size": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": MaskedPath(4), "fields": {}}, "fields and aligned.*single field"),
        ({"path": GaussianPath(), "aligned": []}, "fields and aligned.*single field"),
        ({"image_shape": [3, 4, 6]}, r"image_shape=\[3, 4, 6\].*fields="),
        ({"fields": {"c": {}}}, "fields.* c.*a, b, image"),
        ({"fields": {"a": {"size": 3}}}, r"fields\['a'\] takes no size"),
        ({"fields": {"a": {"codec": StandardScaler(0, 1)}}}, r"fields\['a'\].*MaskedPath.*Categories"),
        ({"fields": {"b": {"codec": Categories(["x"])}}}, r"fields\['b'\].* 1 categories.*GaussianPath"),
        ({"fields": {"a": {"codec": Categories([*"wxyz"])}}}, r"fields\['a'\].* 4 categories.*MaskedPath"),
        ({"fields": {"a": {"length": 0}}}, r"fields\['a'\]: length=0"),
        ({"fields": {"image": {**SHAPE, "patch_size": 4}}}, "patch_size=4"),
        ({"fields": {"b": SHAPE}}, r"\[3, 4, 6\].*num_channels=1"),
        ({"fields": {"image": {"image_shape": [4, 6]}}}, r"image_shape=\[4, 6\] must be \[C, H, W\]"),
        ({"aligned": [["a", "c"]]}, r"aligned=\[\['a', 'c'\]\]"),
        ({"aligned": [["a", "b"], ["b", "image"]]}, r"aligned=\[\['a', 'b'\], \['b', 'image'\]\]"),
        ({"aligned": [["a", "a"]]}, r"aligned=\[\['a', 'a'\]\]"),
        ({"aligned": [["a", "b"]], "fields": {"a": {"length": 2}}}, r"aligned=\[\[.a., .b.\]\].*one length"),
        ({"aligned": [["a", "image"]], "fields": {"a": {"length": 6}, "image": SHAPE}}, "fields a, image share"),
        ({"loss_weights": {"c": 1.0}}, "loss_weights={'c': 1.0}.*a, b, image"),
        ({"loss_weights": {"a": -1.0}}, "loss_weights={'a': -1.0}.*a, b, image"),
        ({"loss_weights": {"b": {"jump": 1.0}}}, "loss_weights={'jump': 1.0}.*flow"),
        ({"loss_weights": {"a": {"jump": 1.0}}}, "loss_weights={'jump': 1.0}"),
        ({"divergence": "cross_entropy"}, "divergence='cross_entropy'.*a, b, image"),
        ({"divergence": {"c": "cross_entropy"}}, "divergence=.*'c'.*a, b, image"),
        ({"divergence": {"a": "squared"}}, "divergence='squared'.*'generalized_kl'.*'cross_entropy'"),
        ({"divergence": {"b": {"jump": "squared"}}}, "divergence names jump.*flow"),
        ({"mask_token_id": 3}, "mask_token_id=3.*vocab_size=0"),
    ],
)  # fmt: skip
def test_config__bad_fields_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMConfig(**{"path": PATH, **options})


def test_config__tied_embeddings_need_a_single_field() -> None:
    with pytest.raises(ValueError, match="tie_word_embeddings=True"):
        network("row", tie_word_embeddings=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sort_keys", [False, True])
def test_config__of_fields_survives_json(name: str, sort_keys: bool) -> None:
    """Also one whose keys are sorted: fields come in the order of the path."""
    path, options = CASES[name]
    config = GMConfig(path=path, hidden_size=32, num_attention_heads=2, **options)
    again = GMConfig.from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=sort_keys)))
    assert again.build_path() == path
    assert again.state_fields == config.state_fields
    assert list(again.state_fields) == list(path.factors)
    assert again.groups == config.groups
    assert again.max_position_embeddings == config.max_position_embeddings


def test_config__a_field_has_its_codec_length_and_divergence() -> None:
    config = GMConfig(path=row_path(), fields={"cut": {"codec": CODECS["cut"].to_dict(), "length": 3}})
    fields = config.state_fields
    assert fields["cut"].codec == CODECS["cut"] == Codec.from_dict(config.fields["cut"]["codec"])  # type: ignore[index]
    assert [field.length for field in fields.values()] == [3, 1, 1, 1]
    assert fields["price"].codec is None
    assert config.divergence == {
        "cut": "generalized_kl", "price": {"flow": "squared", "jump": "generalized_kl"},
        "depth": {"flow": "squared"}, "table": {"flow": "squared"},
    }  # fmt: skip
    chosen = GMConfig(path=row_path(), divergence={"cut": "cross_entropy", "price": {"jump": "squared"}})
    assert chosen.divergence == {
        **config.divergence, "cut": "cross_entropy", "price": {"flow": "squared", "jump": "squared"}
    }  # fmt: skip
    assert GMConfig(path=ProductPath(a=MaskedPath(4))).time_conditioning


X, T = noisy(network("row"), data(network("row")))
STATES: list[tuple[dict[str, Any], str]] = [
    ({"fields": X}, "time is missing"),
    ({"input_ids": X["cut"], "time": T}, "give the state as fields, which is what ProductPath"),
    ({"fields": X, "input_values": X["price"], "time": T}, "give the state as fields"),
    ({"fields": {**X, "more": X["cut"]}, "time": T}, "fields must be a dict with the fields cut, price, depth, table"),
    ({"fields": {**X, "cut": X["price"]}, "time": T}, r"fields\['cut'\] must be a long tensor"),
    ({"fields": {**X, "price": X["price"][..., 0]}, "time": T}, r"fields\['price'\] has shape \(5, 1\); the model takes"),
    ({"fields": {**X, "price": X["price"].expand(5, 1, 2)}, "time": T}, r"\(5, 1, 2\); the model takes \[B, 1, 1\]"),
    ({"fields": X, "time": T[:, None].expand(5, 4)}, r"this path takes \[B\]: the fields share one time"),
    ({"fields": X, "time": T[:4]}, r"t must have shape \[B\] = \[5\]"),
    ({"fields": X, "time": T, "labels": {"cut": X["cut"]}}, r"labels\['price'\].*\(5, 1, 1\)"),
    ({"fields": X, "time": T, "labels": {**X, "cut": X["cut"][:, :0]}}, r"labels\['cut'\].*\(5, 0\).*\(5, 1\)"),
    ({"fields": X, "time": T, "attention_mask": {"cut": torch.ones(5, 2)}}, r"attention_mask\['cut'\] has shape \(5, 2\)"),
    ({"fields": X, "time": T, "class_labels": torch.zeros(5).long()}, "the model has no classes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), STATES)
def test_forward__states_of_fields_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network("row")(**arguments)


def test_forward__images_have_no_padding_and_one_shape() -> None:
    model = network("picture")
    x, t = noisy(model, data(model))
    with pytest.raises(ValueError, match=r"attention_mask\['image'\].*no padding"):
        model(fields=x, time=t, attention_mask={"image": torch.ones(5, 3)})
    with pytest.raises(ValueError, match=r"fields\['image'\] .*\(5, 3, 4, 4\).*\[B, 3, 4, 6\]"):
        model(fields={**x, "image": x["image"][..., :4]}, time=t)


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ({"d": {"flow": 1.0}}, "generators.* d.*cut, price, depth, table"),
        ({"cut": {"jump": 1.0}}, r"generators=.*cut.*superposition"),
        ({"depth": {"jump": 1.0}}, "generators=.*landing"),
    ],
)
def test_generator__weights_belong_to_continuous_fields(generators: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network("row").generator(X, T, generators=generators)
