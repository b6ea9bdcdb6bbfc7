"""Optional packages, and files that are written atomically."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def needed(module: str) -> Any:
    """Imports a module of an optional package.

    Raises:
        ImportError: it is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"pictures need {package}: pip install 'gm_discrete[pictures]'") from error


def write(path: str | os.PathLike[str], save: Callable[[Path], None]) -> Path:
    """Writes a file atomically: `save` writes a draft, which is then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    try:
        save(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
