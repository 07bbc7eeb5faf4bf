"""The generator against a server in the same event loop, which misbehaves as told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from perf.http import Connection, Target
from perf.load import Generator, build_requests
from perf.record import Run

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nbusy"
HANG_UP = b""
TEXTS = [f"text {n}" for n in range(50)]

Use = Callable[[Generator, list[bytes]], Coroutine[Any, Any, Run]]


class Server(asyncio.Protocol):
    """Answers request n of all with `answer(n)`; an empty answer hangs up. Requests come in one piece on loopback."""

    def __init__(self, answer: Callable[[int], bytes], seen: list[bytes]) -> None:
        self._answer = answer
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._to = transport

    def data_received(self, data: bytes) -> None:
        answer = self._answer(len(self._seen))
        self._seen.append(data)
        self._to.write(answer) if answer else self._to.close()


@asynccontextmanager
async def serving(answer: Callable[[int], bytes], seen: list[bytes]) -> Any:
    server = await asyncio.get_running_loop().create_server(lambda: Server(answer, seen), "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], "key")


def load(use: Use, answer: Callable[[int], bytes] = lambda _: OK, connections: int = 4) -> tuple[Run, list[bytes]]:
    seen: list[bytes] = []

    async def main() -> Run:
        async with serving(answer, seen) as target, Generator(target, connections) as generator:
            return await use(generator, build_requests(target, TEXTS))

    return asyncio.run(main()), seen


async def closed(generator: Generator, requests: list[bytes]) -> Run:
    return await generator.closed(requests, 0.05, warm_up=0)


async def at_once(generator: Generator, requests: list[bytes], count: int = 4) -> Run:
    return await generator.open(requests, np.arange(count, dtype=np.int64), warm_up=0)


def test_closed_loop_sends_the_requests_in_order_and_counts_the_answers() -> None:
    run, seen = load(closed, connections=1)
    assert run.report.errors == {}
    assert 0 < run.report.requests <= len(seen)
    assert [data.partition(b"\r\n\r\n")[2] for data in seen[:3]] == [b'{"input":"text %d"}' % n for n in range(3)]
    assert len(run.latencies) == run.report.requests == sum(run.by_port.values())


def test_closed_loop_uses_every_connection() -> None:
    run, _ = load(closed)
    assert len(run.by_port) == 4


def test_clients_that_think_ask_one_by_one_and_all_are_answered() -> None:
    async def thinking(generator: Generator, requests: list[bytes]) -> Run:
        return await generator.thinking(requests, 0.2, warm_up=0, think_seconds=0.01)

    run, seen = load(thinking)
    # Four clients have time for some twenty thoughts each; without any there would be thousands of requests.
    assert len(seen) < 250
    assert run.report.requests == len(run.latencies) > 0
    assert not run.report.errors
    assert len(seen) >= run.report.requests


def test_closed_loop_counts_errors_by_status_and_goes_on() -> None:
    run, _ = load(closed, lambda n: BUSY if n % 2 else OK)
    assert run.report.errors["429"] > 0
    assert run.report.requests == len(run.latencies) + run.report.errors["429"]


def test_closed_loop_opens_broken_connections_again() -> None:
    run, seen = load(closed, lambda n: HANG_UP if n == 2 else OK, connections=1)
    assert run.report.errors == {"broken": 1}
    assert len(seen) > 3


def test_a_check_may_call_an_answer_wrong() -> None:
    async def use(generator: Generator, requests: list[bytes]) -> Run:
        def is_first(connection: Connection) -> bool:
            assert connection.body == b"[]"
            return connection.number == 0

        return await generator.open(requests, np.arange(3, dtype=np.int64), warm_up=0, check=is_first)

    run, _ = load(use)
    assert run.report.errors == {"wrong": 2}


def test_open_loop_answers_all_that_was_scheduled() -> None:
    run, seen = load(at_once)
    assert (run.report.requests, run.report.dropped, len(seen)) == (4, 0, 4)
    assert run.report.mode == "open"
    assert run.report.lag_ms is not None


def test_open_loop_does_not_count_the_warm_up() -> None:
    async def use(generator: Generator, requests: list[bytes]) -> Run:
        return await generator.open(requests, np.array([0, 1, 2_000_000, 3_000_000]), warm_up=0.002)

    run, seen = load(use)
    assert (run.report.requests, len(seen)) == (2, 4)


def test_open_loop_is_void_where_a_request_finds_no_connection() -> None:
    run, seen = load(at_once, connections=1)
    assert run.report.dropped == 3
    assert len(seen) == 1
    assert "3 requests found no free connection" in run.report.void


def test_open_loop_latency_counts_from_the_scheduled_time() -> None:
    run, _ = load(at_once)
    assert run.report.latency_ms is not None
    assert run.report.lag_ms is not None
    assert run.report.latency_ms.max >= run.report.lag_ms.p50
