"""Which config belongs to which recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

RECIPES = Path(__file__).parents[2] / "recipes"
MARKS = {"images": "patch_size", "mixed": "aligned", "sft": "max_eos", "proteins": "rotations"}
"""An argument that all configs of a recipe give, and those of no other."""


def configs(recipe: str) -> list[Path]:
    """The configs of `recipes/{recipe}.py`: text, images, mixed, sft or proteins."""
    files = sorted((RECIPES / "configs").glob("*.yaml"), key=lambda file: file.name)
    given = {file: yaml.safe_load(file.read_text(encoding="utf-8")).keys() for file in files}
    kinds = {file: next((name for name, mark in MARKS.items() if mark in keys), "text") for file, keys in given.items()}
    return [file for file in files if kinds[file] == recipe]
