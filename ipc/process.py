"""What this process uses of the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def cpu_seconds() -> float:
    """CPU time of all threads since the start, user and system."""
    return time.process_time()


def resident_bytes() -> int:
    """Memory of this process that is in RAM, shared pages with it."""
    return int(_STATM.read_bytes().split()[1]) * _PAGE
