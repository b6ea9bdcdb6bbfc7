"""Tokenised examples from texts: packed into blocks of one length, or one text per example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

AnyDataset = TypeVar("AnyDataset", bound=Dataset | IterableDataset)

TOKENS = Features({"input_ids": List(Value("int32"))})
DOCUMENTS = Features({**TOKENS, "attention_mask": List(Value("int32"))})
EXAMPLES = Features({**TOKENS, "labels": List(Value("int32"))})


def pack(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    separate: bool = False,
    add_eos: bool = True,
    split_special_tokens: bool = True,
    text_column: str = "text",
    batch_size: int = 256,
    num_proc: int | None = None,
    num_shards: int = 1,
) -> AnyDataset:
    """Tokenises texts, joins them and cuts the result into blocks: `input_ids` of exactly `length`.

    The remaining tokens, fewer than `length`, are dropped. Shuffle after packing.

    >>> from datasets import Dataset
    >>> from gm_discrete.data import character_tokenizer
    >>> blocks = pack(Dataset.from_dict({"text": ["abc", "ab"]}), character_tokenizer(alphabet="abc"), length=3)
    >>> blocks["input_ids"][:]  # 5 is the end of a text
    [[0, 1, 2], [5, 0, 1]]

    Args:
        dataset: one text per row. A stream gives a stream.
        separate: add the column `attention_mask`, with the numbers 1, 2, … of the texts of each block: the model then treats
            them as separate documents, of which none is conditioned on another. A text that the end of a block cuts is a
            document of its own in each block.
        add_eos: append the tokenizer's end-of-text token to every text, if it has one.
        split_special_tokens: tokenise text that spells a special token, such as "[MASK]", as text.
        batch_size: texts tokenised at a time.
        num_proc: processes that tokenise; `None` for streams.
        num_shards: for streams, the number of parts that are packed separately, each with its own dropped end, so that as
            many loader workers or nodes can share the work; 1 for data sets.

    Raises:
        TypeError: `dataset` is not a data set, or its column holds other things than strings.
        ValueError: `dataset` lacks the column or holds fewer than `length` tokens, or another argument is out of range.
    """
    encode = _Encoder(tokenizer, text_column, add_eos, split_special_tokens)
    tokens = _tokenize(dataset, encode, length, batch_size, num_proc)
    packer = _Packer(length, separate)
    if isinstance(tokens, IterableDataset):
        packed = _pack_stream(tokens, packer, batch_size, num_shards)
        empty = next(iter(packed), None) is None
    else:
        if num_shards != 1:
            raise ValueError(
                f"num_shards={num_shards} is for streams; call dataset.to_iterable_dataset or leave it out"
            )
        packed = tokens.with_format("numpy").map(
            packer, batched=True, batch_size=batch_size, features=packer.features, desc="Packing"
        )
        packed, empty = packed.with_format(None), not len(packed)
    if empty:
        raise ValueError(f"dataset holds fewer tokens than one block of length={length}; give more text or less length")
    return cast(AnyDataset, packed)


def truncate(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    add_eos: bool = True,
    pad_to_length: bool = False,
    split_special_tokens: bool = True,
    text_column: str = "text",
    batch_size: int = 256,
    num_proc: int | None = None,
) -> AnyDataset:
    """Tokenises each text as one example: `input_ids` of its first tokens, at most `length`. The collator pads them.

    Texts without a token are dropped. Arguments and errors are those of `pack`; the end-of-text token counts towards
    `length`, and is cut off from texts that are too long.

    Args:
        pad_to_length: fill examples up to `length` with the tokenizer's padding token, which is then an ordinary token: it
            is noised, scored and generated, so that the model learns how long texts are. Padding by the collator is not
            scored, and samples of `length` tokens are then texts of that length.
    """
    if pad_to_length and tokenizer.pad_token_id is None:
        raise ValueError("pad_to_length=True needs a tokenizer with a padding token; ensure_mask_token adds one")
    encode = _Encoder(tokenizer, text_column, add_eos, split_special_tokens, length, pad_to_length)
    tokens = _tokenize(dataset, encode, length, batch_size, num_proc)
    if next(iter(tokens), None) is None:
        raise ValueError("dataset holds no tokens; give at least one text that is not empty")
    return cast(AnyDataset, tokens)


def pack_examples(dataset: Dataset, length: int, batch_size: int = 1000) -> Dataset:
    """Puts whole examples into blocks of at most `length` tokens; none is cut.

    Args:
        dataset: `input_ids` and `labels`, at most `length` of each.
        batch_size: examples that are packed together.

    Returns:
        Blocks with the column `attention_mask`, the numbers 1, 2, … of the examples: the model then treats them as separate
        documents.
    """
    features = Features({**EXAMPLES, "attention_mask": DOCUMENTS["attention_mask"]})
    packer = _ExamplePacker(length)
    return dataset.map(packer, batched=True, batch_size=batch_size, features=features, desc="Packing")


@dataclass(frozen=True)
class _ExamplePacker:
    """Puts each example, the longest first, into the fullest block that has room for it."""

    length: int

    def __call__(self, batch: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        sizes = [len(row) for row in batch["input_ids"]]
        blocks: list[list[int]] = []
        room: list[int] = []
        for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
            block = min((free, block) for block, free in enumerate([*room, self.length]) if free >= sizes[at])[1]
            if block == len(blocks):
                blocks.append([])
                room.append(self.length)
            blocks[block].append(at)
            room[block] -= sizes[at]
        ordered = [sorted(block) for block in blocks]
        joined = {
            name: [[token for at in block for token in rows[at]] for block in ordered] for name, rows in batch.items()
        }
        numbers = [[number for number, at in enumerate(block, 1) for _ in range(sizes[at])] for block in ordered]
        return {**joined, "attention_mask": numbers}


@dataclass(frozen=True)
class _Encoder:
    """Tokenises a batch of texts; drops texts without a token."""

    tokenizer: PreTrainedTokenizerBase
    text_column: str
    add_eos: bool
    split_special_tokens: bool
    length: int | None = None
    pad_to_length: bool = False

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        texts = batch[self.text_column]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"column {self.text_column!r} holds a {type(text).__name__}; give strings only")
        rows = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=self.split_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        eos = self.tokenizer.eos_token_id
        end = [eos] if self.add_eos and eos is not None else []
        rows = [cut for row in rows if (cut := [*row, *end][: self.length])]
        if self.pad_to_length and self.length is not None:
            rows = [row + [self.tokenizer.pad_token_id] * (self.length - len(row)) for row in rows]
        return {"input_ids": rows}


class _Packer:
    """Cuts rows of tokens into blocks [n, length]; the tokens after the last block are kept for the next call.

    Args:
        separate: whether to number the rows in each block.
    """

    def __init__(self, length: int, separate: bool) -> None:
        self.length, self.separate = length, separate
        self.rest, self.begins = np.empty(0, np.int32), np.empty(0, np.bool_)  # tokens, and whether they begin a row

    @property
    def features(self) -> Features:
        return DOCUMENTS if self.separate else TOKENS

    def new(self) -> _Packer:
        """The same, without kept tokens."""
        return _Packer(self.length, self.separate)

    def __call__(self, batch: Mapping[str, Sequence[ArrayLike]]) -> dict[str, NDArray[np.int32]]:
        rows = [np.asarray(row) for row in batch["input_ids"]]
        tokens = np.concatenate([self.rest, *rows]).astype(np.int32, copy=False)
        begins = np.concatenate([self.begins, *(np.arange(len(row)) == 0 for row in rows)])
        whole = len(tokens) // self.length * self.length
        self.rest, self.begins = tokens[whole:], begins[whole:]
        blocks = {"input_ids": tokens[:whole].reshape(-1, self.length)}
        if self.separate:
            begins = begins[:whole].reshape(-1, self.length)
            begins[:, 0] = True  # of what is left of a text that began in the block before
            blocks["attention_mask"] = begins.cumsum(1, dtype=np.int32)
        return blocks


def _tokenize(
    dataset: Dataset | IterableDataset, encode: _Encoder, length: int, batch_size: int, num_proc: int | None
) -> Dataset | IterableDataset:
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}; give a datasets.Dataset or IterableDataset, one split")
    for name, value in {"length": length, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    column = encode.text_column
    if dataset.column_names is not None and column not in dataset.column_names:
        raise ValueError(f"text_column={column!r} is not in the data set, which has {', '.join(dataset.column_names)}")
    texts = dataset.select_columns(column)
    if isinstance(texts, IterableDataset):
        if num_proc is not None:
            raise ValueError(f"num_proc={num_proc} is not for streams; give num_shards and the loader's num_workers")
        return texts.map(encode, batched=True, batch_size=batch_size, remove_columns=column, features=TOKENS)
    if not len(texts):
        raise ValueError("dataset is empty; give at least one text")
    return texts.map(
        encode,
        batched=True,
        batch_size=batch_size,
        remove_columns=column,
        features=TOKENS,
        num_proc=num_proc,
        desc="Tokenizing",
    )


def _pack_stream(tokens: IterableDataset, packer: _Packer, batch_size: int, num_shards: int) -> IterableDataset:
    if not 1 <= num_shards <= tokens.num_shards:
        raise ValueError(f"num_shards={num_shards} must lie between 1 and the {tokens.num_shards} shards of the stream")
    shards = [tokens.shard(num_shards, index) for index in range(num_shards)]
    arguments = {"shards": shards, "packer": packer, "batch_size": batch_size}
    return IterableDataset.from_generator(_stream_blocks, features=packer.features, gen_kwargs=arguments)


def _stream_blocks(
    shards: list[IterableDataset], packer: _Packer, batch_size: int
) -> Iterator[dict[str, NDArray[np.int32]]]:
    for shard in shards:
        own = packer.new()
        for batch in shard.iter(batch_size):
            blocks = own(batch)
            for index in range(len(blocks["input_ids"])):
                yield {name: values[index] for name, values in blocks.items()}
