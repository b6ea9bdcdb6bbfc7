"""transformers' own tests of models, of the installed version.

`make install` unpacks `test_modeling_common.py` of transformers' source package into the virtual environment. It is loaded
as a member of a package of another name: `tests` is ours. What it imports from other files of that package, which are not in
the source package, is replaced by empty classes: tests of transformers' exporters and of its `generate` loop.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(sys.prefix) / "transformers_tests" / "test_modeling_common.py"
ABSENT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def model_tests() -> Any:
    """`ModelTesterMixin`: some 160 tests of a model class, whose inputs a subclass gives. Empty if there is no `FILE`."""
    if not FILE.exists():
        return object
    package = FILE.parent.name
    _module(package).__path__ = [str(FILE.parent)]
    for name, mixin in ABSENT.items():
        _module(f"{package}.{name.split('.')[0]}").__path__ = []
        setattr(_module(f"{package}.{name}"), mixin, type(mixin, (), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # marks of transformers
        return importlib.import_module(f"{package}.{FILE.stem}").ModelTesterMixin


def _module(name: str) -> ModuleType:
    return sys.modules.setdefault(name, ModuleType(name))
