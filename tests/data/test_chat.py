"""Prompts with completions and conversations as examples: what is scored, how they end, what is lost, what is packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, disable_progress_bars

from gm_discrete import LogitNormalTimeSampler, MaskedPath
from gm_discrete.data import TokenCollator, byte_level_bpe, load_chat, prompt_ids, tokenize_chat
from gm_discrete.data.batches import clean_data
from gm_discrete.objective import corrupt
from tests.helpers.chats import (
    FORGETFUL_TEMPLATE,
    MARKED_TEMPLATE,
    PLAIN_TEMPLATE,
    chat_tokenizer,
    chats,
    conversation,
    pairs,
    write_rows,
)

disable_progress_bars()
TOKENIZER = chat_tokenizer()
EOS: Any = TOKENIZER.eos_token_id


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def texts(example: Any, tokenizer: Any = TOKENIZER) -> tuple[str, str]:
    """All of an example, and what of it is scored."""
    scored = [token for token in example["labels"] if token != -100]
    assert all(label in (-100, token) for token, label in zip(example["input_ids"], example["labels"], strict=True))
    return tokenizer.decode(example["input_ids"]), tokenizer.decode(scored)


def tokenized(rows: list[dict[str, Any]], tokenizer: Any = TOKENIZER, length: int = 64, **options: Any) -> Any:
    return tokenize_chat(Dataset.from_list(rows), tokenizer, length, **options)


def test_tokenize_chat__scores_the_completion_and_its_end() -> None:
    examples, report = tokenized([{"prompt": "one ", "completion": "two"}, {"prompt": "", "completion": "x"}])
    assert [texts(example) for example in examples] == [("one two[EOS]", "two[EOS]"), ("x[EOS]", "x[EOS]")]
    assert str(report) == "2 examples"


def test_tokenize_chat__text_of_pairs_that_spells_special_tokens_is_text() -> None:
    examples, _ = tokenized([{"prompt": "[MASK]", "completion": "[MASK]"}])
    assert TOKENIZER.mask_token_id not in examples[0]["input_ids"]


def test_tokenize_chat__prompts_have_the_tokens_of_sampling() -> None:
    """Also where the end of the prompt and the completion would be one token, and with a token at the beginning."""
    tokenizer = byte_level_bpe(["hello there hello"] * 20, 280)
    examples, _ = tokenized([{"prompt": "hel", "completion": "lo"}], tokenizer)
    prompt = prompt_ids(tokenizer, "hel")
    assert examples[0]["input_ids"][: len(prompt)] == prompt
    assert examples[0]["labels"][: len(prompt) + 1] == [-100] * len(prompt) + [examples[0]["input_ids"][len(prompt)]]
    from tokenizers.processors import TemplateProcessing

    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="[PAD] $A [EOS]", special_tokens=[("[PAD]", tokenizer.pad_token_id), ("[EOS]", tokenizer.eos_token_id)]
    )
    assert prompt_ids(tokenizer, "hel") == [tokenizer.pad_token_id, *prompt]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE], ids=["plain", "marked"])
def test_tokenize_chat__scores_every_answer(template: str) -> None:
    """The bar after the first answer is the template's, and scored only where answers are not marked."""
    row = {"messages": conversation("hey", "hi", "and", "so", "bye")}  # a message at the end that has no answer
    examples, _ = tokenized([row], chat_tokenizer(template))
    bar = "" if template == MARKED_TEMPLATE else "|"
    assert texts(examples[0]) == ("<u>hey[EOS]|<a>hi[EOS]|<u>and[EOS]|<a>so[EOS]", f"hi[EOS]{bar}so[EOS]")
    examples, _ = tokenized([row], chat_tokenizer(template), turns="each")
    assert [texts(example) for example in examples] == [
        ("<u>hey[EOS]|<a>hi[EOS]", "hi[EOS]"),
        ("<u>hey[EOS]|<a>hi[EOS]|<u>and[EOS]|<a>so[EOS]", "so[EOS]"),
    ]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE], ids=["plain", "marked"])
@pytest.mark.parametrize("turns", ["all", "each"])
def test_tokenize_chat__answers_of_weight_zero_are_not_scored(template: str, turns: Any) -> None:
    messages = conversation("hey", "hi", "and", "so")
    messages[1]["weight"] = 0
    rows = [{"messages": messages}, {"messages": [{**message, "weight": 0} for message in messages]}]
    examples, report = tokenized(rows, chat_tokenizer(template), turns=turns)
    assert [texts(example) for example in examples] == [("<u>hey[EOS]|<a>hi[EOS]|<u>and[EOS]|<a>so[EOS]", "so[EOS]")]
    assert (report.examples, report.unanswered) == (1, 1)


def test_tokenize_chat__prompt_of_messages_has_the_tokens_of_sampling() -> None:
    messages = conversation("hey", "hi", "and", "so")
    examples, _ = tokenized([{"messages": messages}], turns="each")
    prompt = prompt_ids(TOKENIZER, messages[:3])
    assert examples[1]["input_ids"][: len(prompt)] == prompt
    assert examples[1]["labels"][: len(prompt)] == [-100] * len(prompt)


def test_tokenize_chat__a_template_without_prefixes_serves_each_answer_only() -> None:
    rows, tokenizer = [{"messages": conversation("hey", "hi", "and", "so")}], chat_tokenizer(FORGETFUL_TEMPLATE)
    with pytest.raises(ValueError, match=r"row 0: .*chat template .*turns='each'"):
        tokenized(rows, tokenizer)
    examples, _ = tokenized(rows, tokenizer, turns="each")
    assert [texts(example)[1] for example in examples] == ["hi[EOS]", "so[EOS]"]


def test_tokenize_chat__ends_with_a_random_number_of_ends() -> None:
    """It is a function of the seed and the row alone, is uniform, and ends at the length."""
    rows = [{"prompt": "a", "completion": "b"}] * 400
    counts = [row.count(EOS) for row in tokenized(rows, max_eos=4)[0]["input_ids"]]
    found = np.bincount(counts, minlength=5)
    assert found[0] == 0
    assert np.abs(found[1:5] - 100).max() < 39  # 4.5 standard deviations: less than 1e-4 for all four
    assert [row.count(EOS) for row in tokenized(rows, max_eos=4, batch_size=7)[0]["input_ids"]] == counts
    assert [row.count(EOS) for row in tokenized(rows[:9], max_eos=4)[0]["input_ids"]] == counts[:9]
    assert [row.count(EOS) for row in tokenized(rows, max_eos=4, seed=1)[0]["input_ids"]] != counts
    examples, _ = tokenized(rows, max_eos=40, length=6)
    assert {len(row) for row in examples["input_ids"]} == {3, 4, 5, 6}
    assert all(row[1:] == tokens[1:] for row, tokens in zip(examples["labels"], examples["input_ids"], strict=True))


def test_tokenize_chat__reports_what_is_lost() -> None:
    rows = [
        {"prompt": "ab", "completion": "c"},
        {"prompt": "ab", "completion": "cdefgh"},  # 9 tokens
        {"prompt": "abcdef", "completion": "g"},  # 8 tokens, of which none that is scored fits
    ]
    examples, report = tokenized(rows, length=6, max_eos=9)
    assert texts(examples[1]) == ("abcdef", "cdef")
    assert (report.examples, report.truncated, report.dropped, report.tokens_lost) == (2, 1, 1, 3 + 8)
    assert str(report) == "2 examples; 1 truncated and 1 dropped as too long (11 tokens lost)"


def test_tokenize_chat__drops_conversations_that_spell_the_mask() -> None:
    rows = [{"messages": conversation("what is [MASK]?", "a token")}, {"messages": conversation("a", "b")}]
    examples, report = tokenized(rows)
    assert [texts(example)[1] for example in examples] == ["b[EOS]"]
    assert report.spelling_mask == 1


def test_tokenize_chat__packs_whole_examples_as_documents() -> None:
    single, _ = tokenized(pairs(50), max_eos=5)
    packed, report = tokenized(pairs(50), length=64, max_eos=5, packed=True)
    assert report.examples == 50
    found = []
    for block in packed:
        ids, labels, documents = (np.array(block[name]) for name in ("input_ids", "labels", "attention_mask"))
        assert len(ids) <= 64
        assert documents.tolist() == sorted(documents)
        assert set(documents) == set(range(1, max(documents) + 1))
        found += [(ids[documents == n].tolist(), labels[documents == n].tolist()) for n in set(documents)]
    expected = [(row["input_ids"], row["labels"]) for row in single]
    assert sorted(found) == sorted(expected)
    assert len(packed) <= sum(len(ids) for ids, _ in expected) / (0.85 * 64)
    batch = TokenCollator(0)([packed[0], packed[1]])
    assert batch["attention_mask"].max() > 1


def test_tokenize_chat__prompts_are_never_noised() -> None:
    """At every time, prompts are those of the data, and no prompt is scored."""
    path = MaskedPath(len(TOKENIZER), TOKENIZER.mask_token_id)
    for packed in (False, True):
        examples, _ = tokenized(chats(16), max_eos=5, packed=packed, length=80)
        batch = TokenCollator(TOKENIZER.pad_token_id)(list(examples))
        z, scored = clean_data(path, batch)
        rng = torch.Generator().manual_seed(0)
        masked = torch.zeros_like(scored[""])
        for _ in range(40):
            x, _ = corrupt(path, z, scored, rng, LogitNormalTimeSampler())
            assert torch.equal(x[""][~scored[""]], batch["input_ids"][~scored[""]])
            masked |= x[""] == TOKENIZER.mask_token_id
        assert torch.equal(masked, batch["labels"] != -100)


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        (chats(2), {"tokenizer": chat_tokenizer(None)}, "chat_template=None"),
        ([{"text": "a"}], {}, "completion, prompt; it has text"),
        (pairs(2), {"length": 0}, "length=0"),
        (pairs(2), {"max_eos": 0}, "max_eos=0"),
        (pairs(2), {"turns": "last"}, "turns='last'"),
        (pairs(2), {"length": 3}, "length=3: 0 examples"),
        ([{"messages": conversation("hey")}], {}, "no row with an answer"),
        ([{"messages": [{"role": "user"}]}], {}, "row 0: 'messages'"),
        (
            [{"messages": conversation("a", "b")}],
            {"tokenizer": chat_tokenizer("{{ raise_exception('no') }}")},
            "row 0 does not fit the chat template: no",
        ),
    ],
)
def test_tokenize_chat__bad_input_is_named(rows: list[dict[str, Any]], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tokenized(rows, **options)


def test_tokenize_chat__needs_an_end_of_text_and_a_data_set() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        tokenized(pairs(2), tokenizer)
    with pytest.raises(TypeError, match="IterableDataset"):
        tokenize_chat(Dataset.from_list(pairs(2)).to_iterable_dataset(), TOKENIZER, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder"])
def test_load_chat__reads_files_and_folders(tmp_path: Path, kind: str) -> None:
    rows = chats(20)
    file = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_rows(file, rows)
    elif kind == "json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        file.mkdir()
        write_rows(file / "train.jsonl", rows[:17])
        write_rows(file / "validation.jsonl", rows[17:])
    train, held_out = (load_chat(file, split, validation_size=3) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (17, 3)
    expected = [[{**message, "weight": 1} for message in row["messages"]] for row in rows]
    assert sorted(map(str, [*train["messages"], *held_out["messages"]])) == sorted(map(str, expected))


def test_load_chat__renames_columns_and_joins_prompts_of_messages(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b", "source": 3}] * 2)
    named = load_chat(file, columns={"prompt": "instruction", "completion": "output"}, validation_size=0)
    assert named[0] == {"prompt": "a", "completion": "b"}
    messages = conversation("a", "b", "c", "d")
    file = write_rows(tmp_path / "joined.jsonl", [{"prompt": messages[:3], "completion": messages[3:]}] * 2)
    joined = load_chat(file, validation_size=0)
    assert [message["weight"] for message in joined[0]["messages"]] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "a"}, r"rows.jsonl, line 3 has text; give 'messages'"),
        ({"prompt": "a"}, r"line 3 has prompt"),
        ({"prompt": "a", "completion": 3}, r"line 3: 'prompt' is 'a'"),
        ({"messages": "hello"}, r"line 3: 'messages' is 'hello'"),
        ({"messages": []}, r"line 3: 'messages' is '\[\]'"),
        ({"messages": [{"role": "assistant", "content": None}]}, r"line 3: 'messages' holds .*None"),
        ({"messages": [{"role": "user", "content": "a", "weight": 0.5}]}, r"line 3: .*weight=0.5"),
        ({"messages": conversation("a", "b")}, r"line 3, has messages, and rows before it completion and prompt"),
    ],
)
def test_load_chat__bad_rows_are_named(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_chat(write_rows(tmp_path / "rows.jsonl", [*pairs(2), row]))


def test_load_chat__bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source=.*none.jsonl.* does not exist"):
        load_chat(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"source=.*empty"):
        load_chat(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="columns names answer"):
        load_chat(tmp_path, columns={"answer": "b"})
    Dataset.from_list([{"a": 1}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 0 has a; give 'messages'"):
        load_chat(tmp_path / "a.parquet", validation_size=0)
