"""What this process uses of the machine."""

from __future__ import annotations

import os
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
