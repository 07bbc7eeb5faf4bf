"""The cache that all machines share, in Redis: read before the engine is asked, written behind the answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from redis.asyncio import Redis
from redis.exceptions import InvalidResponse

from frontend import redis_link
from frontend.redis_link import RedisLink

T = TypeVar("T")

PREFIX: Final = "el:v:"
# With 384 dimensions a command of either kind holds the event loop for about 1 ms: to read 256 or to write 64.
MOST_READ: Final = 256
MOST_WRITTEN: Final = 64
# Vectors that wait to be written; beyond that Redis does not keep up, and the newest are dropped.
MOST_WAITING: Final = 1024


class RemoteCache:
    """Vectors of `dim` little-endian float32 under the hex digest of their key, for `ttl_s` seconds.

    What Redis has in another length, or with something in it that is not a number, is a miss. While Redis is away all
    are, and what was to be written is dropped.
    """

    def __init__(self, link: RedisLink, dim: int, ttl_s: int) -> None:
        self._link = link
        self.dim = dim
        self._ttl_s = ttl_s
        # The keys of the next reading, and its answer: all that one turn of the event loop asks for is read at once.
        self._asked: dict[bytes, None] = {}
        self._answer: asyncio.Task[dict[bytes, bytes]] | None = None
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._is_writing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.dropped = 0

    async def close(self) -> None:
        """Give up what is not written yet; the link is closed by its owner."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The vectors that Redis has, those of others who asked in the same turn among them; nothing while it is away.

        Takes the link's timeout at most; with more than one command (256 keys), twice that.
        """
        self._asked.update(dict.fromkeys(keys))
        if self._answer is None:
            self._answer = self._start(self._read())
        # One who gives up must not take the answer from the others.
        return await asyncio.shield(self._answer)

    def put(self, key: bytes, vector: bytes) -> None:
        """Write a vector soon, with all others of this turn; it is dropped and counted where too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append((key, vector))
        if not self._is_writing:
            self._is_writing = True
            self._start(self._write())

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _read(self) -> dict[bytes, bytes]:
        keys, self._asked, self._answer = list(self._asked), {}, None
        loop = asyncio.get_running_loop()
        give_up = loop.time() + redis_link.TIMEOUT_SECONDS
        found: dict[bytes, bytes] = {}
        for begin in range(0, len(keys), MOST_READ):
            some = keys[begin : begin + MOST_READ]
            values = await self._link.call(partial(_get, some))
            if values is None:
                break
            found |= {
                key: value
                for key, value in zip(some, values, strict=True)
                if isinstance(value, bytes) and self._is_vector(value)
            }
            if loop.time() > give_up:
                break
        return found

    def _is_vector(self, value: bytes) -> bool:
        return len(value) == self.dim * 4 and bool(np.isfinite(np.frombuffer(value, "<f4")).all())

    async def _write(self) -> None:
        try:
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(MOST_WRITTEN, len(self._waiting)))]
                written = await self._link.call(partial(_set, some, self._ttl_s))
                self.dropped += len(some) - (written or 0)
        finally:
            self._is_writing = False


async def _get(keys: Sequence[bytes], redis: Redis) -> Sequence[bytes | str | None]:
    values = await redis.mget([_name(key) for key in keys])
    if type(values) is not list or len(values) != len(keys):
        raise InvalidResponse("MGET gave something else than a list with a value for each key.")
    return values


async def _set(vectors: Sequence[tuple[bytes, bytes]], ttl_s: int, redis: Redis) -> int:
    """How many Redis took. One that is full refuses to write, and is as good as ever for all else."""
    async with redis.pipeline(transaction=False) as pipeline:
        for key, vector in vectors:
            pipeline.set(_name(key), vector, ex=ttl_s)
        return sum(result is True for result in await pipeline.execute(raise_on_error=False))


def _name(key: bytes) -> str:
    return PREFIX + key.hex()
