"""Scores of models and samples: the likelihood bound over a data set, generative perplexity, entropy, matching loss."""

from typing import TYPE_CHECKING

from gm_discrete.evaluation.entropy import SampleEntropy, unigram_entropy
from gm_discrete.evaluation.generative_perplexity import GenerativePerplexity
from gm_discrete.evaluation.matching import evaluate_matching
from gm_discrete.evaluation.perplexity import BoundPerplexity, count_bytes, count_characters, evaluate_bound
from gm_discrete.renamed import missing_name

__all__ = [
    "BoundPerplexity",
    "GenerativePerplexity",
    "SampleEntropy",
    "count_bytes",
    "count_characters",
    "evaluate_bound",
    "evaluate_matching",
    "unigram_entropy",
]

_MOVED = {
    "FeatureNetwork",
    "ImageClassifier",
    "ImageMetrics",
    "MoleculeStatistics",
    "efficientnet_lite0",
    "evaluate_images",
    "evaluate_molecules",
    "extract_features",
    "frechet_distance",
    "inception",
    "materialize_smollm2",
    "precision_recall",
    "train_classifier",
}

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> None:
        raise missing_name(__name__, name, dict.fromkeys(_MOVED, "benchmarks/scores in the repository of the library"))
