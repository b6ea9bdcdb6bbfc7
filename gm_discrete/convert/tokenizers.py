"""The tokenizer that a Lightning checkpoint holds, as far as its files can be written without running its code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm_discrete.convert.pickles import within

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
VOCABULARIES = ("_added_tokens_encoder", "added_tokens_encoder", "vocab", "encoder", "_vocab_str_to_int")
"""Attributes of tokenizers of transformers and of MDLM and Duo that are a dict of tokens to ids."""


@dataclass
class PickledTokenizer:
    """What is known of a pickled tokenizer.

    Attributes:
        special: special tokens, by their names in transformers.
        ids: ids of the special tokens that are known.
        fast: the content of tokenizer.json; `None` for a tokenizer that is not of the library tokenizers.
    """

    special: dict[str, str] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    fast: dict[str, Any] | None = None

    @classmethod
    def of(cls, value: object) -> PickledTokenizer:
        """
        Args:
            value: the unread object.
        """
        special: dict[str, str] = {}
        for name in SPECIAL:
            token = within(value, "_special_tokens_map", name) or within(value, f"_{name}")
            token = token if isinstance(token, str) else within(token, "content")
            if isinstance(token, str):
                special[name] = token
        serialized = getattr(within(value, "_tokenizer"), "state", None)
        fast = _json(serialized) if isinstance(serialized, bytes) else None
        known: list[object] = [within(value, name) for name in VOCABULARIES]
        if fast is not None:
            added = fast.get("added_tokens")
            known.append({within(token, "content"): within(token, "id") for token in added if isinstance(token, dict)}
                         if isinstance(added, list) else None)  # fmt: skip
            known.append(within(fast, "model", "vocab"))
        ids = {}
        for token in special.values():
            found = [
                vocabulary[token] for vocabulary in known if isinstance(vocabulary, Mapping) and token in vocabulary
            ]
            if found and type(found[0]) is int:
                ids[token] = found[0]
        return cls(special, ids, fast)

    def mask_token_id(self) -> int | None:
        """The id of its mask token, if it has one.

        Raises:
            ValueError: it has one whose id is not known.
        """
        mask = self.special.get("mask_token")
        if mask is not None and mask not in self.ids:
            raise ValueError(
                f"mask_token_id is missing: the tokenizer in source has mask token {mask!r}, whose id cannot be read"
            )
        return None if mask is None else self.ids[mask]

    def write(self, folder: Path) -> list[str]:
        """Writes its files, if it has some, and returns their names."""
        if self.fast is None:
            return []
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        for name, content in (("tokenizer.json", self.fast), ("tokenizer_config.json", settings)):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return ["tokenizer.json", "tokenizer_config.json"]


def _json(serialized: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(serialized)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
