"""Clients that do not read: their requests end in time, and the server does not wait for them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import pytest
import uvicorn

from gm_discrete.serving import Settings, app, application, listener
from gm_discrete.serving.listener import Listener
from tests.helpers.servers import model_and_tokenizer, wait_for


@pytest.mark.parametrize("stuck", ["http.response.start", "http.response.body"])
def test_stream__ends_in_time_though_nobody_reads(monkeypatch: pytest.MonkeyPatch, stuck: str) -> None:
    monkeypatch.setattr(app, "LAST_SECONDS", 0.1)
    found = application(*model_and_tokenizer(), Settings(timeout=0.2))  # its engine does not run
    sent: list[Any] = []
    body = json.dumps({"prompt": "ab", "stream": True, "drafts": True}).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b"",
             "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if not incoming:
            await asyncio.Event().wait()
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == stuck:
            await asyncio.Event().wait()

    async def text() -> str:
        parts: list[bytes] = []

        async def keep(message: Any) -> None:
            parts.append(message.get("body", b""))

        await found({**scope, "method": "GET", "path": "/metrics"}, receive, keep)
        return b"".join(parts).decode()

    async def main() -> str:
        await asyncio.wait_for(found(scope, receive, send), 30)
        return await text()

    metrics = asyncio.run(main())
    assert sent[-1]["type"] == stuck
    assert "gm_discrete_cancelled_total 1" in metrics
    assert "gm_discrete_queue_sequences 0" in metrics


async def long(scope: Any, receive: Any, send: Any) -> None:
    """An application that sends more than any buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"a" * 65_536, "more_body": True})
        if scope["path"] == "/end":  # a connection that is to be closed, and has bytes left
            return


@pytest.mark.parametrize("path", ["/", "/end"])
@pytest.mark.parametrize("ending", [False, True])
def test_listener__closes_connections_that_are_not_read(
    monkeypatch: pytest.MonkeyPatch, path: str, ending: bool
) -> None:
    monkeypatch.setattr(listener, "LAST_PATIENCE", 0.2)
    monkeypatch.setattr(listener, "TICKS", 1)
    config = uvicorn.Config(long, "127.0.0.1", 0, log_level="critical", lifespan="off")
    server = Listener(config, 1000.0 if ending else 0.2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        listening = server.servers[0].sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # which its connections have, too
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listening.getsockname())
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_for(lambda: any(one.transport.get_write_buffer_size() for one in [*server.server_state.connections]))
            if ending:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()
            else:
                wait_for(lambda: not server.server_state.connections)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
