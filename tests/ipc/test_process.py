from __future__ import annotations

import psutil

from ipc.process import cpu_seconds, resident_bytes


def test_what_the_kernel_says_of_this_process() -> None:
    process = psutil.Process()
    times = process.cpu_times()
    assert cpu_seconds() >= times.user + times.system - 0.02, "the kernel's are rounded to 10 ms"
    before = process.memory_info().rss
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert resident_bytes() >= before + (60 << 20)
