"""Texts to tokens of a model and back, with gaps."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property, lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from gm_discrete.data.chat import prompt_ids
from gm_discrete.data.tokenizers import check_known, check_tokenizer
from gm_discrete.models import GMModel
from gm_discrete.paths import EditPath
from gm_discrete.serving.errors import refused

CONTEXT = 4
"""Tokens before a part of a text with which it is decoded: spaces and bytes of a character may depend on them."""
UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character, or none yet."""


class Vocabulary:
    """The tokenizer of a model. One thread encodes, and one decodes: tokenizers are not made for two threads, so that
    each has its own.

    Attributes:
        gap: the id that marks a gap in `input_ids`; `None` if the model cannot fill gaps.
        is_edits: whether a gap takes a text of any length.
        eos: ids that end a text.

    Raises:
        ValueError: tokenizer and model do not belong together.
    """

    def __init__(self, model: GMModel, tokenizer: PreTrainedTokenizerBase) -> None:
        path, config = model.path, model.config
        check_tokenizer(tokenizer, vocab_size=config.vocab_size, mask_token_id=config.mask_token_id)
        self.tokenizer, self.size, self.is_edits = tokenizer, config.vocab_size, path.strings is not None
        self._decoder = deepcopy(tokenizer)
        blank = cast(EditPath, path).blank_token_id if self.is_edits else None
        self.gap = blank if config.mask_token_id is None else config.mask_token_id
        self.not_data = {blank} - {None, self.gap}
        own: Any = cast(Any, model.generation_config).eos_token_id
        own = tokenizer.eos_token_id if own is None else own
        self.eos: frozenset[int] = frozenset([] if own is None else [own] if isinstance(own, int) else own)
        self._decoded = lru_cache(65536)(self._decode)

    @cached_property
    def mark(self) -> str | None:
        """How a text spells a gap: the mask token of the tokenizer, or for strings its padding token, if it has no mask."""
        if self.gap is None:
            return None
        tokenizer: Any = self.tokenizer
        return tokenizer.mask_token or (tokenizer.pad_token if tokenizer.pad_token_id == self.gap else None)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    def encode(self, prompt: str | Sequence[int], name: str = "prompt") -> list[int]:
        """The ids of a prompt or a suffix, gaps included: those of `pack`, without what the tokenizer puts around a text.

        Raises:
            ApiError: it holds characters or ids that the model does not have, or a gap that it cannot fill.
        """
        if isinstance(prompt, str):
            ids: list[int] = cast(Any, self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
            self._check_known(prompt, ids, name)
            mask: Any = self.tokenizer.mask_token_id
            if self.is_edits and mask is not None and self.gap is not None:
                ids = [self.gap if token == mask else token for token in ids]
        else:
            ids = list(prompt)
        if wrong := [token for token in ids if token >= self.size or token in self.not_data]:
            raise refused(f"{name} holds the token id {wrong[0]}, which is no token of the model's {self.size}", name)
        if self.gap is None and self.tokenizer.mask_token_id in ids:
            raise refused(f"{name} holds a mask token, and this model has none: it cannot fill gaps", name)
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of a conversation that is to be answered.

        Raises:
            ApiError: there is no chat template, the conversation does not fit it, or it spells a mask or unknown characters.
        """
        try:
            ids = prompt_ids(self.tokenizer, messages)
        except (ValueError, TypeError) as error:
            raise refused(" ".join(str(error).split()), "messages") from None
        if self.gap in ids or self.tokenizer.mask_token_id in ids:
            raise refused(f"messages spell the mask token {self.mark!r}; gaps are for /v1/completions", "messages")
        self._check_known("".join(message["content"] for message in messages), ids, "messages")
        return ids

    def _check_known(self, text: str, ids: Sequence[int], name: str) -> None:
        """
        Raises:
            ApiError: the text holds characters that the tokenizer does not have.
        """
        try:
            check_known(self.tokenizer, text, ids, name)
        except ValueError as error:
            gap = f"; a gap is spelled {self.mark}" if "_" in text and self.mark and name == "prompt" else ""
            raise refused(f"{error}{gap}", name) from None

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """The text of tokens that follow others, without special tokens."""
        before = before[-CONTEXT:]
        whole, start = self._decode((*before, *ids)), self._decode(tuple(before))
        return whole[len(start) :] if whole.startswith(start) else self._decode(tuple(ids))

    def pieces(self, ids: Sequence[int], before: Sequence[int] = ()) -> list[str | None]:
        """The text of each token, `None` for a gap. A character of several tokens is the text of its last one."""
        found: list[str | None] = []
        known = [token for token in before[-1:] if token != self.gap]  # tokens that are decoded together
        start = len(known)  # those of them whose text is out
        for token in ids:
            if token == self.gap:
                found.append(None)
                known, start = [], 0
                continue
            known.append(token)
            head, all_ = self._decoded(tuple(known[:start])), self._decoded(tuple(known))
            text = all_[len(head) :] if all_.startswith(head) else self._decoded(tuple(known[start:]))
            if text.endswith(UNFINISHED) and len(known) - start < CONTEXT:
                found.append("")
                continue
            found.append(text)
            known, start = [token], 1
        return found

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self._decoder.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
