"""Scores: likelihood bound, generative perplexity and entropy of text, images, molecules; offline, but `inception`."""

from gm_discrete.evaluation.entropy import SampleEntropy, unigram_entropy
from gm_discrete.evaluation.generative_perplexity import GenerativePerplexity
from gm_discrete.evaluation.images import (
    FeatureNetwork,
    ImageClassifier,
    ImageMetrics,
    efficientnet_lite0,
    evaluate_images,
    extract_features,
    frechet_distance,
    inception,
    precision_recall,
    train_classifier,
)
from gm_discrete.evaluation.judge import materialize_smollm2
from gm_discrete.evaluation.matching import evaluate_matching
from gm_discrete.evaluation.molecules import MoleculeStatistics, evaluate_molecules
from gm_discrete.evaluation.perplexity import BoundPerplexity, count_characters, evaluate_bound

__all__ = [
    "BoundPerplexity",
    "FeatureNetwork",
    "GenerativePerplexity",
    "ImageClassifier",
    "ImageMetrics",
    "MoleculeStatistics",
    "SampleEntropy",
    "count_characters",
    "efficientnet_lite0",
    "evaluate_bound",
    "evaluate_images",
    "evaluate_matching",
    "evaluate_molecules",
    "extract_features",
    "frechet_distance",
    "inception",
    "materialize_smollm2",
    "precision_recall",
    "train_classifier",
    "unigram_entropy",
]
