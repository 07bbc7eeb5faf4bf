"""URLs that are none, and servers that are no Redis, or none that does what it is asked: no call ever raises."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis, SSLConnection

from frontend import redis_link
from frontend.limits.quota import Quota
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from frontend.remote_cache import RemoteCache
from ipc.errors import StartError
from perf.redis_server import RedisServer
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio

PASSWORD = "s3cret'of-the-tests"  # noqa: S105 - nobody's
QUOTA = Quota(rpm=5)
KEY = bytes(16)
VECTOR = b"\x00\x00\x80\x3f" * 4
# A certificate for 127.0.0.1 that signs itself, with its key.
TLS = Path(__file__).parent / "tls.pem"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of the tests may be busy; what is away is tried again at once."""
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(redis_link, "RETRY_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def raw(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as redis:
        yield redis


def reasons(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged, and why."""
    ours = [record for record in caplog.records if record.name == redis_link.__name__]
    return [(record.message, getattr(record, "reason", "")) for record in ours]


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[tuple[RedisLink, RedisWindows, RemoteCache]]:
    link = RedisLink(url)
    cache = RemoteCache(link, len(VECTOR) // 4, 60)
    yield link, RedisWindows(link), cache
    await cache.close()
    await link.close()


async def ask_everything(windows: RedisWindows, cache: RemoteCache) -> list[object]:
    """Limits alone, three at once, their use, and the cache: what each gives."""
    found: list[object] = [await windows.admit("key", QUOTA, 1)]
    found += await asyncio.gather(*(windows.admit("key", QUOTA, 1) for _ in range(3)))
    found += [await windows.usage("key", QUOTA), (await cache.get([KEY])).get(KEY)]
    dropped = cache.dropped
    cache.put(KEY, VECTOR)
    await eventually(lambda: not cache._is_writing)
    return [*found, None if cache.dropped > dropped else VECTOR]


NOTHING: list[object] = [None] * 7


# URLs


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@here",
        f"redis://:{PASSWORD}@127.0.0.1:port/0",
        f"redis://:{PASSWORD}@127.0.0.1:99999/0",
        f"redis://:{PASSWORD}@[::1/0",
        f"redis://:{PASSWORD}@127.0.0.1/name",
        f"redis://:{PASSWORD}@127.0.0.1/0?unknown=1",
        f"redis://:{PASSWORD}@127.0.0.1/0?socket_timeout=long",
        f"redis://:{PASSWORD}@127.0.0.1/0?ssl_cert_reqs=none",
        f"rediss://:{PASSWORD}@127.0.0.1/0?ssl_cert_reqs=perhaps",
        f"rediss://:{PASSWORD}@127.0.0.1/0?ssl_ca_certs=/nowhere",
        f"redis://:/{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:1/{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:1?{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:1#{PASSWORD}@127.0.0.1:6379/0",
    ],
)
def test_a_bad_url_is_told_at_the_start_and_no_part_of_it(url: str) -> None:
    with pytest.raises(StartError, match=r"^EMBEDLANE_REDIS_URL is not valid: give [^.]+[.]$") as told:
        RedisLink(url)
    assert "s3cret" not in str(told.value)
    assert "s3cret" not in repr(told.value.__cause__)


@pytest.mark.parametrize("options", ["", "?decode_responses=true", "?retry=9&retry_on_timeout=true", "?protocol=3"])
async def test_options_of_the_url_do_not_change_what_is_stored(server: RedisServer, options: str) -> None:
    async with linked(f"redis://127.0.0.1:{server.port}{options}") as (link, windows, cache):
        await ask_everything(windows, cache)
        assert await cache.get([KEY]) == {KEY: VECTOR}
        assert (link.is_up, link.failures) == (True, 0)


async def test_tls(server: RedisServer, raw: Redis) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, redis[1]), pump(redis[0], writer))

    async with await asyncio.start_server(forward, "127.0.0.1", ssl=context) as front:
        url = f"rediss://127.0.0.1:{front.sockets[0].getsockname()[1]}/0"
        async with linked(f"{url}?ssl_ca_certs={TLS}") as (link, windows, cache):
            assert None not in [*(await ask_everything(windows, cache)), await cache.get([KEY])][:5]
            pool = link._redis.connection_pool
            connections = [pool.connection_class(**pool.connection_kwargs) for _ in range(3)]
            contexts = {one.ssl_context for one in connections if isinstance(one, SSLConnection)}
            assert len(contexts) == 1, "one takes 15 ms to make"
        async with linked(url) as (link, windows, cache):
            assert await ask_everything(windows, cache) == NOTHING, "nobody vouches for this server"


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


# a Redis that refuses


async def full(redis: Redis) -> None:
    await redis.config_set("maxmemory", 1)


async def replica(redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def spoiled(redis: Redis) -> None:
    await redis.set("embedlane:limits:{key}", "not a hash")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(full, "maxmemory"), (replica, "read only replica"), (spoiled, "WRONGTYPE")],
    ids=["full", "replica", "type"],
)
async def test_what_redis_refuses_is_told_once_and_the_rest_goes_on(
    server: RedisServer,
    raw: Redis,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Redis], Awaitable[None]],
    word: str,
) -> None:
    caplog.set_level(logging.INFO)
    async with linked(server.url) as (link, windows, cache):
        cache.put(KEY, VECTOR)
        await eventually(lambda: not cache._is_writing)
        await spoil(raw)
        for _ in range(3):
            found = await ask_everything(windows, cache)
            assert found[:4] == [None] * 4
            assert found[5] == VECTOR, "it is still read"
        assert link.is_up
    [(message, reason)] = reasons(caplog)
    assert message == "redis refuses a command"
    assert word in reason


async def test_a_key_that_is_spoiled_spoils_no_other(server: RedisServer, raw: Redis) -> None:
    await spoiled(raw)
    async with linked(server.url) as (_, windows, _):
        for _ in range(3):
            assert await windows.admit("key", QUOTA, 1) is None
            assert await windows.admit("other", QUOTA, 1) is not None


@pytest.mark.parametrize("given", ["", ":wrong-one@", f"somebody:{PASSWORD}@"], ids=["none", "wrong", "user"])
async def test_without_the_right_password_it_is_away(
    server: RedisServer, raw: Redis, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    caplog.set_level(logging.DEBUG)
    await raw.config_set("requirepass", PASSWORD)
    async with linked(server.url.replace("//", f"//{given}")) as (link, windows, cache):
        assert await ask_everything(windows, cache) == NOTHING
        assert not link.is_up
    assert [message for message, reason in reasons(caplog) if reason] == ["redis is away"]
    assert "s3cret" not in caplog.text + str(reasons(caplog))
    assert "wrong-one" not in caplog.text + str(reasons(caplog))
    async with linked(server.url.replace("//", f"//:{PASSWORD}@")) as (link, windows, cache):
        assert None not in (await ask_everything(windows, cache))[:5]


# no Redis at all


@asynccontextmanager
async def stranger(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """The URL of a server that answers whatever it gets with what the function says."""
    tasks = set[asyncio.Task[None]]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type] # it is one
        while data := await reader.read(1 << 16):
            writer.write(answer(data))
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1") as server:
        yield f"redis://:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        await asyncio.gather(*tasks)


REPLIES = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "empty error": b"-\r\n",
    "length below zero": b"$-5\r\n",
    "no number": b":abc\r\n",
    "no length": b"*x\r\n",
    "half": b"$100\r\n",
    "too deep": b"*1\r\n" * 5000,
    "too long": b"$99999999999999999999\r\n",
    "one number": b":5\r\n",
    "empty list": b"*0\r\n",
    "short list": b"*3\r\n:1\r\n:2\r\n:3\r\n",
    "list of texts": b"*13\r\n" + b"$1\r\na\r\n" * 13,
    "map": b"%1\r\n+a\r\n+b\r\n",
    "no text": b"\xff\xfe\r\n-\xff\xfe\r\n",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_what_is_no_reply_counts_as_away(
    reply: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.1)
    caplog.set_level(logging.DEBUG)
    async with stranger(lambda _: reply) as url, linked(url) as (link, windows, cache):
        found = await ask_everything(windows, cache)
        assert found[:6] == NOTHING[:6]
        assert link.failures
    told = [reason for message, reason in reasons(caplog) if message != "redis is back"]
    assert told
    assert all(told)


@pytest.mark.parametrize("before", [b"", b"-ERR unknown command ", b"500 what is "], ids=["echo", "error", "smtp"])
async def test_a_server_that_repeats_the_password_puts_it_into_no_log(
    before: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.1)
    caplog.set_level(logging.DEBUG)

    def answer(data: bytes) -> bytes:
        return before + data.replace(b"\r\n", b" ") + b"\r\n" if before else data

    async with stranger(answer) as url, linked(url) as (_, windows, cache):
        assert await ask_everything(windows, cache) == NOTHING
    assert reasons(caplog)
    assert "s3cret" not in caplog.text + str([vars(record) for record in caplog.records])
