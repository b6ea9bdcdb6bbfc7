from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from gm_discrete.data import TokenCollator, character_tokenizer, pack, truncate
from recipes.datasets import load_text

disable_progress_bars()
TOKENIZER = character_tokenizer(alphabet="abcdefghij[MASK] ")


def concatenation(texts: list[str], add_eos: bool) -> list[int]:
    vocabulary = TOKENIZER.get_vocab()
    end = [vocabulary["[EOS]"]] if add_eos else []
    return list(chain.from_iterable([vocabulary[character] for character in text] + end for text in texts))


def blocks(tokens: list[int], length: int) -> list[list[int]]:
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


def rows(dataset: Dataset | IterableDataset) -> list[list[int]]:
    examples: Any = dataset
    return [list(example["input_ids"]) for example in examples]


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text("abcdefghij", max_size=12), min_size=1, max_size=8),
    length=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    add_eos=st.booleans(),
)
def test_pack__cuts_the_concatenation(texts: list[str], length: int, batch_size: int, add_eos: bool) -> None:
    expected = blocks(concatenation(texts, add_eos), length)
    dataset = Dataset.from_dict({"text": texts})
    for source in (dataset, dataset.to_iterable_dataset()):
        if expected:
            packed = pack(source, TOKENIZER, length, add_eos=add_eos, batch_size=batch_size)
            assert rows(packed) == expected
            assert rows(packed) == expected  # a second epoch starts anew
            assert packed.column_names == ["input_ids"]
        else:
            with pytest.raises(ValueError, match=f"dataset .*length={length}"):
                pack(source, TOKENIZER, length, add_eos=add_eos, batch_size=batch_size)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text("abcdefghij", max_size=12), min_size=1, max_size=8),
    length=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    add_eos=st.booleans(),
)
def test_pack__numbers_separate_texts_in_each_block(
    texts: list[str], length: int, batch_size: int, add_eos: bool
) -> None:
    """Each end-of-text token belongs to its text; a cut text is one of its own in each block."""
    tokens, owners = concatenation(texts, add_eos), []
    for i, text in enumerate(texts):
        owners += [i] * (len(text) + add_eos)
    expected = []
    for block in blocks(owners, length):
        kinds = list(dict.fromkeys(block))  # in the order in which they occur
        expected.append([kinds.index(owner) + 1 for owner in block])
    if not expected:
        return
    dataset = Dataset.from_dict({"text": texts})
    for source in (dataset, dataset.to_iterable_dataset()):
        packed: Any = pack(source, TOKENIZER, length, separate=True, add_eos=add_eos, batch_size=batch_size)
        assert packed.column_names == ["input_ids", "attention_mask"]
        assert rows(packed) == blocks(tokens, length)
        assert [list(example["attention_mask"]) for example in packed] == expected


def test_pack__separate_shards_of_a_stream_begin_anew() -> None:
    stream = Dataset.from_dict({"text": ["abcde", "abc", "abcdef"]}).to_iterable_dataset(num_shards=3)
    packed: Any = pack(stream, TOKENIZER, 4, separate=True, num_shards=3)
    assert [list(example["attention_mask"]) for example in packed] == [[1] * 4, [1] * 4, [1] * 4]


def test_pack__data_set_and_stream_agree_on_real_text() -> None:
    plays: Any = load_text("shakespeare", "validation")
    tokenizer = character_tokenizer(plays["text"])
    packed = rows(pack(plays, tokenizer, 128))
    assert "[EOS]".join(plays["text"]).startswith(str(tokenizer.decode(list(chain.from_iterable(packed)))))
    assert len(packed) == (sum(map(len, plays["text"])) + len(plays)) // 128
    assert rows(pack(load_text("shakespeare", "validation", streaming=True), tokenizer, 128)) == packed


def test_pack__packs_shards_separately() -> None:
    texts = ["abc", "defgh", "ij", "abcdef"]
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=2)
    packed = pack(stream, TOKENIZER, 4, num_shards=2)
    halves = [blocks(concatenation(half, add_eos=True), 4) for half in (texts[:2], texts[2:])]
    assert packed.num_shards == 2
    assert rows(packed) == halves[0] + halves[1]
    loader = DataLoader(packed, batch_size=2, num_workers=2, collate_fn=TokenCollator(TOKENIZER.pad_token_id))  # type: ignore[arg-type]
    assert sorted(chain.from_iterable(batch["input_ids"].tolist() for batch in loader)) == sorted(halves[0] + halves[1])


def test_pack__a_stream_resumes_where_it_stopped() -> None:
    stream = Dataset.from_dict({"text": ["abcdefgh"] * 7}).to_iterable_dataset()
    packed = pack(stream, TOKENIZER, 5, batch_size=2)
    whole, iterator = rows(packed), iter(packed)
    for _ in range(4):
        next(iterator)
    resumed = pack(stream, TOKENIZER, 5, batch_size=2)
    resumed.load_state_dict(packed.state_dict())
    assert rows(resumed) == whole[4:]


@pytest.mark.parametrize("streaming", [False, True])
def test_truncate__keeps_one_example_per_text(streaming: bool) -> None:
    texts = ["abcdefgh", "", "ab", "abcd"]
    dataset = Dataset.from_dict({"story": texts, "number": [1, 2, 3, 4]})
    source = dataset.to_iterable_dataset() if streaming else dataset
    eos = TOKENIZER.eos_token_id
    cut = truncate(source, TOKENIZER, 4, text_column="story")
    assert rows(cut) == [[0, 1, 2, 3], [eos], [0, 1, eos], [0, 1, 2, 3]]
    assert cut.column_names == ["input_ids"]
    assert rows(truncate(source, TOKENIZER, 4, text_column="story", add_eos=False)) == [
        [0, 1, 2, 3],
        [0, 1],
        [0, 1, 2, 3],
    ]


def test_pack__text_that_spells_the_mask_stays_text() -> None:
    dataset = Dataset.from_dict({"text": ["a[MASK]b"]})
    assert rows(pack(dataset, TOKENIZER, 8)) == [concatenation(["a[MASK]b"], add_eos=False)]
    assert rows(pack(dataset, TOKENIZER, 4, split_special_tokens=False)) == [
        [0, TOKENIZER.mask_token_id, 1, TOKENIZER.eos_token_id]
    ]


def test_pack__without_an_end_token_texts_are_joined_directly() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert rows(pack(Dataset.from_dict({"text": ["ab", "cd"]}), tokenizer, 4)) == [[0, 1, 2, 3]]


ABC = Dataset.from_dict({"text": ["abc"]})
NOTHING = Dataset.from_dict({"text": []})


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pack(NOTHING, TOKENIZER, 4), ValueError, "dataset "),
        (lambda: truncate(NOTHING, TOKENIZER, 4), ValueError, "dataset "),
        (lambda: truncate(ABC.to_iterable_dataset().take(0), TOKENIZER, 4), ValueError, "dataset "),
        (lambda: pack(ABC.to_iterable_dataset().take(0), TOKENIZER, 4), ValueError, r"dataset .*length=4"),
        (lambda: pack(DatasetDict({"train": ABC}), TOKENIZER, 4), TypeError, r"dataset .*DatasetDict"),  # type: ignore[arg-type]
        (lambda: pack(ABC, TOKENIZER, 0), ValueError, "length=0"),
        (lambda: pack(ABC, TOKENIZER, 4, batch_size=0), ValueError, "batch_size=0"),
        (lambda: pack(ABC, TOKENIZER, 4, text_column="body"), ValueError, r"text_column='body'.*text"),
        (lambda: pack(ABC, TOKENIZER, 4, num_shards=2), ValueError, "num_shards=2"),
        (lambda: pack(ABC.to_iterable_dataset(), TOKENIZER, 4, num_shards=2), ValueError, r"num_shards=2 .*1"),
        (
            lambda: pack(ABC.to_iterable_dataset(), TOKENIZER, 4, num_proc=2),
            ValueError,
            "num_proc=2",
        ),
        (lambda: pack(Dataset.from_dict({"text": [1]}), TOKENIZER, 4), TypeError, r"'text'.*int"),
    ],
)
def test_pack__bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
