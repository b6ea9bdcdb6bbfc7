"""Counters and histograms of a server in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from threading import Lock

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
GENERATING = ("/v1/completions", "/v1/chat/completions")
"""Endpoints whose time is measured; the others answer at once."""


class Histogram:
    """How often values fell below each of some limits, their sum and their number.

    Args:
        limits: increasing; values beyond the last one are counted, too.
    """

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits, self.counts, self.sum = limits, [0] * (len(limits) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.limits, value)] += 1
        self.sum += value

    @property
    def number(self) -> int:
        """Values so far."""
        return sum(self.counts)

    def lines(self, name: str) -> list[str]:
        """Its samples: cumulative buckets, sum and number."""
        found, total = [], 0
        for limit, count in zip([*map(str, self.limits), "+Inf"], self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{limit}"}} {total}')
        return [*found, f"{name}_sum {self.sum:g}", f"{name}_count {total}"]


class Metrics:
    """What a server has done so far; threads may add to it at the same time.

    Attributes:
        gauges: numbers of now, by the name of the metric, each with its description.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.latency, self.batches, self.call_time = Histogram(SECONDS), Histogram(SIZES), Histogram(SECONDS)
        self.tokens: defaultdict[str, int] = defaultdict(int)
        self.cancelled = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        with self._lock:
            self.requests[endpoint, status] += 1
            if endpoint in GENERATING:
                self.latency.add(seconds)

    def call(self, sequences: int, seconds: float) -> None:
        """Counts a call of `generate`."""
        with self._lock:
            self.batches.add(sequences)
            self.call_time.add(seconds)

    def count_tokens(self, prompt: int, generated: int) -> None:
        """Counts the tokens of an answered request."""
        with self._lock:
            self.tokens["prompt"] += prompt
            self.tokens["generated"] += generated

    def count_cancelled(self) -> None:
        """Counts a request whose client went away, or whose time was over."""
        with self._lock:
            self.cancelled += 1

    def text(self) -> str:
        """All of them, in version 0.0.4 of the format."""
        with self._lock:
            found: list[str] = []
            requests = [
                f'gm_discrete_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
                for (endpoint, status), count in sorted(self.requests.items())
            ]
            _add(found, "gm_discrete_requests_total", "counter", "Requests that were answered.", requests)
            for kind in ("prompt", "generated"):
                name = f"gm_discrete_{kind}_tokens_total"
                _add(found, name, "counter", f"Tokens: {kind}.", [f"{name} {self.tokens[kind]}"])
            name = "gm_discrete_cancelled_total"
            _add(found, name, "counter", "Requests given up before their end.", [f"{name} {self.cancelled}"])
            for name, text, histogram in (
                (
                    "gm_discrete_request_seconds",
                    "From the arrival of a request for samples to the end of its answer.",
                    self.latency,
                ),
                ("gm_discrete_batch_sequences", "Sequences of a call of generate.", self.batches),
                ("gm_discrete_call_seconds", "Time of a call of generate.", self.call_time),
            ):
                _add(found, name, "histogram", text, histogram.lines(name))
        for name, (text, value) in self.gauges.items():
            _add(found, name, "gauge", text, [f"{name} {value():g}"])
        return "\n".join(found) + "\n"


def _add(lines: list[str], name: str, kind: str, text: str, samples: Sequence[str]) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
