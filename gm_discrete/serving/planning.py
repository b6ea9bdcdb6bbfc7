"""From a request to jobs: rows of tokens with gaps, the options of the call, and which rows may share one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.request import Request
from gm_discrete.json_text import json_text
from gm_discrete.models import GMModel
from gm_discrete.serving.errors import refused, refused_by_library
from gm_discrete.serving.protocol import OPTIONS, Ask
from gm_discrete.serving.settings import Settings
from gm_discrete.serving.vocabulary import Vocabulary

DEFAULT_TOKENS, DEFAULT_CHAT_TOKENS = 16, 256
"""Of a request that does not say how many; OpenAI's default for completions is 16, too."""
MARGIN = 2
"""How many times the characters of the longest sequence are tokenised: normalising may leave fewer than there were."""
NEVER = 2**62
"""A position that no sequence has."""


@dataclass(frozen=True)
class Row:
    """One sequence to fill, and what of it is returned.

    Attributes:
        ids: prompt, gaps and suffix; without new tokens that `max_new_tokens` adds.
        length: positions of the sample, of strings at most.
        start, tail: the answer is sample[start : len(sample) − tail].
        fresh: from this position on, an end-of-text token ends the text.
        prompt, new: tokens that stay, and that are generated (of strings at most).
    """

    ids: tuple[int, ...]
    length: int
    start: int
    tail: int
    fresh: int
    prompt: int
    new: int


@dataclass(eq=False)
class Job:
    """Rows of one request that go into one call of `generate`, alone or with other jobs of the same key.

    Attributes:
        config: options of the call, the seed of the request included.
        numbers: of the rows among the choices of the request.
        seeded: the call is of this job alone, as the samples of a call share its noise. The first job of a request has its
            seed, and the others have seeds that are derived from it.
        observed: whether the listener gets unfinished states.
        listener: is called by the thread that generates, with ("draft", row, ids, settled), ("done", samples) or
            ("failed", error).
    """

    key: Hashable
    config: GMGenerationConfig
    rows: list[Row]
    numbers: list[int]
    seeded: bool = False
    observed: bool = False
    listener: Callable[[tuple[Any, ...]], None] = lambda event: None
    cancelled: bool = field(default=False)


class Planner:
    """Makes jobs of requests; what does not fit the model is refused before anything waits.

    Args:
        max_length: positions of a sequence at most.
    """

    def __init__(self, model: GMModel, vocabulary: Vocabulary, settings: Settings) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.max_length = settings.max_length or model.network.fields[""].length
        self.defaults = deepcopy(cast(GMGenerationConfig, model.generation_config))
        self.defaults.seed, self.numbers = None, itertools.count()

    def plan(self, ask: Ask) -> list[Job]:
        """The jobs of a request; their listeners are not set.

        Raises:
            ApiError: the request does not fit the model.
        """
        self._check_sizes(ask)
        config = self._config(ask)
        blocks = config.blocks_for(self.model.config.block_size)
        rows = [row for row in self._rows(ask, blocks is not None) for _ in range(ask.n)]
        groups: dict[Hashable, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(self._shape(row, blocks is not None), []).append(number)
        request = next(self.numbers) if ask.seed is not None else None
        jobs = []
        for shape, members in groups.items():
            own = config.updated(self._lengths(rows[members[0]]))
            if ask.seed is not None and jobs:
                own.seed = seed_of(ask.seed, len(jobs))
            # Samplers that choose their times make stops for a stream.
            seen = ask.stream and config.sampler.chooses_times
            key = (shape, request, seen, json_text(own.to_dict(), sort_keys=True))
            jobs.append(Job(key, own, [rows[i] for i in members], members, ask.seed is not None, ask.stream))
            self._check(jobs[-1])
        return jobs

    def _shape(self, row: Row, in_blocks: bool) -> Hashable:
        """What rows of one call have in common."""
        # They are padded to the longest, which is at most twice as long as the shortest.
        shape: tuple[object, ...] = ((row.length - 1).bit_length(), *self._lengths(row).items())
        if in_blocks and self.model.config.block_size is None:  # blocks start at the first gap of any row
            gap = self.vocabulary.gap
            shape = (*shape, row.ids.index(gap) if gap in row.ids else len(row.ids))
        return shape

    def description(self) -> dict[str, Any]:
        """What a page or a program wants to know of the model, beside OpenAI's fields."""
        kind = "edits" if self.vocabulary.is_edits else "masked" if self.model.path.is_masked else "other"
        return {
            "max_length": self.max_length,
            "kind": kind,
            "gap": self.vocabulary.mark if self.model.config.block_size is None else None,
            "chat": bool(getattr(self.vocabulary.tokenizer, "chat_template", None)),
            "num_steps": self.defaults.num_steps,
        }

    def _check_sizes(self, ask: Ask) -> None:
        """Refuses what is far too long before it is tokenised, which takes time.

        Raises:
            ApiError: there are more characters or ids than the server can take.
        """
        texts: list[tuple[str, str | list[int]]] = [*(("prompt", one) for one in ask.prompts)]
        texts += [("suffix", ask.suffix or ""), ("messages", "".join(one["content"] for one in ask.messages))]
        for name, text in texts:
            most = MARGIN * self.max_length * (self.vocabulary.longest if isinstance(text, str) else 1)
            if len(text) > most:
                what = "characters" if isinstance(text, str) else "token ids"
                raise refused(
                    f"{name} has {len(text)} {what}; the server takes {self.max_length} tokens",
                    name, "context_length_exceeded",
                )  # fmt: skip

    def _config(self, ask: Ask) -> GMGenerationConfig:
        """The options of the request, over those of the model."""
        changes = {**ask.options, "return_dict_in_generate": True, "num_return_sequences": 1, "seed": ask.seed}
        try:
            config = self.defaults.updated(changes)
            config.output_trajectory = False
            if config.blocks_for(self.model.config.block_size) is not None and self.vocabulary.eos:
                config = config.updated({"eos_token_id": sorted(self.vocabulary.eos)})
        except (ValueError, TypeError) as error:
            raise refused_by_library(error, OPTIONS) from None
        return config

    def _rows(self, ask: Ask, in_blocks: bool) -> list[Row]:
        """A row for each prompt."""
        chat = bool(ask.messages)
        prompts: Sequence[list[int]] = (
            [self.vocabulary.encode_chat(ask.messages)] if chat else [self.vocabulary.encode(p) for p in ask.prompts]
        )
        suffix = None if ask.suffix is None else self.vocabulary.encode(ask.suffix, "suffix")
        return [self._row(ids, suffix, ask, chat, in_blocks) for ids in prompts]

    def _row(self, ids: list[int], suffix: list[int] | None, ask: Ask, chat: bool, in_blocks: bool) -> Row:
        gap, edits = self.vocabulary.gap, self.vocabulary.is_edits
        gaps, after = sum(token == gap for token in ids), suffix or []
        self._check_gaps(gaps, after, ask.echo)
        fixed, end = len(ids) - gaps + len(after), len(ids)
        more = ask.max_tokens
        if more is None:
            room = self.max_length - fixed - (0 if edits else gaps)
            if room < (0 if gaps else 1):
                raise refused(
                    f"the prompt has {fixed + gaps} tokens: it leaves no room, as the server takes {self.max_length}",
                    "messages" if chat else "prompt", "context_length_exceeded",
                )  # fmt: skip
            usual = self.defaults.max_new_tokens or (DEFAULT_CHAT_TOKENS if chat else DEFAULT_TOKENS)
            more = 0 if gaps and not edits else min(usual, room)
        new = more if edits else more + gaps
        if new == 0:
            raise refused("max_tokens=0 leaves nothing to generate; give more, or gaps in the prompt", "max_tokens")
        if fixed + new > self.max_length:
            raise refused(
                f"max_tokens={more}: prompt and new tokens are {fixed + new} positions; the server takes {self.max_length}",
                "max_tokens", "context_length_exceeded",
            )  # fmt: skip
        if edits and after:
            ids = [*ids, cast(int, gap), *after]
        elif gap is not None and not edits and not (in_blocks and not after):
            ids = [*ids, *[gap] * more, *after]
        fresh = NEVER if after or more == 0 or edits else end
        return Row(tuple(ids), fixed + new, 0 if ask.echo else end, len(after), fresh, fixed, new)

    def _check_gaps(self, gaps: int, suffix: Sequence[int], echo: bool) -> None:
        """
        Raises:
            ApiError: the model cannot fill gaps, or the answer would not show what fills them.
        """
        name = "suffix" if suffix else "prompt"
        if suffix and self.vocabulary.gap is None:
            raise refused("suffix: this model has no mask token, and cannot fill a gap", name)
        if self.vocabulary.gap in suffix:
            raise refused("suffix holds a gap; give the whole text as prompt, with gaps and echo=true", name)
        if (gaps or suffix) and self.model.config.block_size is not None:
            raise refused(f"{name}: this model reads nothing after the block that it fills, and cannot fill gaps", name)
        if gaps and not echo:
            raise refused(
                "prompt holds gaps: give echo=true, as what is after it does not show what fills them", "echo"
            )

    def _lengths(self, row: Row) -> dict[str, int]:
        """The options of the call that say how many tokens are new."""
        if self.vocabulary.is_edits and self.vocabulary.gap in row.ids:
            return {"max_length": row.length}
        return {"max_new_tokens": row.length - len(row.ids)}

    def _check(self, job: Job) -> None:
        """
        Raises:
            ApiError: the options do not fit the model, each other or the rows.
        """
        try:
            ids, mask = padded(job.rows[:1], 0)
            Request.of(self.model, job.config, input_ids=ids, attention_mask=mask)
        except (ValueError, TypeError) as error:
            raise refused_by_library(error, OPTIONS) from None


def seed_of(seed: int, job: int) -> int:
    """The seed of a further job of a request: with that of the first one it would get the same noise."""
    return int(np.random.SeedSequence([seed, job]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def padded(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask) [B, L] of rows, padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad] * (width - len(row.ids))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], dtype=torch.long)
    return ids.view(len(rows), width), mask.view(len(rows), width)
