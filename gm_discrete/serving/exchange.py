"""One request between the event loop and the engine: events come from its thread, and the client may go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from gm_discrete.serving.engine import Engine
from gm_discrete.serving.errors import ApiError, timed_out
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.planning import Job
from gm_discrete.serving.protocol import Ask
from gm_discrete.serving.transcript import Transcript
from gm_discrete.serving.vocabulary import Vocabulary
from gm_discrete.serving.wire import DONE, Answer, event

MOST_DRAFTS = 1024
"""Events that are kept for a client that reads slowly; older drafts are left out then."""


class Exchange:
    """The jobs of a request, and the texts of its choices.

    Args:
        timeout: seconds until the request is given up, for the message.
        end: when it is, by the clock of the loop.
    """

    def __init__(
        self,
        ask: Ask,
        jobs: Sequence[Job],
        vocabulary: Vocabulary,
        engine: Engine,
        metrics: Metrics,
        timeout: float,
        end: float,
    ) -> None:
        self.ask, self.jobs, self.engine, self.metrics = ask, jobs, engine, metrics
        self.timeout, self.end = timeout, end
        self.loop = asyncio.get_running_loop()
        self.events: deque[tuple[Job, tuple[Any, ...]]] = deque()
        self.news = asyncio.Event()
        self.left = len(jobs)
        places = sorted((number, row) for job in jobs for number, row in zip(job.numbers, job.rows, strict=True))
        self.choices = [Transcript(vocabulary, row, ask.stop) for _, row in places]
        self.prompt_tokens = sum(row.prompt for _, row in places[:: ask.n])
        for job in jobs:
            job.listener = partial(self._listen, job)

    def begin(self) -> None:
        """Puts the jobs into the queue.

        Raises:
            ApiError: it is full.
        """
        self.engine.submit(self.jobs)

    def release(self) -> None:
        """Gives up what is not finished."""
        if self.left:
            self.engine.cancel(self.jobs)
            self.metrics.count_cancelled()
            self.left = 0

    async def finished(self) -> None:
        """Waits for all samples."""
        async for _ in self._each():
            pass

    async def chunks(self, answer: Answer) -> AsyncIterator[str]:
        """The events of a stream. An error after the first one is an event, too."""
        try:
            for index, choice in enumerate(self.choices):
                if answer.chat:
                    yield answer.opening(index)
                if self.ask.drafts:
                    yield answer.chunk(index, "", draft=choice.outline())
            async for index, text, draft, over in self._each():
                choice = self.choices[index]
                more = {"draft": choice.pieces(draft)} if self.ask.drafts else {}
                if text or more or over:
                    yield answer.chunk(index, text, choice.reason, **more)
            if self.ask.include_usage:
                yield answer.last(self.choices)
            yield DONE
        except ApiError as error:
            yield event(error.body())

    async def _each(self) -> AsyncIterator[tuple[int, str, list[int], bool]]:
        """(choice, more text, state, whether it is the sample) as it happens.

        Raises:
            ApiError: generation failed, or took too long.
        """
        while self.left:
            if not self.events:
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), self.end - self.loop.time())
            if self.loop.time() >= self.end:
                self.release()
                raise timed_out(self.timeout)
            if not self.events:
                continue
            job, (kind, *content) = self.events.popleft()
            if kind == "failed":
                self.release()
                raise content[0]
            if kind == "draft":
                row, ids, settled = content
                index = job.numbers[row]
                yield index, self.choices[index].settle(ids, settled), ids, False
                continue
            self.left -= 1
            for index, ids in zip(job.numbers, content[0], strict=True):
                yield index, self.choices[index].finish(ids), ids, True
        self.metrics.count_tokens(self.prompt_tokens, sum(choice.tokens for choice in self.choices))

    def _listen(self, job: Job, happened: tuple[Any, ...]) -> None:
        """Is called by the thread of the engine."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._put, job, happened)

    def _put(self, job: Job, happened: tuple[Any, ...]) -> None:
        if len(self.events) >= MOST_DRAFTS and self.events[0][1][0] == "draft":
            self.events.popleft()
        self.events.append((job, happened))
        self.news.set()
