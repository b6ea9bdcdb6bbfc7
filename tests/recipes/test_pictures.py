from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import pictures


def pixels(file: Path, factor: int, height: int, width: int) -> np.ndarray:
    """A picture with each block of `factor`² equal pixels as one."""
    with Image.open(file) as picture:
        assert picture.size == (factor * width, factor * height)
        array = np.asarray(picture.convert("RGB")).reshape(height, factor, width, factor, 3)
    assert (array == array[:, :1, :, :1]).all()
    return array[:, 0, :, 0]


def test_image_grid__fills_rows_first(tmp_path: Path) -> None:
    images = torch.randint(256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0)).byte()
    file = pictures.image_grid(images, tmp_path / "new" / "grid.png", columns=3)
    table = pixels(file, factor=32, height=9, width=20)  # 3 of 6 and 2 lines; 640 / 20
    for index, image in enumerate(images):
        top, left = 5 * (index // 3), 7 * (index % 3)
        assert np.array_equal(table[top : top + 4, left : left + 6], image.permute(1, 2, 0).numpy())
    assert (table[5:, 14:] == 255).all()  # no sixth image
    assert [part.name for part in file.parent.iterdir()] == ["grid.png"]


def test_image_grid__grey_images_in_a_square(tmp_path: Path) -> None:
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 1, 2, 2)
    table = pixels(pictures.image_grid(images, tmp_path / "grid.png"), factor=80, height=8, width=8)
    assert table[::3, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert (table == table[..., :1]).all()


def test_animate_images__a_frame_per_state(tmp_path: Path) -> None:
    states = [torch.full((4, 1, 8, 8), level, dtype=torch.uint8) for level in (0, 100, 200)]
    file = pictures.animate_images(states, tmp_path / "states.gif", columns=4)
    with Image.open(file) as animation:
        assert (animation.format, animation.n_frames) == ("GIF", 3)  # type: ignore[attr-defined]
        for place, duration in enumerate((80, 80, 3000)):
            animation.seek(place)
            assert animation.info["duration"] == duration
            assert animation.convert("L").getpixel((0, 0)) == pytest.approx(100 * place, abs=1)
    single = pictures.animate_images(states[:1], tmp_path / "single.gif")
    with Image.open(single) as animation:
        assert getattr(animation, "n_frames", 1) == 1


def test_image_grid__errors_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\) and dtype=torch\.float32; give torch\.uint8"):
        pictures.image_grid(torch.zeros(2, 3, 4, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"shape \(0, 3, 4, 4\)"):
        pictures.image_grid(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    with pytest.raises(ValueError, match="columns=0 must be at least 1"):
        pictures.image_grid(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), tmp_path / "a.png", columns=0)
    with pytest.raises(ValueError, match=r"states has the shapes \[\]"):
        pictures.animate_images([], tmp_path / "a.gif")
    states = [torch.zeros(size, 3, 4, 4, dtype=torch.uint8) for size in (1, 2)]
    with pytest.raises(ValueError, match=r"states has the shapes .*all of one shape"):
        pictures.animate_images(states, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
