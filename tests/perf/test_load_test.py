from __future__ import annotations

import pytest

from perf.load_test import Stats, read_stats


def test_locusts_figures_become_rates_percentiles_and_users_who_wait() -> None:
    stats = Stats(
        num_requests=100,
        num_failures=2,
        response_times={"20": 90, "500": 9, "12": 1},
        total_response_time=6312.0,
        max_response_time=499.6,
        start_time=1000.0,
        last_request_timestamp=1002.0,
    )
    closed = read_stats(stats, cpu_seconds=1.0)
    assert (closed.achieved_rate, closed.failures, closed.locust_cores) == (50.0, 2, 0.5)
    assert (closed.latency_ms.p50, closed.latency_ms.p95, closed.latency_ms.max) == (20.0, 500.0, 499.6)
    # 100 requests of 63.12 ms on average in two seconds.
    assert closed.waiting == pytest.approx(3.156)
