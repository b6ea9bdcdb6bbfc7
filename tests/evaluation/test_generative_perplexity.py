import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gm_discrete.data import character_tokenizer
from gm_discrete.evaluation import GenerativePerplexity, unigram_entropy

TEXTS = ["abcabd", "ddd", "a", "cab dad bad cab"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer(alphabet="abcd ")


@pytest.fixture(scope="module")
def judge(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        attention_dropout=0.5,
    )
    return LlamaForCausalLM(config)


def by_hand(judge: LlamaForCausalLM, ids: list[int]) -> list[float]:
    """−ln p of every token but the first, one call per token."""
    judge.eval()
    with torch.no_grad():
        return [
            -judge(torch.tensor([ids[:end]])).logits[0, -1].double().log_softmax(-1)[ids[end]].item()
            for end in range(1, len(ids))
        ]


@pytest.fixture
def metric(tmp_path: Path) -> GenerativePerplexity:
    return GenerativePerplexity(cache_dir=str(tmp_path))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generative_perplexity__is_that_of_the_judge(
    metric: GenerativePerplexity, judge: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    judge.train()
    metric.add_batch(predictions=TEXTS[:3])
    metric.add_batch(predictions=TEXTS[3:])
    result: Any = metric.compute(judge=judge, tokenizer=tokenizer, batch_size=batch_size)
    losses = [by_hand(judge, tokenizer(text)["input_ids"]) for text in TEXTS]
    scored = sum(map(len, losses))
    mean = sum(map(sum, losses)) / scored
    residuals = [sum(loss) - mean * len(loss) for loss in losses]
    assert result["nats_per_token"] == pytest.approx(mean, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert result["stderr"] == pytest.approx(math.sqrt(4 / 3 * sum(r**2 for r in residuals)) / scored, rel=1e-4)
    assert result["mean_tokens"] == sum(map(len, TEXTS)) / 4
    assert result["entropy"] == pytest.approx(sum(unigram_entropy(tokenizer(t)["input_ids"]) for t in TEXTS) / 4)


def test_generative_perplexity__loads_the_judge_from_a_folder(
    metric: GenerativePerplexity, judge: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    expected = metric.compute(predictions=TEXTS, judge=judge, tokenizer=tokenizer)
    assert metric.compute(predictions=TEXTS, judge=str(tmp_path / "judge"), device="cpu") == pytest.approx(expected)


def test_generative_perplexity__cuts_long_texts_into_windows(
    metric: GenerativePerplexity, judge: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = TEXTS[3] * 5
    ids = tokenizer(text)["input_ids"]
    result: Any = metric.compute(predictions=[text], judge=judge, tokenizer=tokenizer, max_length=37)
    losses = by_hand(judge, ids[:37]) + by_hand(judge, ids[37:74])
    assert len(ids) == 75
    assert result["nats_per_token"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    by_default = metric.compute(predictions=[text], judge=judge, tokenizer=tokenizer)
    explicit = metric.compute(predictions=[text], judge=judge, tokenizer=tokenizer, max_length=64)
    assert by_default == pytest.approx(explicit, nan_ok=True)


def test_generative_perplexity__bad_arguments_are_named(
    metric: GenerativePerplexity, judge: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="tokenizer "):
        metric.compute(predictions=TEXTS, judge=judge)
    with pytest.raises(ValueError, match="predictions "):
        metric.compute(predictions=["a", ""], judge=judge, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="max_length=1"):
        metric.compute(predictions=TEXTS, judge=judge, tokenizer=tokenizer, max_length=1)
