"""Options that are JSON or a word, and checks of `generate` before training."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def samples_may_be_longer() -> Iterator[None]:
    """Within this context `generate` does not warn of samples that are longer than the sequences of the training: the
    config asks for them."""
    logger = logging.getLogger("gm_discrete.generation.request")

    def is_shown(record: logging.LogRecord) -> bool:
        return "max_position_embeddings" not in record.getMessage()

    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


def check_sampling(model: GMModel, **arguments: Any) -> None:
    """Checks arguments of `model.generate` as it does, but does not run it.

    Raises:
        ValueError, TypeError: as `generate`.
    """
    of_call = {name: value for name, value in arguments.items() if name in inspect.signature(Request.of).parameters}
    options = {name: value for name, value in arguments.items() if name not in of_call or name == "length"}
    Request.of(model, model.generation_config.updated(options), **of_call)
