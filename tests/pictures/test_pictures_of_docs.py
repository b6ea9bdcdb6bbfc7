"""The pictures of the documentation show what the library computes today: `python docs/pictures.py` makes the same."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("matplotlib")


def program() -> ModuleType:
    """docs/pictures.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("pictures_of_docs", ROOT / "docs/pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pictures = program()


def assert_close(found: Any, expected: Any, where: str) -> None:
    """The same names, texts and integers, and numbers to a relative error of 1e-4."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_close(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=2e-3), where
    else:
        assert found == expected, where


def numbers(svg: str) -> tuple[str, list[float]]:
    """An SVG file without its numbers and the names made of them, and the numbers."""
    plain = re.sub(r'(?<=[#"])[a-z][0-9a-f]{9,}', "", svg)
    number = r"-?\d+(?:\.\d+)?"
    return re.sub(number, "", plain), [float(value) for value in re.findall(number, plain)]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_of_docs__show_what_the_library_computes(name: str, tmp_path: Path) -> None:
    file = pictures.file_of(name)
    committed = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert_close(json.loads(json.dumps(pictures.compute(name))), committed, name)
    pictures.svg(name, committed, tmp_path / "new.svg")
    old, new = (path.read_text(encoding="utf-8") for path in (file, tmp_path / "new.svg"))
    versions = [re.findall(r"Matplotlib v([\d.]+)", text) for text in (old, new)]
    assert versions[0]
    if versions[0] == versions[1]:  # other versions draw other outlines of the same data
        (text, values), (new_text, new_values) = numbers(old), numbers(new)
        assert text == new_text
        assert new_values == pytest.approx(values, abs=0.5)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_of_docs__are_small_and_shown_on_a_page(name: str) -> None:
    file = pictures.file_of(name)
    assert file.stat().st_size <= 80_000
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    assert any(f"](figures/{file.name})" in page for page in pages)
