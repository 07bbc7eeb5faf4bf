"""The cache in a real Redis, by itself and behind the cache of a front end."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import numpy as np
import pytest
from redis.asyncio import Redis

from frontend import redis_link, remote_cache
from frontend.cache import CachedEngine, VectorCache
from frontend.redis_link import RedisLink
from frontend.remote_cache import PREFIX, RemoteCache
from ipc.errors import DeadlineExceeded
from perf.redis_server import RedisServer
from tests.frontend.peer import (
    DIGEST,
    DIM,
    TEXTS,
    EnginePeer,
    StartClient,
    StartPeer,
    eventually,
    expected,
    ids,
    start_call,
    vector,
)

pytestmark = pytest.mark.anyio

TTL = 1000
Front = Callable[[], CachedEngine]


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def value(number: int) -> bytes:
    return vector([number]).tobytes()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def server(shared_server: RedisServer) -> RedisServer:
    """Empty, and running."""
    if shared_server.process is None:
        shared_server.start()
    async with Redis.from_url(shared_server.url) as redis:
        await redis.flushall()
        await redis.config_set("maxmemory", 0)
    return shared_server


@pytest.fixture
async def raw(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as redis:
        yield redis


@pytest.fixture
async def new_remote(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], RemoteCache]]:
    monkeypatch.setattr(redis_link, "RETRY_SECONDS", 0.05)
    # The machine of the tests may be busy: what is tested here is not how quick Redis is.
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.5)
    links: list[RedisLink] = []
    remotes: list[RemoteCache] = []

    def new() -> RemoteCache:
        links.append(RedisLink(server.url))
        remotes.append(RemoteCache(links[-1], DIM, TTL))
        return remotes[-1]

    yield new
    for remote in remotes:
        await remote.close()
    for link in links:
        await link.close()


@pytest.fixture
async def remote(new_remote: Callable[[], RemoteCache]) -> RemoteCache:
    return new_remote()


@pytest.fixture
async def front(new_remote: Callable[[], RemoteCache], start_client: StartClient) -> Front:
    """Front ends with one Redis, each with a cache of its own."""

    def new() -> CachedEngine:
        return CachedEngine(start_client(), VectorCache(1 << 20), DIGEST, new_remote())

    return new


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    give_up = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < give_up, "what the test waits for did not happen"
        await asyncio.sleep(0.005)


async def written(redis: Redis, count: int) -> None:
    async def is_written() -> bool:
        return bool(await redis.dbsize() == count)

    await until(is_written)


async def commands(redis: Redis, name: str) -> int:
    statistics = await redis.info("commandstats")
    return int(statistics.get(f"cmdstat_{name}", {}).get("calls", 0))


# by itself


async def test_what_was_put_is_found_as_raw_floats_with_a_time_to_live(remote: RemoteCache, raw: Redis) -> None:
    remote.put(key(1), value(1))
    await written(raw, 1)
    name = PREFIX + key(1).hex()
    stored = await raw.get(name)
    assert isinstance(stored, bytes)
    assert struct.unpack(f"<{DIM}f", stored) == tuple(vector([1]).tolist())
    assert 0 < await raw.ttl(name) <= TTL
    assert await remote.get([key(2), key(1)]) == {key(1): value(1)}


async def test_one_turns_requests_are_one_command(remote: RemoteCache, raw: Redis) -> None:
    for n in range(40):
        remote.put(key(n), value(n))
    await written(raw, 40)
    before = await commands(raw, "mget")
    answers = await asyncio.gather(*(remote.get([key(n), key(n + 1)]) for n in range(20)))
    for n, found in enumerate(answers):
        assert (found[key(n)], found[key(n + 1)]) == (value(n), value(n + 1))
    assert await commands(raw, "mget") == before + 1


async def test_a_large_request_is_read_in_several_commands(remote: RemoteCache, raw: Redis) -> None:
    count = 3 * remote_cache.MOST_READ + 1
    for n in range(count):
        remote.put(key(n), value(n))
        if n % 512 == 511:
            await written(raw, n + 1)
    await written(raw, count)
    found = await remote.get([key(n) for n in range(count)])
    assert found == {key(n): value(n) for n in range(count)}
    assert remote.dropped == 0


@pytest.mark.parametrize(
    "wrong",
    [b"", b"x", value(1)[:-1], value(1) + b"x", value(1) * 2, np.full(DIM, np.nan, "<f4").tobytes()],
    ids=["empty", "one byte", "short", "long", "twice", "not a number"],
)
async def test_a_wrong_value_is_a_miss(remote: RemoteCache, raw: Redis, wrong: bytes) -> None:
    await raw.set(PREFIX + key(1).hex(), wrong)
    await raw.set(PREFIX + key(2).hex(), value(2))
    assert await remote.get([key(1), key(2)]) == {key(2): value(2)}


async def test_a_value_of_another_type_is_a_miss(remote: RemoteCache, raw: Redis) -> None:
    await raw.rpush(PREFIX + key(1).hex(), "a")
    assert await remote.get([key(1)]) == {}


async def test_one_who_gives_up_takes_the_answer_from_nobody(remote: RemoteCache, raw: Redis) -> None:
    remote.put(key(1), value(1))
    await written(raw, 1)
    one, other = (asyncio.ensure_future(remote.get([key(1)])) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert await other == {key(1): value(1)}


async def test_what_redis_cannot_keep_up_with_is_dropped_and_counted(remote: RemoteCache, raw: Redis) -> None:
    more = 10
    for n in range(remote_cache.MOST_WAITING + more):
        remote.put(key(n), value(n))
    assert remote.dropped == more
    await written(raw, remote_cache.MOST_WAITING)


async def test_a_full_redis_takes_no_more_and_is_not_away(remote: RemoteCache, raw: Redis) -> None:
    remote.put(key(1), value(1))
    await written(raw, 1)
    await raw.config_set("maxmemory", 1)
    remote.put(key(2), value(2))
    await eventually(lambda: remote.dropped == 1)
    assert await remote.get([key(1), key(2)]) == {key(1): value(1)}


async def test_to_close_gives_up_what_is_not_written(remote: RemoteCache) -> None:
    for n in range(100):
        remote.put(key(n), value(n))
    await remote.close()
    assert remote.dropped == 100


# behind front ends


async def known(engine: CachedEngine, peer: EnginePeer, raw: Redis, count: int) -> None:
    """The first texts' vectors are in this front end and in Redis from now on."""
    before = len(peer.texts)
    call = start_call(engine, TEXTS[:count])
    peer.answer(*(await peer.received(before + count))[before:])
    await call
    await written(raw, count)


async def test_front_ends_share_their_vectors(start_peer: StartPeer, front: Front, raw: Redis) -> None:
    peer, one, other = start_peer(), front(), front()
    await known(one, peer, raw, 3)
    mixed = [TEXTS[4], *TEXTS[:3]]
    call = start_call(other, mixed)
    peer.answer((await peer.received(4))[3])
    done = await call
    assert (done.parts, done.hits) == (expected(mixed), 3)
    assert (other.counters.remote_hits, other.counters.hits, other.counters.misses) == (3, 0, 1)
    reads = await commands(raw, "mget")
    again = await start_call(other, TEXTS[:3])
    assert (again.parts, again.hits, other.counters.hits) == (expected(TEXTS[:3]), 3, 3)
    assert await commands(raw, "mget") == reads, "what came from Redis is the front end's own now"


async def test_what_is_under_way_is_not_looked_for(start_peer: StartPeer, front: Front, raw: Redis) -> None:
    peer, engine = start_peer(), front()
    first = start_call(engine, TEXTS[:1])
    await peer.received(1)
    reads = await commands(raw, "mget")
    second = start_call(engine, TEXTS[:1])
    await eventually(lambda: engine.counters.shared == 1)
    assert await commands(raw, "mget") == reads
    peer.answer(*peer.texts)
    assert (await first).parts == (await second).parts == expected(TEXTS[:1])


async def test_a_hundred_at_once_are_one_computation(start_peer: StartPeer, front: Front, raw: Redis) -> None:
    peer, engine = start_peer(), front()
    calls = [start_call(engine, TEXTS[:1]) for _ in range(100)]
    await eventually(lambda: engine.counters.shared == 99)
    peer.answer(*await peer.received(1))
    assert [(await call).parts for call in calls] == [expected(TEXTS[:1])] * 100
    assert len(peer.texts) == 1
    assert await commands(raw, "mget") >= 1


async def test_wrong_values_are_computed_and_written_again(start_peer: StartPeer, front: Front, raw: Redis) -> None:
    peer, one, other = start_peer(), front(), front()
    await known(one, peer, raw, 1)
    (name,) = await raw.keys(PREFIX + "*")
    await raw.set(name, b"not a vector")
    call = start_call(other, TEXTS[:1])
    peer.answer((await peer.received(2))[1])
    assert (await call).parts == expected(TEXTS[:1])

    async def is_right_again() -> bool:
        return [await raw.get(name)] == expected(TEXTS[:1])

    await until(is_right_again)


async def test_a_killed_redis_is_done_without_and_used_again(
    start_peer: StartPeer, front: Front, server: RedisServer, raw: Redis
) -> None:
    peer, one, other = start_peer(), front(), front()
    await known(one, peer, raw, 1)
    server.kill()
    call = start_call(other, TEXTS[:1])
    peer.answer((await peer.received(2))[1])
    assert (await call).parts == expected(TEXTS[:1])
    await eventually(lambda: other.counters.remote_dropped == 1)
    assert (await start_call(one, TEXTS[:1])).hits == 1
    server.start()
    # Its connection was to the one that was killed.
    await raw.connection_pool.disconnect()
    number = 0
    while not await raw.dbsize():
        number += 1
        call = start_call(one, [ids(7, number)])
        peer.answer((await peer.received(2 + number))[-1])
        await call
        await asyncio.sleep(0.005)
    assert number < 1000


async def test_a_hung_redis_costs_one_timeout(
    start_peer: StartPeer, front: Front, server: RedisServer, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, engine = start_peer(), front()
    await known(engine, peer, raw, 1)
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.025)
    monkeypatch.setattr(redis_link, "RETRY_SECONDS", 3600)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        for count in range(2, 30):
            call = start_call(engine, [ids(7, count)])
            peer.answer((await peer.received(count))[-1])
            await call
        assert (await start_call(engine, TEXTS[:1])).hits == 1
        assert engine._remote is not None
        assert engine._remote._link.failures <= 2, "a reading and a writing may have been under way, no more"
        await eventually(lambda: engine.counters.remote_dropped == 28)
    finally:
        server.process.send_signal(signal.SIGCONT)


async def test_a_deadline_holds_while_redis_hangs(
    start_peer: StartPeer, front: Front, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, engine = start_peer(), front()
    await peer.joined()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 3600)
    try:
        patient = start_call(engine, TEXTS[:1])
        with pytest.raises(DeadlineExceeded):
            await start_call(engine, TEXTS[:1], deadline_ns=time.monotonic_ns() + 20_000_000)
        assert not patient.done()
    finally:
        server.process.send_signal(signal.SIGCONT)
    peer.answer(*await peer.received(1))
    assert (await patient).parts == expected(TEXTS[:1])
