"""How varied samples are: low perplexity is worth little without the entropy of the samples beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, List, Value


def unigram_entropy(token_ids: Sequence[int]) -> float:
    """−Σ_y f_y ln f_y in nats, with f_y the share of token y among the tokens of one sample.

    Raises:
        ValueError: there is no token.
    """
    if not len(token_ids):
        raise ValueError("token_ids is empty; give at least one token")
    counts = np.unique(token_ids, return_counts=True)[1]
    return math.log(len(token_ids)) - float(counts @ np.log(counts)) / len(token_ids)


class SampleEntropy(evaluate.Metric):
    """Mean over samples of their unigram entropy in nats, as SEDD (arXiv 2310.16834) and MDLM (2406.07524) report it.

    `add_batch(predictions=[[token id, …], …])`; `compute()` → `entropy` and the `stderr` of that mean, NaN for one.
    The entropy of a sample grows with its length: compare equal lengths only.
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
