"""transformers' own tests of models, of the installed version.

`make install` unpacks `test_modeling_common.py` of transformers' source package into the virtual environment. It is loaded
as a member of a package of another name: `tests` is ours. What it imports from other files of that package is replaced by
empty classes: tests of transformers' `generate` loop and of its exporters, of which we have our own.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(sys.prefix) / "transformers_tests"
ABSENT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def model_tests() -> Any:
    """`ModelTesterMixin`: about 150 tests of a model class, of which a subclass names the classes and makes the inputs.

    Raises:
        FileNotFoundError: the file was not unpacked.
    """
    if not (FOLDER / "test_modeling_common.py").exists():
        raise FileNotFoundError(f"{FOLDER} has no test_modeling_common.py, which `make install` puts there")
    _package(FOLDER.name, [str(FOLDER)])
    for module, name in ABSENT.items():
        parent = module.split(".")[0]
        _package(f"{FOLDER.name}.{parent}", [])
        setattr(_package(f"{FOLDER.name}.{module}", None), name, type(name, (), {}))
    return importlib.import_module(f"{FOLDER.name}.test_modeling_common").ModelTesterMixin


def _package(name: str, path: list[str] | None) -> ModuleType:
    module = sys.modules.setdefault(name, ModuleType(name))
    if path is not None:
        module.__path__ = path
    return module
