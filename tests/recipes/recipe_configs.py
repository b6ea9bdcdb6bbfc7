"""Which config belongs to which recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

RECIPES = Path(__file__).parents[2] / "recipes"


def configs(of_images: bool) -> list[Path]:
    """The configs of recipes/images.py, which all have patches, or those of recipes/text.py."""
    files = sorted((RECIPES / "configs").glob("*.yaml"), key=lambda file: file.name)
    return [file for file in files if ("patch_size" in yaml.safe_load(file.read_text())) == of_images]
