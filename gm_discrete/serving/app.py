"""The web application: what each path answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gm_discrete.serving.access import Access
from gm_discrete.serving.engine import Engine
from gm_discrete.serving.errors import ApiError, refused, timed_out
from gm_discrete.serving.exchange import Exchange
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.page import PAGE, POLICY
from gm_discrete.serving.planning import Job, Planner
from gm_discrete.serving.protocol import Ask, parse
from gm_discrete.serving.settings import Settings
from gm_discrete.serving.wire import Answer

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0
"""In which a client has to send the body of its request."""
LAST_SECONDS = 1.0
"""After the end of its time, in which a stream may still send that it is over."""
EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers of a stream: proxies are to pass on each event at once."""


def create_app(engine: Engine, planner: Planner, settings: Settings, metrics: Metrics, name: str) -> FastAPI:
    """The application that serves one model.

    Args:
        name: of the model; requests that name another one get 404.
    """
    created = int(time.time())
    # Tokenising takes time, and no two threads may do it at once.
    planning = ThreadPoolExecutor(1, "gm_discrete planning")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        planning.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="gm_discrete", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Access, settings=settings, metrics=metrics)  # pyright: ignore[reportArgumentType]

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, dict(error.headers))

    @app.exception_handler(HTTPException)
    async def miss(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")
        return JSONResponse(found.body(), error.status_code, error.headers)

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})

    @app.get("/health")
    async def health() -> dict[str, str]:
        if (trouble := engine.trouble) is not None:
            raise ApiError(503, trouble, None, "unhealthy", "server_error")
        return {"status": "ok"}

    @app.get("/metrics")
    async def numbers() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        check_name(model)
        return card()

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(request, chat=True)

    def card() -> dict[str, Any]:
        own = {"id": name, "object": "model", "created": created, "owned_by": "gm_discrete"}
        return {**own, **planner.description()}

    def check_name(asked: str | None) -> None:
        if asked not in (None, name):
            raise ApiError(404, f"model={asked!r} does not exist; this server has {name!r}", "model", "model_not_found")

    def plan(body: bytes, chat: bool) -> tuple[Ask, list[Job]]:
        ask = parse(body, chat, settings)
        check_name(ask.model)
        return ask, planner.plan(ask)

    async def answer(request: Request, chat: bool) -> Response:
        body = await body_of(request, settings.max_body)
        loop = asyncio.get_running_loop()
        end = loop.time() + settings.timeout
        try:
            async with asyncio.timeout_at(end):
                ask, jobs = await loop.run_in_executor(planning, plan, body, chat)
        except TimeoutError:
            raise timed_out(settings.timeout) from None
        exchange = Exchange(ask, jobs, planner.vocabulary, engine, metrics, settings.timeout, end)
        found = Answer(chat, name, exchange.prompt_tokens)
        exchange.begin()
        if ask.stream:
            return Stream(exchange, found)
        work = asyncio.ensure_future(exchange.finished())
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)  # which nobody reads
            await work
        finally:
            work.cancel()
            gone.cancel()
            exchange.release()
        return JSONResponse(found.whole(exchange.choices))

    return app


class Stream(StreamingResponse):
    """Server-sent events of a request, which is given up when the client goes away, also before the first event, and when
    its time is over, also while the client does not read."""

    def __init__(self, exchange: Exchange, answer: Answer) -> None:
        super().__init__(exchange.chunks(answer), media_type="text/event-stream", headers=EVENTS)
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self.exchange.end + LAST_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("a client did not read its stream in %g s", self.exchange.timeout)
        finally:
            self.exchange.release()


async def disconnected(request: Request) -> None:
    """Waits until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is no JSON by its header, too long, or comes too slowly.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # the other types are those that a page of a foreign site may send without asking
        raise ApiError(415, f"Content-Type is {kind[:60]!r}; send application/json")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise ApiError(413, f"the body has more than {most} bytes")
                parts.append(part)
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    except TimeoutError:
        raise ApiError(408, f"the body did not come in {BODY_SECONDS:g} s") from None
    if not size:
        raise refused("the body is empty; send a JSON object")
    return b"".join(parts)
