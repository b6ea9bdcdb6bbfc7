"""The tokenizer that a checkpoint holds or has beside it, as far as it is known without running its code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gm_discrete.convert.pickles import within
from gm_discrete.convert.sources import Folder, read_settings

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
VOCABULARIES = ("_added_tokens_encoder", "added_tokens_encoder", "vocab", "encoder", "_vocab_str_to_int")
"""Attributes of tokenizers of transformers and of MDLM and Duo that are a dict of tokens to ids."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip

SAME_AS = {"DreamTokenizer": "Qwen2Tokenizer"}
"""Classes of tokenizers whose code lies beside a checkpoint, and the class of transformers that does the same."""


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
        """Of tokenizer_config.json and the files beside it; `None` without the former."""
        file, fast = folder.file("tokenizer_config.json"), folder.file("tokenizer.json")
        if file is None:
            return None
        settings = read_settings(file)
        others = [read_settings(other) for name in ("vocab.json", "added_tokens.json") if (other := folder.file(name))]
        return cls(_texts(settings), None if fast is None else read_settings(fast), [*others, _decoder(settings)])

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

    @property
    def ids(self) -> dict[str, int]:
        """Ids by token, as far as they are known."""
        found: dict[str, int] = {}
        for vocabulary in (*self.vocabularies, within(self.fast, "model", "vocab")):
            found |= vocabulary if isinstance(vocabulary, Mapping) else {}
        added = within(self.fast, "added_tokens")
        return found | {
            str(within(token, "content")): token["id"] for token in (added if isinstance(added, list) else [])
        }

    def write(self, folder: Path) -> list[str]:
        """Writes its files, if it has some, and returns their names."""
        if self.fast is None:
            return []
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        for name, content in (("tokenizer.json", self.fast), ("tokenizer_config.json", settings)):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return ["tokenizer.json", "tokenizer_config.json"]


def copy_tokenizer(source: Folder, target: Path, but: Sequence[str] = ()) -> list[str]:
    """Copies the files of a tokenizer as they are, except some, and returns their names."""
    copied = []
    for name in TOKENIZER_FILES:
        if name not in but and (file := source.file(name)) is not None:
            shutil.copyfile(file, target / name)
            copied.append(name)
    return copied


def write_tokenizer(source: Folder, target: Path, mask_token_id: int) -> dict[str, int]:
    """Copies the files of a tokenizer, which then has that mask and needs no code beside it, and returns ids by token.

    Its settings are written to tokenizer_config.json alone, where transformers looks for them first. Without
    tokenizer.json and vocab.json nothing is written.

    Raises:
        ValueError: it has no token of that id, or is of a class that is not known here.
    """
    settings_file, fast = source.file("tokenizer_config.json"), source.file("tokenizer.json")
    if fast is None and source.file("vocab.json") is None:
        return {}
    place = f"source={str(source.path)!r}"
    settings = {} if settings_file is None else read_settings(settings_file)
    if (map_file := source.file("special_tokens_map.json")) is not None:
        settings = {**read_settings(map_file), **settings}
    numbered = _vocabulary(source, settings, fast)
    mask = next((token for token, number in numbered.items() if number == mask_token_id), None)
    if mask is None:
        raise ValueError(f"{place} has a tokenizer without a token of mask_token_id={mask_token_id}")
    kind = SAME_AS.get(str(settings.get("tokenizer_class")), settings.get("tokenizer_class"))
    if fast is None and kind != "Qwen2Tokenizer":
        raise ValueError(f"{place} has tokenizer_class={kind!r} without tokenizer.json, which would need its code")
    settings.pop("auto_map", None)
    for extra in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(listed := settings.get(extra), list):
            settings[extra] = [token for token in listed if (within(token, "content") or token) in numbered]
    settings |= {"tokenizer_class": kind or "PreTrainedTokenizerFast", "mask_token": mask}
    copy_tokenizer(source, target, but=("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"))
    content = json.dumps(settings, ensure_ascii=False, indent=2)
    (target / "tokenizer_config.json").write_text(content, encoding="utf-8")
    return numbered


def _vocabulary(source: Folder, settings: dict[str, Any], fast: Path | None) -> dict[str, int]:
    """Ids by token: of tokenizer.json if there is one, else of vocab.json and the added tokens, which become settings."""
    if fast is not None:
        settings.pop("added_tokens_decoder", None)
        return KeptTokenizer({}, read_settings(fast)).ids
    plain, added = (source.file(name) for name in ("vocab.json", "added_tokens.json"))
    if "added_tokens_decoder" not in settings and added is not None:
        tokens = {str(number): {"content": token, "special": True} for token, number in read_settings(added).items()}
        settings["added_tokens_decoder"] = tokens
    return ({} if plain is None else read_settings(plain)) | _decoder(settings)


def _decoder(settings: Mapping[str, Any]) -> dict[str, int]:
    """Ids of added tokens, which the settings of a tokenizer have the other way round."""
    found = settings.get("added_tokens_decoder")
    found = found if isinstance(found, Mapping) else {}
    return {str(within(token, "content")): int(number) for number, token in found.items() if str(number).isdecimal()}


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
