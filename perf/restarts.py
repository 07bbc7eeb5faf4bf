"""How long `/metrics` takes once many front ends have been killed and started again."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import count
from typing import Final

import msgspec
import numpy as np

from perf.stack import START_SECONDS, Stack
from perf.stats import Percentiles, percentiles

FRONTENDS: Final = 8
PASSES: Final = 5
# So many that each front end is asked in each pass; the first of a pass reads all files, others within a second do not.
CONNECTIONS: Final = 24
APART_SECONDS: Final = 1.1
POLL_SECONDS: Final = 0.02


class Restarted(msgspec.Struct, frozen=True, kw_only=True):
    """Files and series there are in the end, and what a scrape took, in ms."""

    restarts: int
    frontends: int
    files: int
    series: int
    scrape_ms: Percentiles


def measure_restarts(restarts: int, say: Callable[[str], None], passes: int = PASSES) -> Restarted:
    """Kill all front ends of a server again and again until at least so many were killed; then scrape."""
    with Stack(frontends=FRONTENDS, cache_mb=8) as stack:
        killed = 0
        while killed < restarts:
            killed += _restart_all(stack)
            say(f"{killed} front ends killed")
        times = np.array(list(_scrape(stack.port, passes)), np.int64)
        with urllib.request.urlopen(f"{stack.url}/metrics", timeout=30) as answer:  # noqa: S310 - our own http URL
            series = [line for line in answer.read().splitlines() if not line.startswith(b"#")]
        files = list((stack.run_dir / "metrics").glob("*.db"))
    found = percentiles(times)
    assert found is not None, "scrapes were answered"
    return Restarted(restarts=killed, frontends=FRONTENDS, files=len(files), series=len(series), scrape_ms=found)


def _restart_all(stack: Stack) -> int:
    """Gives how many were killed, once as many others run and one embeds."""
    old = set(stack.pids("frontend"))
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + START_SECONDS
    while len(set(stack.pids("frontend")) - old) < FRONTENDS:
        if time.monotonic() > give_up:
            raise RuntimeError(f"Killed front ends do not come back:\n{stack.log.read_text()[-5000:]}")
        time.sleep(POLL_SECONDS)
    stack.wait_ready()
    return len(old)


def _scrape(port: int, passes: int) -> Iterator[int]:
    """ns of each scrape."""
    connections = [HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(CONNECTIONS)]
    for number in count():
        for connection in connections:
            began = time.monotonic_ns()
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            # In the first pass connections are made, and front ends may still be starting.
            if number:
                yield time.monotonic_ns() - began
        if number == passes:
            break
        time.sleep(APART_SECONDS)
    for connection in connections:
        connection.close()
