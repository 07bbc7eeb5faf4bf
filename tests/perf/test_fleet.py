"""Several generators against a server that runs in a thread beside them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from perf.fleet import Fleet, orders
from perf.http import Target
from perf.load import build_requests
from perf.pacing import make_schedule
from tests.perf.test_load import OK, Server

SECONDS = 0.3


@pytest.fixture
def served() -> Iterator[tuple[Target, list[bytes]]]:
    seen: list[bytes] = []
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: Server(lambda _: OK, seen), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Target("127.0.0.1", server.sockets[0].getsockname()[1], "key"), seen
    server.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(server.wait_closed())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_schedule_is_shared_out_and_nothing_is_lost(served: tuple[Target, list[bytes]]) -> None:
    target, seen = served
    requests = build_requests(target, [f"text {n}" for n in range(100)])
    schedule = make_schedule("poisson", 200, SECONDS)
    windows: list[bool] = []
    with Fleet(orders(target, requests, 64, SECONDS, 0, schedule, 2)) as fleet:
        assert set(fleet.pids) == {"generator-0", "generator-1"}
        run, answers = fleet.run(windows.append)
    assert windows == [True, False]
    assert run.report.requests == len(seen) == len(schedule) == len(run.latencies) == len(answers.heads)
    assert len({data.partition(b"\r\n\r\n")[2] for data in seen}) == len(schedule)
    assert run.report.mode == "open"
    assert len(run.lags) == len(schedule)


def test_orders_hold_every_request_connection_and_departure_once(served: tuple[Target, list[bytes]]) -> None:
    target, _ = served
    given = orders(target, [b"a", b"b", b"c"], 5, 1.0, 0.0, np.arange(4), 2)
    assert [order.requests for order in given] == [[b"a", b"c"], [b"b"]]
    assert sum(order.connections for order in given) == 5
    assert sorted(np.concatenate([np.frombuffer(o.schedule or b"", np.int64) for o in given])) == [0, 1, 2, 3]


def test_a_closed_loop_of_several_adds_up(served: tuple[Target, list[bytes]]) -> None:
    target, _ = served
    with Fleet(orders(target, build_requests(target, ["one", "two"]), 4, SECONDS, 0, None, 2)) as fleet:
        run, answers = fleet.run(lambda _: None)
    assert run.report.errors == {}
    assert run.report.requests == len(answers.heads) == sum(run.by_port.values())
    assert len(run.by_port) == run.report.connections == 4
