"""The tokenizer that a checkpoint holds or has beside it, as far as it is known without running its code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm_discrete.convert.pickles import within
from gm_discrete.convert.sources import Folder, read_settings

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
VOCABULARIES = ("_added_tokens_encoder", "added_tokens_encoder", "vocab", "encoder", "_vocab_str_to_int")
"""Attributes of tokenizers of transformers and of MDLM and Duo that are a dict of tokens to ids."""


@dataclass
class KeptTokenizer:
    """The parts of a tokenizer that a checkpoint holds beside its network.

    Attributes:
        special: special tokens, by their names in transformers.
        fast: the content of tokenizer.json; `None` for a tokenizer that is not of the library tokenizers.
        vocabularies: other dicts of tokens to ids, and what may be one.
    """

    special: dict[str, str]
    fast: Mapping[str, Any] | None = None
    vocabularies: Sequence[object] = ()

    @classmethod
    def unread(cls, value: object) -> KeptTokenizer:
        """Of the unread object that Lightning keeps in its checkpoints."""
        tokens = {name: within(value, "_special_tokens_map", name) or within(value, f"_{name}") for name in SPECIAL}
        serialized = getattr(within(value, "_tokenizer"), "state", None)
        fast = _json(serialized) if isinstance(serialized, bytes) else None
        return cls(_texts(tokens), fast, [within(value, name) for name in VOCABULARIES])

    @classmethod
    def of_folder(cls, folder: Folder) -> KeptTokenizer | None:
        """Of tokenizer_config.json, and tokenizer.json if there is one; `None` without the former."""
        settings, fast = folder.file("tokenizer_config.json"), folder.file("tokenizer.json")
        if settings is None:
            return None
        return cls(_texts(read_settings(settings)), None if fast is None else read_settings(fast))

    def mask_token_id(self) -> int | None:
        """The id of its mask token, if it has one.

        Raises:
            ValueError: it has one whose id is not known.
        """
        if (mask := self.special.get("mask_token")) is None:
            return None
        added = within(self.fast, "added_tokens")
        added = added if isinstance(added, list) else []
        ids = [within(token, "id") for token in added if within(token, "content") == mask]
        ids += [within(vocabulary, mask) for vocabulary in (*self.vocabularies, within(self.fast, "model", "vocab"))]
        for number in ids:
            if type(number) is int:
                return number
        raise ValueError(
            f"mask_token_id is missing: the tokenizer in source has mask token {mask!r}, whose id cannot be read"
        )

    def write(self, folder: Path) -> list[str]:
        """Writes its files, if it has some, and returns their names."""
        if self.fast is None:
            return []
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        for name, content in (("tokenizer.json", self.fast), ("tokenizer_config.json", settings)):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return ["tokenizer.json", "tokenizer_config.json"]


def _texts(tokens: Mapping[str, object]) -> dict[str, str]:
    """The special tokens among these, each a string or an object with its string as `content`."""
    texts = {name: within(tokens.get(name), "content") or tokens.get(name) for name in SPECIAL}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json(serialized: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(serialized)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
