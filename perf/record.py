"""What one run of the load generator counted, and the report it makes."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from perf.http import BROKEN, Connection
from perf.stats import Nanoseconds, Percentiles, percentiles

# Above this the generator's own lateness would be a good part of what is measured.
MOST_LAG_P99_MS = 5.0

# Gets a connection whose answer has status 200; False where the content is wrong.
Check = Callable[[Connection], bool]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Rates are requests per second; times are in the unit their name ends with.

    `errors` counts by status, "broken" (no answer), "wrong" (the check said so) and "unanswered" (gave up waiting);
    such requests are not in the latencies. `distinct` is how many different requests were sent. `void` says why these
    numbers must not be used.
    """

    mode: str
    connections: int
    seconds: float
    achieved_rate: float
    requests: int
    distinct: int
    errors: dict[str, int]
    latency_ms: Percentiles | None
    generator_cpu_us: float
    offered_rate: float | None = None
    dropped: int = 0
    lag_ms: Percentiles | None = None
    void: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """A report and what it was made of: latencies in ns, and the answers by the client's port."""

    report: Report
    latencies: Nanoseconds
    by_port: dict[int, int]


class Recorder:
    """Counts the answers of a window; what comes before and after it is warm-up and drain."""

    def __init__(self, check: Check | None) -> None:
        self._check = check
        self._latencies = array("q")
        self._by_port: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.is_open = False
        self._began_ns = self._cpu_ns = 0
        self.seconds = 0.0

    def begin(self) -> None:
        """Open the window."""
        self._began_ns, self._cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        self.is_open = True

    def end(self) -> None:
        """Close it; only the first call counts."""
        if self.is_open:
            self.is_open = False
            self.seconds = (time.monotonic_ns() - self._began_ns) / 1e9
            self._cpu_ns = time.thread_time_ns() - self._cpu_ns

    def note(self, connection: Connection) -> None:
        """Count an answer."""
        if connection.status != 200:
            self.errors["broken" if connection.status == BROKEN else str(connection.status)] += 1
        elif self._check is not None and not self._check(connection):
            self.errors["wrong"] += 1
        else:
            self._latencies.append(time.monotonic_ns() - connection.from_ns)
            self._by_port[connection.local_port] += 1

    def closed(self, connections: int, distinct: int) -> Run:
        """The run of a closed loop."""
        times = np.array(self._latencies, np.int64)
        requests = len(times) + self.errors.total()
        report = Report(
            mode="closed",
            connections=connections,
            seconds=self.seconds,
            achieved_rate=len(times) / self.seconds,
            requests=requests,
            distinct=min(distinct, requests),
            errors=dict(+self.errors),
            latency_ms=percentiles(times),
            generator_cpu_us=self._cpu_ns / 1e3 / max(1, requests),
        )
        return Run(report, times, dict(self._by_port))

    def open(self, connections: int, distinct: int, *, offered: int, dropped: int, lags: Nanoseconds) -> Run:
        """The run of an open loop that offered so many requests in the window."""
        run = self.closed(connections, distinct)
        lag = percentiles(lags)
        void = []
        if lag is not None and lag.p99 > MOST_LAG_P99_MS:
            void.append(f"the generator was late: p99 {lag.p99:.1f} ms")
        if dropped:
            void.append(f"{dropped} requests found no free connection")
        if unanswered := self.errors["unanswered"]:
            void.append(f"{unanswered} requests were never answered")
        offered_rate = offered / self.seconds
        report = msgspec.structs.replace(
            run.report, mode="open", offered_rate=offered_rate, dropped=dropped, lag_ms=lag, void=tuple(void)
        )
        return msgspec.structs.replace(run, report=report)


def texts_per_second(run: Run, texts_per_request: int) -> float:
    """Rate of texts answered rightly."""
    return run.report.achieved_rate * texts_per_request


def total_errors(runs: Sequence[Run]) -> int:
    """Requests that got no right answer."""
    return sum(sum(run.report.errors.values()) + run.report.dropped for run in runs)
