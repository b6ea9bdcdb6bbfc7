"""Answers as OpenAI's clients read them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from gm_discrete.json_text import json_text
from gm_discrete.serving.transcript import Transcript


class Answer:
    """The JSON of one answer, whole or in chunks.

    Args:
        chat: whether it is of /v1/chat/completions.
        model: name of the model.
        prompt_tokens: of all prompts.
    """

    def __init__(self, chat: bool, model: str, prompt_tokens: int) -> None:
        self.chat, self.model, self.prompt_tokens = chat, model, prompt_tokens
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, transcripts: Sequence[Transcript]) -> dict[str, Any]:
        """The answer with all choices."""
        choices = []
        for index, choice in enumerate(transcripts):
            text = {"message": {"role": "assistant", "content": choice.text}} if self.chat else {"text": choice.text}
            choices.append({"index": index, **text, "logprobs": None, "finish_reason": choice.reason})
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(transcripts)}

    def chunk(self, index: int, text: str, reason: str | None = None, **more: object) -> str:
        """The event of more text of a choice.

        Args:
            reason: why it ended; more: further fields of the choice.
        """
        part: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return self._event([{"index": index, **part, "logprobs": None, "finish_reason": reason, **more}])

    def opening(self, index: int) -> str:
        """The event with which a choice of a chat begins."""
        return self._event([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def last(self, transcripts: Sequence[Transcript]) -> str:
        """The event with the number of tokens."""
        return self._event([], usage=self.usage(transcripts))

    def usage(self, transcripts: Sequence[Transcript]) -> dict[str, int]:
        """Numbers of tokens."""
        generated = sum(choice.tokens for choice in transcripts)
        prompt = self.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    def _event(self, choices: list[dict[str, Any]], **more: object) -> str:
        return event({**self._head("chat.completion.chunk"), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, Any]:
        kind = kind if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(content: object) -> str:
    """A server-sent event."""
    return f"data: {json_text(content, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
