from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from frontend import redis_link
from frontend.redis_link import RedisLink
from perf.redis_server import RedisServer
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def link(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisLink]:
    monkeypatch.setattr(redis_link, "RETRY_SECONDS", 0.05)
    # The machine of the tests may be busy: what is tested here is not how quick Redis is.
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.5)
    link = RedisLink(server.url)
    yield link
    await link.close()


async def ask(link: RedisLink) -> object:
    return await link.call(lambda redis: redis.set("a", "b"))


def is_up(link: RedisLink) -> bool:
    """A call, for mypy believes that an attribute is still what was asserted of it."""
    return link.is_up


async def back(link: RedisLink) -> None:
    give_up = time.monotonic() + 10
    while not await ask(link):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_call_gives_what_redis_gave(link: RedisLink) -> None:
    assert await ask(link) is True
    assert await link.call(lambda redis: redis.get("a")) == b"b"
    assert (link.is_up, link.failures) == (True, 0)


async def test_a_killed_redis_is_done_without_and_used_again(
    link: RedisLink, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert await ask(link)
    server.kill()
    assert [await ask(link) for _ in range(3)] == [None] * 3
    assert not is_up(link)
    server.start()
    await back(link)
    assert is_up(link)
    assert [record.message for record in caplog.records if record.name == redis_link.__name__] == [
        "redis is away",
        "redis is back",
    ], "each change is told once"


async def test_a_hung_redis_costs_one_timeout_and_not_one_for_each_call(
    link: RedisLink, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await ask(link)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert await ask(link) is None
        failures = link.failures
        monkeypatch.setattr(redis_link, "RETRY_SECONDS", 3600)
        await eventually(lambda: not link._may_try())
        assert [await ask(link) for _ in range(1000)] == [None] * 1000
        assert link.failures == failures, "none of these calls waited for Redis"
    finally:
        server.process.send_signal(signal.SIGCONT)


async def test_connections_that_ended_while_they_were_idle_are_opened_anew(
    link: RedisLink, server: RedisServer
) -> None:
    assert await asyncio.gather(*(ask(link) for _ in range(8))) == [True] * 8
    server.kill()
    server.start()
    assert await asyncio.gather(*(ask(link) for _ in range(8))) == [True] * 8
    assert (link.is_up, link.failures) == (True, 0)
