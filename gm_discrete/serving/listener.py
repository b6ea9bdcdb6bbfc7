"""A server of uvicorn that closes connections whose clients do not read."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import uvicorn

LAST_PATIENCE = 5.0
"""Seconds that such a client has when the server is told to end."""
TICKS = 10
"""Of 0.1 s between two looks at the connections."""


class Listener(uvicorn.Server):
    """uvicorn closes a connection when all of its bytes are sent, which never happens if the client reads nothing.

    Args:
        patience: seconds in which a client may read nothing of what waits for it.
    """

    def __init__(self, config: uvicorn.Config, patience: float) -> None:
        super().__init__(config)
        self.patience = patience
        self._unread: dict[Any, tuple[int, float]] = {}  # (bytes that wait, since when none was read)

    async def on_tick(self, counter: int) -> bool:
        """Looks at the connections from time to time."""
        if counter % TICKS == 0:
            self._abort(self.patience)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets running requests finish whose clients read."""
        watch = asyncio.create_task(self._watch())
        try:
            await super().shutdown(sockets)
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            self._abort(min(self.patience, LAST_PATIENCE))
            await asyncio.sleep(0.1)

    def _abort(self, patience: float) -> None:
        """Closes the connections that have not been read for that time."""
        now, found = time.monotonic(), {}
        for connection in [*self.server_state.connections]:
            transport: Any = connection.transport
            size = transport.get_write_buffer_size()
            before, since = self._unread.get(connection, (0, now))
            if size:
                found[connection] = size, since if size >= before else now
            if size and now - found[connection][1] > patience:
                transport.abort()
        self._unread = found
