import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gm_discrete.data import (
    byte_level_bpe,
    character_tokenizer,
    check_tokenizer,
    ensure_mask_token,
    load_tokenizer,
    sentencepiece_tokenizer,
)
from gm_discrete.data import tokenizers as module
from gm_discrete.data.tokenizers import check_known
from recipes.datasets import load_text

SPECIAL = ["[PAD]", "[EOS]", "[MASK]"]
TEXT8 = "abcdefghijklmnopqrstuvwxyz "


@pytest.fixture(scope="module")
def play() -> str:
    plays: Any = load_text("shakespeare", "validation")
    return plays[0]["text"]


@pytest.fixture(scope="module")
def trained(play: str) -> dict[str, PreTrainedTokenizerFast]:
    return {
        "characters": character_tokenizer([play]),
        "bytes": byte_level_bpe([play], 600),
        "unigram": sentencepiece_tokenizer([play], 800, "unigram"),
        "bpe": sentencepiece_tokenizer([play], 800, "bpe"),
    }


KINDS = ["characters", "bytes", "unigram", "bpe"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers__decode_real_text_exactly(
    trained: dict[str, PreTrainedTokenizerFast], play: str, kind: str
) -> None:
    tokenizer = trained[kind]
    ids = tokenizer(play)["input_ids"]
    assert tokenizer.decode(ids) == play
    assert set(ids).isdisjoint(tokenizer.all_special_ids)
    assert len(ids) == len(play) if kind == "characters" else len(ids) < len(play) / 1.5


@pytest.mark.parametrize("kind", ["bytes", "unigram", "bpe"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581<"), max_size=30))
def test_tokenizers__decode_any_text_exactly(trained: dict[str, PreTrainedTokenizerFast], kind: str, text: str) -> None:
    tokenizer = trained[kind]
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


@given(text=st.text("abc \n.,'é漢😀", max_size=30))
def test_character_tokenizer__decodes_known_characters_and_maps_others_to_unknown(text: str) -> None:
    tokenizer = character_tokenizer(["abc \n.,'é", "漢😀"])
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text + "z")["input_ids"] == [*ids, tokenizer.unk_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers__the_mask_is_the_last_token(trained: dict[str, PreTrainedTokenizerFast], kind: str) -> None:
    tokenizer = trained[kind]
    size = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [size - 3, size - 2, size - 1]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.mask_token) == tuple(SPECIAL)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert kind == "characters" or size == {"bytes": 600}.get(kind, 800)


def test_character_tokenizer__alphabet_keeps_its_order() -> None:
    tokenizer = character_tokenizer(alphabet=TEXT8)
    assert tokenizer("az ")["input_ids"] == [0, 25, 26]
    assert len(tokenizer) == 27 + 4
    assert character_tokenizer(["ba", "ab"])("ab")["input_ids"] == [0, 1]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_tokenizer__ids_are_those_of_sentencepiece(
    trained: dict[str, PreTrainedTokenizerFast], play: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference: list[sentencepiece.SentencePieceProcessor] = []
    train: Callable[..., sentencepiece.SentencePieceProcessor] = module._train_sentencepiece

    def recorded(*arguments: object) -> sentencepiece.SentencePieceProcessor:
        reference.append(train(*arguments))
        return reference[-1]

    monkeypatch.setattr(module, "_train_sentencepiece", recorded)
    tokenizer = sentencepiece_tokenizer([play], 800, kind)  # type: ignore[arg-type]
    assert tokenizer(play)["input_ids"] == reference[0].encode(play)
    strange = "  two  spaces, a tab\t, é漢😀\r\n\n"
    assert tokenizer(strange)["input_ids"] == reference[0].encode(strange)
    assert tokenizer.get_vocab() == trained[kind].get_vocab()


def test_sentencepiece_tokenizer__learns_from_long_lines() -> None:
    line = "to be or not to be " * 500
    tokenizer = sentencepiece_tokenizer([line], 275)
    assert len(tokenizer(line)["input_ids"]) < len(line) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers__round_trip_through_auto_tokenizer(
    trained: dict[str, PreTrainedTokenizerFast], kind: str, tmp_path: Path
) -> None:
    tokenizer, text = trained[kind], "Now is\nthe  winter .\n"
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.mask_token_id == len(loaded) - 1
    assert loaded.model_max_length == tokenizer.model_max_length > 10**9
    ids = tokenizer(text + "[MASK]")["input_ids"]
    assert loaded(text + "[MASK]")["input_ids"] == ids
    assert loaded.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_tokenizers__fresh_process_needs_transformers_only(
    trained: dict[str, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    text = "A horse! a horse!\n my kingdom [MASK]"
    expected = []
    for kind, tokenizer in trained.items():
        tokenizer.save_pretrained(f"{tmp_path}/{kind}")
        expected.append((tokenizer(text)["input_ids"], tokenizer.mask_token_id))
    program = f"""
import sys
from transformers import AutoTokenizer
loaded = [AutoTokenizer.from_pretrained(f"{tmp_path}/{{kind}}") for kind in {KINDS}]
assert "gm_discrete" not in sys.modules
print([(t({text!r})["input_ids"], t.mask_token_id) for t in loaded])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


def test_load_tokenizer__adds_a_mask_and_padding(tmp_path: Path) -> None:
    model = Tokenizer(BPE(vocab={"a": 0, "b": 1, "<end>": 2}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", pad_token="<end>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (2, 3, 4)
    assert len(tokenizer) == 5
    assert tokenizer("ab[MASK]")["input_ids"] == [0, 1, 4]
    vocabulary = tokenizer.get_vocab()
    assert ensure_mask_token(tokenizer).get_vocab() == vocabulary


def test_check_tokenizer__refuses_other_ids() -> None:
    tokenizer = character_tokenizer(alphabet="ab")
    check_tokenizer(tokenizer, vocab_size=6, mask_token_id=5)
    check_tokenizer(tokenizer, vocab_size=6)
    check_tokenizer(tokenizer, vocab_size=128, mask_token_id=5)  # of a checkpoint that rounds it up
    with pytest.raises(ValueError, match=r"6 .*vocab_size=5"):
        check_tokenizer(tokenizer, vocab_size=5, mask_token_id=5)
    with pytest.raises(ValueError, match=r"mask_token_id=5.*mask_token_id=0"):
        check_tokenizer(tokenizer, vocab_size=6, mask_token_id=0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: character_tokenizer([]), ValueError, "alphabet"),
        (lambda: character_tokenizer(alphabet="aba"), ValueError, "alphabet='aba'"),
        (lambda: character_tokenizer("abc"), TypeError, "texts "),
        (lambda: character_tokenizer([1]), TypeError, r"texts .*int"),  # type: ignore[list-item]
        (lambda: byte_level_bpe(["abc"], 258), ValueError, r"vocab_size=258 .*259"),
        (lambda: load_tokenizer("./none"), OSError, "name_or_path='./none' is no folder of a tokenizer"),
        (lambda: sentencepiece_tokenizer(["abc"], 9), ValueError, "vocab_size=9 "),
        (lambda: sentencepiece_tokenizer(["abc"], 5000), ValueError, "vocab_size=5000 "),
        (lambda: sentencepiece_tokenizer(["abc"], 300, "word"), ValueError, "model_type='word'"),  # type: ignore[arg-type]
    ],
)
def test_tokenizers__bad_arguments_are_named(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_check_known__names_the_characters_that_the_vocabulary_does_not_have() -> None:
    tokenizer = character_tokenizer(alphabet="abce")
    check_known(tokenizer, "abc", tokenizer("abc")["input_ids"], "prompt")
    with pytest.raises(
        ValueError, match=r"^prompt holds characters that are not in the tokenizer's vocabulary: 'é', 'd'$"
    ):
        check_known(tokenizer, "aéded", tokenizer("aéded")["input_ids"], "prompt")
    tokenizer = byte_level_bpe(["abc"], 259)
    tokenizer.unk_token = tokenizer.eos_token  # as that of GPT-2: it stands for no character
    check_known(tokenizer, "a[EOS]", tokenizer("a[EOS]")["input_ids"], "prompt")
