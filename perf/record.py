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
    """One run. Rates are requests per second; times are in the unit their name ends with. `achieved_rate` counts right
    answers in the window, so that one that comes after its end is in the latencies and not in the rate.

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
    """A report and what it was made of: latencies in ns, the answers by the client's port, the generator's lags in ns
    (none in a closed loop).
    """

    report: Report
    latencies: Nanoseconds
    by_port: dict[int, int]
    lags: Nanoseconds


class Recorder:
    """Counts the answers of a window; what comes before and after it is warm-up and drain."""

    def __init__(self, check: Check | None) -> None:
        self._check = check
        self._latencies = array("q")
        self._by_port: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.is_open = False
        self._in_window = 0
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
            self._latencies.append(connection.answered_ns - connection.from_ns)
            self._by_port[connection.local_port] += 1
            self.note_early(connection)

    def note_early(self, connection: Connection) -> None:
        """Count an answer to a request of the warm-up: all that is answered in the window makes the achieved rate."""
        self._in_window += self.is_open and connection.status == 200

    def closed(self, connections: int, distinct: int) -> Run:
        """The run of a closed loop."""
        times = np.array(self._latencies, np.int64)
        requests = len(times) + self.errors.total()
        report = Report(
            mode="closed",
            connections=connections,
            seconds=self.seconds,
            achieved_rate=self._in_window / self.seconds,
            requests=requests,
            distinct=min(distinct, requests),
            errors=dict(+self.errors),
            latency_ms=percentiles(times),
            generator_cpu_us=self._cpu_ns / 1e3 / max(1, requests),
        )
        return Run(report, times, dict(self._by_port), np.zeros(0, np.int64))

    def open(self, connections: int, distinct: int, *, offered: int, dropped: int, lags: Nanoseconds) -> Run:
        """The run of an open loop that offered so many requests in the window."""
        run = self.closed(connections, distinct)
        report = msgspec.structs.replace(
            run.report,
            mode="open",
            offered_rate=offered / self.seconds,
            dropped=dropped,
            lag_ms=percentiles(lags),
            void=reasons(lags, dropped, self.errors["unanswered"]),
        )
        return msgspec.structs.replace(run, report=report, lags=lags)


def reasons(lags: Nanoseconds, dropped: int, unanswered: int) -> tuple[str, ...]:
    """Why an open loop's numbers must not be used; empty where they may."""
    lag = percentiles(lags)
    found = []
    if lag is not None and lag.p99 > MOST_LAG_P99_MS:
        found.append(f"the generator was late: p99 {lag.p99:.1f} ms")
    if dropped:
        found.append(f"{dropped} requests found no free connection")
    if unanswered:
        found.append(f"{unanswered} requests were never answered")
    return tuple(found)


def merge(runs: Sequence[Run]) -> Run:
    """One run of several generators that ran at the same time, each with requests of its own."""
    reports = [run.report for run in runs]
    latencies = np.concatenate([run.latencies for run in runs])
    lags = np.concatenate([run.lags for run in runs])
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    dropped = sum(report.dropped for report in reports)
    requests = sum(report.requests for report in reports)
    offered = [report.offered_rate for report in reports if report.offered_rate is not None]
    report = msgspec.structs.replace(
        reports[0],
        connections=sum(report.connections for report in reports),
        seconds=max(report.seconds for report in reports),
        achieved_rate=sum(report.achieved_rate for report in reports),
        requests=requests,
        distinct=sum(report.distinct for report in reports),
        errors=dict(errors),
        latency_ms=percentiles(latencies),
        generator_cpu_us=sum(r.generator_cpu_us * r.requests for r in reports) / max(1, requests),
        offered_rate=sum(offered) if offered else None,
        dropped=dropped,
        lag_ms=percentiles(lags),
        void=reasons(lags, dropped, errors["unanswered"]),
    )
    by_port = {port: count for run in runs for port, count in run.by_port.items()}
    return Run(report, latencies, by_port, lags)
