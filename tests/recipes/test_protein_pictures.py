from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from recipes import protein_pictures
from recipes.protein_pictures import protein_picture


def walk(residues: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 1.5, (residues, 3, 3)).cumsum(0)


def share(file: Path, colour: str) -> float:
    """The share of the pixels that are about of one colour."""
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB")) / 255
    return float((np.abs(pixels - to_rgb(colour)).max(-1) < 0.1).mean())


def test_protein_picture__has_a_column_per_sample_and_one_of_torsions(tmp_path: Path) -> None:
    samples = [walk(length, length) for length in (12, 20, 30)]
    file = protein_picture(samples, tmp_path / "new" / "a.png", samples[:1], shown=2)
    with Image.open(file) as picture:
        assert picture.size == (900, 620)
    assert [part.name for part in file.parent.iterdir()] == ["a.png"]
    few = protein_picture(samples[:1], tmp_path / "b.png")
    with Image.open(few) as picture:
        assert picture.size == (600, 620)


def test_protein_picture__nothing_spans_a_break(tmp_path: Path) -> None:
    straight = np.zeros((20, 3, 3)) + 3.8 * np.arange(20)[:, None, None] * [1, 0, 0]
    purple = "#440154"  # the N end of the trace
    whole = protein_picture([straight], tmp_path / "whole.png")
    parts = protein_picture([straight], tmp_path / "parts.png", breaks=[np.ones(20, bool)])
    assert share(parts, purple) < share(whole, purple)


def test_facing__keeps_handedness_and_orders_the_axes() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3)) * [1, 9, 3]
    turned = protein_pictures._facing(points)
    assert (np.diff(turned.std(0)) < 0).all()
    for before, after in ((points, turned), (points * [1, 1, -1], protein_pictures._facing(points * [1, 1, -1]))):
        volumes = [np.linalg.det(np.diff(part[:4], axis=0)) for part in (before, after)]
        assert volumes[0] == pytest.approx(volumes[1])


def test_protein_picture__wrong_arguments_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples has 0 backbones and shown=4"):
        protein_picture([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"1 backbones and shown=0"):
        protein_picture([walk(6, 0)], tmp_path / "a.png", shown=0)
    with pytest.raises(ValueError, match=r"shape \(6, 3\)"):
        protein_picture([walk(6, 0)[:, 1]], tmp_path / "a.png")
