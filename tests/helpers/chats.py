"""A tokenizer of characters with chat templates, little conversations, and a little language model for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gm_discrete.data import character_tokenizer

PLAIN_TEMPLATE = (
    "{% for message in messages %}<{{ message.role[0] }}>{{ message.content }}[EOS]|{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""`<u>hello[EOS]|<a>hi[EOS]|`: the end of a turn is the end-of-text token, and a bar."""
MARKED_TEMPLATE = (
    "{% for message in messages %}<{{ message.role[0] }}>{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}[EOS]{% endgeneration %}{% else %}{{ message.content }}[EOS]{% endif %}|"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
FORGETFUL_TEMPLATE = (
    "{% for message in messages %}<{{ message.role[0] }}>"
    "{% if message.role != 'assistant' or loop.last %}{{ message.content }}{% endif %}[EOS]|{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""Leaves out all answers but the last, as templates do with thoughts: no prefix of a conversation is one of its text."""


def chat_tokenizer(template: str | None = PLAIN_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(alphabet="abcdefghijklmnopqrstuvwxyz <>|?.[]MASK0123456789")
    tokenizer.chat_template = template
    return tokenizer


def conversation(*turns: str) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]


def chats(count: int = 40) -> list[dict[str, Any]]:
    words = ("red", "green", "blue", "sky", "sea", "tree")
    return [
        {"messages": conversation(f"say {words[at % 6]}?", words[at % 6], "again?", f"{words[at % 6]} {words[at % 6]}")}
        for at in range(count)
    ]


def pairs(count: int = 40) -> list[dict[str, Any]]:
    return [{"prompt": f"{at % 7} and {at % 5} is ", "completion": str(at % 7 + at % 5)} for at in range(count)]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tiny_llama(folder: Path, tokenizer: Any = None, **options: Any) -> Path:
    """A random language model with the tokenizer, whose vocabulary is rounded up as in published checkpoints."""
    tokenizer = tokenizer or chat_tokenizer()
    sizes = {
        "vocab_size": -(-len(tokenizer) // 8) * 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes | options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
