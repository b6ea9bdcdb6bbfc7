"""Scores: the likelihood bound, generative perplexity, and the entropy of samples. All metrics work offline."""

from gm_discrete.evaluation.entropy import SampleEntropy, unigram_entropy
from gm_discrete.evaluation.generative_perplexity import GenerativePerplexity
from gm_discrete.evaluation.judge import materialize_smollm2
from gm_discrete.evaluation.perplexity import BoundPerplexity, count_characters, evaluate_bound

__all__ = [
    "BoundPerplexity",
    "GenerativePerplexity",
    "SampleEntropy",
    "count_characters",
    "evaluate_bound",
    "materialize_smollm2",
    "unigram_entropy",
]
