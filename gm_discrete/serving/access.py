"""What comes before and after every request: the key, headers of the answer, counting, and errors that nobody expected."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gm_discrete.serving.errors import ApiError, internal
from gm_discrete.serving.metrics import GENERATING, Metrics
from gm_discrete.serving.settings import Settings, is_loopback

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Send], Awaitable[None]]

OPEN = ("/", "/health")
"""Paths that need no key."""
COUNTED = (*OPEN, "/v1/models", *GENERATING, "/metrics")
"""Paths with counts of their own; all others are counted together, as there are endlessly many."""


class Access:
    """An ASGI application around another one.

    A request without the key gets 401. Without a key a server of this machine answers only requests that are addressed to
    it by a name of this machine: otherwise a page of a foreign site could give its own name the address 127.0.0.1 and read
    the answers (DNS rebinding).
    """

    def __init__(self, app: Asgi, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.key = None if settings.api_key is None else f"bearer {settings.api_key}".encode()

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            if (error := self.refusal(scope)) is not None:
                await respond(error, counted)
            else:
                await self.app(scope, receive, counted)
        except Exception:  # the last resort: a client learns nothing of what happened
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await respond(internal(), counted)
        finally:
            endpoint = scope["path"] if scope["path"] in COUNTED else "other"
            self.metrics.request(endpoint, status or 499, time.monotonic() - start)  # 499: the client went away

    def refusal(self, scope: Message) -> ApiError | None:
        """Why a request gets no further."""
        headers = dict(scope["headers"])
        if self.key is None:
            if self.settings.is_local and not _is_local(headers.get(b"host", b"")):
                message = "this server has no key, and answers only to names of its own machine; give it an api_key"
                return ApiError(403, message, None, "unknown_host")
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scope["path"] in OPEN or hmac.compare_digest(kind.lower() + b" " + given, self.key):
            return None
        message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
        return ApiError(401, message, None, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _is_local(host: bytes) -> bool:
    """Whether the value of a Host header names this machine."""
    name = host.decode("latin-1")
    if not name.endswith("]"):
        name = name.rpartition(":")[0] or name
    return is_loopback(name)


async def respond(error: ApiError, send: Send) -> None:
    """Sends an error."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
