"""Which config belongs to which recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

RECIPES = Path(__file__).parents[2] / "recipes"


def configs(recipe: str) -> list[Path]:
    """The configs of `recipes/{recipe}.py`: text, images, mixed, sft or proteins."""
    files = sorted((RECIPES / "configs").glob("*.yaml"), key=lambda file: file.name)
    return [file for file in files if yaml.safe_load(file.read_text(encoding="utf-8"))["recipe"] == recipe]
