"""Tokenised examples of prompts with completions, and of conversations: what is answered is scored, the rest observed.

The end of a text is learned as in LLaDA (arXiv 2502.09992): an example ends with end-of-text tokens, a random number of
them, which are noised and scored as all tokens of an answer are. A model samples answers of a fixed number of positions, and
so learns to fill what an answer does not need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, cast, get_args

import numpy as np
from datasets import Dataset, Features, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gm_discrete.data.collator import IGNORED
from gm_discrete.data.conversations import checked_messages
from gm_discrete.data.packing import EXAMPLES, pack_examples

Turns = Literal["all", "each"]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark of the answers in a chat template."""


@dataclass(frozen=True)
class ChatReport:
    """Numbers of the examples that `tokenize_chat` made of a data set, cut, and left out.

    Attributes:
        examples: examples that were made of them.
        truncated: examples that were cut to `length`.
        dropped: examples left out because the cut would have taken all that is scored.
        tokens_lost: tokens that were cut off, or are those of examples that were left out for it.
        unanswered: rows left out because no message of an assistant, or only ones of weight 0, is in them.
        spelling_mask: examples left out because their text spells the mask token, which is no data.
    """

    examples: int
    truncated: int = 0
    dropped: int = 0
    tokens_lost: int = 0
    unanswered: int = 0
    spelling_mask: int = 0

    def __str__(self) -> str:
        parts = [f"{self.examples:,} examples"]
        if self.truncated or self.dropped:
            parts.append(
                f"{self.truncated:,} truncated and {self.dropped:,} dropped as too long ({self.tokens_lost:,} tokens lost)"
            )
        if self.unanswered:
            parts.append(f"{self.unanswered:,} rows without an answer dropped")
        if self.spelling_mask:
            parts.append(f"{self.spelling_mask:,} dropped that spell the mask token")
        return "; ".join(parts)


def tokenize_chat(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    max_eos: int = 1,
    turns: Turns = "all",
    packed: bool = False,
    seed: int = 0,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> tuple[Dataset, ChatReport]:
    """Tokenises rows of prompts and completions, or of conversations, into `input_ids` and `labels`, −100 on prompts.

    The prompt of a pair is tokenised as in `tokenizer(prompt)`, without what that appends, and the completion after it by
    itself, so that a prompt has the same tokens when the model samples. Text of pairs that spells a special token is
    tokenised as text. A conversation gets the tokenizer's chat template. Its answers are what the template marks by
    `{% generation %}`, or else what the text with a message has more than the text before it with the prompt for an answer.

    Args:
        dataset: rows of `load_chat`: strings `prompt` and `completion`, or `messages`, lists of {"role", "content"} with an
            optional `weight`, 0 for answers that are not scored.
        length: the most tokens of an example. Longer ones lose their end; they are counted in the report.
        max_eos: an example ends with 1 to `max_eos` end-of-text tokens, as many as a draw from (seed, row) gives, and no
            more than `length` leaves room for.
        turns: "all": an example is a conversation, all answers of which are scored. "each": an example is one answer with
            all that comes before it, so that no answer is conditioned on later messages; there are as many examples as
            answers.
        packed: put several examples into one block of at most `length` tokens, with the column `attention_mask`, the numbers
            1, 2, … of the examples, which do not attend to each other. Examples are not cut for it.
        seed: of the numbers of end-of-text tokens.
        batch_size: rows that are tokenised at a time, and examples that are packed together.
        num_proc: processes that tokenise.

    Returns:
        The examples, for a `TokenCollator`, and a `ChatReport`.

    Raises:
        TypeError: `dataset` is no `Dataset`.
        ValueError: the data set has no such columns, or no row with an answer that fits; the tokenizer has no end-of-text
            token; for conversations it has no chat template, or one that does not say where answers are.

    >>> from datasets import Dataset
    >>> from gm_discrete.data import character_tokenizer
    >>> rows = Dataset.from_dict({"prompt": ["ab"], "completion": ["ba"]})
    >>> examples, report = tokenize_chat(rows, character_tokenizer(alphabet="ab"), length=8, max_eos=1)
    >>> examples[0], report.examples  # 4 is the end of a text
    ({'input_ids': [0, 1, 1, 0, 4], 'labels': [-100, -100, 1, 0, 4]}, 1)
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}; give a datasets.Dataset, one split")
    for name, value in {"length": length, "max_eos": max_eos, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if turns not in get_args(Turns):
        raise ValueError(f"turns={turns!r} must be 'all' or 'each'")
    columns = ["messages"] if "messages" in dataset.column_names else ["prompt", "completion"]
    if missing := set(columns) - set(dataset.column_names):
        raise ValueError(
            f"dataset lacks {', '.join(sorted(missing))}; it has {', '.join(dataset.column_names)}. Give prompt and "
            "completion, or messages (load_chat renames columns)"
        )
    encode = _Encoder(tokenizer, length, max_eos, turns, seed)
    encode.check(columns)
    found = dataset.select_columns(columns).map(
        encode, batched=True, batch_size=batch_size, with_indices=True, num_proc=num_proc, remove_columns=columns,
        features=Features({**EXAMPLES, "fate": Value("int8"), "lost": Value("int32")}), desc="Tokenizing",
    )  # fmt: skip
    fates, lost = (np.asarray(found.with_format("numpy")[name]) for name in ("fate", "lost"))
    counts = {name: int((fates == fate).sum()) for fate, name in enumerate(FATES)}
    report = ChatReport(
        counts["whole"] + counts["truncated"], counts["truncated"], counts["dropped"], int(lost.sum()),
        counts["unanswered"], counts["spelling_mask"],
    )  # fmt: skip
    if not report.examples:
        raise ValueError(
            f"dataset has no row with an answer that fits length={length}: {report}. Give a larger length, or other rows"
        )
    examples = found.select(np.flatnonzero(fates < 2)).select_columns(["input_ids", "labels"])
    if packed:
        examples = pack_examples(examples, length, batch_size)
    return examples, report


FATES = ("whole", "truncated", "dropped", "unanswered", "spelling_mask")
"""Outcomes for an example; the first two are kept."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens of a prompt, as in the examples of `tokenize_chat`, for `generate`.

    Args:
        prompt: text, or the messages of a conversation that is to be answered.

    Raises:
        ValueError: the prompt is messages, and the tokenizer has no chat template.
    """
    encode = _Encoder(tokenizer, 1, 1, "all", 0)
    if isinstance(prompt, str):
        return [*encode.beginning, *encode.plain([prompt])[0]]
    encode.check(["messages"])
    text = encode.rendered(prompt, None, add_generation_prompt=True)
    return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class _Encoder:
    """Makes examples of a batch of rows."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    max_eos: int
    turns: Turns
    seed: int

    def check(self, columns: Sequence[str]) -> None:
        """
        Raises:
            ValueError: the tokenizer does not serve for data with these columns.
        """
        tokenizer: Any = self.tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no eos_token, with which answers end; set tokenizer.eos_token")
        if "messages" not in columns:
            return
        if not tokenizer.chat_template:
            raise ValueError(
                "messages need a chat template, and the tokenizer has chat_template=None; set tokenizer.chat_template (a "
                "recipe: --chat_template FILE), take the tokenizer of an instruct model, or give prompts and completions as "
                "texts"
            )
        if not tokenizer.is_fast:
            raise ValueError(f"tokenizer is a {type(tokenizer).__name__}, which is slow: conversations need a fast one")

    @cached_property
    def beginning(self) -> list[int]:
        """The tokens that the tokenizer puts before a text."""
        whole: Any = self.tokenizer("a")["input_ids"]
        plain: Any = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        return whole[: next(starts, 0)]

    @cached_property
    def is_marked(self) -> bool:
        """Whether the chat template marks the answers."""
        return bool(GENERATION.search(self.tokenizer.get_chat_template()))

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "fate": [], "lost": []}
        rows = self._conversations(batch["messages"], indices) if "messages" in batch else self._pairs(batch)
        for index, found in zip(indices, rows, strict=True):
            for turn, (tokens, scored) in enumerate(found or [([], [])]):
                for name, value in self._example(tokens, scored, (self.seed, index, turn)).items():
                    columns[name].append(value)
        return columns

    def _example(self, tokens: list[int], scored: list[bool], stream: tuple[int, ...]) -> dict[str, Any]:
        """The example that ends with the last scored token of the row, and end-of-text tokens."""
        eos: Any = self.tokenizer.eos_token_id
        nothing: dict[str, Any] = {"input_ids": [], "labels": []}
        if not any(scored):
            return {**nothing, "fate": FATES.index("unanswered"), "lost": 0}
        end = len(scored) - scored[::-1].index(True)
        begin = end - next((at for at, one in enumerate(scored[:end][::-1]) if not one), end)  # of the last answer
        ends = [at for at in range(begin, end) if tokens[at] == eos]
        tokens = tokens[: ends[-1] + 1] if ends else [*tokens[:end], eos]
        scored = [*scored[:end], True][: len(tokens)]
        if self.tokenizer.mask_token_id in tokens:
            return {**nothing, "fate": FATES.index("spelling_mask"), "lost": 0}
        if not any(scored[: self.length]):
            return {**nothing, "fate": FATES.index("dropped"), "lost": len(tokens)}
        lost = max(0, len(tokens) - self.length)
        if not lost:
            more = int(np.random.default_rng(stream).integers(self.max_eos))  # 0 to max_eos − 1
            more = min(more, self.length - len(tokens))
            tokens, scored = tokens + [eos] * more, scored + [True] * more
        tokens, scored = tokens[: self.length], scored[: self.length]
        labels = [token if one else IGNORED for token, one in zip(tokens, scored, strict=True)]
        return {
            "input_ids": tokens,
            "labels": labels,
            "fate": FATES.index("truncated" if lost else "whole"),
            "lost": lost,
        }

    def plain(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts in which nothing is a special token."""
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    def _pairs(self, batch: Mapping[str, list[Any]]) -> list[list[tuple[list[int], list[bool]]]]:
        for name in ("prompt", "completion"):
            if wrong := [text for text in batch[name] if not isinstance(text, str)]:
                raise ValueError(
                    f"column {name!r} holds {str(wrong[0])[:40]!r}; give texts (load_chat reads other forms)"
                )
        prompts, completions = self.plain(batch["prompt"]), self.plain(batch["completion"])
        rows, eos = [], cast(int, self.tokenizer.eos_token_id)
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt, completion = [*self.beginning, *prompt], [*completion, eos]
            rows.append([(prompt + completion, [False] * len(prompt) + [True] * len(completion))])
        return rows

    def _conversations(
        self, batch: list[list[dict[str, Any]]], indices: list[int]
    ) -> list[list[tuple[list[int], list[bool]]]]:
        rows = []
        for index, messages in zip(indices, batch, strict=True):
            messages = checked_messages(messages, f"row {index}", "messages")
            answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
            scored = [at for at in answers if messages[at]["weight"]]
            messages = [{"role": message["role"], "content": message["content"]} for message in messages]
            parts = [[at] for at in scored] if self.turns == "each" else [scored] if scored else []
            rows.append([self._answers(messages[: part[-1] + 1], answers, part, index) for part in parts])
        return rows

    def _answers(
        self, messages: list[dict[str, str]], answers: list[int], scored: list[int], index: int
    ) -> tuple[list[int], list[bool]]:
        """The tokens of a conversation, and which of them are of the scored answers."""
        if self.is_marked:
            return self._marked(messages, [at for at in answers if at < len(messages)], scored, index)
        text, spans = self.rendered(messages, index), []
        for at in scored:
            before = self.rendered(messages[:at], index, add_generation_prompt=True)
            whole = self.rendered(messages[: at + 1], index)
            if not whole.startswith(before) or not text.startswith(whole):
                raise ValueError(
                    f"row {index}: by the chat template the text of the first {at + 1} messages does not begin with that of "
                    f"the messages before, or does not begin the whole, so that the answer cannot be found; mark it in the "
                    "template by {% generation %}, or give turns='each'"
                )
            spans.append((len(before), len(whole)))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        mask = [any(a < end and b > begin for begin, end in spans) for a, b in encoded["offset_mapping"]]
        return encoded["input_ids"], mask

    def _marked(
        self, messages: list[dict[str, str]], answers: list[int], scored: list[int], index: int
    ) -> tuple[list[int], list[bool]]:
        """The same with a chat template that marks answers."""
        found: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens, mask = found["input_ids"], [bool(one) for one in found["assistant_masks"]]
        if len(scored) == len(answers):
            return tokens, mask
        marks = sum(one for one, _ in groupby(mask))
        if marks != len(answers):
            raise ValueError(
                f"row {index} has {len(answers)} answers, of which not all are scored, and the chat template marks {marks} "
                "by {% generation %}; give a template that marks each, or turns='all' without weights"
            )
        numbers = np.cumsum(np.diff(mask, prepend=False) & np.asarray(mask)) - 1  # of the answer at each position
        wanted = [answers.index(at) for at in scored]
        return tokens, [one and number in wanted for one, number in zip(mask, numbers.tolist(), strict=True)]

    def rendered(self, messages: Sequence[Mapping[str, str]], index: int | None, **options: bool) -> str:
        """The text of a conversation; of none an empty one."""
        if not messages:
            return ""
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options))  # pyright: ignore[reportArgumentType]
        except TemplateError as error:
            place = "the prompt" if index is None else f"row {index}"
            raise ValueError(f"{place} does not fit the chat template: {error}") from error
