"""transformers' common tests of models, on a masked, a uniform, a DiT and a tied model."""

from __future__ import annotations

import copy
import unittest
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath
from tests.helpers.transformers_tests import FILE, model_tests

pytestmark = pytest.mark.slow

EXCEPTIONS = {
    "test_batching_equivalence": "refuses −∞ in outputs, which is the logit of the mask: it never is data",
}
"""Tests that our models cannot pass, and why. See also the flags of `Common`."""


def test_transformers__tests_are_unpacked() -> None:
    assert FILE.exists(), f"run `make install`, which unpacks {FILE}"


class Inputs:
    """Config and inputs, in the form that the tests of transformers ask for."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 3, 7, 32, 2, 2, 20
    is_training = True

    def __init__(self, uniform: bool = False, **options: Any) -> None:
        self.options = options
        self.path = UniformPath(self.vocab_size) if uniform else MaskedPath(self.vocab_size)

    def get_config(self) -> GMConfig:
        return GMConfig(
            path=self.path, hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, max_position_embeddings=self.seq_length, **self.options,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[GMConfig, dict[str, Tensor]]:
        config, time = self.get_config(), torch.full((self.batch_size,), 0.5)
        self.labels = torch.randint(self.vocab_size - 1, (self.batch_size, self.seq_length))
        inputs = {
            "input_ids": self.path.sample(self.labels, time),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "time": time,
        }
        if config.num_classes:
            inputs["class_labels"] = torch.arange(self.batch_size) % config.num_classes
        return config, inputs


class Common(model_tests()):
    all_model_classes = (GMModel,)
    all_generative_model_classes = ()  # `generate` is not transformers' loop; tests/generation is about ours
    has_attentions = False  # attention weights are not returned
    test_resize_embeddings = False  # the vocabulary is part of the path
    options: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        if reason := EXCEPTIONS.get(self._testMethodName):
            self.skipTest(reason)
        torch.manual_seed(0)
        self.model_tester = Inputs(**self.options)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        labels = {"labels": self.model_tester.labels} if return_labels else {}
        return copy.deepcopy(inputs_dict | labels)


class TestMasked(Common, unittest.TestCase):
    pass


class TestUniform(Common, unittest.TestCase):
    options: ClassVar = {"uniform": True, "num_classes": 3}


class TestDiT(Common, unittest.TestCase):
    options: ClassVar = {"backbone": "dit", "condition_size": 16}


class TestTied(Common, unittest.TestCase):
    options: ClassVar = {"tie_word_embeddings": True}
