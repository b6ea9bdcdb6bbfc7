"""Scores of models and samples: the likelihood bound over a data set, generative perplexity, entropy, matching loss."""

from typing import TYPE_CHECKING

from gm_discrete.evaluation.entropy import SampleEntropy, unigram_entropy
from gm_discrete.evaluation.generative_perplexity import GenerativePerplexity
from gm_discrete.evaluation.matching import evaluate_matching
from gm_discrete.evaluation.perplexity import BoundPerplexity, count_characters, evaluate_bound

__all__ = [
    "BoundPerplexity",
    "GenerativePerplexity",
    "SampleEntropy",
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
        if name in _MOVED:
            raise ImportError(f"{__name__}.{name} moved out of the library, to benchmarks/scores in its repository")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
