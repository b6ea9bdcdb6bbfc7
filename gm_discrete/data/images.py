"""Images from local folders or from the hub, as bytes of one shape."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Array3D, Dataset, Features, IterableDataset, Value
from numpy.typing import NDArray

from gm_discrete.data.reading import choose_split, read_splits

if TYPE_CHECKING:
    from PIL import Image


def load_images(
    source: str | os.PathLike[str],
    split: Literal["train", "validation", "test"] = "train",
    *,
    name: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    streaming: bool = False,
    validation_size: float | int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of an image data set: `{"pixel_values": uint8 [C, H, W], "class_labels": int}` per row.

    `class_labels` is present if the source has labels, and is a `ClassLabel` if their names are known. Transparent
    images are laid on white. All rows have one shape: with `image_size` images are resized and cropped at their centre.
    If the source has no validation split, it is held out of the training split: rows drawn with a fixed seed, or the
    first rows of a stream.

    Args:
        source: a folder of images (`folder/train/CLASS/*.png`, `folder/CLASS/*.png` or `folder/*.png`) or a hub id.
        split: "train", "validation" or "test".
        name: configuration of a hub data set.
        image_column, label_column: columns of the source; `label_column=None` leaves labels out.
        image_size: height and width; by default those of the source.
        channels: 1 for grey, 3 for RGB; by default as in the first image.
        streaming: read rows on demand; returns an `IterableDataset`.
        validation_size: size of the held-out split, a fraction or a number of rows: by default 0.05, for a stream 1000
            rows. 0 keeps all rows for training.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: the source, the split or a column does not exist, the split is empty, `validation_size` leaves no
            row to train on, or images differ in size and `image_size` is missing.
    """
    check_shape(image_size, channels)
    if find_spec("PIL") is None:
        raise ImportError("load_images needs Pillow: pip install 'gm_discrete[pictures]'")
    reader, options = source, {}
    if glob.has_magic(str(source)) and Path(source).is_dir():  # `datasets` takes the name of the folder for a pattern
        reader, options["data_dir"] = "imagefolder", glob.escape(str(source))
    splits = read_splits(reader, name, "a folder of images or a hub id", cache_dir, streaming=streaming, **options)
    rows = choose_split(splits, source, split, validation_size)
    return _converted_rows(rows, str(source), image_column, label_column, image_size, channels)


def check_shape(image_size: int | None, channels: int | None) -> None:
    """Raises a ValueError if `image_size` is below 1 or `channels` is neither 1 nor 3."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 1 for grey or 3 for RGB")


@dataclass(frozen=True)
class DecodePixels:
    """Turns the bytes in a batch's column `pixel_values` into uint8 arrays of `shape`.

    Rows are stored as bytes because `datasets` would read integer arrays back as int64. A class and not a closure, so
    that it can be sent to the workers of a data loader.
    """

    shape: tuple[int, ...]

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        columns = dict(rows)
        if "pixel_values" in columns:
            # A bytearray, because torch wants writable memory.
            images = np.frombuffer(bytearray(b"".join(columns["pixel_values"])), np.uint8)
            columns["pixel_values"] = list(images.reshape(-1, *self.shape))
        return columns


def to_array(image: Image.Image, channels: int, image_size: int | None) -> NDArray[np.uint8]:
    """Converts an image of any mode with 8 bits per channel to uint8 [C, H, W].

    Raises:
        ValueError: the image has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(f"an image has the mode {image.mode!r}; give images of 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


@dataclass(frozen=True)
class _ConvertRow:
    """Converts a row of a source to a row of `load_images`, with the image as an array or as its bytes."""

    image_column: str
    label_column: str | None
    shape: tuple[int, ...]
    image_size: int | None
    as_bytes: bool

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        array = to_array(row[self.image_column], self.shape[0], self.image_size)
        if array.shape != self.shape:
            raise ValueError(f"images have the shapes {self.shape} and {array.shape}; give image_size")
        converted: dict[str, Any] = {"pixel_values": array.tobytes() if self.as_bytes else array}
        if self.label_column is not None:
            converted["class_labels"] = row[self.label_column]
        return converted


def _converted_rows(
    rows: Dataset | IterableDataset,
    source: str,
    image_column: str,
    label_column: str | None,
    image_size: int | None,
    channels: int | None,
) -> Dataset | IterableDataset:
    first: Any = next(iter(rows), None)
    if first is None:
        raise ValueError(f"source={source!r} is empty in this split; give another split or source")
    missing = image_column if image_column not in first else label_column if label_column not in first else None
    if missing not in (None, "label"):  # the default label column may be absent
        raise ValueError(f"column {missing!r} is not in source={source!r}; it has {', '.join(first)}")
    label_column = label_column if label_column in first else None
    image = first[image_column]
    if not hasattr(image, "convert"):
        raise ValueError(
            f"image_column={image_column!r} of source={source!r} holds {type(image).__name__}, no images; it has "
            f"{', '.join(first)}"
        )
    if label_column is not None and not isinstance(first[label_column], int):
        raise ValueError(
            f"label_column={label_column!r} of source={source!r} holds {first[label_column]!r}, no class numbers; give "
            "another column or None"
        )
    channels = channels or (1 if image.mode in ("1", "L", "LA") else 3)
    shape = to_array(image, channels, image_size).shape
    convert = _ConvertRow(image_column, label_column, shape, image_size, as_bytes=isinstance(rows, Dataset))
    known = (rows.features or {}).get(label_column, Value("int64"))
    label = {} if label_column is None else {"class_labels": known}
    if isinstance(rows, IterableDataset):
        pixels = Array3D(shape, "uint8")
        return rows.map(convert, remove_columns=list(first), features=Features({"pixel_values": pixels, **label}))
    features = Features({"pixel_values": Value("binary"), **label})
    rows = rows.map(convert, remove_columns=list(first), features=features, desc="Images")
    return rows.with_transform(DecodePixels(shape))
