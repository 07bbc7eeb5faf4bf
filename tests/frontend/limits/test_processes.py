"""Accuracy with several processes on one key, and real time: windows of 2 s, of 60 buckets as ever."""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from frontend.limits.embedded import boot_clock
from frontend.limits.quota import BUCKETS, COUNTED
from perf.redis_server import RedisServer
from tests.frontend.limits.hammer import WINDOW_SECONDS

PROCESSES = 4
LIMIT = 200
WINDOW_NS = int(WINDOW_SECONDS * 1e9)
PERIOD_NS = WINDOW_NS * COUNTED // BUCKETS
PERIODS = 2


class Admission(NamedTuple):
    """Decided between these two times (ns)."""

    earliest: int
    latest: int


@pytest.fixture(params=["embedded", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "embedded":
        yield ""
        return
    with RedisServer() as server:
        yield server.url


def hammer(folder: Path, url: str, burst: int, pause: float) -> list[Admission]:
    """Admissions of all processes, in order."""
    seconds = (PERIODS * PERIOD_NS + WINDOW_NS / 4) / 1e9
    arguments = [str(folder), url, str(LIMIT), str(burst), str(pause), str(seconds)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.frontend.limits.hammer", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        start = str(boot_clock() + 50_000_000)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{start}\n")
            process.stdin.flush()
        found = [Admission(*times) for process in processes for times in json.loads(process.communicate()[0])]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return sorted(found)


def most_in_a_window(admissions: list[Admission]) -> int:
    """The most that were certainly decided within any window that begins with an admission."""
    most, ends = 0, list[int]()
    # Backwards: `ends` are those of all that began later.
    for admission in reversed(admissions):
        insort(ends, admission.latest)
        most = max(most, bisect_left(ends, admission.earliest + WINDOW_NS))
    return most


def test_the_count_of_a_window_is_that_of_its_worst_place() -> None:
    half = WINDOW_NS // 2
    times = [0, half, half + 1, WINDOW_NS - 1, WINDOW_NS, half + WINDOW_NS, 3 * WINDOW_NS]
    assert most_in_a_window([Admission(at, at) for at in times]) == 4
    assert most_in_a_window([Admission(0, 5), Admission(3, WINDOW_NS)]) == 1, "the second may have been later"


def test_steady_overload_of_all_processes(tmp_path: Path, url: str) -> None:
    """Ten times the limit and more, in single requests."""
    offered = 12 * LIMIT / WINDOW_SECONDS
    admissions = hammer(tmp_path, url, burst=1, pause=PROCESSES / offered)
    assert most_in_a_window(admissions) <= LIMIT * 1.01
    first = admissions[0].earliest
    steady = [admission for admission in admissions if admission.earliest < first + PERIODS * PERIOD_NS]
    assert len(steady) >= 0.97 * LIMIT * PERIODS * PERIOD_NS / WINDOW_NS


def test_bursts_of_all_processes_at_once(tmp_path: Path, url: str) -> None:
    """Each of the four alone asks for half the limit at once, again and again."""
    admissions = hammer(tmp_path, url, burst=LIMIT // 2, pause=0.19)
    assert LIMIT * 0.97 <= most_in_a_window(admissions) <= LIMIT * 1.01
    assert len(admissions) >= PERIODS * LIMIT
