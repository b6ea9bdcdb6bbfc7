"""Valid JSON: Python would write NaN and Infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(content: object, **options: Any) -> str:
    """JSON of a value: null for numbers that are not finite, and the text of objects that JSON does not have.

    >>> json_text({"loss": float("nan"), "steps": (1, 2)})
    '{"loss": null, "steps": [1, 2]}'

    Args:
        options: further arguments of `json.dumps`.
    """
    return json.dumps(_finite(content), default=str, allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
