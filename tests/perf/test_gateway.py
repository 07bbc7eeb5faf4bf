from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from perf.gateway import (
    BURST_EVERY_SECONDS,
    CONNECTIONS,
    CYCLE_SECONDS,
    IDS,
    LIMIT,
    OVERLOAD,
    Client,
    Gateway,
    Limited,
    Raw,
    bursts,
    constant,
    most_in_window,
    passes,
    share_of_cycles,
)
from perf.http import Target


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 59.9], 2),
        ([0.0, 60.0], 1),
        ([0.0, 30.0, 59.0, 61.0, 89.0, 100.0], 4),
        ([*np.arange(0, 200, 0.125)], 480),
    ],
)
def test_the_most_within_any_minute(times: list[float], most: int) -> None:
    assert most_in_window(np.array(times)) == most


def test_the_share_of_whole_cycles() -> None:
    # All of the limit at once, and again as soon as it is free: a cycle is longer than 60 s.
    times = np.sort(np.concatenate([np.full(LIMIT, cycle * CYCLE_SECONDS) for cycle in range(4)]))
    assert share_of_cycles(times, 3) == pytest.approx(60 / 61)


@pytest.mark.parametrize("make", [constant, bursts])
def test_what_is_offered_is_ten_times_the_limit(make: object) -> None:
    schedules = make(120.0)  # type: ignore[operator]
    assert len(schedules) == CONNECTIONS
    assert all(times == sorted(times) for times in schedules)
    offered = sum(map(len, schedules))
    assert offered == pytest.approx(2 * OVERLOAD * LIMIT, rel=0.01)


def test_bursts_come_at_once() -> None:
    assert {at % BURST_EVERY_SECONDS for times in bursts(60.0) for at in times} == {0.0}


def test_a_client_sends_in_order_and_counts() -> None:
    async def run() -> tuple[list[float], Counter[str]]:
        answers = iter([b"200 OK", b"429 Too Many Requests", b"200 OK"])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 " + answer + b"\r\ncontent-length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        passed: list[float] = []
        statuses: Counter[str] = Counter()
        client = Client(passed, statuses)
        async with server:
            await client.connection.open(Target("127.0.0.1", server.sockets[0].getsockname()[1], "key"))
            await client.run(b"GET / HTTP/1.1\r\n\r\n", [0.0, 0.0, 0.0])
            client.connection.close()
        return passed, statuses

    passed, statuses = asyncio.run(run())
    assert passed == sorted(passed)
    assert statuses == {"200": len(passed), "429": 1} and len(passed) == 2


@pytest.mark.parametrize(
    ("worst", "steady", "hit", "times", "good"),
    [
        (1.0, 0.98, 0.5, 4, True),
        (1.02, 0.98, 0.5, 4, False),
        (1, 0.9, 0.5, 4, False),
        (1, 1, 2, 4, False),
        (1, 1, 1, 2, False),
    ],
)
def test_targets(worst: float, steady: float, hit: float, times: float, good: bool) -> None:
    limits = {"embedded": {"constant": Limited(worst, steady, {}), "bursts": Limited(1.0, 0.5, {})}}
    assert passes(Gateway(limits, hit, {IDS: Raw(times, 1.0, times), "texts computed": Raw(1.4, 1, 1.4)})) == good
