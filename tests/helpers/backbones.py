"""Tiny random networks of transformers, decoders and encoders, and the models that are made of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    EsmConfig,
    Gemma3TextConfig,
    LlamaConfig,
    ModernBertConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)

from gm_discrete import GMModel
from tests.helpers.networks import readout, rng
from tests.helpers.small_run import TOKENIZER

V, MASK, PAD, LENGTH = 24, 5, 1, 10
"""Symbols, of which one is the mask; padding is 1, as RoBERTa has it."""
SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TOKENS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None, "mask_token_id": MASK}
DECODER: dict[str, Any] = {
    **SIZES, **TOKENS, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
ENCODER: dict[str, Any] = {**SIZES, **TOKENS, "intermediate_size": 48, "max_position_embeddings": 32}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def made(kind: Any, **arguments: Any) -> Any:
    """A config: transformers takes arguments that its annotations do not have."""
    return kind(**arguments)


DECODERS: dict[str, Any] = {
    "llama": made(LlamaConfig, **DECODER),
    "qwen2": made(Qwen2Config, **DECODER | {"tie_word_embeddings": True}),  # biases of queries, keys and values
    "qwen3": made(Qwen3Config, **DECODER, head_dim=8),
    "gemma3": made(
        Gemma3TextConfig,
        **DECODER | {"tie_word_embeddings": True}, head_dim=8, query_pre_attn_scalar=8, sliding_window=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], final_logit_softcapping=3.0,
    ),
    "smollm3": made(SmolLM3Config, **DECODER | {"tie_word_embeddings": True}, no_rope_layers=[1, 1, 0]),
    "olmo2": made(Olmo2Config, **DECODER, attention_bias=True),
}  # fmt: skip
ENCODERS: dict[str, Any] = {
    "bert": made(BertConfig, **ENCODER, **NO_DROPOUT),
    "roberta": made(RobertaConfig, **ENCODER, **NO_DROPOUT),
    "modernbert": made(
        ModernBertConfig,
        **ENCODER,
        cls_token_id=None,
        sep_token_id=None,
        local_attention=6,
        global_attn_every_n_layers=2,
    ),
    "esm": made(EsmConfig, **ENCODER, **NO_DROPOUT, position_embedding_type="rotary", token_dropout=True),
}
ARCHITECTURES = {**DECODERS, **ENCODERS}
FEW = ("llama", "bert")
"""One decoder and one encoder, where all would take long."""


def config_of(name: str, **changes: Any) -> Any:
    """A copy of a config, with some of its attributes changed before any network is built."""
    config = ARCHITECTURES[name]
    return type(config)(**{**config.to_diff_dict(), **_explicit(config), **changes})


def _explicit(config: PreTrainedConfig) -> dict[str, Any]:
    """Attributes that `to_diff_dict` leaves out, or to which it adds what the constructor does not take."""
    return {name: getattr(config, name) for name in (*TOKENS, "tie_word_embeddings")}


def randomised(module: nn.Module, seed: int = 1) -> Any:
    """The module with random values in every parameter, also those that start at 0 or 1."""
    noise = rng(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            size = 0.3 if weight.dim() > 1 else 0.1
            around = float(weight.dim() == 1 and "norm" in name.lower() and "bias" not in name)
            weight.copy_(size * torch.randn(weight.shape, generator=noise) + around)
    return module.eval()


def original(name: str, seed: int = 1, attn_implementation: str = "sdpa", **changes: Any) -> Any:
    """The network with its own head, a `…ForCausalLM` or `…ForMaskedLM`."""
    auto = AutoModelForCausalLM if name in DECODERS else AutoModelForMaskedLM
    found = auto.from_config(deepcopy(config_of(name, **changes)), attn_implementation=attn_implementation)
    return randomised(found, seed)


def data(rows: int = 3, length: int = LENGTH, seed: int = 3) -> Tensor:
    """Sequences without mask and padding symbols."""
    z = torch.randint(V - 2, (rows, length), generator=rng(seed))
    z = z + (z >= PAD)
    return z + (z >= MASK)


def noisy(z: Tensor, seed: int = 4) -> Tensor:
    return torch.where(torch.rand(z.shape, generator=rng(seed)) < 0.4, MASK, z)


def shifted(logits: Tensor, documents: Tensor | None = None) -> Tensor:
    """The logits [B, L, K] of position i − 1 at position i; the first of a document has its own."""
    moved = logits.roll(1, 1)
    moved[:, 0] = logits[:, 0]
    if documents is not None:
        first = documents != documents.roll(1, 1)
        first[:, 0] = True
        moved = torch.where(first[..., None], logits, moved)
    return moved


def raw_logits(model: GMModel, x: Tensor, mask: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """What the head computes, [B, L, K], without the evidence of the symbols."""
    t = torch.full((len(x),), 0.5).double() if t is None else t
    found = readout(model, x, t, mask)
    return found._raw("tokens", torch.arange(x.numel())).unflatten(0, x.shape)


def network(name: str, seed: int = 1, attn_implementation: str = "sdpa", changes: Any = None, **options: Any) -> Any:
    """A model with the weights of `original(name, seed, attn_implementation, **changes)`."""
    own = original(name, seed, attn_implementation, **(changes or {}))
    return GMModel.from_backbone(own, **options).eval()


def to_train(name: str = "llama", seed: int = 1, **options: Any) -> Any:
    """A model of the tokens of `small_run`, to be trained on its sequences."""
    own = original(name, seed, vocab_size=6, mask_token_id=None)
    torch.manual_seed(seed)  # for the layers of the time
    return GMModel.from_backbone(own, tokenizer=TOKENIZER, max_position_embeddings=8, **options)
