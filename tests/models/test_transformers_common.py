"""transformers' common tests of models, on a masked, a uniform, a DiT and a tied model."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath
from tests.helpers.transformers_tests import model_tests

EXCEPTIONS: dict[str, str] = {}


class Tester:
    """Config and inputs, in the form that the tests of transformers ask for."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 3, 7, 32, 2, 2, 20
    is_training = True

    def __init__(self, parent: Any, uniform: bool = False, **options: Any) -> None:
        self.parent, self.options = parent, options
        self.path = UniformPath(self.vocab_size) if uniform else MaskedPath(self.vocab_size)

    def get_config(self) -> GMConfig:
        return GMConfig(
            path=self.path, hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, max_position_embeddings=self.seq_length, **self.options,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[GMConfig, dict[str, Tensor]]:
        config = self.get_config()
        inputs = {
            "input_ids": torch.randint(self.vocab_size - 1, (self.batch_size, self.seq_length)),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "time": torch.full((self.batch_size,), 0.5),
        }
        if config.num_classes:
            inputs["class_labels"] = torch.arange(self.batch_size) % config.num_classes
        return config, inputs


class Common(model_tests()):
    all_model_classes = (GMModel,)
    all_generative_model_classes = ()  # `generate` is not transformers' loop, and has tests of its own
    has_attentions = False
    options: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = Tester(self, **self.options)


class TestMasked(Common, unittest.TestCase):
    pass


class TestUniform(Common, unittest.TestCase):
    options = {"uniform": True, "num_classes": 3}


class TestDiT(Common, unittest.TestCase):
    options = {"backbone": "dit", "condition_size": 16}


class TestTied(Common, unittest.TestCase):
    options = {"tie_word_embeddings": True}


_ = pytest
