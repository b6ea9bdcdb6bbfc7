"""The thread that owns the model: it takes jobs from a queue, those that fit together in one call of `generate`."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence

from gm_discrete.models import GMModel
from gm_discrete.serving.batch import Abandoned, generate
from gm_discrete.serving.errors import internal, too_busy
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.planning import Job

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60
"""Seconds after which a client is told to come again, at most."""
MOST_FAILURES = 3
"""Failed calls in a row after which the engine is not well: one may be the fault of its requests."""


class Engine:
    """Runs jobs, first come first served. Those with the key of the first one that waits go with it, up to `max_batch` rows.

    Args:
        max_batch: rows of one call.
        max_queue: rows that wait at most.
    """

    def __init__(self, model: GMModel, max_batch: int, max_queue: int, metrics: Metrics) -> None:
        self.model, self.max_batch, self.max_queue, self.metrics = model, max_batch, max_queue, metrics
        self._waiting: list[Job] = []
        self._running, self._failures = 0, 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="gm_discrete generation", daemon=True)
        metrics.gauges["gm_discrete_queue_sequences"] = "Sequences that wait.", lambda: self.waiting
        metrics.gauges["gm_discrete_running_sequences"] = "Sequences of the current call.", lambda: self._running

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why no samples are to be expected; `None` if all is well."""
        if not self._thread.is_alive():
            return "the thread that generates does not run"
        if self._failures >= MOST_FAILURES:
            return f"the last {self._failures} calls of the model failed; the log says why"
        return None

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return sum(len(job.rows) for job in [*self._waiting])

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts the jobs of one request into the queue, all of them or none. An empty queue takes any request.

        Raises:
            ApiError: the queue is full: 503.
        """
        with self._changed:
            waiting, more = self.waiting, sum(len(job.rows) for job in jobs)
            if self._closed or (waiting and waiting + more > self.max_queue):
                raise too_busy(self._wait())
            self._waiting += jobs
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Gives up jobs: those that wait leave the queue, and a call ends when all of its jobs are given up."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._waiting = [job for job in self._waiting if not job.cancelled]

    def close(self) -> None:
        """Ends the thread after the current call; jobs that still wait fail."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._changed.notify()
        for job in left:
            job.listener(("failed", too_busy(LONGEST_WAIT)))
        if self._thread.is_alive():
            self._thread.join()

    def _wait(self) -> int:
        """Seconds until the calls of what waits have probably been made."""
        done = self.metrics.call_time
        calls = max(1, math.ceil(self.waiting / self.max_batch))
        return max(1, min(LONGEST_WAIT, math.ceil(calls * done.sum / done.number))) if done.number else 1

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                jobs = self._take()
            try:
                self._run(jobs)
            finally:
                self._running = 0

    def _take(self) -> list[Job]:
        """The first job that waits, and those that fit with it into one call."""
        first = self._waiting[0]
        jobs, left, room = [], [], self.max_batch
        for job in self._waiting:
            fits = job is first or (job.key == first.key and len(job.rows) <= room)
            (jobs if fits else left).append(job)
            room -= len(job.rows) if fits else 0
        self._waiting = left
        self._running = sum(len(job.rows) for job in jobs)
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        start = time.monotonic()
        try:
            samples = generate(self.model, jobs)
        except Abandoned:
            return
        except Exception:  # whatever it is, the next call must run
            self._failures += 1
            logger.exception("a call of generate failed: %d sequences", self._running)
            for job in jobs:
                job.listener(("failed", internal()))
            return
        finally:
            self.metrics.call(self._running, time.monotonic() - start)
        self._failures = 0
        for job in jobs:
            own, samples = samples[: len(job.rows)], samples[len(job.rows) :]
            job.listener(("done", own))
