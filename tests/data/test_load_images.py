"""Images from local folders: shapes, labels, splits, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image

from gm_discrete.data import images, load_images
from gm_discrete.data.images import to_array

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def arrays(rows: Dataset | IterableDataset) -> list[np.ndarray]:
    loaded: Any = rows
    images = [row["pixel_values"] for row in loaded]
    assert all(image.dtype == np.uint8 and image.flags.writeable for image in images)
    return images


def labels(rows: Dataset | IterableDataset) -> list[int]:
    loaded: Any = rows
    return [row["class_labels"] for row in loaded]


def write_folder(folder: Path, count: int = 10, size: tuple[int, int] = (12, 8)) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (*colour[:1], number, colour[2])).save(folder / name / f"{number}.png")
    return folder


def test_load_images__a_folder_has_a_class_per_subfolder(tmp_path: Path) -> None:
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


def test_load_images__keeps_splits_and_crops_at_the_centre(tmp_path: Path) -> None:
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
def test_to_array__reads_every_mode_of_eight_bits(image: Image.Image, expected: list[int]) -> None:
    assert to_array(image, 3, None).flatten().tolist() == expected
    assert to_array(image, 1, None).shape == (1, 1, 1)
    with pytest.raises(ValueError, match="mode 'I;16'; give images of 8 bits"):
        to_array(Image.new("I;16", (1, 1)), 1, None)


def test_load_images__columns_of_a_hub_data_set(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match=r"'image'.*source=.*img, label"):
        load_images(folder, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"'fine_label'.*source="):
        load_images(folder, label_column="fine_label", **options)
    with pytest.raises(ValueError, match=r"image_column='label' of source=.* holds int, no images"):
        load_images(folder, image_column="label", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"holds <PIL.*, no class numbers"):
        load_images(folder, label_column="img", **options)


def test_load_images__images_of_several_sizes_need_image_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 2)
    Image.new("RGB", (9, 9)).save(folder / "red" / "9.png")
    with pytest.raises(ValueError, match=r"images have the shapes .*give image_size"):
        load_images(folder, cache_dir=tmp_path / "cache", validation_size=0)
    sized = load_images(folder, image_size=6, cache_dir=tmp_path / "cache", validation_size=0)
    assert {image.shape for image in arrays(sized)} == {(3, 6, 6)}


def test_load_images__errors_name_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    folder = write_folder(tmp_path / "pictures", 2)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"source='someone/nothing'"):
        load_images("someone/nothing", **options)
    with pytest.raises(ValueError, match=r"split='test'.*source=.*train"):
        load_images(folder, "test", **options)
    with pytest.raises(ValueError, match=r"validation_size=4 .*4 rows"):
        load_images(folder, validation_size=4, **options)
    with pytest.raises(ValueError, match=r"validation_size=0\.5 .*number of rows"):
        load_images(folder, validation_size=0.5, streaming=True, **options)
    with pytest.raises(ValueError, match=r"source=.* is empty"):
        load_images(folder, validation_size=4, streaming=True, **options)
    with pytest.raises(ValueError, match="image_size=0"):
        load_images(folder, image_size=0)
    with pytest.raises(ValueError, match="channels=2"):
        load_images(folder, channels=2)  # type: ignore[arg-type]


def test_load_images__missing_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'gm_discrete\[pictures\]'"):
        load_images("somewhere")
