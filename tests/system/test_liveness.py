"""A stopped engine, a slow one, clients that hang up: who is told what, and when all is well again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perf.stack import Stack
from tests.system.processes import log_records, unread_bytes, wait_for
from tests.system.wire import Answer, Connection, fetch_bits, openai_body

pytestmark = pytest.mark.system

TEXTS = 300


@pytest.fixture
def stack() -> Iterator[Stack]:
    # One lane and one text a batch: what is dropped before it is batched shows in the engine's count of texts.
    with Stack(frontends=1, lanes=1, max_batch_rows=1) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


@contextmanager
def stopped_engine(stack: Stack) -> Iterator[None]:
    pid = stack.signal("engine", signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_stopped_engine(stack: Stack) -> None:
    """Health, readiness, deadlines, and the way back, all on connections that stay open."""

    async def run() -> None:
        async with await Connection.open(stack.port) as client, await Connection.open(stack.port) as observer:
            before = await fetch_bits(client, "text")
            with stopped_engine(stack):
                assert (await observer.request("GET", "/health")).status == 200
                await not_ready(observer)
                await ends_at_its_deadline(client, observer)
            assert await fetch_bits(client, "text") == before
            assert (await observer.request("GET", "/ready")).status == 200

    asyncio.run(run())


async def not_ready(observer: Connection) -> None:
    """The last vector counts for a second: a first answer may still be "ready"."""
    give_up = time.monotonic() + 10
    while (answer := await observer.request("GET", "/ready")).status == 200:
        assert time.monotonic() < give_up
    assert answer.status == 503
    assert answer.json()["status"] == "not ready"


async def ends_at_its_deadline(client: Connection, observer: Connection) -> None:
    for timeout_ms in (1, 200, 1000):
        began = time.monotonic()
        answer = await client.post("/v1/embeddings", openai_body("text"), X_Request_Timeout_Ms=str(timeout_ms))
        assert answer.status == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert timeout_ms / 1e3 <= time.monotonic() - began < timeout_ms / 1e3 + 2
        assert (await observer.request("GET", "/health")).status == 200


def test_requests_of_a_stopped_engine_are_answered_once_it_goes_on(stack: Stack) -> None:
    async def run() -> list[Answer]:
        clients = [await Connection.open(stack.port) for _ in range(20)]
        try:
            with stopped_engine(stack):
                for number, client in enumerate(clients):
                    await client.send("POST", "/embed", b'{"inputs": "text %d"}' % (number % 3))
                await has_read_all(stack)
            return await asyncio.gather(*(client.receive() for client in clients))
        finally:
            for client in clients:
                await client.close()

    answers = asyncio.run(run())
    assert [answer.status for answer in answers] == [200] * 20
    assert len({answer.body for answer in answers}) == 3


async def has_read_all(stack: Stack) -> None:
    """Wait until the front end has accepted every connection and read every byte."""
    await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "nothing unread")


async def some_turns(stack: Stack) -> None:
    """Let the front end's event loop turn a few times: an answer comes at the end of a turn."""
    async with await Connection.open(stack.port) as observer:
        for _ in range(5):
            assert (await observer.request("GET", "/health")).status == 200


def texts_computed(stack: Stack) -> int:
    """End the engine in order; gives how many texts it has run in its life."""
    stack.signal("engine", signal.SIGTERM)
    return int(wait_for(lambda: log_records(stack.log, "stopped"), "the engine's last words")[0]["items"])


@pytest.mark.parametrize("requests", [1, TEXTS], ids=["one large request", "many small ones"])
def test_work_of_clients_that_hung_up_is_dropped(stack: Stack, requests: int) -> None:
    """All of it is sent while the engine is stopped, and taken back before it goes on."""

    async def run() -> None:
        body = json.dumps({"inputs": [f"nobody waits for number {n}" for n in range(TEXTS // requests)]}).encode()
        with stopped_engine(stack):
            clients = [await Connection.open(stack.port) for _ in range(requests)]
            for client in clients:
                await client.send("POST", "/embed", body)
            await has_read_all(stack)
            for client in clients:
                client.abort()
            await some_turns(stack)
        async with await Connection.open(stack.port) as client:
            assert (await client.post("/embed", {"inputs": "and now me"})).status == 200

    asyncio.run(run())
    # The probes of /ready, the last request, and what a lane could take before the engine had read on.
    assert texts_computed(stack) < 20
