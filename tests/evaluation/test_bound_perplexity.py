import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gm_discrete import Likelihood, MaskedPath
from gm_discrete.data import (
    ImageCollator,
    TokenCollator,
    byte_level_bpe,
    character_tokenizer,
    sentencepiece_tokenizer,
)
from gm_discrete.evaluation import BoundPerplexity, count_bytes, count_characters, evaluate_bound
from gm_discrete.generators import Jump

LENGTHS = [3, 1, 4, 1, 5]


class Uniform:
    """A model under which all K − 1 symbols but the mask are equally likely: its bound is ln(K − 1) per token, exactly."""

    path = MaskedPath(9)

    def generator(
        self, x: Tensor, t: Tensor, t_next: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Jump:
        return self.path.marginal(torch.zeros(*x.shape, 9), x, t, t_next)


def loader(batch_size: int) -> DataLoader[dict[str, Tensor]]:
    examples = [{"input_ids": list(range(length))} for length in LENGTHS]
    return DataLoader(examples, batch_size=batch_size, collate_fn=TokenCollator(pad_token_id=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluate_bound__of_a_data_set(batch_size: int) -> None:
    bound = evaluate_bound(Uniform(), loader(batch_size), num_samples=2, rng=torch.Generator().manual_seed(0))
    assert bound.num_tokens.tolist() == LENGTHS
    assert bound.nats.tolist() == pytest.approx([length * math.log(8) for length in LENGTHS], rel=1e-6)
    assert bound.bits_per_token == pytest.approx(3, rel=1e-6)


def test_evaluate_bound__prompts_are_not_scored() -> None:
    batch = TokenCollator(pad_token_id=0)(
        [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}, {"input_ids": [1]}]
    )
    bound = evaluate_bound(Uniform(), [batch], rng=torch.Generator().manual_seed(0))
    assert bound.num_tokens.tolist() == [2, 1]
    assert bound.nats.tolist() == pytest.approx([2 * math.log(8), math.log(8)], rel=1e-6)


def test_evaluate_bound__of_images_passes_classes_to_models_with_classes() -> None:
    """A model that predicts symbol c for images of class c, and any of 8 without a class."""

    class Classy(Uniform):
        def __init__(self, num_classes: int) -> None:
            self.config = SimpleNamespace(num_classes=num_classes)

        def generator(self, x: Tensor, t: Tensor, t_next: Any = None, class_labels: Tensor | None = None) -> Jump:
            logits = torch.zeros(*x.shape, 9)
            if class_labels is not None:
                logits = logits - 1e9 * (torch.arange(9) != class_labels[:, None, None])
            return self.path.marginal(logits, x, t, t_next)

    images = [{"pixel_values": torch.full((1, 2, 2), 32 * c, dtype=torch.uint8), "class_labels": c} for c in (2, 5)]
    batch = ImageCollator(levels=8)(images)
    for num_classes, nats in ((8, 0.0), (0, 4 * math.log(8))):
        bound = evaluate_bound(Classy(num_classes), [batch], rng=torch.Generator().manual_seed(0))
        assert bound.num_tokens.tolist() == [4, 4]
        assert bound.nats.tolist() == pytest.approx([nats, nats], rel=1e-6)


def test_evaluate_bound__is_reproducible() -> None:
    class Peaked(Uniform):
        def generator(
            self, x: Tensor, t: Tensor, t_next: Tensor | None = None, attention_mask: Tensor | None = None
        ) -> Jump:
            return self.path.marginal(torch.arange(9.0).expand(*x.shape, 9), x, t, t_next)

    first, second, third = (
        evaluate_bound(Peaked(), loader(2), rng=torch.Generator().manual_seed(seed)).nats for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_evaluate_bound__an_empty_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="dataloader "):
        evaluate_bound(Uniform(), [])


@pytest.fixture
def metric(tmp_path: Path) -> BoundPerplexity:
    return BoundPerplexity(cache_dir=str(tmp_path))


def test_bound_perplexity__weighs_tokens_alike(metric: BoundPerplexity) -> None:
    metric.add_batch(nats=[4.0, 1.0], num_tokens=[4, 2])
    metric.add_batch(nats=torch.tensor([5.0]), num_tokens=torch.tensor([2]))
    result: Any = metric.compute()
    assert result["bits_per_token"] == pytest.approx(10 / 8 / math.log(2))
    assert result["perplexity"] == pytest.approx(math.exp(10 / 8))
    residuals = [4 - 1.25 * 4, 1 - 1.25 * 2, 5 - 1.25 * 2]
    spread = math.sqrt(3 / 2 * sum(residual**2 for residual in residuals))
    assert result["stderr"] == pytest.approx(spread / 8 / math.log(2))
    assert "bits_per_character" not in result


def test_likelihood__stderr_matches_the_spread_of_repetitions() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(5, 50, (400, 100)).double()
    nats = lengths * 2 + lengths.sqrt() * torch.randn(400, 100).double()
    bounds = [Likelihood(*row) for row in zip(nats, lengths, strict=True)]
    spread = torch.tensor([bound.bits_per_token for bound in bounds]).std()
    claimed = torch.tensor([bound.stderr for bound in bounds]).mean()
    # The spread of 400 repetitions is itself known to 1/√800 = 3.5 %; four of those.
    assert claimed == pytest.approx(spread.item(), rel=0.14)


def test_bound_perplexity__counts_characters(metric: BoundPerplexity) -> None:
    result: Any = metric.compute(nats=[3.0, 5.0], num_tokens=[2, 2], num_characters=[7, 9])
    assert result["bits_per_character"] == pytest.approx(8 / 16 / math.log(2))
    metric.add_batch(nats=[3.0], num_tokens=[2], num_characters=[7])
    metric.add_batch(nats=[3.0], num_tokens=[2])
    with pytest.raises(ValueError, match=r"num_characters .*1 of 2"):
        metric.compute()


def test_count_characters__of_scored_tokens() -> None:
    tokenizer = character_tokenizer(alphabet="abc")
    end = tokenizer.eos_token_id
    labels = torch.tensor([[0, 1, 2, end], [-100, 0, -100, -100], [end, -100, -100, -100]])
    assert count_characters(tokenizer, labels) == [3, 1, 0]
    assert count_bytes(tokenizer, labels) == [3, 1, 0]


@pytest.mark.parametrize("kind", ["characters", "bpe", "sentencepiece"])
def test_count_characters_and_bytes__of_blocks_add_up_to_the_text(kind: str) -> None:
    """Blocks of 5 tokens cut characters of several bytes, some of them twice."""
    text = "今天天气很好,我们去公园散步吧。 Zürich 🙂 hello world\n" * 20
    if kind == "characters":
        tokenizer = character_tokenizer([text])
    elif kind == "bpe":
        tokenizer = byte_level_bpe([text], 270)
    else:
        tokenizer = sentencepiece_tokenizer(["hello world " * 20], 270, "bpe")
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = tokens[: len(tokens) // 5 * 5]
    blocks = torch.tensor(tokens).view(-1, 5)
    whole = tokenizer.decode(tokens).rstrip("\ufffd")
    assert abs(sum(count_characters(tokenizer, blocks)) - len(whole)) <= 1  # one that the end of the last block cuts
    assert abs(sum(count_bytes(tokenizer, blocks)) - len(whole.encode())) <= 3  # of that character
    chosen = torch.arange(0, len(blocks), 3)
    assert count_characters(tokenizer, blocks[chosen]) == [count_characters(tokenizer, blocks)[i] for i in chosen]
