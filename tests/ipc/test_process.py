from __future__ import annotations

import mmap
import resource
from collections.abc import Iterator

import psutil
import pytest

from ipc.process import cpu_seconds, raise_descriptor_limit, resident_bytes


def test_cpu_time_grows_as_the_kernel_says() -> None:
    def kernel() -> float:
        times = psutil.Process().cpu_times()
        return float(times.user + times.system)

    before, mine = kernel(), cpu_seconds()
    while kernel() < before + 0.2:
        pass
    # The kernel counts in steps of 10 ms.
    assert cpu_seconds() - mine > 0.15


def test_memory_is_what_the_kernel_says() -> None:
    before = psutil.Process().memory_info().rss
    # Not from the heap, which may have so much that was used before.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"x" * len(block))
        assert resident_bytes() >= before + (60 << 20)


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Those of this process, which are put back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_open_files_as_may_be(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
