"""What this process uses of the machine, and how much of it goes to its garbage collector."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import time
from functools import cache

_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds() -> float:
    """CPU time of all threads since the start, user and system."""
    return time.process_time()


def resident_bytes() -> int:
    """Memory of this process that is in RAM, shared pages with it."""
    return int(os.pread(_statm(), 256, 0).split()[1]) * _PAGE


@cache
def _statm() -> int:
    # Kept open: a process that has no descriptor left goes on, and counts on.
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as its hard limit does: the soft one is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Refused where the hard limit is above what the kernel has come to allow.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_collector() -> None:
    """Keep the garbage collector from going through modules and live requests again and again.

    With the default threshold of 700 new objects every few requests start a collection that frees nothing: it was
    13 % of a front end's time at full load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
