from __future__ import annotations

import mmap
import os
import socket
import subprocess

from perf.procfs import (
    Meter,
    descendants,
    descriptors,
    machine_cpu_ns,
    mappings,
    memory,
    owners_of_ports,
    thread_cpu_ns,
)


def test_memory_and_cpu_of_this_process() -> None:
    found = memory(os.getpid())
    assert 0 < found.pss <= found.rss
    assert thread_cpu_ns(os.getpid())[os.getpid()] > 0
    assert machine_cpu_ns() > 0


def test_what_is_opened_and_mapped_is_counted() -> None:
    open_before, mapped_before = descriptors(os.getpid()), mappings(os.getpid())
    # A shared mapping merges with no neighbour.
    with socket.socket(), mmap.mmap(-1, mmap.PAGESIZE):
        assert descriptors(os.getpid()) == open_before + 1
        assert mappings(os.getpid()) >= mapped_before + 1


def test_a_meter_sees_what_was_used_between_two_calls() -> None:
    meter = Meter({"engine": os.getpid()})
    meter.window(True)
    sum(range(100_000))
    meter.window(False)
    assert set(meter.usage.cpu) == {"engine", "generator"}
    assert meter.usage.cpu["generator"] > 0
    assert meter.usage.parts["main"] > 0
    assert meter.usage.seconds > 0


def test_a_connection_is_found_in_the_process_that_holds_it() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0],
    ):
        owners = owners_of_ports(listener.getsockname()[1], [os.getpid()])
        assert owners == {client.getsockname()[1]: os.getpid()}


def test_descendants_are_the_whole_tree() -> None:
    with subprocess.Popen(["sh", "-c", "cat | cat; true"], stdin=subprocess.PIPE) as shell:
        while len(found := descendants([shell.pid])) < 3:
            assert shell.poll() is None
        assert found[0] == shell.pid
        assert set(found) <= set(descendants([os.getpid()]))
        assert shell.stdin is not None
        shell.stdin.close()
