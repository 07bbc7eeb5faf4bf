"""Metrics of all processes, as files of prometheus_client in the run directory, one slot a process.

    metrics/frontend-0.lock                     held by the process that counts in this slot
    metrics/{counter,histogram,gauge_livesum}_frontend-0.db

A process takes the first slot of its kind that nobody holds and goes on counting where its predecessor there stopped.
So counters outlive their processes, there are never more files than processes that ran at once, and nothing needs to be
cleaned up. Gauges say how things are: those of a slot that nobody holds are not read. docs/decisions/0008.
"""

from __future__ import annotations

import itertools
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Metric, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ipc.liveness import ProcessLock, is_held

log = logging.getLogger(__name__)

# What prometheus_client puts before "_<slot>.db". Ours are counters, histograms, and gauges whose sum means something.
GAUGES = "gauge_livesum"
KINDS = ("counter", "histogram", GAUGES)
# A series is about 200 bytes. Beyond this size prometheus_client would make the file longer without the memory for it.
FILE_BYTES = 512 << 10
# A file that is so full when it is inherited is begun anew, for its new owner may count other things.
MOST_INHERITED = FILE_BYTES // 2
# What the library raises for a file that is gone, cut, or none of its own.
DAMAGED = (OSError, RuntimeError, ValueError, struct.error)
# From half a millisecond, a hit of the cache, to a deadline.
SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


@contextmanager
def counting(run_dir: Path, kind: str) -> Iterator[str]:
    """Have every metric that is made within the block be counted in a slot; `kind` is "frontend" or "engine".

    Gives the process's name among metrics, "frontend-0". Where the run directory has no room for a slot the log says
    so: then the process counts for itself, and nobody sees it.
    """
    slot = _open_slot(run_dir / "metrics", kind)
    if slot is None:
        yield kind
        return
    name = slot.path.stem
    before = values.ValueClass
    # prometheus_client asks the environment where its files are.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(run_dir / "metrics")
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]
    try:
        yield name
    finally:
        values.ValueClass = before
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        slot.release()


def exposition(run_dir: Path) -> bytes:
    """What all processes have counted, in Prometheus' text format; of the gauges those of the living."""
    registry = CollectorRegistry()
    registry.register(_Files(run_dir / "metrics"))
    return generate_latest(registry)


class Advance:
    """A counter that follows a number which somebody else counts up from 0."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last = 0.0

    def to(self, value: float) -> None:
        """Add what the number has grown by since the last call."""
        self._counter.inc(value - self._last)
        self._last = value


class _Files(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        paths = list(self._to_read())
        try:
            return _merge(paths)
        except DAMAGED:
            # A process that starts begins its files anew, or has not yet come to one that is damaged.
            return _merge([path for path in paths if _entries(path) is not None])

    def _to_read(self) -> Iterator[Path]:
        for path in self._folder.glob("*.db"):
            prefix, _, slot = path.stem.rpartition("_")
            if prefix != GAUGES or is_held(self._folder / f"{slot}.lock"):
                yield path


def _merge(paths: Iterable[Path]) -> Iterable[Metric]:
    merged: Iterable[Metric] = MultiProcessCollector.merge(list(map(str, paths)))  # type: ignore[no-untyped-call]
    return merged


def _open_slot(folder: Path, kind: str) -> ProcessLock | None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        slot = _take_slot(folder, kind)
        for prefix in KINDS:
            _prepare(folder / f"{prefix}_{slot.path.stem}.db", inherits=prefix != GAUGES)
    except OSError as error:
        log.error("metrics are not kept: free memory in the run directory", extra={"reason": str(error)})
        return None
    return slot


def _take_slot(folder: Path, kind: str) -> ProcessLock:
    slots = (ProcessLock.try_acquire(folder / f"{kind}-{n}.lock") for n in itertools.count())
    return next(slot for slot in slots if slot is not None)


def _prepare(path: Path, *, inherits: bool) -> None:
    """Leave a file whose memory is set aside, with what is inherited in it. Raises OSError where there is none."""
    if not inherits or not _is_sound(path):
        path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Without this a full tmpfs would show itself later, as SIGBUS at the first touch of a page.
        os.posix_fallocate(descriptor, 0, FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _is_sound(path: Path) -> bool:
    """Whether a file can be read and has room left."""
    entries = _entries(path)
    return entries is not None and (not entries or entries[-1][-1] < MOST_INHERITED)


def _entries(path: Path) -> list[tuple[str, float, float, int]] | None:
    """Key, value, time and place of each series in a file; None for one that cannot be read."""
    try:
        return list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
    except DAMAGED:
        return None
