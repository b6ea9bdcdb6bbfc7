"""What parts of a config must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gm_discrete.data.scalers import Categories, Codec
from gm_discrete.objective import bregman
from gm_discrete.paths import EuclideanPath, FinitePath, Path, ProductPath


def check_codec(codec: Codec, path: Path, name: str) -> None:
    """
    Raises:
        ValueError: the codec's values are not what the path is of.
    """
    if not isinstance(codec, Categories):
        if not isinstance(path, EuclideanPath):
            raise ValueError(f"fields[{name!r}] has a scaler, and {path!r} is a path of symbols: give Categories")
    elif not isinstance(path, FinitePath) or len(codec) != path.vocab_size - len(path.excluded):
        raise ValueError(f"fields[{name!r}] has {len(codec)} categories, and {path!r} not as many symbols")


def image_positions(path: Path, image_shape: list[int], patch_size: int) -> int:
    """Number of patches of an image.

    Raises:
        ValueError: they do not fit.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape={image_shape} must be [C, H, W]")
    channels, height, width = image_shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size={patch_size} must divide height and width of image_shape={image_shape}")
    if isinstance(path, EuclideanPath) and path.num_channels != channels:
        raise ValueError(
            f"image_shape={image_shape} has {channels} channels, the path num_channels={path.num_channels}"
        )
    return height * width // patch_size**2


def check_weights(path: Path, weights: Mapping[str, Any] | None) -> None:
    """
    Raises:
        ValueError: the weights are not of the parts of a path's loss, or of the fields of a product; or one is negative.
    """
    known = path.default_divergence if isinstance(path.default_divergence, Mapping) else {}
    for name, weight in (weights or {}).items():
        if isinstance(path, ProductPath) and name in known and isinstance(weight, Mapping):
            check_weights(path.factors[name], weight)
        elif name not in known or not weight >= 0:
            raise ValueError(f"loss_weights={weights} must be weights ≥ 0 of {', '.join(known) or 'no part'}")


def chosen_divergence(path: Path, choice: Any) -> Any:
    """The divergence of a path's parts: what was chosen, and the path's own elsewhere.

    Raises:
        ValueError: it does not fit.
    """
    default = path.default_divergence
    if isinstance(path, ProductPath):
        if (
            not isinstance(default, Mapping)
            or not isinstance(choice, Mapping | None)
            or set(choice or ()) - set(default)
        ):
            raise ValueError(f"divergence={choice!r} must be a dict by field, of {', '.join(default)}")
        return {name: chosen_divergence(factor, (choice or {}).get(name)) for name, factor in path.factors.items()}
    if isinstance(default, str):
        choice = choice or default
        if choice not in ("generalized_kl", "cross_entropy"):
            raise ValueError(f"divergence={choice!r} must be 'generalized_kl' or 'cross_entropy'")
        return choice
    if not isinstance(choice, Mapping | None):
        raise ValueError(f"divergence={choice!r} must be a divergence by part, such as {dict(default)}")
    if unknown := (choice or {}).keys() - default.keys():
        raise ValueError(f"divergence is given for {', '.join(sorted(unknown))}; this path learns {', '.join(default)}")
    kinds = {**default, **(choice or {})}
    for part, kind in kinds.items():
        bregman.named(kind, part)
    return kinds
