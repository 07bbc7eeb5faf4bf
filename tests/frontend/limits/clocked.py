"""Both stores on a clock that only the test moves: the script in Redis reads it from a hash in place of TIME."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol
from unittest import mock

import redis

from frontend import redis_link
from frontend.limits import shared
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.quota import Quota, Store, Verdict
from frontend.limits.script import WINDOWS
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from perf.redis_server import RedisServer

START_US = 1_000_000_000_000
ASKS_TIME = "redis.call('TIME')"
CLOCKED = WINDOWS.replace(ASKS_TIME, "redis.call('HMGET', 'clock', 's', 'us')")
assert CLOCKED != WINDOWS


class Clock(Protocol):
    """Time that stands still until it is moved."""

    now_us: int

    def advance(self, seconds: float) -> None: ...


class OwnClock:
    def __init__(self) -> None:
        self.now_us = START_US

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    def __call__(self) -> int:
        return self.now_us * 1000


class RedisClock(OwnClock):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._redis = redis.Redis.from_url(url)
        self.advance(0)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._redis.hset("clock", mapping={"s": self.now_us // 1_000_000, "us": self.now_us % 1_000_000})

    def close(self) -> None:
        self._redis.close()


class Clocked(NamedTuple):
    """A store and its clock."""

    store: Store
    clock: Clock

    async def admit(self, key_id: str, quota: Quota, tokens: int = 1, requests: int = 1) -> Verdict:
        verdict = await self.store.admit(key_id, quota, tokens, requests)
        assert verdict is not None
        return verdict

    async def usage(self, key_id: str, quota: Quota) -> Verdict:
        verdict = await self.store.usage(key_id, quota)
        assert verdict is not None
        return verdict


@contextmanager
def clocked_embedded(folder: Path) -> Iterator[Clocked]:
    clock = OwnClock()
    store = EmbeddedWindows(folder, clock=clock)
    yield Clocked(store, clock)
    store.close()


@contextmanager
def clocked_redis(server: RedisServer) -> Iterator[tuple[Clocked, RedisLink]]:
    """Whoever takes it closes the link, in the loop that used it."""
    clock = RedisClock(server.url)
    sha = hashlib.sha1(CLOCKED.encode(), usedforsecurity=False).hexdigest()
    with (
        mock.patch.object(shared, "WINDOWS", CLOCKED),
        mock.patch.object(shared, "SHA", sha),
        # The machine of the tests may be busy.
        mock.patch.object(redis_link, "TIMEOUT_SECONDS", 10.0),
    ):
        link = RedisLink(server.url)
        yield Clocked(RedisWindows(link), clock), link
    clock.close()
