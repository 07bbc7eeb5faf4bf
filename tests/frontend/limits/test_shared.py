"""The Redis store's own: lost scripts, expiry, one round trip a turn, and a clock that is set back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from frontend import redis_link
from frontend.limits.quota import Quota, Verdict
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from perf.redis_server import RedisServer
from tests.frontend.limits.clocked import clocked_redis

pytestmark = pytest.mark.anyio

QUOTA = Quota(rpm=100, rph=1000, tpm=10_000)
KEY = "embedlane:limits:{key}"


@pytest.fixture
async def link(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisLink]:
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 10.0)
    link = RedisLink(redis_server.url)
    yield link
    await link.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as redis:
        yield redis


def remaining(verdict: Verdict | None) -> int:
    assert verdict is not None
    assert verdict.rpm is not None
    return verdict.rpm.remaining


async def test_scripts_that_redis_lost_are_loaded_again(link: RedisLink, redis: Redis) -> None:
    store = RedisWindows(link)
    for n, together in enumerate((1, 1, 5)):
        await redis.script_flush()
        verdicts = await asyncio.gather(*(store.admit(f"key {n}", QUOTA, 1) for _ in range(together)))
        assert sorted(map(remaining, verdicts)) == list(range(100 - together, 100)), "each is charged once"
    assert link.failures == 0


async def test_what_is_asked_in_one_turn_is_one_round_trip(link: RedisLink, redis: Redis) -> None:
    store = RedisWindows(link)
    await store.admit("key", QUOTA, 1)
    before = (await redis.info("stats"))["total_connections_received"]
    verdicts = await asyncio.gather(*(store.admit("key", QUOTA, 1) for _ in range(50)))
    assert sorted(map(remaining, verdicts)) == list(range(49, 99))
    assert (await redis.info("stats"))["total_connections_received"] == before


async def test_who_gives_up_waiting_takes_nobody_along(link: RedisLink) -> None:
    store = RedisWindows(link)
    one, other = (asyncio.ensure_future(store.admit("key", QUOTA, 1)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert (await other) is not None
    assert one.cancelled()


async def test_a_key_is_gone_when_nothing_of_it_is_counted(link: RedisLink, redis: Redis) -> None:
    store = RedisWindows(link)
    await store.admit("key", Quota(rpm=10), 1)
    assert 0 < await redis.pttl(KEY) <= 61_000
    await store.admit("key", QUOTA, 1)
    assert 3_600_000 - 61_000 < await redis.pttl(KEY) <= 3_660_000
    assert await store.usage("unknown", QUOTA)
    assert await redis.keys() == [KEY.encode()], "who only looks leaves nothing"


async def test_a_clock_that_is_set_back_neither_frees_nor_locks_out(redis_server: RedisServer) -> None:
    quota = Quota(rpm=10)
    with clocked_redis(redis_server) as (clocked, link):
        for _ in range(10):
            assert (await clocked.admit("key", quota)).admitted
        clocked.clock.advance(-30)
        assert not (await clocked.admit("key", quota)).admitted
        clocked.clock.advance(91)
        assert (await clocked.admit("key", quota)).admitted
        clocked.clock.advance(-100_000)
        refused = await clocked.admit("key", Quota(rpm=1))
        assert (refused.retry_after or 0) <= 61, "not until the clock is where it was"
        await link.close()


async def test_an_error_of_the_script_is_no_answer(link: RedisLink, redis: Redis) -> None:
    await redis.set(KEY, "not a hash")
    store = RedisWindows(link)
    assert await store.admit("key", QUOTA, 1) is None
    link.is_up = True
    assert await asyncio.gather(*(store.admit("key", QUOTA, 1) for _ in range(3))) == [None] * 3
