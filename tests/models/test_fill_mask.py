"""`transformers.pipeline("fill-mask")`: the posterior of the model at every mask of a text, by one forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertTokenizerFast, LlamaConfig, TrainingArguments, pipeline

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import TokenCollator, character_tokenizer
from gm_discrete.training import GMTrainer

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "lay", "on", "mat", ".", "##s"]
TEXTS = {
    "characters": ("to [MASK]e or no[MASK]", ["b", "t"]),
    "words": ("the [MASK]s sat on a [MASK].", ["dog", "mat"]),
}


def tokenizer_of(kind: str) -> Any:
    if kind == "characters":
        return character_tokenizer(["to be or not to be"])
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})  # it returns token_type_ids, too


def model_of(backbone: str, tokenizer: Any) -> GMModel:
    torch.manual_seed(0)
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    if backbone in ("gm", "dit"):
        model = GMModel(GMConfig(path=path, backbone=backbone, time_conditioning=False, **SMALL))
        torch.nn.init.normal_(model.heads["tokens"].weight)
        return model.eval()
    kind: Any = BertConfig if backbone == "bert" else LlamaConfig
    return GMModel(GMConfig(path=path, backbone=kind(vocab_size=len(tokenizer), intermediate_size=32, **SMALL))).eval()


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("backbone", ["gm", "dit", "bert", "llama"])
def test_fill_mask__gives_the_posterior_at_every_mask_by_one_forward_pass(backbone: str, kind: str) -> None:
    tokenizer, (text, targets) = tokenizer_of(kind), TEXTS[kind]
    model, calls = model_of(backbone, tokenizer), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    found = fill(text, top_k=3)
    assert len(calls) == 1
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probs = model(input_ids=ids).logits[0].softmax(-1)[ids[0] == tokenizer.mask_token_id]
    assert probs.shape[0] == len(found) == 2
    assert (probs[:, tokenizer.mask_token_id] == 0).all()
    for row, best in zip(found, probs, strict=True):
        assert [one["token"] for one in row] == best.topk(3).indices.tolist()
        assert [one["score"] for one in row] == pytest.approx(best.topk(3).values.tolist())
    limited = fill(text, targets=targets)
    for row, best in zip(limited, probs, strict=True):
        expected = {target: float(best[tokenizer.convert_tokens_to_ids(target)]) for target in targets}
        assert {one["token_str"]: one["score"] for one in row} == pytest.approx(expected)


@pytest.mark.parametrize("kind", TEXTS)
def test_fill_mask__padding_of_a_batch_changes_nothing(kind: str) -> None:
    tokenizer, (text, _) = tokenizer_of(kind), TEXTS[kind]
    fill = pipeline("fill-mask", model=model_of("gm", tokenizer), tokenizer=tokenizer, device="cpu")
    short = text.rpartition("[MASK]")[0]
    together = fill([text, short], batch_size=2, top_k=2)
    for row, alone in zip(together, (fill(text, top_k=2), fill(short, top_k=2)), strict=True):
        one, other = (part if isinstance(part[0], list) else [part] for part in (row, alone))
        for a, b in zip(one, other, strict=True):
            assert [x["token"] for x in a] == [x["token"] for x in b]
            assert [x["score"] for x in a] == pytest.approx([x["score"] for x in b], rel=1e-4)


def test_fill_mask__several_segments_are_refused() -> None:
    tokenizer = tokenizer_of("words")
    with pytest.raises(ValueError, match="token_type_ids has several segments"):
        model_of("gm", tokenizer)(**tokenizer("the cat", "the dog", return_tensors="pt"))


def test_trainer__leaves_segments_out_of_batches(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("words")
    data = [dict(tokenizer("the cat sat"))] * 4
    trainer = GMTrainer(
        model=model_of("gm", tokenizer), args=TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True),
        train_dataset=data, data_collator=TokenCollator(tokenizer.pad_token_id),
    )  # fmt: skip
    assert trainer.train().global_step == 1
