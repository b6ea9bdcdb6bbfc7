"""Entropy of samples. A low generative perplexity means little without it, because repetition lowers both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, List, Value


def unigram_entropy(token_ids: Sequence[int]) -> float:
    """−Σ_y f_y ln f_y in nats, with f_y the share of token y among the tokens of one sample.

    >>> round(unigram_entropy([3, 3, 7, 7]), 4)  # log 2
    0.6931

    Raises:
        ValueError: there are no tokens.
    """
    if not len(token_ids):
        raise ValueError("token_ids is empty; give at least one token")
    counts = np.unique(token_ids, return_counts=True)[1]
    return math.log(len(token_ids)) - float(counts @ np.log(counts)) / len(token_ids)


class SampleEntropy(evaluate.Metric):
    """Mean unigram entropy of samples in nats, as SEDD (arXiv 2310.16834) and MDLM (2406.07524) report it.

    `add_batch(predictions=[[token id, …], …])`; `compute()` returns `entropy` and the `stderr` of that mean, NaN for one
    sample. The entropy of a sample grows with its length: compare samples of equal length only.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean unigram entropy of samples, in nats.",
            citation="",
            inputs_description="predictions: token ids of each sample.",
            features=Features({"predictions": List(Value("int64"))}),
        )

    def _compute(self, predictions: Sequence[Sequence[int]]) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        entropies = np.array([unigram_entropy(sample) for sample in predictions])
        stderr = float(entropies.std(ddof=1)) / math.sqrt(len(entropies)) if len(entropies) > 1 else math.nan
        return {"entropy": float(entropies.mean()), "stderr": stderr}
