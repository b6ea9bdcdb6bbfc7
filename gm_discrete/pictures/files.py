"""What all pictures need: packages that may be missing, and files that are whole or not there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def needed(module: str) -> Any:
    """The module.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"pictures need {package}: pip install 'gm_discrete[pictures]'") from error


def write(path: str | os.PathLike[str], save: Callable[[Path], None]) -> Path:
    """Lets `save` write a draft and then gives it its name, so that the file is all there or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    try:
        save(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
