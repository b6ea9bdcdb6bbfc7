"""Errors that clients get, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST = 500
"""Characters of a message at most: messages of the library repeat the value, which may be a whole body."""


@dataclass
class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: of HTTP; message: what is wrong, and the cure; param: the field of the request that is wrong.
        kind: OpenAI's `type`; code: OpenAI's `code`, for programs.
        headers: further ones of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    kind: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """What the client gets as JSON."""
        message = self.message if len(self.message) <= LONGEST else f"{self.message[: LONGEST - 1]}…"
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is: 400."""
    return ApiError(400, message, param, code)


def refused_by_library(error: ValueError | TypeError, fields: Collection[str]) -> ApiError:
    """An error of the library about an argument as that of a client, with the field that its message begins with.

    >>> refused_by_library(ValueError("top_p=2 must be a number in (0, 1]"), ["top_p", "top_k"]).param
    'top_p'
    """
    message = " ".join(str(error).split())
    return refused(
        message, next((name for name in fields if message.startswith((f"{name}=", f"{name}[", f"{name}."))), None)
    )


def too_busy(seconds: int) -> ApiError:
    """The queue is full."""
    message = f"too many requests are waiting; try again in {seconds} s"
    return ApiError(503, message, None, "queue_full", "server_error", {"Retry-After": str(seconds)})


def timed_out(seconds: float) -> ApiError:
    """The samples were not ready in time."""
    message = f"the samples were not ready in {seconds:g} s; ask for fewer tokens or steps"
    return ApiError(504, message, None, "timeout", "server_error")


def internal() -> ApiError:
    """A fault of the server, whose log has what happened."""
    return ApiError(500, "the server failed; its log says why", None, None, "server_error")
