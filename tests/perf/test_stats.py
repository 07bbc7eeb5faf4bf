from __future__ import annotations

import numpy as np
import pytest

from perf.stats import Spread, histogram, nearest_rank, percentiles, spread


@pytest.mark.parametrize(
    ("part", "expected"), [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)]
)
def test_percentiles_are_nearest_ranks(part: float, expected: float) -> None:
    assert nearest_rank(np.arange(1, 1001, dtype=np.float64), part) == expected


def test_percentiles_are_measured_values_in_milliseconds() -> None:
    found = percentiles(np.array([4_000_000, 1_000_000, 3_000_000, 2_000_000]))
    assert found is not None
    assert (found.p50, found.p95, found.p999, found.max) == (2.0, 4.0, 4.0, 4.0)


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles(np.array([], np.int64)) is None


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(median=3.0, q1=2.0, q3=4.0, min=1.0, max=5.0)


def test_histogram_counts_every_time_once() -> None:
    times = np.array([0.5, 1.0, 1.5, 2.0, 40.0]) * 1e6
    assert histogram(times.astype(np.int64), (0, 1, 2)) == {"0-1": 1, "1-2": 2, ">=2": 2}
