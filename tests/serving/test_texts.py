"""Texts of states: characters of several tokens, ends of texts, pieces of drafts; and the text of the metrics."""

from __future__ import annotations

from typing import Any

import pytest

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import byte_level_bpe, pack, sentencepiece_tokenizer
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.planning import NEVER, Row
from gm_discrete.serving.transcript import Transcript
from gm_discrete.serving.vocabulary import Vocabulary

TEXT = "The naïve 🦜 says: straße, déjà vu! 北京 is far away."
TOKENIZERS: dict[str, Any] = {
    "bytes": lambda: byte_level_bpe([TEXT], 259),
    "merges": lambda: byte_level_bpe([TEXT * 3], 290),
    "sentencepiece": lambda: sentencepiece_tokenizer([TEXT * 20], 320, "bpe"),
}


@pytest.fixture(params=TOKENIZERS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    tokenizer = TOKENIZERS[request.param]()
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return Vocabulary(GMModel(GMConfig(path=MaskedPath(len(tokenizer), tokenizer.mask_token_id), **size)), tokenizer)


def row(length: int, start: int = 0, fresh: int = NEVER, tail: int = 0) -> Row:
    return Row((), length, start, tail, fresh, start, length - start)


def test_transcript__appends_whole_characters_alone(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(TEXT)
    for start in (0, 5):
        choice = Transcript(vocabulary, row(len(ids), start), ())
        parts = [choice.settle(ids, settled) for settled in range(len(ids))]
        parts.append(choice.finish(ids))
        assert all("\ufffd" not in part for part in parts[start:]) or start
        assert "".join(parts) == choice.text == vocabulary.decode(ids[start:], ids[:start])
        assert vocabulary.decode(ids[:start]) + choice.text == TEXT or start
        assert choice.reason == "length"
        assert choice.tokens == len(ids) - start


def test_transcript__ends_at_a_stop_and_sends_nothing_of_it(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(TEXT)
    for stop, at in (
        (("déjà vu! X", "déjà", "far"), "déjà"),
        (("naïve 🦜 says", "aïv"), "naïve"),  # the one that ends later begins earlier
        (("The naïve", "nothing"), "The"),
    ):
        choice = Transcript(vocabulary, row(len(ids)), stop)
        parts = [choice.settle(ids, settled) for settled in range(len(ids))] + [choice.finish(ids)]
        assert "".join(parts) == TEXT[: TEXT.index(at)]
        assert choice.reason == "stop"


def test_transcript__a_stop_of_the_given_text_ends_nothing(vocabulary: Vocabulary) -> None:
    given, made = vocabulary.encode("déjà vu, déjà"), vocabulary.encode(" vu, déjà vu!")
    ids, mask = [*given, *made], vocabulary.gap
    with_gaps = [*ids[: len(given)], *[mask] * len(made)]
    for place in (Row(tuple(given), len(ids), 0, 0, NEVER, len(given), len(made)),
                  Row(tuple(with_gaps), len(ids), 0, 0, NEVER, len(given), len(made))):  # fmt: skip
        choice = Transcript(vocabulary, place, ("déjà",))
        parts = [choice.settle(ids, settled) for settled in range(len(ids))] + [choice.finish(ids)]
        assert "".join(parts) == "déjà vu, déjà vu, "
        assert choice.reason == "stop"


def test_transcript__ends_at_an_end_of_text_token_among_new_ones(vocabulary: Vocabulary) -> None:
    (eos,) = vocabulary.eos
    ids = [eos, *vocabulary.encode("straße"), eos, *vocabulary.encode("more")]
    choice = Transcript(vocabulary, row(len(ids), 1, 1), ())
    assert choice.settle(ids, len(ids) - 1) + choice.finish(ids) == "straße"
    assert choice.reason == "stop"
    assert choice.tokens == len(vocabulary.encode("straße"))
    assert choice.pieces(ids) == vocabulary.pieces(ids[1 : 1 + choice.tokens], [eos])


def test_vocabulary__pieces_are_the_text_with_its_gaps(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(TEXT)
    assert "".join(piece or "" for piece in vocabulary.pieces(ids)) == TEXT
    assert len(vocabulary.pieces(ids)) == len(ids)
    mask = vocabulary.tokenizer.mask_token_id
    gaps = vocabulary.pieces([*ids[:3], mask, *ids[3:], mask])
    assert [at for at, piece in enumerate(gaps) if piece is None] == [3, len(ids) + 1]


def test_vocabulary__a_prompt_has_the_tokens_of_pack_without_a_beginning() -> None:
    from datasets import Dataset
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level_bpe([TEXT], 259)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[EOS] $A", special_tokens=[("[EOS]", 257)])
    assert tokenizer("ab")["input_ids"][0] == tokenizer.eos_token_id == 257
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vocabulary = Vocabulary(
        GMModel(GMConfig(path=MaskedPath(len(tokenizer), tokenizer.mask_token_id), **size)), tokenizer
    )
    packed = pack(Dataset.from_dict({"text": ["ab"]}), tokenizer, 2, add_eos=False)
    assert vocabulary.encode("ab") == list(packed[0]["input_ids"]) == vocabulary.encode("ab", "suffix")


def test_metrics__text() -> None:
    metrics = Metrics()
    metrics.request("/v1/completions", 200, 0.2)
    metrics.request("/v1/completions", 400, 0.01)
    metrics.request("/health", 200, 0.01)
    metrics.request("other", 404, 0.01)
    metrics.call(3, 0.1)
    metrics.call(500, 1000)
    metrics.gauges["gm_discrete_x"] = "A number.", lambda: 2
    lines = metrics.text().splitlines()
    assert 'gm_discrete_requests_total{endpoint="/v1/completions",status="400"} 1' in lines
    assert 'gm_discrete_batch_sequences_bucket{le="2"} 0' in lines
    assert 'gm_discrete_batch_sequences_bucket{le="4"} 1' in lines
    assert 'gm_discrete_batch_sequences_bucket{le="+Inf"} 2' in lines
    assert "gm_discrete_batch_sequences_sum 503" in lines
    assert 'gm_discrete_request_seconds_bucket{le="0.25"} 2' in lines
    assert lines[-3:] == ["# HELP gm_discrete_x A number.", "# TYPE gm_discrete_x gauge", "gm_discrete_x 2"]
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
