"""Perplexity of samples under another language model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import evaluate
import torch
from datasets import Features, Value
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gm_discrete.data.collator import TokenCollator
from gm_discrete.evaluation.entropy import unigram_entropy
from gm_discrete.likelihood import Likelihood


class GenerativePerplexity(evaluate.Metric):
    """exp(Σ −ln p(token | earlier tokens) / Σ tokens) of texts under a causal language model, the judge.

    `add_batch(predictions=[text, …])`; `compute(judge=…, …)` returns `perplexity`, `nats_per_token` and its `stderr` over
    texts, `mean_tokens` per text, and `entropy`, the mean unigram entropy of the texts' tokens in nats. Compare perplexities
    at similar entropies only, because repetition lowers both. Tokens are those of the judge. As in SEDD and MDLM no token is
    put before a text, so that its first token is context and not scored; texts longer than the judge's context are cut into
    windows.

    Arguments of `compute`:
        judge: a name on the hub, a folder, or a model.
        tokenizer: the judge's; required if `judge` is a model.
        batch_size: windows per call of the judge.
        max_length: tokens of a window; the judge's `max_position_embeddings` by default.
        device: device of a judge given by name; by default a GPU if there is one.

    Raises:
        ValueError: `judge` is a model and `tokenizer` is missing, no text has two tokens, or `max_length` < 2.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of texts under a causal language model, with the entropy of the texts.",
            citation="",
            inputs_description="predictions: texts.",
            features=Features({"predictions": Value("string")}),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        predictions: Sequence[str],
        judge: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        device: str | torch.device | None = None,
    ) -> dict[str, float]:
        if isinstance(judge, PreTrainedModel):
            if tokenizer is None:
                raise ValueError("tokenizer is missing; give the judge's tokenizer together with the model")
            model = judge
        else:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(judge)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32, device_map=device)
        max_length = max_length or int(getattr(model.config, "max_position_embeddings", None) or 1024)
        if max_length < 2:
            raise ValueError(
                f"max_length={max_length} must be at least 2, as the first token of a window is not scored"
            )
        texts = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in predictions]
        if max(map(len, texts)) < 2:
            raise ValueError("predictions holds no text of two tokens or more; give at least one")
        score = _score(model, texts, batch_size, max_length)
        return {
            "perplexity": score.perplexity,
            "nats_per_token": score.bits_per_token * math.log(2),
            "stderr": score.stderr * math.log(2),
            "mean_tokens": sum(map(len, texts)) / len(texts),
            "entropy": sum(unigram_entropy(text) for text in texts if text) / sum(map(bool, texts)),
        }


@torch.no_grad()
def _score(model: PreTrainedModel, texts: list[list[int]], batch_size: int, max_length: int) -> Likelihood:
    """The exact −log p of each text under the judge, and how many of its tokens are scored."""
    windows = [
        (index, {"input_ids": text[start : start + max_length]})
        for index, text in enumerate(texts)
        for start in range(0, len(text) - 1, max_length)
    ]
    nats = torch.zeros(len(texts), dtype=torch.float64)
    num_tokens = torch.zeros(len(texts), dtype=torch.long)
    collate = TokenCollator(pad_token_id=0)  # any token: the attention mask excludes it
    model.eval()
    for start in tqdm(range(0, len(windows), batch_size), desc="Judge"):
        indices, rows = zip(*windows[start : start + batch_size], strict=True)
        batch = {name: value.to(model.device) for name, value in collate(rows).items()}
        targets = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        nats.index_add_(0, torch.tensor(indices), losses.sum(1).double().cpu())
        num_tokens.index_add_(0, torch.tensor(indices), (targets >= 0).sum(1).cpu())
    return Likelihood(nats, num_tokens, "autoregressive")
