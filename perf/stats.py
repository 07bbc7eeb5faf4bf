"""Percentiles and spreads: what is left of many numbers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Nanoseconds = NDArray[np.int64]


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, each one a value that was measured."""

    p50: float
    p95: float
    p99: float
    p999: float
    max: float


class Spread(msgspec.Struct, frozen=True):
    """A quantity measured several times: median, quartiles and ends, in its own unit."""

    median: float
    q1: float
    q3: float
    min: float
    max: float


def percentiles(times: Nanoseconds) -> Percentiles | None:
    """By nearest rank, so that no value is made up between two; None where there is none."""
    if not len(times):
        return None
    ordered = np.sort(times) / 1e6
    return Percentiles(*(nearest_rank(ordered, part) for part in (0.5, 0.95, 0.99, 0.999, 1.0)))


def nearest_rank(ordered: NDArray[np.float64], part: float) -> float:
    """The least value that `part` of all values do not exceed; `ordered` is ascending and not empty."""
    # Rounded first: 0.999 * 1000 is a hair above 999 in floating point.
    return float(ordered[math.ceil(round(part * len(ordered), 6)) - 1])


def spread(values: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation."""
    q1, q3 = (float(q) for q in np.quantile(values, (0.25, 0.75)))
    return Spread(statistics.median(values), q1, q3, min(values), max(values))


def histogram(times: Nanoseconds, edges_ms: Sequence[float]) -> dict[str, int]:
    """Count of times in each bin "a-b" (milliseconds, a included, b not) and in ">=b" for the last edge."""
    bins = [*edges_ms, math.inf]
    counts, _ = np.histogram(times / 1e6, bins=bins)
    names = [f"{a:g}-{b:g}" for a, b in itertools.pairwise(edges_ms)] + [f">={edges_ms[-1]:g}"]
    return dict(zip(names, map(int, counts), strict=True))
