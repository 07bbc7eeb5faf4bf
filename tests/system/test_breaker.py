"""The circuit breaker before a real engine that hangs or is gone: 503 at once, and well again by itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from perf.stack import Stack
from tests.system.processes import log_records, wait_for
from tests.system.wire import Answer, Connection, fetch_bits, openai_body

pytestmark = pytest.mark.system

REQUESTS = 1000
CONNECTIONS = 10
# The bound; the most one answer may take here is far more, for two cores have other work as well.
P50_SECONDS = 0.005


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(frontends=1, engine_stall_ms=300, engine_grace_ms=300) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


async def timed(connection: Connection) -> tuple[Answer, float]:
    began = time.monotonic()
    return await connection.post("/v1/embeddings", openai_body("text")), time.monotonic() - began


async def many_refused(port: int) -> list[float]:
    """All requests get the same clear 503; gives how long each took, in seconds."""

    async def one() -> list[float]:
        async with await Connection.open(port) as connection:
            answers = [await timed(connection) for _ in range(REQUESTS // CONNECTIONS)]
        for answer, _ in answers:
            assert (answer.status, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        return [seconds for _, seconds in answers]

    return list(itertools.chain(*await asyncio.gather(*(one() for _ in range(CONNECTIONS)))))


def is_open(stack: Stack) -> bool:
    """By the log: it opens at a start as well, for the engine comes later than the grace given here."""
    return len(log_records(stack.log, "breaker opens")) > len(log_records(stack.log, "breaker closes"))


def works_again(stack: Stack, bits: bytes) -> None:
    wait_for(lambda: not is_open(stack), "the breaker to close")
    assert asyncio.run(bits_of(stack.port)) == bits


async def bits_of(port: int) -> bytes:
    async with await Connection.open(port) as connection:
        return await fetch_bits(connection, "text")


def hang(stack: Stack) -> Callable[[], object]:
    """Stop the engine as a debugger or a stuck driver would; gives what ends that."""
    pid = stack.signal("engine", signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def test_a_hung_engine_is_done_without_until_it_goes_on(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    async def run() -> list[float]:
        async with await Connection.open(stack.port) as first:
            await first.send("POST", "/v1/embeddings", json.dumps(openai_body("text")).encode())
            await asyncio.to_thread(wait_for, lambda: is_open(stack), "the breaker to open")
            took = await many_refused(stack.port)
            go_on()
            # What was under way when the breaker opened has its answer too.
            assert (await first.receive()).status == 200
        return took

    bits = asyncio.run(bits_of(stack.port))
    go_on = hang(stack)
    try:
        took = asyncio.run(run())
    finally:
        go_on()
    figures = {"p50_ms": statistics.median(took) * 1e3, "max_ms": max(took) * 1e3}
    record_property("figures", figures)
    print(figures)
    assert statistics.median(took) <= P50_SECONDS
    works_again(stack, bits)


def test_an_engine_that_is_gone_is_done_without_until_there_is_one(stack: Stack) -> None:
    bits = asyncio.run(bits_of(stack.port))
    with stack.without_engine():
        wait_for(lambda: is_open(stack), "the breaker to open")
        took = asyncio.run(many_refused(stack.port))
        assert statistics.median(took) <= P50_SECONDS
    works_again(stack, bits)
