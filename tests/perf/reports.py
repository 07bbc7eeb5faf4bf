"""A load generator's report, made up."""

from __future__ import annotations

import msgspec

from perf.record import Report
from perf.stats import Percentiles


def report(p99: float | None, **changes: object) -> Report:
    """Ten requests, all answered; with None for p99, none in time."""
    plain = Report(
        mode="open",
        connections=1,
        seconds=1,
        achieved_rate=1,
        requests=10,
        distinct=10,
        errors={},
        latency_ms=None if p99 is None else Percentiles(1, 2, p99, 4, 5),
        generator_cpu_us=1,
        offered_rate=10,
    )
    return msgspec.structs.replace(plain, **changes)
