"""Options that are JSON or a word, JSON files without NaN, and checks of `generate` before training."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gm_discrete import GMModel
from gm_discrete.generation.request import Request


def json_option(name: str, value: str) -> Any:
    """The value of an option that is JSON; a bare word stands for itself.

    >>> json_option("schedule", "cosine"), json_option("schedule", '{"type": "power", "n": 2}'), json_option("bins", "8")
    ('cosine', {'type': 'power', 'n': 2}, 8)

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        if re.fullmatch(r"[A-Za-z_][\w.-]*", value.strip()):
            return value.strip()
        raise ValueError(
            f"{name}={value!r} is neither a word nor JSON ({error}); in a shell put JSON in '…'"
        ) from error


def json_dict(name: str, value: str) -> dict[str, Any]:
    """The value of an option that is a JSON object.

    Raises:
        ValueError: it is something else.
    """
    found = json_option(name, value)
    if not isinstance(found, dict):
        raise ValueError(f"{name}={value!r} must be a JSON object, such as '{{\"key\": 1.0}}'")
    return found


def weights_option(name: str, value: str) -> dict[str, Any]:
    """The value of an option that weighs parts: a JSON object, or the word of the only part, which has the weight 1."""
    found = json_option(name, value)
    return {found: 1.0} if isinstance(found, str) else json_dict(name, value)


def json_text(content: object) -> str:
    """Valid JSON, with null for numbers that are not finite, and the text of objects that JSON does not have."""
    return json.dumps(_finite(content), indent=1, default=str, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def check_sampling(model: GMModel, **arguments: Any) -> None:
    """Checks arguments of `model.generate` as it does, but does not run it.

    Raises:
        ValueError, TypeError: as `generate`.
    """
    of_call = {name: value for name, value in arguments.items() if name in inspect.signature(Request.of).parameters}
    options = {name: value for name, value in arguments.items() if name not in of_call or name == "length"}
    Request.of(model, model.generation_config.updated(options), **of_call)
