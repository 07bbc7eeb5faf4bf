"""What answers tell of themselves: their times, and the model's runs that can be told from these."""

from __future__ import annotations

import re
from array import array
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from perf.http import Connection
from perf.stats import Nanoseconds, Percentiles, percentiles

_TIMES: Final = re.compile(
    rb"\r\nx-compute-tokens: *(\d+)\r\nx-total-time: *([\d.]+)\r\nx-tokenization-time: *([\d.]+)"
    rb"\r\nx-queue-time: *([\d.]+)\r\nx-inference-time: *([\d.]+)"
)
_HIT: Final = b"\r\nx-cache: hit"
# Answers of one batch come within this time; those of two that took equally long, to the microsecond, hardly ever do.
BATCH_SPAN_NS: Final = 20_000_000


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a phase's answers say. `tokens` is the mean of a request; `rest_ms` is what is neither tokenizing nor queue
    nor model: messages, waking, encoding. `batches` counts the model's runs by their texts. `hits` is the share that
    came from a cache.
    """

    tokens: float
    total_ms: Percentiles
    tokenize_ms: Percentiles
    queue_ms: Percentiles
    compute_ms: Percentiles
    rest_ms: Percentiles
    batches: dict[int, int]
    hits: float

    @property
    def batch(self) -> float | None:
        """Mean texts of a run of the model; None where it is not known."""
        runs = sum(self.batches.values())
        return sum(size * count for size, count in self.batches.items()) / runs if runs else None


class Answers:
    """A Check that refuses nothing and keeps each answer's head and time (ns): they are read after the run."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.times = array("q")

    def __call__(self, connection: Connection) -> bool:
        """Keep one."""
        self.heads.append(connection.head)
        self.times.append(connection.answered_ns)
        return True

    def served(self, *, texts: int) -> Served | None:
        """Read them all, of requests with so many texts; None where nothing tells its times, as other servers."""
        matches = [_TIMES.search(head) for head in self.heads]
        if not matches or None in matches:
            return None
        found = np.array([match.groups() for match in matches if match], np.float64)
        tokens, total, tokenize, queue, compute = found.T
        times = (total, tokenize, queue, compute, np.maximum(total - tokenize - queue - compute, 0))
        ms = [percentiles(np.asarray(column * 1e6, np.int64)) for column in times]
        batches = batch_sizes(compute, np.array(self.times)) if texts == 1 else {}
        hits = sum(_HIT in head for head in self.heads) / len(self.heads)
        names = ("total_ms", "tokenize_ms", "queue_ms", "compute_ms", "rest_ms")
        return Served(tokens=float(tokens.mean()), batches=batches, hits=hits, **dict(zip(names, ms, strict=True)))  # type: ignore[arg-type]


def batch_sizes(compute: NDArray[np.float64], times: Nanoseconds) -> dict[int, int]:
    """How many of the model's runs had so many texts: {texts: runs}, from each answer's compute time and arrival.

    Texts of one batch have one compute time. A time of 0 is no run: the vector came from a cache.
    """
    compute, times = compute[compute > 0], times[compute > 0]
    order = np.lexsort((times, compute))
    compute, times = compute[order], times[order]
    is_new = (np.diff(compute) != 0) | (np.diff(times) > BATCH_SPAN_NS)
    sizes = np.diff(np.flatnonzero(np.concatenate(([True], is_new, [True]))))
    found, counts = np.unique(sizes, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True)) if len(compute) else {}
