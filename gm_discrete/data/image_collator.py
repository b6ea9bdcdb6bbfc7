"""Batches of images, as numbers or as tokens, and the way back to bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageCollator:
    """Batches images v ∈ {0, …, 255} as numbers x = 2v/255 − 1 or, with `levels` = K, as tokens ⌊vK/256⌋.

    Takes `{"pixel_values": [C, H, W] of bytes, optional "class_labels": int}` per example. Returns `input_values` float32
    [B, C, H, W] in [−1, 1], or with `levels` `input_ids` long [B, C·H·W] in {0, …, K−1}, channel by channel and row by row;
    `labels`, the same; and `class_labels` long [B], if the examples have them. `to_uint8` is the inverse. It draws no noise
    of the path: `GMTrainer` does.

    Args:
        levels: number of tokens, 2 to 256.
        dequantize: x = 2(v + u)/255 − 1 with u uniform on [−½, ½), so that x has a density; the bits per dimension of v are
            at most those of x plus log2(255/2). The noise comes from torch's global random state, which a DataLoader seeds
            in its workers.

    Raises:
        ValueError: `levels` is out of range or given with `dequantize`; (when called) an example has no image of bytes
            [C, H, W] with 1 or 3 channels, or examples differ in shape or in whether they have a class.
    """

    levels: int | None = None
    dequantize: bool = False

    def __post_init__(self) -> None:
        if self.levels is not None:
            _check_levels(self.levels)
            if self.dequantize:
                raise ValueError(f"dequantize=True makes numbers, levels={self.levels} makes tokens; give one of them")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = _stack([_image(example) for example in examples])  # [B, C, H, W]
        if self.levels is not None:
            symbols = (images.long() * self.levels // 256).flatten(1)
            batch = {"input_ids": symbols, "labels": symbols}
        else:
            values = images.float()
            if self.dequantize:
                values += torch.rand_like(values) - 0.5
            values = values * 2 / 255 - 1
            batch = {"input_values": values, "labels": values}
        classes = [example["class_labels"] for example in examples if "class_labels" in example]
        if classes:
            if len(classes) < len(examples):
                raise ValueError("class_labels is missing in some examples of the batch; give it in all or in none")
            batch["class_labels"] = torch.tensor([int(label) for label in classes])
        return batch


def to_uint8(images: Tensor, *, levels: int | None = None, shape: tuple[int, int, int] | None = None) -> Tensor:
    """The inverse of `ImageCollator`: v = round(255(x + 1)/2), clamped to a byte; for tokens lo + round((hi − lo)s/(K − 1)).

    It is exact for numbers, dequantised or not, and for 256 levels. For fewer levels lo to hi are the bytes of level s: v
    has that level, too, and 0 is black, K − 1 white.

    Args:
        images: float [B, C, H, W] in [−1, 1], or with `levels` = K integers [B, C, H, W] or [B, C·H·W].
        shape: (C, H, W), required for flat images.

    Returns:
        uint8 [B, C, H, W].

    Raises:
        ValueError: the dtype, the shape or a value of `images` is not one of these.
    """
    if levels is not None:
        _check_levels(levels)
    if images.is_floating_point() != (levels is None) or images.dtype == torch.bool:
        raise ValueError(f"images has dtype={images.dtype} and levels={levels}; give floats, or integers and levels")
    if images.ndim == 2:
        if shape is None or images.shape[1] != shape[0] * shape[1] * shape[2]:
            raise ValueError(f"images has the shape {tuple(images.shape)}, and shape={shape}; give the (C, H, W) of it")
        images = images.unflatten(1, shape)
    if images.ndim != 4:
        raise ValueError(f"images has the shape {tuple(images.shape)}; give [B, C, H, W], or [B, C·H·W] and levels")
    if levels is None:
        if not images.isfinite().all():
            raise ValueError("images holds a value that is not finite")
        return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()
    wrong = images[(images < 0) | (images >= levels)]
    if len(wrong):
        raise ValueError(f"images holds {int(wrong[0])}, and levels={levels}; unmask all tokens before decoding")
    low, after = ((256 * (images.long() + step) + levels - 1) // levels for step in (0, 1))
    return (low + ((after - 1 - low) * images / (levels - 1)).round().long()).byte()


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise ValueError(f"levels={levels} must be between 2 and 256")


def _image(example: Mapping[str, Any]) -> Tensor:
    if "pixel_values" not in example:
        raise ValueError(f"example has the columns {sorted(example)}; give pixel_values and optionally class_labels")
    image = torch.as_tensor(example["pixel_values"])
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise ValueError(f"pixel_values has the shape {tuple(image.shape)}; give [C, H, W] with 1 or 3 channels")
    if image.dtype == torch.uint8:
        return image
    if image.is_floating_point() or image.dtype == torch.bool or image.min() < 0 or image.max() > 255:
        raise ValueError(f"pixel_values holds {image.dtype} from {image.min()} to {image.max()}; give bytes, 0 to 255")
    return image.byte()


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"pixel_values has the shapes {sorted(shapes)} in a batch; give images of one shape (image_size=…)"
        )
    return torch.stack(images)
