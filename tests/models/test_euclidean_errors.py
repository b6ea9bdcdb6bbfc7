"""What is no vector, no image or no config of one is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    EuclideanMixturePath,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    UniformPath,
)
from tests.helpers.continuous import (
    BOTH,
    CLASSES,
    COLOUR,
    classy,
    network,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path": GaussianPath(BOTH), "divergence": {"jump": "cosh"}},
            "divergence='cosh' of rates.*positive and unbounded",
        ),
        (
            {"path": GaussianPath(), "divergence": {"flow": "generalized_kl"}},
            "divergence='generalized_kl'",
        ),
        ({"path": GaussianPath(), "divergence": {"flow": "l2"}}, "divergence='l2'.*squared"),
        ({"path": GaussianPath(), "divergence": {"jump": "squared"}}, "divergence names jump.*flow"),
        (
            {"path": GaussianPath(), "divergence": "squared"},
            "divergence='squared'.*by part",
        ),
        ({"path": MaskedPath(5), "divergence": {"jump": "squared"}}, "must be 'generalized_kl' or 'cross_entropy'"),
        (
            {"path": GaussianPath(), "loss_weights": {"jump": 1.0}},
            "loss_weights={'jump': 1.0}.*flow",
        ),
        ({"path": GaussianPath(), "loss_weights": {"flow": -1.0}}, "loss_weights=.*flow"),
        ({"path": MaskedPath(5), "loss_weights": {"jump": 1.0}}, "loss_weights="),
        (
            {"path": GaussianPath(num_channels=3), **COLOUR, "patch_size": 4},
            "patch_size=4",
        ),
        ({"path": GaussianPath(num_channels=3), **COLOUR, "patch_size": 0}, "patch_size=0"),
        ({"path": GaussianPath(num_channels=1), **COLOUR}, r"\[3, 4, 6\] has 3 channels, the path num_channels=1"),
        ({"path": GaussianPath(num_channels=2), "patch_size": 2}, "patch_size=2.*image_shape"),
        ({"path": MaskedPath(5), "image_shape": [4, 4]}, r"image_shape=\[4, 4\] must be \[C, H, W\]"),
        ({"path": MaskedPath(5), "image_shape": [1, 0, 4]}, r"must be \[C, H, W\]"),
        ({"path": MaskedPath(5), "num_classes": -1}, "num_classes=-1"),
        ({"path": MaskedPath(5), "class_dropout": 1.0}, "class_dropout=1.0"),
        ({"path": GaussianPath(), "vocab_size": 7}, "vocab_size=7 differs from the path's vocab_size=0"),
    ],
)
def test_config__bad_options_of_continuous_paths_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMConfig(**options)


def test_config__tied_embeddings_need_symbols_of_their_own() -> None:
    for name in ("flow", "masked"):
        with pytest.raises(ValueError, match="tie_word_embeddings=True"):
            network(name, tie_word_embeddings=True)


HALF = torch.full((2,), 0.5)
IMAGE = torch.zeros(2, 3, 4, 6)
PIXELS = torch.zeros(2, 72, dtype=torch.long)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        (
            "jump",
            {"input_values": torch.zeros(2, 5, 3)},
            r"input_values has shape \(2, 5, 3\); the model takes \[B, 5, 2\]",
        ),
        ("jump", {"input_values": torch.zeros(2, 5)}, r"input_values.*\(2, 5\)"),
        (
            "flow on images",
            {"input_values": torch.zeros(2, 1, 4, 6)},
            r"\(2, 1, 4, 6\); the model takes \[B, 3, 4, 6\]",
        ),
        (
            "flow on images",
            {"input_values": torch.zeros(2, 3, 4, 4)},
            r"\(2, 3, 4, 4\); the model takes \[B, 3, 4, 6\]",
        ),
        ("flow on images", {"input_values": IMAGE / 0}, "input_values.*finite"),
        ("flow on images", {"input_values": IMAGE.long()}, "input_values must be a floating-point tensor"),
        ("masked", {"input_ids": PIXELS[:, :70]}, r"input_ids has shape \(2, 70\); the model takes \[B, 72"),
        ("masked", {"input_ids": PIXELS + 5}, "input_ids holds ids from 5 to 5; vocab_size=5"),
        ("flow", {"input_ids": PIXELS}, "give the state as input_values"),
        ("masked", {"input_values": IMAGE}, "give the state as input_ids"),
        ("flow on images", {"input_values": IMAGE, "input_ids": PIXELS}, "give the state as input_values"),
        ("flow on images", {"input_values": IMAGE, "attention_mask": torch.ones(2, 3)}, "attention_mask.*no padding"),
        ("masked", {"input_ids": PIXELS, "attention_mask": torch.ones(2, 72)}, "attention_mask.*no padding"),
        ("jump", {"input_values": torch.zeros(2, 5, 2), "labels": torch.zeros(2, 5)}, r"labels has shape \(2, 5\)"),
        (
            "belief",
            {"input_values": torch.zeros(2, 5, 2), "labels": torch.full((2, 5, 2), 1.5)},
            "the bins cover only -1 to 1",
        ),
        ("mixture", {"input_values": torch.full((2, 1, 4, 4), 3.5)}, "beyond the path's low=-1.0 and high=3.0"),
        (
            "jump",
            {"input_values": torch.zeros(2, 5, 2), "class_labels": CLASSES[:2]},
            r"has no classes: GMConfig\(num_classes",
        ),
    ],
)
def test_forward__bad_continuous_inputs_are_named(name: str, inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(name)(time=HALF, **inputs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], "class_labels must lie between −1 .* = 2"),
        ([-2, 0], "class_labels must lie between −1"),
        ([0, 1, 2], r"class_labels has shape \(3,\)"),
    ],
)
def test_forward__classes_out_of_range_are_named(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classy("flow")(input_values=torch.zeros(2, 5, 2), time=HALF, class_labels=torch.tensor(labels))


def test_forward__a_missing_time_of_a_flow_is_named() -> None:
    with pytest.raises(ValueError, match=r"\btime\b"):
        network("flow")(input_values=torch.zeros(2, 5, 2))


def test_generator__block_jumps_need_an_exact_posterior() -> None:
    """A block jumps to a draw of the data: no network with bins states that."""
    model = network("mixture of vectors", path=EuclideanMixturePath(block=True, num_channels=2))
    with pytest.raises(ValueError, match="block=True"):
        model.generator(torch.zeros(2, 5, 2), HALF.double())


def test_generator__weights_need_a_superposition() -> None:
    model = GMModel(GMConfig(path=UniformPath(4), hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"generators=.*UniformPath"):
        model.generator(torch.zeros(2, 3, dtype=torch.long), HALF.double(), generators={"jump": 1.0})
    with pytest.raises(ValueError, match=r"generators=.*landing"):
        network("flow").generator(torch.zeros(2, 5, 2), HALF.double(), generators={"jump": 1.0})
