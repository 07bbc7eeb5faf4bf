"""The same new text from many clients at once, over several front ends: one run of the model, the same bits for all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from perf.stack import Stack
from tests.system.processes import clients_of, log_records, unread_bytes, wait_for
from tests.system.wire import Answer, Connection, openai_bits

pytestmark = pytest.mark.system

FRONTENDS = 4
CLIENTS = 100
BODY = b'{"input": "a text that nobody has sent before", "encoding_format": "base64"}'


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(frontends=FRONTENDS, cache_mb=32) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


async def connect_to_all(stack: Stack) -> tuple[list[Connection], list[Connection]]:
    """Connections of all front ends, and one observer of each: the kernel hands them out as it likes."""
    clients: list[Connection] = []
    while len(clients) < 10 * CLIENTS:
        clients += await asyncio.gather(*(Connection.open(stack.port) for _ in range(CLIENTS + FRONTENDS)))
        await look_healthy(clients)  # so each has been accepted
        held = [[c for c in clients if c.local_port in clients_of(pid)] for pid in stack.pids("frontend")]
        if len(held) == FRONTENDS and min(map(len, held)) >= 2:
            return [c for theirs in held for c in theirs[1:]], [theirs[0] for theirs in held]
    raise AssertionError("some front end gets no connections")


async def look_healthy(clients: list[Connection]) -> None:
    for client in clients:
        assert (await client.request("GET", "/health")).status == 200


async def ask_at_once(stack: Stack, clients: list[Connection], observers: list[Connection]) -> list[Answer]:
    """All of it is sent and read while the engine is stopped, so nobody's text comes after another's answer."""
    pid = stack.signal("engine", signal.SIGSTOP)
    try:
        for client in clients:
            await client.send("POST", "/v1/embeddings", BODY)
        await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "nothing unread")
        # What was read leaves for the engine within a few turns of each event loop.
        for _ in range(5):
            await look_healthy(observers)
    finally:
        os.kill(pid, signal.SIGCONT)
    return await asyncio.gather(*(client.receive() for client in clients))


def counters(stack: Stack, life: int) -> dict[str, int]:
    """End the engine in order; gives what it has counted in this one of its lives."""
    stack.signal("engine", signal.SIGTERM)
    return wait_for(lambda: log_records(stack.log, "stopped")[life:], "the engine's last words")[0]


def engine_anew(stack: Stack) -> None:
    """An engine that has run nothing, not even what a start asks to see whether all is ready."""
    # A server is ready as soon as one front end is: one that joins later would be taken for one that joins anew.
    wait_for(partial(has_joined, stack, FRONTENDS), "all front ends to join the first engine")
    with stack.without_engine():
        pass
    wait_for(partial(has_joined, stack, 2 * FRONTENDS), "all front ends to join the next")


def has_joined(stack: Stack, times: int) -> bool:
    return len(log_records(stack.log, "engine joined")) == times


def test_the_same_text_on_all_front_ends_is_run_once(stack: Stack) -> None:
    async def run() -> list[Answer]:
        clients, observers = await connect_to_all(stack)
        try:
            return await ask_at_once(stack, clients, observers)
        finally:
            for client in (*clients, *observers):
                await client.close()

    engine_anew(stack)
    answers = asyncio.run(run())
    assert len(answers) >= CLIENTS
    assert {answer.headers["x-cache"] for answer in answers} == {"miss"}
    assert len({bits for answer in answers for bits in openai_bits(answer)}) == 1
    assert len({answer.headers["x-inference-time"] for answer in answers}) == 1, "one batch computed them all"
    counted = counters(stack, life=1)
    assert (counted["items"], counted["shared"]) == (1, FRONTENDS - 1)
